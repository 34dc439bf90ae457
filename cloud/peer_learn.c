/* peer_learn.c - in: LEARN rows and anchors' numbers of a connection, rows that are decoded. out: FEATURES, FITTED, errors of rows. */
#include "engine_parts.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- training rows ---- */

/* Takes a row out of the queue and gives back its place in the model's cache. The row itself stays. */
static void row_leaves(struct peer *p, struct spa_learn_row *r)
{
    struct spa_engine *e = p->engine;
    if (r->placed) {
        e->model->seq_rm(e->model->self, e->model->info.n_slots + r->seq, 0);
        e->seq_taken[r->seq] = false;
        e->learn_cells -= r->n_feed - r->n_lead;
    }
    if (r->group_end) {
        p->groups_ready--;
        if (r->placed && e->learner == p) {   /* it was being decoded: the next group is another device's */
            lead_drop(e);
            e->learner = NULL;
            e->next_learner = p->next;
            e->anchors_next = true;
        }
    }
    struct spa_learn_row **at = &p->rows;
    while (*at != r)
        at = &(*at)->next;
    *at = r->next;
    if (!*at)
        p->rows_end = at;
}

static void drop_kept(struct peer *p, struct spa_learn_row **at)
{
    struct spa_learn_row *r = *at;
    *at = r->next;
    p->engine->kept_bytes -= spa_learn_raw_bytes(r, &p->host.shape);
    spa_learn_row_free(r);
}

static bool same_row(const struct spa_learn_row *a, const struct spa_learn_row *b)
{
    return a->n_tokens == b->n_tokens && a->n_loss == b->n_loss && memcmp(a->tokens, b->tokens, a->n_tokens * sizeof *a->tokens) == 0 &&
           memcmp(a->pos, b->pos, a->n_loss * sizeof *a->pos) == 0;
}

/* Where in kept r's twin of a group is (group 0: of any); NULL: there is none. */
static struct spa_learn_row **kept_twin(struct peer *p, const struct spa_learn_row *r, uint32_t group)
{
    for (struct spa_learn_row **at = &p->kept; *at; at = &(*at)->next)
        if ((group == 0 || (*at)->group == group) && !(*at)->taken && same_row(*at, r))
            return at;
    return NULL;
}

/* Each row of the group has a twin of its own; the same row may have come twice. */
static bool all_have_twins(struct peer *p, const struct spa_learn_row *first, uint32_t group)
{
    bool all = true;
    for (const struct spa_learn_row *r = first; r && all; r = r->next) {
        struct spa_learn_row **twin = kept_twin(p, r, group);
        all = twin != NULL;
        if (twin)
            (*twin)->taken = true;
    }
    for (struct spa_learn_row *k = p->kept; k; k = k->next)
        k->taken = false;
    return all;
}

/* Answers a whole group whose states the fit has kept. A group of other rows is decoded: what was decoded with a row decides its
 * last bits. */
static void answer_from_kept(struct peer *p, struct spa_learn_row *first)
{
    struct spa_learn_row **twin = kept_twin(p, first, 0);
    const uint32_t group = twin ? (*twin)->group : 0;
    if (!twin || (*twin)->group_rows != first->group_rows)
        return;
    if (!all_have_twins(p, first, group))
        return;
    for (struct spa_learn_row *r = first, *next; r; r = next) {
        next = r->next;
        twin = kept_twin(p, r, group);
        feed_kept(p->engine, p, *twin, r);
        drop_kept(p, twin);
        const spa_Features f = { .row = r->id, .n_tokens = r->n_tokens, .n_ctx = r->n_ctx, .n_loss = r->n_loss };
        spa_host_features(&p->host, &f, r->bulk, r->bulk_len);
        row_leaves(p, r);
        spa_learn_row_free(r);
    }
}

/* Room for the raw states of all rows from `first` on, or of none. */
static void keep_raw(struct peer *p, struct spa_learn_row *first)
{
    struct spa_engine *e = p->engine;
    const struct spa_shape *shape = &p->host.shape;
    size_t need = 0;
    for (const struct spa_learn_row *r = first; r; r = r->next)
        need += spa_learn_raw_bytes(r, shape);
    bool ok = e->kept_bytes + need <= KEPT_MAX;
    for (struct spa_learn_row *r = first; ok && r; r = r->next)
        ok = spa_learn_raw_make(r, shape);
    for (struct spa_learn_row *r = first; r; r = r->next)
        if (ok)
            e->kept_bytes += spa_learn_raw_bytes(r, shape);
        else
            spa_learn_raw_drop(r);
}

/* A group ends with the row that says so. A window full of one unfinished group ends it too, since no more of it can come; while other
 * rows are open as well, their answers make room. */
static void end_group(struct peer *p, const spa_Learn *l)
{
    struct spa_learn_row *first = p->rows, *last = NULL;
    uint32_t n = 0;
    while (first && first->group != p->group)
        first = first->next;
    for (struct spa_learn_row *r = first; r; r = r->next) {
        last = r;
        n++;
    }
    if (l->more && n < p->host.limits.learn_window)
        return;
    p->group++;
    if (!last)
        return;
    for (struct spa_learn_row *r = first; r; r = r->next)
        r->group_rows = n;
    last->group_end = true;
    p->groups_ready++;
    lead_of_group(first);
    bool all_fit = true, any_fit = false;
    for (const struct spa_learn_row *r = first; r; r = r->next) {
        all_fit = all_fit && r->fit;
        any_fit = any_fit || r->fit;
    }
    if (all_fit)
        keep_raw(p, first);
    else if (!any_fit)
        answer_from_kept(p, first);
}

/* The last row to fit on has come and all of them are decoded: the fit may run, tap by tap. */
static void fit_when_ready(struct peer *p)
{
    if (p->fit && p->fit_last && !p->rows)
        p->fit_running = true;
}

/* ---- anchors ---- */

static void on_anchor(struct peer *p, uint32_t number)
{
    struct spa_engine *e = p->engine;
    if (!p->anchor_ids)
        p->anchor_ids = malloc(p->host.limits.learn_window * sizeof *p->anchor_ids);
    if (!p->anchors)
        p->anchors = spa_anchor_set_get(e->cfg.anchors, p->host.shape.taps, p->host.shape.n_taps);
    if (!p->anchors || !p->anchor_ids) {
        spa_host_row_error(&p->host, number, spa_Code_BUSY,
                           "the cloud makes anchors for as many sets of taps as it can; try again later, or train with --general 0");
        return;
    }
    p->anchor_ids[p->n_anchor_ids++] = number;   /* the host lets in no more than the window */
}

static void answer_anchor(struct peer *p, uint32_t number, const struct spa_anchor *anchor)
{
    struct spa_engine *e = p->engine;
    const struct spa_shape *shape = &p->host.shape;
    char why[256];
    spa_Code code;
    struct spa_learn_row *r = spa_learn_row_of_tokens(number, anchor->tokens, anchor->n_prompt, anchor->n_tokens, shape, p->host.tap_dtype,
                                                      p->host.peer_max_message, &code, why, sizeof why);
    float *raw = r ? malloc(((size_t)shape->n_taps + 1) * shape->d * sizeof *raw) : NULL;
    if (raw) {
        feed_anchor(e, p, anchor, r, raw);
        const spa_Features f = { .row = number, .n_tokens = r->n_tokens, .n_ctx = r->n_ctx, .n_loss = r->n_loss };
        spa_host_features(&p->host, &f, r->bulk, r->bulk_len);
    } else {
        spa_host_row_error(&p->host, number, code, why);
    }
    free(raw);
    spa_learn_row_free(r);
}

void peer_anchor_step(struct peer *p)
{
    enum { AT_ONCE = 4 };   /* in one round: projecting all positions takes some milliseconds each */
    uint32_t left = 0, done = 0;
    for (uint32_t i = 0; i < p->n_anchor_ids; i++) {
        const uint32_t number = p->anchor_ids[i];
        struct spa_anchor anchor;
        const bool may = done < AT_ONCE && feed_may_send(p->engine, p) && !peer_broken(p);
        switch (may ? spa_anchor_get(p->anchors, number, &anchor) : SPA_ANCHOR_COMING) {
        case SPA_ANCHOR_HERE:
            answer_anchor(p, number, &anchor);
            done++;
            break;
        case SPA_ANCHOR_FAILED:
            spa_host_row_error(&p->host, number, spa_Code_INTERNAL, "the cloud could not make the states of an anchor; try again, or train with --general 0");
            break;
        case SPA_ANCHOR_COMING:
            p->anchor_ids[left++] = number;
            break;
        }
    }
    p->n_anchor_ids = left;
}

void peer_learn(struct peer *p, const struct spa_message *m)
{
    struct spa_engine *e = p->engine;
    const spa_Learn *l = &m->head.learn;
    const struct spa_shape *shape = &p->host.shape;
    char why[256];
    spa_Code code;
    if (e->draining) {
        spa_host_row_error(&p->host, l->row, spa_Code_DRAINING, "the cloud is shutting down; train with another one, or try again in a moment");
        return;
    }
    if (l->anchor) {
        on_anchor(p, l->row);
        return;
    }
    if (l->fit && !p->fit && shape->basis)
        p->fit = spa_fit_new(shape);
    if (l->fit && (!p->fit || p->fit_last)) {
        spa_host_row_error(&p->host, l->row, spa_Code_BAD_ORDER, "no basis is being fitted on this connection");
        return;
    }
    p->fit_last |= l->fit && l->last;
    const size_t bytes = peer_prompt_bytes(m);
    const bool too_long = bytes > e->prompt_max, enough = !too_long && l->fit && spa_fit_states(p->fit) == SPA_FIT_STATES_MAX;
    struct spa_learn_row *r = NULL;
    if (too_long) {
        code = spa_Code_CONTEXT_FULL;
        snprintf(why, sizeof why, "the row has %zu bytes and this cloud looks at up to %zu; shorten it, or start spa-cloud with a larger -c or --max-prompt",
                 bytes, e->prompt_max);
    } else if (!enough) {
        r = spa_learn_row_new(e->model, l, m->bulk, m->bulk_len, shape, p->host.tap_dtype, p->host.peer_max_message, &code, why, sizeof why);
    }
    if (r) {
        r->group = p->group;
        *p->rows_end = r;
        p->rows_end = &r->next;
    } else if (enough) {
        const spa_Features none = { .row = l->row };
        spa_host_features(&p->host, &none, NULL, 0);
    } else {
        e->metrics.refused[code == spa_Code_CONTEXT_FULL ? SPA_REFUSED_CONTEXT : SPA_REFUSED_CONTENTS]++;
        spa_host_row_error(&p->host, l->row, code, why);
    }
    end_group(p, l);
    fit_when_ready(p);
}

void peer_row_done(struct peer *p, struct spa_learn_row *r)
{
    spa_Features f = { .row = r->id, .n_tokens = r->n_tokens, .n_ctx = r->fit ? 0 : r->n_ctx, .n_loss = r->fit ? 0 : r->n_loss };
    spa_host_features(&p->host, &f, r->bulk, r->bulk_len);
    row_leaves(p, r);
    if (r->raw) {
        r->next = p->kept;
        p->kept = r;
    } else {
        spa_learn_row_free(r);
    }
    fit_when_ready(p);
}

void peer_fit_step(struct peer *p)
{
    float *floats = NULL;
    const enum spa_err err = spa_fit_step(p->fit, &floats);
    if (err == SPA_NONE)
        return;
    const uint32_t n_states = spa_fit_states(p->fit);
    spa_fit_free(p->fit);
    p->fit = NULL;
    p->fit_running = p->fit_last = false;
    struct spa_basis *b = err == SPA_OK ? spa_bases_add(&p->engine->bases, floats, spa_basis_floats(&p->host.shape)) : NULL;
    if (!b) {
        char why[192];
        if (err == SPA_OK)
            snprintf(why, sizeof why, "the cloud keeps as many bases as it can; try again later");
        else if (err == SPA_ERR_SHAPE)
            snprintf(why, sizeof why, "%u answer tokens have too little in them to fit %u directions on; give more rows or a smaller --basis task:K", n_states,
                     p->host.shape.k);
        else
            snprintf(why, sizeof why, "no basis could be fitted on %u states of width %u; use --basis none", n_states, p->host.shape.d);
        spa_host_error(&p->host, 0, err == SPA_OK ? spa_Code_BUSY : spa_Code_BAD_REQUEST, why);
        return;
    }
    peer_say_fitted(p, b, n_states);
    engine_log(p->engine, "connection %u: a basis was fitted on %u states", p->number, n_states);
}

void peer_rows_free(struct peer *p)
{
    while (p->rows) {
        struct spa_learn_row *r = p->rows;
        row_leaves(p, r);
        p->engine->kept_bytes -= r->raw ? spa_learn_raw_bytes(r, &p->host.shape) : 0;
        spa_learn_row_free(r);
    }
    while (p->kept)
        drop_kept(p, &p->kept);
    spa_anchor_set_put(p->anchors);
    free(p->anchor_ids);
    spa_fit_free(p->fit);
}
