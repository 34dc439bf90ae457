/* lead.c - in: a group of training rows. out: the beginning that all of them have in common, decoded once, in a sequence of its own that each
 * row then continues. Rows of an application start with its system prompt; without this it would be decoded for every row. */
#include "engine_parts.h"

enum { LEAD_MIN = 16 };   /* tokens; for fewer another decode call does not pay */

static uint32_t same_tokens(const struct spa_learn_row *a, const struct spa_learn_row *b, uint32_t most)
{
    uint32_t n = 0;
    while (n < most && a->tokens[n] == b->tokens[n])
        n++;
    return n;
}

void lead_of_group(struct spa_learn_row *first)
{
    uint32_t n = first->next ? first->pos[0] : 0;
    for (const struct spa_learn_row *r = first->next; r; r = r->next)
        n = same_tokens(first, r, n < r->pos[0] ? n : r->pos[0]);
    for (struct spa_learn_row *r = first; r; r = r->next)
        r->n_lead = n < LEAD_MIN ? 0 : n;
}

void lead_place(struct spa_engine *e, const struct spa_learn_row *first, uint32_t seq)
{
    e->lead = (struct lead){ .placed = true, .seq = seq, .n = first->n_lead };
    e->seq_taken[seq] = true;
    e->learn_cells += first->n_lead;
}

void lead_continue(struct spa_engine *e, struct spa_learn_row *r)
{
    const uint32_t at = e->model->info.n_slots;
    if (r->n_lead == 0)
        return;
    e->model->seq_cp(e->model->self, at + e->lead.seq, at + r->seq, r->n_lead);
    r->n_done = r->n_lead;
}

void lead_drop(struct spa_engine *e)
{
    if (!e->lead.placed)
        return;
    e->model->seq_rm(e->model->self, e->model->info.n_slots + e->lead.seq, 0);
    e->seq_taken[e->lead.seq] = false;
    e->learn_cells -= e->lead.n;
    e->lead = (struct lead){ 0 };
}
