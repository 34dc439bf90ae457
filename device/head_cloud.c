/* head_cloud.c - losses through an LM head that stays in the cloud (head.h). In: states and targets. Out: losses, gradients and top
 * tokens, from LOSS and LOSSES messages on a link of its own.
 *
 * LOSS leaves nothing behind at the other end, so a call whose link is lost is simply made again on a new one. */
#include "head.h"

#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    PIECE      = 64,        /* states in a message: what the cloud computes at a time */
    LOST       = 1,
    MESSAGE_SLACK = SPA_PREFIX_LEN + SPA_HEAD_MAX
};

struct spa_head_cloud {
    struct spa_head_connect connect;
    struct spa_link *link;          /* NULL: none yet, or lost */
    struct spa_link_bytes closed;   /* bytes of links that are gone */
    spa_Welcome model;              /* as the first link described it */
    size_t   max_message;
    uint32_t next_id;
    uint8_t *work;                  /* bytes of one LOSS */
};

/* One call: what comes in, where the results go. */
struct call {
    const float   *states;
    const int32_t *target;
    uint32_t n, piece, first_id;    /* the piece from state i * piece on has the id first_id + i */
    float   *loss, *dstates;
    int32_t *top;
};

static void hang_up(struct spa_head_cloud *c)
{
    if (!c->link)
        return;
    struct spa_link_bytes b = spa_link_bytes(c->link);
    c->closed.down += b.down;
    c->closed.up += b.up;
    spa_link_close(c->link);
    c->link = NULL;
}

static int check_losses(const spa_Welcome *w, char *why, size_t why_len)
{
    if (w->loss_window > 0)
        return 0;
    snprintf(why, why_len, "this cloud computes no losses; use --head local");
    return -1;
}

/* As run. */
static int dial(struct spa_head_cloud *c, char *why, size_t why_len)
{
    if (c->link)
        return 0;
    const int opened = c->connect.open(c->connect.user, c->max_message, &c->link, why, why_len);
    if (opened != 0)
        return opened == -1 ? LOST : -1;
    const spa_Welcome *w = &spa_link_session(c->link)->welcome, *m = &c->model;
    int rc = check_losses(w, why, why_len);
    if (rc == 0 && (w->d != m->d || w->n_vocab != m->n_vocab || w->head_hash.size != m->head_hash.size
                    || memcmp(w->head_hash.bytes, m->head_hash.bytes, m->head_hash.size) != 0)) {
        snprintf(why, why_len, "the cloud serves another model than when this run began ('%s', not '%s'); start again", w->model, m->model);
        rc = -1;
    }
    if (rc == 0 && spa_session_loss_max(spa_link_session(c->link)) == 0) {
        snprintf(why, why_len, "one state of this model is larger than the cloud takes in a message; use --head local");
        rc = -1;
    }
    if (rc != 0)
        hang_up(c);
    return rc;
}

static uint32_t piece_len(const struct call *k, uint32_t at)
{
    return k->n - at < k->piece ? k->n - at : k->piece;
}

static int send_piece(struct spa_head_cloud *c, const struct call *k, uint32_t at, char *why, size_t why_len)
{
    const spa_Loss l = { .id = k->first_id + at / k->piece, .n = piece_len(k, at), .gradient = k->dstates != NULL, .top = k->top != NULL };
    enum spa_err e = spa_session_loss(spa_link_session(c->link), &l, k->target + at, k->states + (size_t)at * c->model.d, c->work);
    if (e == SPA_OK)
        return 0;
    snprintf(why, why_len, "the connection to the cloud was lost while it computed losses (%s)", spa_err_name(e));
    return -1;
}

enum { LEAVING = -2 };

/* An event: how many states it answered; with a sentence -1, or LEAVING: the cloud goes down. */
static int take_event(struct spa_head_cloud *c, const struct call *k, const struct spa_session_event *ev, char *why, size_t why_len)
{
    const struct spa_message *m = ev->msg;
    if (ev->type == SPA_MSG_ERROR) {
        snprintf(why, why_len, "the cloud computes no loss: %.*s", (int)m->bulk_len, (const char *)m->bulk);
        return m->head.error.code == spa_Code_DRAINING ? LEAVING : -1;
    }
    if (ev->type != SPA_MSG_LOSSES)
        return 0;
    uint32_t at = (m->head.losses.id - k->first_id) * k->piece;   /* the session lets no other id and no other n through */
    spa_losses_unpack(spa_link_session(c->link), m, k->loss + at, k->dstates ? k->dstates + (size_t)at * c->model.d : NULL,
                      k->top ? k->top + at : NULL);
    return (int)m->head.losses.n;
}

/* 0, or with a sentence -1: no use to try again, or LOST: the link is. */
static int run(struct spa_head_cloud *c, struct call *k, char *why, size_t why_len)
{
    const int dialled = dial(c, why, why_len);
    if (dialled != 0)
        return dialled;
    const struct spa_session *s = spa_link_session(c->link);
    uint32_t sent = 0, done = 0, most = spa_session_loss_max(s);
    uint32_t window = s->welcome.loss_window < SPA_LOSSES_MAX ? s->welcome.loss_window : SPA_LOSSES_MAX;
    k->piece = most < PIECE ? most : PIECE;
    k->first_id = c->next_id;
    c->next_id += (k->n + k->piece - 1) / k->piece;
    while (done < k->n) {
        for (; sent < k->n && s->losses_open < window; sent += piece_len(k, sent))
            if (send_piece(c, k, sent, why, why_len) != 0)
                return LOST;
        struct spa_session_event ev;
        int rc = spa_link_wait(c->link, spa_link_patience_ms(c->link), &ev, why, why_len);
        if (rc == 0)
            snprintf(why, why_len, "the cloud has been silent for %d seconds", spa_link_patience_ms(c->link) / 1000);
        if (rc <= 0)
            return rc == SPA_LINK_REFUSED ? -1 : LOST;
        rc = take_event(c, k, &ev, why, why_len);
        if (rc < 0)
            return rc == LEAVING ? LOST : -1;
        done += (uint32_t)rc;
    }
    return 0;
}

static int run_until_answered(struct spa_head_cloud *c, struct call *k, char *why, size_t why_len)
{
    struct spa_retry retry = { 0 };
    bool spare = c->link != NULL;   /* it was silent since the last call, and may have been hung up on */
    int rc;
    while ((rc = run(c, k, why, why_len)) == LOST) {
        hang_up(c);
        if (!c->connect.pause(c->connect.user, &retry) && !spare)
            return -1;
        spare = false;
    }
    if (rc != 0)
        hang_up(c);   /* answers that are still to come are nobody's */
    return rc;
}

static bool finite_state(const float *s, uint32_t d)
{
    for (uint32_t i = 0; i < d; i++)
        if (!isfinite(s[i]))
            return false;
    return true;
}

/* The cloud refuses states that are no numbers, and here they have the loss NaN: others go in their place. */
static int run_with_gaps(struct spa_head_cloud *c, struct call *k, char *why, size_t why_len)
{
    const uint32_t d = c->model.d;
    const float *states = k->states;
    float *copy = calloc((size_t)k->n * d, sizeof *copy);
    if (!copy) {
        snprintf(why, why_len, "out of memory for states");
        return -1;
    }
    for (uint32_t i = 0; i < k->n; i++)
        if (finite_state(states + (size_t)i * d, d))
            memcpy(copy + (size_t)i * d, states + (size_t)i * d, d * sizeof *copy);
    k->states = copy;
    int rc = run_until_answered(c, k, why, why_len);
    for (uint32_t i = 0; rc == 0 && i < k->n; i++) {
        if (finite_state(states + (size_t)i * d, d))
            continue;
        k->loss[i] = NAN;
        for (uint32_t j = 0; k->dstates && j < d; j++)
            k->dstates[(size_t)i * d + j] = NAN;
        if (k->top)
            k->top[i] = -1;
    }
    free(copy);
    return rc;
}

static int cloud_loss(struct spa_head_cloud *c, const float *states, const int32_t *target, uint32_t n, float *loss, float *dstates,
                      int32_t *top, char *why, size_t why_len)
{
    struct call k = { .states = states, .target = target, .n = n, .loss = loss, .dstates = dstates, .top = top };
    bool whole = true;
    for (uint32_t i = 0; i < n && whole; i++)
        whole = finite_state(states + (size_t)i * c->model.d, c->model.d);
    return whole ? run_until_answered(c, &k, why, why_len) : run_with_gaps(c, &k, why, why_len);
}

int spa_lm_head_in_cloud(struct spa_lm_head *h, struct spa_link *l, struct spa_head_connect connect, char *why, size_t why_len)
{
    const spa_Welcome *w = &spa_link_session(l)->welcome;
    memset(h, 0, sizeof *h);
    if (check_losses(w, why, why_len) != 0)
        return -1;
    struct spa_head_cloud *c = calloc(1, sizeof *c);
    uint8_t *work = malloc((size_t)spa_wire_loss_bytes(w->d, PIECE));
    if (!c || !work) {
        free(c);
        free(work);
        snprintf(why, why_len, "out of memory for a piece of states");
        return -1;
    }
    c->connect = connect;
    c->model = *w;
    c->work = work;
    c->next_id = 1;
    uint64_t message = MESSAGE_SLACK + spa_wire_losses_bytes(w->d, PIECE, true, true);
    c->max_message = message < SPA_MESSAGE_MIN ? SPA_MESSAGE_MIN : (size_t)message;
    assert(c->max_message <= SPA_MESSAGE_MAX);
    h->d = w->d;
    h->n_vocab = w->n_vocab;
    h->cloud = c;
    h->cloud_loss = cloud_loss;
    return 0;
}

struct spa_link_bytes spa_lm_head_wire(const struct spa_lm_head *h)
{
    struct spa_link_bytes b = {0};
    if (!h->cloud)
        return b;
    if (h->cloud->link)
        b = spa_link_bytes(h->cloud->link);
    b.down += h->cloud->closed.down;
    b.up += h->cloud->closed.up;
    return b;
}

void spa_head_cloud_free(struct spa_head_cloud *c)
{
    if (!c)
        return;
    hang_up(c);
    free(c->work);
    free(c);
}
