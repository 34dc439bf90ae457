/* lm_head.c - loss and gradient of the frozen LM head in vocabulary tiles (lm_head.h). In: states, targets, the head's rows in
 * ggml's form. Out: loss, gradient, top token. How the rows got here is the caller's matter.
 *
 * IMPLEMENTATION NOTES
 * The vocabulary is cut into PARTS equal parts, each with its own running maximum, sum and gradient accumulator, and each
 * part into tiles of TILE rows. Threads take whole parts, the next free one each, and parts are merged in order, so the number of
 * threads changes the time and no bit. The BLAS runs on one thread per part: two threads with a product each are as fast as one product on
 * two threads, and dequantising and exp, which no BLAS would split, are shared out as well. */
#define _DEFAULT_SOURCE

#include "lm_head.h"
#include "blas.h"

#include <ggml.h>

#include <assert.h>
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    PARTS   = 8,
    TILE    = 256,    /* rows dequantised at a time: with d = 576 they and their logits stay in a core's second-level cache */
    CHUNK   = 512,    /* states at a time: bounds the accumulators */
    LANES   = 64,     /* partial sums: a loop so long that the compiler makes it wide instead of unrolling it away */
    THREADS_MAX = PARTS
};

/* A state's gradient leaves out rows of the vocabulary that are less likely than this beside the likeliest or the target (lm_head.h);
 * in large vocabularies fewer, so that all of them together stay below a sixteenth. */
static float negligible(uint32_t n_vocab) { return n_vocab <= 65536 ? 0x1p-20f : 0x1p-4f / (float)n_vocab; }

struct part {              /* one part's results for the states of a chunk */
    float  *max;           /* [n] */
    double *sum;           /* [n] of exp(logit - max) */
    float  *target_logit;  /* [n]; set by the part that holds the target */
    int32_t *top;          /* [n] */
    float  *acc;           /* [n, d] sum of exp(logit - max) cap' w */
};
struct spa_head_work {
    uint32_t n_cap;        /* states that there is room for */
    uint32_t n_threads;
    bool     with_acc;
    struct part parts[PARTS];
    float *tile[THREADS_MAX];     /* [TILE, d] */
    float *logits[THREADS_MAX];   /* [n_cap, TILE] */
    float *reference;             /* [n_cap] the targets' logits, where the running maxima begin */
};

struct job {               /* a chunk, for one of the threads */
    struct spa_lm_head *h;
    const float   *states;
    const int32_t *target;
    uint32_t n, thread;
    bool gradient;
    atomic_uint *next_part;    /* of all threads */
};

int spa_lm_head_view(struct spa_lm_head *h, uint32_t d, uint32_t n_vocab, uint32_t type, const uint8_t *bytes, size_t len,
                     char *why, size_t why_len)
{
    memset(h, 0, sizeof *h);
    const struct ggml_type_traits *traits = type < GGML_TYPE_COUNT ? ggml_get_type_traits((enum ggml_type)type) : NULL;
    bool is_f32 = type == GGML_TYPE_F32;
    if (!traits || traits->blck_size <= 0 || (!is_f32 && !traits->to_float)) {
        snprintf(why, why_len, "the model's LM head has tensor type %u, which this build cannot read", type);
        return -1;
    }
    const size_t row_bytes = d % (uint64_t)traits->blck_size == 0 ? ggml_row_size((enum ggml_type)type, d) : 0;
    const bool has_bias = n_vocab != 0 && len / n_vocab == row_bytes + sizeof(float);
    if (d == 0 || n_vocab == 0 || n_vocab > INT32_MAX || row_bytes == 0 || (len / n_vocab != row_bytes && !has_bias) || len % n_vocab != 0) {
        snprintf(why, why_len, "the model's LM head has %zu bytes, which is not %u rows of %u numbers as %s", len, n_vocab, d,
                 traits->type_name);
        return -1;
    }
    h->d = d;
    h->n_vocab = n_vocab;
    h->type = type;
    h->scale = 1;
    h->bytes = bytes;
    h->len = len;
    h->row_bytes = row_bytes;
    h->bias = has_bias && bytes ? bytes + row_bytes * n_vocab : NULL;
    return 0;
}

static void clear_and_free(void *p, size_t n)
{
    if (p)
        explicit_bzero(p, n);
    free(p);
}

/* What it says of somebody's states is cleared; the tiles are the head's own rows. */
static void work_free(struct spa_head_work *w, uint32_t d)
{
    if (!w)
        return;
    const size_t n = w->n_cap;
    for (int p = 0; p < PARTS; p++) {
        free(w->parts[p].max);
        free(w->parts[p].sum);
        clear_and_free(w->parts[p].target_logit, n * sizeof *w->parts[p].target_logit);
        clear_and_free(w->parts[p].top, n * sizeof *w->parts[p].top);
        clear_and_free(w->parts[p].acc, n * d * sizeof *w->parts[p].acc);
    }
    for (int t = 0; t < THREADS_MAX; t++) {
        free(w->tile[t]);
        clear_and_free(w->logits[t], TILE * n * sizeof *w->logits[t]);
    }
    clear_and_free(w->reference, n * sizeof *w->reference);
    free(w);
}

void spa_lm_head_release(struct spa_lm_head *h)
{
    work_free(h->work, h->d);
    h->work = NULL;
}

static bool work_reserve(struct spa_lm_head *h, uint32_t n, bool gradient)
{
    struct spa_head_work *w = h->work;
    if (w && w->n_cap >= n && (w->with_acc || !gradient))
        return true;
    if (w) {   /* not made smaller in the one thing while it grows in the other */
        n = n > w->n_cap ? n : w->n_cap;
        gradient = gradient || w->with_acc;
        spa_lm_head_release(h);
    }
    w = h->work = calloc(1, sizeof *w);
    if (!w)
        return false;
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
    w->n_threads = h->n_threads ? h->n_threads : cores < 1 ? 1 : (uint32_t)cores;
    w->n_threads = w->n_threads > THREADS_MAX ? THREADS_MAX : w->n_threads;
    w->n_cap = n;
    w->with_acc = gradient;
    w->reference = malloc(n * sizeof *w->reference);
    bool ok = w->reference != NULL;
    for (int p = 0; p < PARTS; p++) {
        struct part *part = &w->parts[p];
        part->max = malloc(n * sizeof *part->max);
        part->sum = malloc(n * sizeof *part->sum);
        part->target_logit = malloc(n * sizeof *part->target_logit);
        part->top = malloc(n * sizeof *part->top);
        part->acc = gradient ? malloc((size_t)n * h->d * sizeof *part->acc) : NULL;
        ok = ok && part->max && part->sum && part->target_logit && part->top && (part->acc || !gradient);
    }
    for (uint32_t t = 0; t < w->n_threads; t++) {
        w->tile[t] = malloc((size_t)TILE * h->d * sizeof *w->tile[t]);
        w->logits[t] = malloc((size_t)TILE * n * sizeof *w->logits[t]);
        ok = ok && w->tile[t] && w->logits[t];
    }
    if (!ok)
        spa_lm_head_release(h);
    return ok;
}

/* Rows first .. first+n-1 as F32. */
static void dequantise(const struct spa_lm_head *h, uint32_t first, uint32_t n, float *out)
{
    const uint8_t *in = h->bytes + h->row_bytes * first;
    if (h->type == GGML_TYPE_F32)
        memcpy(out, in, h->row_bytes * n);
    else
        ggml_get_type_traits((enum ggml_type)h->type)->to_float(in, out, (int64_t)n * h->d);
}

/* e^x for x <= 0, within 2 units in the last place; 0 below -87, NaN for NaN. Written so that the compiler makes it wide:
 * x = n ln2 + r, |r| <= ln2/2; e^r by its series to r^7 (next term < 6e-9); 2^n by adding n to the exponent. Adding
 * 1.5 * 2^23 rounds to the nearest integer and leaves it in the low bits. */
static inline float exp_nonpositive(float x)
{
    const float magic = 12582912.0f;
    float shifted = x * 1.44269504f + magic;
    float n = shifted - magic;
    float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;   /* ln2 in two pieces: the first times n is exact */
    float e = 1 + r * (1 + r * (1.0f / 2 + r * (1.0f / 6 + r * (1.0f / 24 + r * (1.0f / 120 + r * (1.0f / 720 + r * (1.0f / 5040)))))));
    uint32_t bits, power;
    memcpy(&bits, &shifted, sizeof bits);
    power = (bits << 23) + 0x3f800000u;
    float two_n;
    memcpy(&two_n, &power, sizeof two_n);
    return x < -87.0f ? 0.0f : e * two_n;
}

/* logits = softcap * tanh(logits / softcap); tanh(u) = (1 - t) / (1 + t) with t = e^(-2u) for u >= 0. */
static void cap_logits(float softcap, float *l, uint32_t n)
{
    for (uint32_t j = 0; j < n; j++) {
        float u = l[j] / softcap;
        float t = exp_nonpositive(-2 * fabsf(u));
        l[j] = softcap * copysignf((1 - t) / (1 + t), u);
    }
}

/* Adds what tokens first .. first+n-1 have more of in every state; at most a tile of them. */
static void add_bias(const struct spa_lm_head *h, uint32_t first, float *l, uint32_t n)
{
    float bias[TILE];
    if (!h->bias)
        return;
    memcpy(bias, h->bias + first * sizeof *bias, n * sizeof *bias);
    for (uint32_t j = 0; j < n; j++)
        l[j] += bias[j];
}

static float largest(const float *l, uint32_t n)
{
    float lane[LANES];
    for (int i = 0; i < LANES; i++)
        lane[i] = -INFINITY;
    uint32_t j = 0;
    for (; j + LANES <= n; j += LANES)
        for (int i = 0; i < LANES; i++)
            lane[i] = l[j + i] > lane[i] ? l[j + i] : lane[i];
    for (; j < n; j++)
        lane[0] = l[j] > lane[0] ? l[j] : lane[0];
    float m = lane[0];
    for (int i = 1; i < LANES; i++)
        m = lane[i] > m ? lane[i] : m;
    return m;
}

static double sum_of(const float *l, uint32_t n)
{
    float lane[LANES] = {0};
    uint32_t j = 0;
    for (; j + LANES <= n; j += LANES)
        for (int i = 0; i < LANES; i++)
            lane[i] += l[j + i];
    for (; j < n; j++)
        lane[0] += l[j];
    double sum = 0;
    for (int i = 0; i < LANES; i++)
        sum += (double)lane[i];
    return sum;
}

/* One state's logits l of the tile that starts at row `first`: into the part's maximum, sum and top; l becomes the weights
 * of the gradient, and heaviest[j] is raised to that of row first + j. */
static void fold_tile(const struct job *job, struct part *part, uint32_t i, uint32_t first, uint32_t width, float *l, float *heaviest)
{
    const struct spa_lm_head *h = job->h;
    uint32_t target = (uint32_t)job->target[i];
    float capped[TILE];
    add_bias(h, first, l, width);
    if (h->softcap > 0)
        cap_logits(h->softcap, l, width);
    if (target >= first && target - first < width)
        part->target_logit[i] = l[target - first];
    float m = largest(l, width);
    if (m > part->max[i]) {
        float shrink = expf(part->max[i] - m);
        part->sum[i] *= (double)shrink;
        if (job->gradient)
            spa_blas.sscal((int)h->d, shrink, part->acc + (size_t)i * h->d, 1);
        part->max[i] = m;
        uint32_t at = 0;
        while (l[at] != m)
            at++;
        part->top[i] = (int32_t)(first + at);
    }
    m = part->max[i];
    if (job->gradient && h->softcap > 0)
        memcpy(capped, l, width * sizeof *l);
    for (uint32_t j = 0; j < width; j++)
        l[j] = exp_nonpositive(l[j] - m);
    part->sum[i] += sum_of(l, width);
    const float least = negligible(h->n_vocab);
    for (uint32_t j = 0; j < width; j++) {
        l[j] = l[j] < least ? 0 : l[j];
        heaviest[j] = l[j] > heaviest[j] ? l[j] : heaviest[j];   /* a NaN spoils its own state alone (merge_state) */
    }
    if (job->gradient && h->softcap > 0) {
        float inverse = 1 / h->softcap;
        for (uint32_t j = 0; j < width; j++) {   /* the cap's derivative: 1 - (l/softcap)^2 */
            float u = capped[j] * inverse;
            l[j] *= 1 - u * u;
        }
    }
}

/* Closes ranks: the tile's rows that weigh something for any state, and their weights. How many these are. */
static uint32_t drop_weightless(const struct job *job, uint32_t width, const float *heaviest, float *tile, float *weights)
{
    const size_t d = job->h->d;
    uint32_t at[TILE], n = 0;
    for (uint32_t j = 0; j < width; j++)
        if (heaviest[j] > 0)
            at[n++] = j;
    if (n == width)
        return n;
    for (uint32_t k = 0; k < n; k++)
        if (at[k] != k)
            memcpy(tile + k * d, tile + at[k] * d, d * sizeof *tile);
    for (uint32_t i = 0; i < job->n; i++)
        for (uint32_t k = 0; k < n; k++)
            weights[(size_t)i * width + k] = weights[(size_t)i * width + at[k]];
    return n;
}

static void run_part(const struct job *job, uint32_t p)
{
    const struct spa_lm_head *h = job->h;
    struct part *part = &h->work->parts[p];
    float *tile = h->work->tile[job->thread], *logits = h->work->logits[job->thread];
    uint32_t first = (uint32_t)((uint64_t)h->n_vocab * p / PARTS), end = (uint32_t)((uint64_t)h->n_vocab * (p + 1) / PARTS);
    int n = (int)job->n, d = (int)h->d;
    for (uint32_t i = 0; i < job->n; i++) {
        part->max[i] = h->work->reference[i];
        part->sum[i] = 0;
        part->top[i] = isfinite(part->max[i]) ? job->target[i] : -1;
    }
    if (job->gradient)
        memset(part->acc, 0, (size_t)n * h->d * sizeof *part->acc);
    for (uint32_t width; first < end; first += width) {
        width = end - first < TILE ? end - first : TILE;
        dequantise(h, first, width, tile);
        spa_blas.sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, n, (int)width, d, h->scale, job->states, d, tile, d, 0,
                    logits, (int)width);
        float heaviest[TILE] = {0};
        for (uint32_t i = 0; i < job->n; i++)
            fold_tile(job, part, i, first, width, logits + (size_t)i * width, heaviest);
        if (!job->gradient)
            continue;
        const uint32_t left = drop_weightless(job, width, heaviest, tile, logits);
        if (left > 0)
            spa_blas.sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, n, d, (int)left, 1, logits, (int)width, tile, d, 1, part->acc, d);
    }
}

static void *run_thread(void *arg)
{
    const struct job *job = arg;
    for (uint32_t p; (p = atomic_fetch_add(job->next_part, 1)) < PARTS;)
        run_part(job, p);
    return NULL;
}

/* Parts together: loss, top, and dstate = scale * (sum of p cap' w - cap'(target) w_target). */
static void merge_state(const struct job *job, uint32_t i, float *loss, float *dstate, int32_t *top, float *target_row)
{
    const struct spa_lm_head *h = job->h;
    const struct part *parts = h->work->parts;
    float m = -INFINITY, target_logit = NAN;
    int best = 0;
    uint32_t target = (uint32_t)job->target[i];
    for (int p = 0; p < PARTS; p++) {
        if (parts[p].max[i] > m) {
            m = parts[p].max[i];
            best = p;
        }
        if ((uint64_t)target >= (uint64_t)h->n_vocab * (uint32_t)p / PARTS)
            target_logit = parts[p].target_logit[i];   /* of the last part that starts at or before the target */
    }
    double sum = 0;
    for (int p = 0; p < PARTS; p++)
        sum += parts[p].sum[i] * exp((double)parts[p].max[i] - (double)m);
    *loss = (float)((double)m + log(sum) - (double)target_logit);
    if (top)
        *top = parts[best].top[i];
    if (!dstate)
        return;
    float slope = h->softcap > 0 ? 1 - (target_logit / h->softcap) * (target_logit / h->softcap) : 1;
    dequantise(h, target, 1, target_row);
    for (uint32_t c = 0; c < h->d; c++)
        dstate[c] = -h->scale * slope * target_row[c];
    for (int p = 0; p < PARTS; p++) {
        float share = (float)(exp((double)parts[p].max[i] - (double)m) / sum) * h->scale;
        if (share > 0 || isnan(share))
            spa_blas.saxpy((int)h->d, share, parts[p].acc + (size_t)i * h->d, 1, dstate, 1);
    }
}

/* What the target alone would make of the logsumexp: a bound of it from below, so that rows that weigh nothing are known in the first
 * tile already. */
static void refer_to_targets(struct spa_lm_head *h, const float *states, const int32_t *target, uint32_t n)
{
    float *row = h->work->tile[0];
    for (uint32_t i = 0; i < n; i++) {
        dequantise(h, (uint32_t)target[i], 1, row);
        float logit = h->scale * spa_blas.sdot((int)h->d, states + (size_t)i * h->d, 1, row, 1);
        add_bias(h, (uint32_t)target[i], &logit, 1);
        if (h->softcap > 0)
            cap_logits(h->softcap, &logit, 1);
        h->work->reference[i] = isfinite(logit) ? logit : -INFINITY;
    }
}

/* A chunk: at most CHUNK states. */
static void run_chunk(struct spa_lm_head *h, const float *states, const int32_t *target, uint32_t n, float *loss, float *dstates,
                     int32_t *top)
{
    struct job jobs[THREADS_MAX];
    pthread_t threads[THREADS_MAX];
    uint32_t started = 1;   /* this thread is the first */
    atomic_uint next_part = 0;
    spa_blas.set_num_threads(1);
    refer_to_targets(h, states, target, n);
    for (uint32_t t = 0; t < h->work->n_threads; t++)
        jobs[t] = (struct job){ h, states, target, n, t, dstates != NULL, &next_part };
    for (; started < h->work->n_threads; started++)
        if (pthread_create(&threads[started], NULL, run_thread, &jobs[started]) != 0)
            break;   /* the others do its share */
    run_thread(&jobs[0]);
    for (uint32_t t = 1; t < started; t++)
        pthread_join(threads[t], NULL);
    for (uint32_t i = 0; i < n; i++)
        merge_state(&jobs[0], i, &loss[i], dstates ? dstates + (size_t)i * h->d : NULL, top ? &top[i] : NULL,
                    h->work->tile[0]);
}

int spa_lm_head_loss(struct spa_lm_head *h, const float *states, const int32_t *target, uint32_t n, float *loss, float *dstates,
                     int32_t *top)
{
    for (uint32_t i = 0; i < n; i++)
        assert(target[i] >= 0 && (uint32_t)target[i] < h->n_vocab);
    if (h->cloud)
        return h->cloud_loss(h->cloud, states, target, n, loss, dstates, top, h->why, sizeof h->why);
    if (!spa_blas_load(h->why, sizeof h->why))
        return -1;
    snprintf(h->why, sizeof h->why, "out of memory for the LM head");   /* the one thing that can go wrong from here on */
    for (uint32_t at = 0, m; at < n; at += m) {
        m = n - at < CHUNK ? n - at : CHUNK;
        if (!work_reserve(h, m, dstates != NULL))
            return -1;
        size_t offset = (size_t)at * h->d;
        run_chunk(h, states + offset, target + at, m, loss + at, dstates ? dstates + offset : NULL, top ? top + at : NULL);
    }
    return 0;
}
