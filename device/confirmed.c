/* confirmed.c - an answer's beginning (confirmed.h). In: events of a talk, breaks. Out: the part that a resumed request brings along, events
 * without what came before.
 *
 * A cloud that goes on says text from behind the last confirmed token. Text without tokens may have come after it (the end of an answer, or
 * what a padded message had no room for), and so may the logprobs of the next token: these come again. */
#include "confirmed.h"
#include "secret.h"

#include <stdlib.h>

void spa_confirmed_begin(struct spa_confirmed *c)
{
    *c = (struct spa_confirmed){ .ids = c->ids, .cap = c->cap };
}

void spa_confirmed_free(struct spa_confirmed *c)
{
    spa_secret_free(c->ids, c->cap * sizeof *c->ids);
    *c = (struct spa_confirmed){ 0 };
}

static int add_tokens(struct spa_confirmed *c, const spa_Tokens *t)
{
    if (c->n + t->ids_count > c->cap) {
        const size_t cap = 2 * (c->n + t->ids_count) + 64;
        int32_t *more = spa_secret_grow(c->ids, c->cap * sizeof *more, cap * sizeof *more);
        if (!more)
            return -1;
        c->ids = more;
        c->cap = cap;
    }
    for (pb_size_t i = 0; i < t->ids_count; i++) {
        c->ids[c->n++] = t->ids[i];
        c->by_plugin += t->by[i] == spa_Speaker_PLUGIN;
    }
    return 0;
}

int spa_confirmed_take(struct spa_confirmed *c, struct spa_talk_event *ev)
{
    if (ev->type == SPA_TALK_LOGPROBS) {
        if (c->n_logprobs > c->n)
            return 0;
        c->n_logprobs = c->n + 1;
        return 1;
    }
    if (ev->type != SPA_TALK_TOKENS)
        return 1;
    if (add_tokens(c, ev->tokens) != 0)
        return -1;
    c->tail = ev->tokens->ids_count ? 0 : c->tail;
    const size_t known = ev->text_len < c->skip ? ev->text_len : c->skip;
    c->skip -= known;
    ev->text += known;
    ev->text_len -= known;
    c->tail += ev->tokens->ids_count ? 0 : ev->text_len;
    return ev->tokens->ids_count || ev->text_len;
}

void spa_confirmed_broken(struct spa_confirmed *c, const struct spa_talk_stats *s)
{
    struct spa_talk_stats *b = &c->before;
    c->breaks++;
    c->skip = c->tail;
    c->n_logprobs = c->n_logprobs > c->n ? c->n + 1 : c->n;
    if (!b->started_us)
        b->started_us = s->started_us;
    if (!b->first_token_us)
        b->first_token_us = s->first_token_us;
    b->bytes_down += s->bytes_down;
    b->bytes_up += s->bytes_up;
    b->round_trips += s->round_trips;
    b->ladder_us += s->ladder_us;
    b->gated = c->by_plugin;   /* that cloud did not come to say how many */
}

struct spa_part spa_confirmed_part(const struct spa_confirmed *c)
{
    return (struct spa_part){ .kind = SPA_PART_CONFIRMED, .bytes = (const uint8_t *)c->ids, .len = (uint32_t)(c->n * sizeof *c->ids) };
}

void spa_confirmed_stats(const struct spa_confirmed *c, struct spa_talk_stats *s)
{
    const struct spa_talk_stats *b = &c->before;
    if (b->started_us)
        s->started_us = b->started_us;
    if (b->first_token_us)
        s->first_token_us = b->first_token_us;
    s->bytes_down += b->bytes_down;
    s->bytes_up += b->bytes_up;
    s->round_trips += b->round_trips;
    s->ladder_us += b->ladder_us;
    s->gated += b->gated;
}
