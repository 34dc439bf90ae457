/* sample.c - from logits to a token. In: one row of logits and the tokens so far; out: the next token.
 *
 * Nobody sorts a vocabulary: the best k come out of one pass that keeps them in a heap and skips whole blocks of logits
 * that cannot enter it. top-p without top-k takes a few hundred best and more only when their mass does not suffice. */
#include "sample.h"

#include <assert.h>
#include <math.h>
#include <string.h>

/* ---- noise ---- */

/* Finaliser of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014): a bijection in which every bit depends on all. */
static uint64_t mix(uint64_t x)
{
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

uint64_t spa_noise64(uint64_t seed, uint64_t a, uint64_t b)
{
    const uint64_t odd = 0x9e3779b97f4a7c15u;
    return mix(mix(mix(seed + odd) + a + odd) + b + odd);
}

/* Standard Gumbel; the half keeps u off 0 and 1. */
static double gumbel(uint64_t seed, uint64_t pos, int32_t id)
{
    const double u = ((double)(spa_noise64(seed, pos, (uint64_t)id) >> 11) + 0.5) * 0x1p-53;
    return -log(-log(u));
}

/* ---- order ---- */

static int better(float logit_a, int32_t a, float logit_b, int32_t b)
{
    return logit_a > logit_b || (logit_a == logit_b && a < b);
}

static void swap(struct spa_candidate *a, struct spa_candidate *b)
{
    const struct spa_candidate c = *a;
    *a = *b;
    *b = c;
}

/* heap[0] is the worst of n. */
static void sink(struct spa_candidate *heap, size_t n, size_t i)
{
    for (;;) {
        size_t child = 2 * i + 1;
        if (child >= n)
            return;
        if (child + 1 < n && better(heap[child].logit, heap[child].id, heap[child + 1].logit, heap[child + 1].id))
            child++;
        if (!better(heap[i].logit, heap[i].id, heap[child].logit, heap[child].id))
            return;
        swap(heap + i, heap + child);
        i = child;
    }
}

static void make_heap(struct spa_candidate *heap, size_t n)
{
    for (size_t i = n / 2; i-- > 0;)
        sink(heap, n, i);
}

/* A heap with the worst on top becomes a list with the best first. */
static void sort_heap(struct spa_candidate *heap, size_t n)
{
    while (n > 1) {
        swap(heap, heap + --n);
        sink(heap, n, 0);
    }
}

/* The k best of n to the front, best first; the others stay behind them. */
static void best_first(struct spa_candidate *work, size_t n, size_t k)
{
    make_heap(work, k);
    for (size_t i = k; i < n; i++)
        if (better(work[i].logit, work[i].id, work[0].logit, work[0].id)) {
            swap(work, work + i);
            sink(work, k, 0);
        }
    sort_heap(work, k);
}

/* ---- candidates ---- */

/* All tokens that are not NaN, repeat penalty applied. */
static size_t all_candidates(const struct spa_sampling *cfg, const float *logits, size_t n_vocab, const int32_t *recent,
                             size_t n_recent, struct spa_candidate *work)
{
    for (size_t i = 0; i < n_vocab; i++) {
        work[i].logit = logits[i];
        work[i].id = (int32_t)i;
    }
    const float penalty = cfg->repeat_penalty;
    const size_t window = cfg->repeat_last_n < 0 ? n_recent : (size_t)cfg->repeat_last_n;
    if (penalty != 1.0f)
        for (size_t i = n_recent > window ? n_recent - window : 0; i < n_recent; i++) {
            const int32_t id = recent[i];
            if (id < 0 || (size_t)id >= n_vocab)
                continue;
            /* From the original logit: a token that came twice is not punished twice. */
            work[id].logit = logits[id] <= 0 ? logits[id] * penalty : logits[id] / penalty;
        }
    size_t n = 0;
    for (size_t i = 0; i < n_vocab; i++)
        if (!isnan(work[i].logit))
            work[n++] = work[i];
    return n;
}

/* The k best straight from the logits, without a candidate for each token. Returns how many: fewer when there are NaN. */
static size_t top_candidates(const float *logits, size_t n_vocab, size_t k, struct spa_candidate *work)
{
    enum { BLOCK = 64 };
    size_t n = 0, i = 0;
    for (; i < n_vocab && n < k; i++)
        if (!isnan(logits[i])) {
            work[n].logit = logits[i];
            work[n++].id = (int32_t)i;
        }
    make_heap(work, n);
    while (i < n_vocab) {
        const size_t end = i + BLOCK < n_vocab ? i + BLOCK : n_vocab;
        const float worst = work[0].logit;
        unsigned above = 0;
        for (size_t j = i; j < end; j++)   /* ids rise, so an equal logit never enters */
            above |= logits[j] > worst;
        for (; i < end && above; i++)
            if (logits[i] > work[0].logit) {
                work[0].logit = logits[i];
                work[0].id = (int32_t)i;
                sink(work, n, 0);
            }
        i = end;
    }
    sort_heap(work, n);
    return n;
}

static int32_t greedy(const float *logits, size_t n_vocab)
{
    enum { BLOCK = 64 };
    size_t at = 0;
    while (at < n_vocab && isnan(logits[at]))
        at++;
    if (at == n_vocab)
        return 0;
    float max = logits[at];
    for (size_t i = at + 1; i < n_vocab;) {
        const size_t end = i + BLOCK < n_vocab ? i + BLOCK : n_vocab;
        unsigned above = 0;
        for (size_t j = i; j < end; j++)
            above |= logits[j] > max;
        for (; i < end && above; i++)
            if (logits[i] > max) {
                max = logits[i];
                at = i;
            }
        i = end;
    }
    return (int32_t)at;
}

/* p = exp(logit - max) over n; returns their sum. */
static double weigh(struct spa_candidate *work, size_t n, float max)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++) {
        work[i].p = expf(work[i].logit - max);
        sum += (double)work[i].p;
    }
    return sum;
}

/* How many of the first n, best first, reach the share top_p of sum; n + 1 when all of them do not. */
static size_t count_top_p(const struct spa_candidate *work, size_t n, float top_p, double sum)
{
    double mass = 0;
    for (size_t i = 0; i < n; i++) {
        mass += (double)work[i].p;
        if (mass >= (double)top_p * sum)
            return i + 1;
    }
    return n + 1;
}

int32_t spa_sample(const struct spa_sampling *cfg, const float *logits, int32_t n_vocab, const int32_t *recent,
                   size_t n_recent, uint64_t pos, struct spa_candidate *work)
{
    assert(n_vocab > 0);
    const size_t n_all = (size_t)n_vocab;
    const int penalised = cfg->repeat_penalty != 1.0f && cfg->repeat_last_n != 0 && n_recent > 0;
    const int cut_k = cfg->top_k > 0 && (size_t)cfg->top_k < n_all;
    const int cut_p = cfg->top_p < 1.0f;
    if (cfg->temp <= 0 && !penalised)
        return greedy(logits, n_all);

    size_t n;
    if (cut_k && !penalised) {
        n = top_candidates(logits, n_all, (size_t)cfg->top_k, work);
    } else {
        n = all_candidates(cfg, logits, n_all, recent, n_recent, work);
        if (cut_k) {
            const size_t k = (size_t)cfg->top_k < n ? (size_t)cfg->top_k : n;
            best_first(work, n, k);
            n = k;
        }
    }
    if (n == 0)
        return 0;

    size_t best = 0;
    for (size_t i = 1; i < n; i++)
        if (better(work[i].logit, work[i].id, work[best].logit, work[best].id))
            best = i;
    const float max = work[best].logit;
    if (cfg->temp <= 0 || !isfinite(max))   /* an infinite logit has all the mass, or every token has none */
        return work[best].id;

    if (cut_p) {
        const double sum = weigh(work, n, max);
        size_t sorted = cut_k ? n : 256, kept;
        for (;; sorted *= 8) {
            sorted = sorted < n ? sorted : n;
            if (!cut_k)
                best_first(work, n, sorted);
            kept = count_top_p(work, sorted, cfg->top_p, sum);
            if (kept <= sorted || sorted == n)
                break;
        }
        n = kept < n ? kept : n;
    }

    const float floor = cfg->min_p > 0 ? max + logf(cfg->min_p) : -INFINITY;
    double best_score = -INFINITY;
    int32_t token = work[0].id;
    for (size_t i = 0; i < n; i++) {
        if (work[i].logit < floor)
            continue;
        const double score = (double)work[i].logit / (double)cfg->temp + gumbel(cfg->seed, pos, work[i].id);
        if (score > best_score) {
            best_score = score;
            token = work[i].id;
        }
    }
    return token;
}
