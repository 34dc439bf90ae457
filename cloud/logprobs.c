/* logprobs.c - in: the logits that a token was drawn from. out: LOGPROBS, for a request that asked for them.
 *
 * They are those of the model (and plugin) as it is: of the softmax over all logits, before penalties, temperature and what sampling drops. */
#include "engine_parts.h"
#include "logprobs.h"

#include <math.h>
#include <string.h>

enum { LEAST = -9999 };   /* for what has no chance at all: minus infinity is no number for JSON */

static float log_sum_exp(const float *logits, int32_t n)
{
    float top = -INFINITY;
    double sum = 0;
    for (int32_t i = 0; i < n; i++)
        top = logits[i] > top ? logits[i] : top;
    for (int32_t i = 0; i < n; i++)
        sum += logits[i] > -INFINITY ? exp((double)logits[i] - (double)top) : 0;   /* NaN counts for nothing, as in sampling */
    return top + (float)log(sum);
}

/* The n largest, the largest first, into ids. Returns how many there are. */
static uint32_t likeliest(const float *logits, int32_t n_vocab, uint32_t n, int32_t ids[SPA_LOGPROBS_MAX])
{
    uint32_t have = 0;
    for (int32_t i = 0; i < n_vocab && n > 0; i++) {
        if (!(logits[i] > -INFINITY) || (have == n && logits[i] <= logits[ids[have - 1]]))
            continue;
        uint32_t at = have < n ? have++ : have - 1;
        for (; at > 0 && logits[ids[at - 1]] < logits[i]; at--)
            ids[at] = ids[at - 1];
        ids[at] = i;
    }
    return have;
}

void logprobs_send(struct spa_engine *e, struct peer *p, const struct spa_turn *t, int32_t token, const float *logits)
{
    const struct spa_model *m = e->model;
    int32_t ids[1 + SPA_LOGPROBS_MAX] = { token };
    uint8_t bulk[SPA_LOGPROBS_BULK_MAX], piece[SPA_LOGPROB_BYTES_MAX];
    size_t len = 0;
    if (!t->ignore_end && m->is_end(m->self, token))   /* no token of the answer */
        return;
    const float all = log_sum_exp(logits, m->info.n_vocab);
    const uint32_t n = 1 + likeliest(logits, m->info.n_vocab, t->logprobs - 1, ids + 1);
    for (uint32_t i = 0; i < n; i++) {
        const float value = logits[ids[i]] - all;
        const int32_t got = m->piece(m->self, ids[i], (char *)piece, sizeof piece);
        const struct spa_logprob one = { .id = ids[i], .logprob = value > LEAST ? (value < 0 ? value : 0) : LEAST, .bytes = piece,
                                         .len = got > 0 ? (uint32_t)got : 0 };
        len += spa_logprob_write(&one, bulk + len);
    }
    spa_host_logprobs(&p->host, t->request, t->n_answer, n, bulk, len);
}
