/* peer.c - in: bytes of one connection, through its host. out: turns, training rows, bases; the ends of all of them. */
#include "engine_parts.h"

#include <openssl/evp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static enum spa_err send_message(void *user, const uint8_t *a, size_t a_len, const uint8_t *b, size_t b_len)
{
    struct peer *p = user;
    const enum spa_err err = spa_mail_send(p->engine->cfg.mail, p->conn, a, a_len, b, b_len);
    p->unsendable |= err != SPA_OK;
    return err;
}

struct peer *peer_new(struct spa_engine *e, struct spa_conn *c)
{
    struct peer *p = calloc(1, sizeof *p);
    if (!p)
        return NULL;
    p->engine = e;
    p->conn = c;
    p->number = ++e->next_number;
    p->rows_end = &p->rows;
    p->group = 1;
    ahead_hope(p);
    p->buf = malloc(e->cfg.max_message);   /* touched page by page as messages come: an idle connection costs little */
    p->z = malloc(e->model->info.d * sizeof *p->z);
    if (!p->buf || !p->z) {
        free(p->buf);
        free(p->z);
        free(p);
        return NULL;
    }
    const struct spa_sink sink = { p, send_message };
    spa_host_init(&p->host, sink, &e->cfg.limits, p->buf, e->cfg.max_message, p->z, e->model->info.d, spa_now_ms());
    return p;
}

bool peer_broken(const struct peer *p)
{
    return p->host.state == SPA_HOST_CLOSED || p->host.error < 0 || p->unsendable;
}

/* ---- turns ---- */

/* keep: its sequence stays in the slot for a request that goes on from it. */
static void turn_leaves(struct peer *p, struct spa_turn *t, bool keep)
{
    struct spa_engine *e = p->engine;
    const bool queued = t->status == SPA_TURN_QUEUED;
    for (size_t i = 0; i < SPA_REQUESTS_MAX; i++)
        if (p->turns[i] == t)
            p->turns[i] = NULL;
    if (queued) {
        e->n_queued--;
    } else {
        e->slots[t->slot] = NULL;
        e->slot_peer[t->slot] = NULL;
        if (keep) {
            kept_store(e, p, t);
            return;
        }
        e->model->seq_rm(e->model->self, t->slot, 0);
    }
    spa_turn_free(t);
}

void peer_turn_end(struct peer *p, struct spa_turn *t, spa_Finish finish)
{
    static const char *const words[] = { "stop", "length", "cancelled", "context" };
    if (t->status != SPA_TURN_QUEUED)
        ahead_end(p->engine, p, t);
    const struct spa_ahead *a = &t->ahead;
    spa_Done done = { .request = t->request, .finish = finish, .prompt_tokens = t->n_prompt, .completion_tokens = t->n_answer,
                      .steps = t->steps, .shared_steps = t->shared_steps, .cached_tokens = t->n_cached,
                      .guessed_base = a->guessed[SPA_GUESS_BASE], .right_base = a->right[SPA_GUESS_BASE],
                      .guessed_text = a->guessed[SPA_GUESS_TEXT], .right_text = a->right[SPA_GUESS_TEXT],
                      .guessed_draft = a->guessed[SPA_GUESS_DRAFT], .right_draft = a->right[SPA_GUESS_DRAFT],
                      .wasted_steps = a->wasted_steps, .waits = a->waits };
    spa_host_done(&p->host, &done);
    p->engine->metrics.ends[finish]++;
    engine_log(p->engine, "connection %u request %u ended: %s, %u prompt tokens, %u of them kept from before, %u answered, %u asked of the device, %u late, %u refused",
               p->number, t->request, words[finish], t->n_prompt, t->n_cached, t->n_answer, done.gated, done.late, done.refused);
    turn_leaves(p, t, true);
}

void peer_turn_fail(struct peer *p, struct spa_turn *t, spa_Code code, const char *sentence)
{
    spa_host_error(&p->host, t->request, code, sentence);
    p->engine->metrics.ends[SPA_END_FAILED]++;
    engine_log_at(p->engine, SPA_LOG_WARN, "connection %u request %u failed: %s", p->number, t->request, sentence);
    turn_leaves(p, t, false);
}

static struct spa_turn *turn_of(const struct peer *p, uint32_t request)
{
    for (size_t i = 0; i < SPA_REQUESTS_MAX; i++)
        if (p->turns[i] && p->turns[i]->request == request)
            return p->turns[i];
    return NULL;
}

static void on_generate(struct peer *p, const struct spa_message *m)
{
    struct spa_engine *e = p->engine;
    const spa_Generate *g = &m->head.generate;
    char why[256];
    spa_Code code = spa_Code_BUSY;
    struct spa_turn *t = NULL;
    if (e->draining) {
        code = spa_Code_DRAINING;
        snprintf(why, sizeof why, "the cloud is shutting down; ask another one, or try again in a moment");
    } else if (e->n_queued >= e->cfg.max_queue) {
        snprintf(why, sizeof why, "the cloud's queue is full (%u requests wait); try again in a moment", e->n_queued);
    } else {
        t = spa_turn_new(e->model, g, m->bulk, m->bulk_len, &code, why, sizeof why);
    }
    size_t place = 0;
    while (place < SPA_REQUESTS_MAX && p->turns[place])
        place++;
    if (!t || place == SPA_REQUESTS_MAX) {
        spa_turn_free(t);
        spa_host_error(&p->host, g->request, code, why);
        e->metrics.ends[SPA_END_REFUSED]++;
        engine_log_at(e, SPA_LOG_WARN, "connection %u request %u refused: %s", p->number, g->request, why);
        return;
    }
    t->arrived = ++e->arrivals;
    ahead_begin(e, p, t);
    p->turns[place] = t;
    e->n_queued++;
    engine_log_at(e, SPA_LOG_DEBUG, "connection %u request %u asks: %u prompt tokens, %u wait for a slot", p->number, t->request, t->n_prompt, e->n_queued);
}

static void on_state(struct peer *p, const struct spa_host_event *ev)
{
    struct spa_turn *t = turn_of(p, ev->request);
    if (!t)
        return;
    ahead_draft(t, &ev->msg->head.state);
    if (ev->pos >= t->n_tokens) {   /* behind the front */
        ahead_answer(p, t, ev->pos, ev->z, spa_Code_OK);
        return;
    }
    if (t->status != SPA_TURN_AWAITING)
        return;
    ahead_came(p, t->ahead.asked_ms);
    const bool add = p->host.shape.mode == SPA_ADD;
    for (uint32_t i = 0; i < p->engine->model->info.d; i++)
        t->state[i] = ev->z[i] + (add ? t->y_fin[i] : 0.0f);
    t->by = spa_Speaker_PLUGIN;
    t->status = SPA_TURN_STATE;
}

void peer_no_state(struct peer *p, struct spa_turn *t, spa_Code code)
{
    peer_turn_fail(p, t, code, code == spa_Code_LATE_ANSWER ? "the device did not answer in time; try again, or let the base speak (--late base)"
                   : "the device's state was unusable (wrong length, not finite, or absurdly large); the plugin is damaged or of another model");
}

/* The device did not answer, or not usably: the base speaks for this token, or the request ends, as it asked. */
static void on_no_state(struct peer *p, const struct spa_host_event *ev, spa_Code code)
{
    struct spa_turn *t = turn_of(p, ev->request);
    *(code == spa_Code_LATE_ANSWER ? &p->engine->metrics.late : &p->engine->metrics.unusable) += 1;
    const struct spa_host_request *r = spa_host_request(&p->host, ev->request);
    engine_log_at(p->engine, SPA_LOG_DEBUG, "connection %u request %u: the state of position %u is %s", p->number, ev->request, ev->pos,
                  code == spa_Code_LATE_ANSWER ? "late" : "unusable");
    if (!t || !r)
        return;
    if (ev->pos >= t->n_tokens) {   /* behind the front: perhaps it is not part of the answer */
        ahead_answer(p, t, ev->pos, NULL, r->late_policy == spa_Late_LATE_BASE ? spa_Code_OK : code);
        return;
    }
    if (t->status != SPA_TURN_AWAITING)
        return;
    if (r->late_policy == spa_Late_LATE_BASE) {
        memcpy(t->state, t->y_fin, p->engine->model->info.d * sizeof *t->state);
        t->by = spa_Speaker_BASE;
        t->status = SPA_TURN_STATE;
    } else {
        peer_no_state(p, t, code);
    }
}

/* ---- bases ---- */

static void take_basis(struct peer *p, struct spa_basis *b)
{
    spa_bases_put(p->basis);
    p->basis = b;
    spa_host_basis_here(&p->host);
}

static void on_blob(struct peer *p, const struct spa_message *m)
{
    const spa_Blob *b = &m->head.blob;
    const struct spa_shape *shape = &p->host.shape;
    const size_t n = spa_basis_floats(shape), total = n * sizeof(float);
    if (!p->upload)
        p->upload = malloc(total);
    if (!p->upload) {
        spa_host_error(&p->host, 0, spa_Code_INTERNAL, "the cloud is out of memory; try again later");
        return;
    }
    if (b->total != total || b->offset != p->upload_len || m->bulk_len > total - p->upload_len) {
        spa_host_error(&p->host, 0, spa_Code_BAD_MESSAGE, "the basis did not come in order and whole; reconnect");
        return;
    }
    memcpy(p->upload + p->upload_len, m->bulk, m->bulk_len);
    p->upload_len += m->bulk_len;
    if (p->upload_len < total)
        return;
    float *floats = (float *)(void *)p->upload;
    p->upload = NULL;
    if (spa_basis_check(shape, floats) != SPA_OK) {
        free(floats);
        spa_host_error(&p->host, 0, spa_Code_BAD_SHAPE, "the basis holds numbers that are not finite, or a scale that is not positive; the plugin file is damaged");
        return;
    }
    struct spa_basis *basis = spa_bases_add(&p->engine->bases, floats, n);
    if (!basis || memcmp(basis->hash, p->basis_hash, SPA_HASH_BYTES) != 0) {
        spa_bases_put(basis);
        spa_host_error(&p->host, 0, basis ? spa_Code_BAD_MESSAGE : spa_Code_BUSY,
                       basis ? "the basis does not have the hash that was announced; the plugin file is damaged"
                             : "the cloud holds as many bases as it can; try again later");
        return;
    }
    take_basis(p, basis);
}

static void on_fetch(struct peer *p, const struct spa_message *m)
{
    const spa_Fetch *f = &m->head.fetch;
    const struct spa_model_info *info = &p->engine->model->info;
    const bool head = f->kind == spa_BlobKind_BLOB_HEAD;
    const uint8_t *hash = head ? info->head_hash : p->basis ? p->basis->hash : NULL;
    const uint8_t *bytes = head ? info->head_bytes : p->basis ? (const uint8_t *)p->basis->floats : NULL;
    const size_t total = head ? info->head_len : p->basis ? p->basis->n * sizeof(float) : 0;
    if (!hash || f->hash.size != SPA_HASH_BYTES || memcmp(hash, f->hash.bytes, SPA_HASH_BYTES) != 0 || f->offset >= total) {
        spa_host_error(&p->host, 0, spa_Code_NOT_FOUND, "the cloud has no such blob; reconnect and take its hash from WELCOME or FITTED");
        return;
    }
    const size_t left = total - (size_t)f->offset, n = left < SPA_BLOB_PIECE ? left : SPA_BLOB_PIECE;
    spa_Blob b = { .kind = f->kind, .offset = f->offset, .total = total };
    b.hash.size = SPA_HASH_BYTES;
    memcpy(b.hash.bytes, hash, SPA_HASH_BYTES);
    spa_host_blob(&p->host, &b, bytes + f->offset, n);
}

/* ---- training rows ---- */

/* Takes a row out of the queue and gives back its place in the model's cache. The row itself stays. */
static void row_leaves(struct peer *p, struct spa_learn_row *r)
{
    struct spa_engine *e = p->engine;
    if (r->placed) {
        e->model->seq_rm(e->model->self, e->model->info.n_slots + r->seq, 0);
        e->seq_taken[r->seq] = false;
        e->learn_cells -= r->n_feed;
    }
    if (r->group_end) {
        p->groups_ready--;
        if (e->learner == p) {   /* the next group is another device's */
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
        if ((group == 0 || (*at)->group == group) && same_row(*at, r))
            return at;
    return NULL;
}

/* Answers a whole group whose states the fit has kept. A group of other rows is decoded: what was decoded with a row decides its
 * last bits. */
static void answer_from_kept(struct peer *p, struct spa_learn_row *first)
{
    struct spa_learn_row **twin = kept_twin(p, first, 0);
    const uint32_t group = twin ? (*twin)->group : 0;
    if (!twin || (*twin)->group_rows != first->group_rows)
        return;
    for (const struct spa_learn_row *r = first; r; r = r->next)
        if (!kept_twin(p, r, group))
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

static void on_learn(struct peer *p, const struct spa_message *m)
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
    const bool enough = l->fit && spa_fit_states(p->fit) == SPA_FIT_STATES_MAX;
    struct spa_learn_row *r = enough ? NULL : spa_learn_row_new(e->model, l, m->bulk, m->bulk_len, shape, p->host.tap_dtype,
                                                                 p->host.peer_max_message, &code, why, sizeof why);
    if (r) {
        r->group = p->group;
        *p->rows_end = r;
        p->rows_end = &r->next;
    } else if (enough) {
        const spa_Features none = { .row = l->row };
        spa_host_features(&p->host, &none, NULL, 0);
    } else {
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

static void say_fitted(struct peer *p, struct spa_basis *b, uint32_t n_states)
{
    take_basis(p, b);
    spa_Fitted f = { .total = b->n * sizeof(float), .n_states = n_states };
    f.hash.size = SPA_HASH_BYTES;
    memcpy(f.hash.bytes, b->hash, SPA_HASH_BYTES);
    spa_host_fitted(&p->host, &f);
}

/* Right after WELCOME. floats is taken over. */
static void give_generic(struct peer *p, float *floats)
{
    struct spa_basis *b = spa_bases_add(&p->engine->bases, floats, spa_basis_floats(&p->host.shape));
    if (b)
        say_fitted(p, b, spa_generic_states(p->engine->cfg.generic));
    else
        spa_host_error(&p->host, 0, spa_Code_BUSY, "the cloud holds as many bases as it can; try again later");
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
        snprintf(why, sizeof why, err == SPA_ERR_SHAPE ? "%u answer tokens are too few to fit %u directions on; give more rows or a smaller --basis task:K"
                                                       : "no basis could be fitted on %u states of width %u; use --basis none",
                 n_states, p->host.shape.k);
        spa_host_error(&p->host, 0, spa_Code_BAD_REQUEST, why);
        return;
    }
    say_fitted(p, b, n_states);
    engine_log(p->engine, "connection %u: a basis was fitted on %u states", p->number, n_states);
}

/* ---- the conversation ---- */

static void on_hello(struct peer *p, const struct spa_message *m)
{
    struct spa_engine *e = p->engine;
    const struct spa_model_info *info = &e->model->info;
    const spa_Hello *h = &m->head.hello;
    const struct spa_shape *shape = &p->host.shape;
    if (h->has_plugin) {
        const spa_Plugin *pl = &h->plugin;
        char why[320];
        if (shape->d != info->d || shape->n_layers != info->n_layers) {
            snprintf(why, sizeof why, "the plugin is for a model of width %u with %u layers, and this cloud serves %s (width %u, %u layers); use the "
                     "plugin's own base model or train again", shape->d, shape->n_layers, info->name, info->d, info->n_layers);
            spa_host_error(&p->host, 0, spa_Code_BAD_SHAPE, why);
            return;
        }
        if (pl->model_hash.size == SPA_HASH_BYTES && memcmp(pl->model_hash.bytes, info->hash, SPA_HASH_BYTES) != 0) {
            snprintf(why, sizeof why, "the plugin was trained for another model than this cloud's %s; use the plugin's own base model or train again", info->name);
            spa_host_error(&p->host, 0, spa_Code_WRONG_MODEL, why);
            return;
        }
        const size_t context = info->n_ctx_slot * spa_wire_ctx_row_bytes(shape, p->host.tap_dtype);
        if (context > e->cfg.max_out / 2) {
            snprintf(why, sizeof why, "the context taps of a full prompt need %zu MB at once and the cloud queues %zu; use a basis, fewer context taps "
                     "or --context none", context >> 20, e->cfg.max_out >> 21);
            spa_host_error(&p->host, 0, spa_Code_TOO_LARGE, why);
            return;
        }
        const size_t need = spa_wire_row_bytes(shape, p->host.tap_dtype) + spa_wire_ctx_row_bytes(shape, p->host.tap_dtype) + SPA_HEAD_MAX;
        if (need > h->max_message || !engine_fit_rows(e, shape, p->host.tap_dtype)) {
            snprintf(why, sizeof why, "a token's taps need %zu bytes in one message and the device takes %u; tap fewer layers or use a basis", need, h->max_message);
            spa_host_error(&p->host, 0, spa_Code_TOO_LARGE, why);
            return;
        }
        if (pl->has_gate) {
            p->gate = malloc(m->bulk_len);
            if (!p->gate) {
                spa_host_error(&p->host, 0, spa_Code_INTERNAL, "the cloud is out of memory; try again later");
                return;
            }
            p->gate_taps = pl->gate_taps;
            memcpy(p->gate, m->bulk, m->bulk_len);
            p->gate_bias = pl->gate_bias;
        }
        if (shape->basis && pl->basis_hash.size == SPA_HASH_BYTES) {
            memcpy(p->basis_hash, pl->basis_hash.bytes, SPA_HASH_BYTES);
            p->basis = spa_bases_get(&e->bases, pl->basis_hash.bytes, spa_basis_floats(shape));
        }
    }
    float *generic = NULL;
    if (p->host.generic) {
        char why[256];
        if (!e->cfg.generic || !(generic = spa_generic_basis(e->cfg.generic, shape))) {
            spa_generic_why_not(e->cfg.generic, shape, why, sizeof why);
            spa_host_error(&p->host, 0, spa_Code_BAD_REQUEST, why);
            return;
        }
    }
    spa_Welcome w = { .n_anchors = spa_anchors_n(e->cfg.anchors), .d = info->d, .n_layers = info->n_layers, .n_vocab = (uint32_t)info->n_vocab, .n_ctx = info->n_ctx_slot,
                      .head_type = info->head_type, .head_bytes = info->head_len, .logit_scale = info->logit_scale, .softcap = info->softcap };
    snprintf(w.server, sizeof w.server, "%s", e->cfg.server);
    snprintf(w.model, sizeof w.model, "%s", info->name);
    w.model_hash.size = w.head_hash.size = SPA_HASH_BYTES;
    memcpy(w.model_hash.bytes, info->hash, SPA_HASH_BYTES);
    memcpy(w.head_hash.bytes, info->head_hash, SPA_HASH_BYTES);
    const bool need_basis = h->has_plugin && shape->basis && h->plugin.basis_hash.size == SPA_HASH_BYTES && !p->basis;
    if (spa_host_welcome(&p->host, &w, need_basis) == SPA_OK)
        engine_log(e, "connection %u: hello%s", p->number, h->has_plugin ? ", with a plugin" : "");
    if (generic)
        give_generic(p, generic);
}

static void on_event(struct peer *p, const struct spa_host_event *ev)
{
    struct spa_turn *t;
    p->engine->metrics.stray += ev->type == SPA_HOST_STRAY;
    switch (ev->type) {
    case SPA_HOST_HELLO:     on_hello(p, ev->msg); break;
    case SPA_HOST_BLOB:      on_blob(p, ev->msg); break;
    case SPA_HOST_GENERATE:  on_generate(p, ev->msg); break;
    case SPA_HOST_CANCEL:
        if ((t = turn_of(p, ev->request)))
            peer_turn_end(p, t, spa_Finish_FINISH_CANCELLED);
        break;
    case SPA_HOST_STATE:     on_state(p, ev); break;
    case SPA_HOST_LATE:      on_no_state(p, ev, spa_Code_LATE_ANSWER); break;
    case SPA_HOST_BAD_STATE: on_no_state(p, ev, spa_Code_BAD_STATE); break;
    case SPA_HOST_LEARN:     on_learn(p, ev->msg); break;
    case SPA_HOST_LOSS:      losses_take(p, ev->msg); break;
    case SPA_HOST_FETCH:     on_fetch(p, ev->msg); break;
    case SPA_HOST_STRAY:     break;   /* counted by the host */
    }
}

void peer_bytes(struct peer *p, const uint8_t *bytes, size_t len, uint64_t now_ms)
{
    struct spa_host_event ev;
    size_t used;
    p->came_ms = now_ms;
    for (;;) {
        used = 0;
        const enum spa_err err = spa_host_feed(&p->host, bytes, len, &used, now_ms, &ev);
        bytes = bytes ? bytes + used : NULL;
        len -= used;
        if (err == SPA_OK)
            on_event(p, &ev);
        else
            break;
    }
}

void peer_free(struct peer *p)
{
    for (size_t i = 0; i < SPA_REQUESTS_MAX; i++)
        if (p->turns[i]) {
            p->engine->metrics.ends[SPA_END_GONE]++;
            turn_leaves(p, p->turns[i], false);
        }
    kept_drop_of(p->engine, p);
    while (p->rows) {
        struct spa_learn_row *r = p->rows;
        row_leaves(p, r);
        p->engine->kept_bytes -= r->raw ? spa_learn_raw_bytes(r, &p->host.shape) : 0;
        spa_learn_row_free(r);
    }
    while (p->kept)
        drop_kept(p, &p->kept);
    losses_free(p);
    spa_anchor_set_put(p->anchors);
    free(p->anchor_ids);
    spa_bases_put(p->basis);
    spa_fit_free(p->fit);
    explicit_bzero(p->buf, p->host.reader.len);
    free(p->buf);
    free(p->z);
    free(p->gate);
    free(p->upload);
    free(p);
}
