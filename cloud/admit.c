/* admit.c - in: a GENERATE, the queue as it is. out: whether it gets a place, and who gets the slot that is free.
 *
 * Places and slots are shared out among accounts (accounts.h), and an account's among its connections: who has the fewest comes first. So a full
 * queue is no wall: a newcomer takes the newest place of whoever holds the most, as long as that one keeps more than the newcomer has. */
#include "engine_parts.h"

#include <stdio.h>

enum { RETRY_MS = 1000, RETRY_MS_MAX = 30000 };

/* What counts against p when a slot is free: how many its account has in slots, then how many itself has. */
static uint64_t in_slots(const struct spa_engine *e, const struct peer *p)
{
    uint64_t own = 0, account = 0;
    for (uint32_t i = 0; i < e->model->info.n_slots; i++) {
        own += e->slot_peer[i] == p;
        account += e->slot_peer[i] && e->slot_peer[i]->account == p->account;
    }
    return account << 32 | own;
}

/* The queued turn of the connection that has the fewest in slots; among equals the one that came first. */
static struct spa_turn *next_queued(const struct spa_engine *e, struct peer **whose)
{
    struct spa_turn *best = NULL;
    uint64_t best_n = 0;
    for (struct peer *p = e->peers; p; p = p->next) {
        if (p->n_queued == 0)
            continue;
        const uint64_t n = in_slots(e, p);
        for (size_t i = 0; i < SPA_REQUESTS_MAX; i++) {
            struct spa_turn *t = p->turns[i];
            if (!t || t->status != SPA_TURN_QUEUED)
                continue;
            if (!best || n < best_n || (n == best_n && t->arrived < best->arrived)) {
                best = t;
                best_n = n;
                *whose = p;
            }
        }
    }
    return best;
}

void admit_fill_slots(struct spa_engine *e)
{
    for (uint32_t i = 0; i < e->model->info.n_slots; i++)
        while (e->n_queued > 0 && !e->slots[i]) {   /* there is a free one; the turn may prefer another */
            struct peer *p = NULL;
            struct spa_turn *t = next_queued(e, &p);
            kept_enter(e, p, t);
            e->metrics.prompt_tokens_kept += t->n_cached;
            e->n_queued--;
            p->n_queued--;
            p->account->queued--;
            t->entered_ms = spa_now_ms();
        }
}

/* ---- a place in the queue ---- */

/* How long the queue may take to get shorter by one. */
static uint32_t retry_ms(const struct spa_engine *e)
{
    const double ms = e->turn_ms / e->model->info.n_slots;
    return ms < RETRY_MS ? RETRY_MS : ms > RETRY_MS_MAX ? RETRY_MS_MAX : (uint32_t)ms;
}

/* Is a's hold on the queue larger than b's? */
static bool holds_more(const struct peer *a, const struct peer *b)
{
    return a->account->queued != b->account->queued ? a->account->queued > b->account->queued : a->n_queued > b->n_queued;
}

/* The queue is full. Whose place p may take: of the connection that holds the most, if that is more than p would; NULL: nobody's. */
static struct peer *gives_way(const struct spa_engine *e, const struct peer *p)
{
    struct peer *most = NULL;
    for (struct peer *q = e->peers; q; q = q->next)
        if (q->n_queued && (!most || holds_more(q, most)))
            most = q;
    if (!most)
        return NULL;
    const bool same = most->account == p->account;
    return (same ? most->n_queued <= p->n_queued + 1 : most->account->queued <= p->account->queued + 1) ? NULL : most;
}

void admit_make_room(struct spa_engine *e, const struct peer *p)
{
    struct peer *most = e->n_queued >= e->cfg.max_queue ? gives_way(e, p) : NULL;
    if (!most)
        return;
    struct spa_turn *last = NULL;
    for (size_t i = 0; i < SPA_REQUESTS_MAX; i++)
        if (most->turns[i] && most->turns[i]->status == SPA_TURN_QUEUED && (!last || most->turns[i]->arrived > last->arrived))
            last = most->turns[i];
    e->metrics.refused[SPA_REFUSED_CROWDED_OUT]++;
    peer_turn_crowded_out(most, last, retry_ms(e));
}

/* An answer that began on another connection brings its tokens. It may be made up: so what it may owe has an end, too. */
static bool goes_on(const struct spa_message *m)
{
    struct spa_part part;
    bool confirmed = false;
    for (size_t at = 0; spa_part_next(m->bulk, m->bulk_len, &at, &part) == SPA_OK;)
        confirmed |= part.kind == SPA_PART_CONFIRMED && part.len > 0;
    return confirmed;
}

/* seconds, rounded up, for people */
static unsigned seconds(uint64_t ms) { return (unsigned)((ms + 999) / 1000); }

bool admit(struct peer *p, const struct spa_message *m, uint64_t now_ms, struct admission *out)
{
    struct spa_engine *e = p->engine;
    const size_t bytes = peer_prompt_bytes(m);
    *out = (struct admission){ .code = spa_Code_BUSY };
    const uint64_t wait_ms = spa_account_wait_ms(&e->accounts, p->account, goes_on(m), now_ms);
    if (e->draining) {
        out->code = spa_Code_DRAINING;
        out->refusal = SPA_REFUSED_DRAINING;
        snprintf(out->why, sizeof out->why, "the cloud is shutting down; ask another one, or try again in a moment");
    } else if (bytes > e->prompt_max) {
        out->code = spa_Code_CONTEXT_FULL;
        out->refusal = SPA_REFUSED_CONTEXT;
        snprintf(out->why, sizeof out->why, "the prompt has %zu bytes and this cloud looks at up to %zu; shorten it, or start spa-cloud with a larger -c or --max-prompt",
                 bytes, e->prompt_max);
    } else if (wait_ms) {
        out->retry_ms = wait_ms < UINT32_MAX ? (uint32_t)wait_ms : UINT32_MAX;
        out->refusal = SPA_REFUSED_TOKENS;
        snprintf(out->why, sizeof out->why, "the %u tokens a minute of this key are used up; try again in %u s", e->cfg.tokens_per_minute, seconds(wait_ms));
    } else if (e->cfg.max_per_account && p->account->open >= e->cfg.max_per_account) {
        out->retry_ms = retry_ms(e);
        out->refusal = SPA_REFUSED_KEY;
        snprintf(out->why, sizeof out->why, "this key has as many answers under way as it may have (%u); try again in %u s", e->cfg.max_per_account, seconds(out->retry_ms));
    } else if (e->n_queued >= e->cfg.max_queue && !gives_way(e, p)) {
        out->retry_ms = retry_ms(e);
        out->refusal = SPA_REFUSED_QUEUE;
        snprintf(out->why, sizeof out->why, "the cloud's queue is full (%u requests wait); try again in %u s", e->n_queued, seconds(out->retry_ms));
    } else {
        return true;
    }
    return false;
}
