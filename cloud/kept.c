/* kept.c - sequences of ended answers. In: turns that end, turns that begin. Out: slots, with as much of an ended sequence of the
 * same connection as the new turn can use.
 *
 * A turn's keys and values, tokens and unsent context rows stay in its slot until somebody needs the slot, the connection
 * closes or a request goes on from it (GENERATE's after). A newcomer takes a slot that holds nothing, otherwise the one whose
 * sequence ended first: keeping costs nobody a place.
 *
 * How much of it is of use. With O the old turn and t the new one:
 *
 *   positions 0 .. O.sent_pos-1          context rows have left; the device says up to where it has them (after_to)
 *   O.sent_pos .. sent_pos+n_ctx_rows-1  context rows wait in O
 *   0 .. O.n_past-1                      keys and values are in the slot
 *
 * t starts at `past`: the tokens that both share, and at least one is left to decode. If t's device needs context rows, none
 * may be missing before `past`, and the first that is sent must be at a place where the device can go on. */
#include "engine_parts.h"

#include <string.h>

static void drop(struct spa_engine *e, uint32_t slot)
{
    struct kept *k = &e->kept[slot];
    if (!k->turn)
        return;
    e->model->seq_rm(e->model->self, slot, 0);
    spa_turn_free(k->turn);
    *k = (struct kept){ 0 };
}

void kept_store(struct spa_engine *e, struct peer *p, struct spa_turn *t)
{
    spa_turn_retire(t);
    e->kept[t->slot] = (struct kept){ t, p, ++e->endings };
}

void kept_drop_of(struct spa_engine *e, const struct peer *p)
{
    for (uint32_t i = 0; i < e->model->info.n_slots; i++)
        if (e->kept[i].peer == p)
            drop(e, i);
}

static bool goes_on_from(const struct kept *k, const struct peer *p, const struct spa_turn *t)
{
    return k->turn && k->peer == p && t->after != 0 && k->turn->request == t->after;
}

/* Of free slots: the newest that t goes on from, else one that holds nothing, else the one that ended first. */
static uint32_t slot_for(const struct spa_engine *e, const struct peer *p, const struct spa_turn *t)
{
    uint32_t mine = UINT32_MAX, oldest = UINT32_MAX;
    for (uint32_t i = 0; i < e->model->info.n_slots; i++) {
        if (e->slots[i])
            continue;
        if (goes_on_from(&e->kept[i], p, t) && (mine == UINT32_MAX || e->kept[i].when > e->kept[mine].when))
            mine = i;
        if (oldest == UINT32_MAX || e->kept[i].when < e->kept[oldest].when)   /* a slot that holds nothing has when 0 */
            oldest = i;
    }
    return mine != UINT32_MAX ? mine : oldest;
}

static uint32_t min(uint32_t a, uint32_t b) { return a < b ? a : b; }

/* Where t may start, and from where its context rows are to be sent. Returns past; *rows_from <= past. */
static uint32_t usable(const struct spa_turn *old, const struct spa_turn *t, bool needs_rows, uint32_t *rows_from)
{
    const uint32_t limit = min(old->n_past, t->n_tokens - 1);
    uint32_t past = 0;
    while (past < limit && old->tokens[past] == t->tokens[past])
        past++;
    *rows_from = min(past, old->sent_pos);
    if (!needs_rows)
        return past;
    if (t->after_to < *rows_from)   /* rows that left but did not arrive, or were thrown away: those tokens are decoded again */
        past = *rows_from = t->after_to;
    else
        past = min(past, old->sent_pos + old->n_ctx_rows);
    if (*rows_from > 0 && *rows_from < t->after_from)   /* the device has lost what it needs before that place */
        past = *rows_from = 0;
    return past;
}

static void take_over(struct spa_engine *e, const struct peer *p, struct spa_turn *t, struct spa_turn *old)
{
    const struct spa_shape *shape = &p->host.shape;
    uint32_t rows_from, past = usable(old, t, feed_asks(p, t) && shape->n_ctx_taps, &rows_from);
    if (!e->model->seq_rm(e->model->self, t->slot, past)) {
        e->model->seq_rm(e->model->self, t->slot, 0);
        past = rows_from = 0;
    }
    t->n_past = past;
    t->n_cached = min(past, t->n_prompt);
    t->sent_pos = rows_from;
    if (past == 0 || rows_from != old->sent_pos)   /* no row that waits is of use */
        return;
    t->n_ctx_rows = min(past - rows_from, old->n_ctx_rows);
    t->ctx_rows = old->ctx_rows;
    t->ctx_rows_cap = old->ctx_rows_cap;
    old->ctx_rows = NULL;
    old->ctx_rows_cap = 0;
}

/* A prompt that begins with a house prompt starts behind it. When its device needs context rows that nobody's prefill has made yet,
 * it makes them itself, and the next one has them. */
static void start_in_house(struct spa_engine *e, struct peer *p, struct spa_turn *t)
{
    t->house = spa_house_of(e->cfg.houses, t->tokens, t->n_prompt, &t->n_house);
    if (!t->house || t->n_past > 0 || (feed_asks(p, t) && p->host.shape.n_ctx_taps && !feed_house(e, p, t, t->n_house)))
        return;
    if (spa_house_enter(t->house, e->model, t->slot, t->n_house)) {
        t->n_past = t->n_house;
        t->n_cached = min(t->n_house, t->n_prompt);
    } else {
        t->n_ctx_rows = 0;
    }
}

void kept_enter(struct spa_engine *e, struct peer *p, struct spa_turn *t)
{
    const uint32_t slot = slot_for(e, p, t);
    struct kept *k = &e->kept[slot];
    t->slot = slot;
    t->status = SPA_TURN_FEEDING;
    e->slots[slot] = t;
    e->slot_peer[slot] = p;
    if (goes_on_from(k, p, t)) {
        take_over(e, p, t, k->turn);
        spa_turn_free(k->turn);
        *k = (struct kept){ 0 };
    } else {
        drop(e, slot);
    }
    start_in_house(e, p, t);
}
