/* invariant.c - in: a model with empty slots. out: the widths at which a token's bits stay what they are alone (invariant.h).
 *
 * IMPLEMENTATION NOTES: what moves bits with width in ggml's CPU backend (libllama as tools/setup pins it).
 *
 *   K-quants and i-quants       from 8 rows on, another product (ggml-cpu/tiled) sums in another order.
 *                               --invariant turns it off (GGML_CPU_TILED_MM=0).
 *   repacked weights            Q4_0, Q4_K, IQ4_NL ...: groups of 4 rows go through one kernel, what is left through another.
 *                               --invariant leaves weights as they are (use_extra_bufts = false).
 *   F32, F16, BF16 weights      one row: a dot product with several sums; two and more: tinyBLAS with one sum. Not mended.
 *   Q4_0, Q5_0, Q8_0, IQ4_NL    the same two paths, whose sums are of one order.
 *   Q4_1, Q5_1                  always the dot product: any width.
 *   attention, 64 tokens and up of one sequence    tiles. Micro-batches of at most 32 keep it out.
 *   attention, one lone token on a cache of 512 cells and more (from 257 tokens on)    keys are divided among threads and the parts
 *                               summed. Only when keys and values have one type, F32 or F16 (libllama hands F32 on as F16): with
 *                               two types there is one path for all. --invariant keeps keys in F16 and values in BF16: three bits
 *                               less in a value, and sums in F32 where two F16 would be summed in F16.
 *   attention without -fa       products of F16 or F32 as above.
 */
#include "invariant.h"

#include <stdlib.h>
#include <string.h>

enum { WIDEST = SPA_INVARIANT_WIDEST, ROUNDS = 2, PREFIX_PIECE = 32 };

struct probe {
    const struct spa_model *m;
    uint32_t depth;
    uint8_t *before;    /* the sequence of the first `depth` tokens, as the model saves it; NULL: depth is 0 */
    size_t   before_len;
    float   *alone;     /* [WIDEST, d] y_fin of the probe's tokens, decoded one by one */
};

static uint32_t min(uint32_t a, uint32_t b) { return a < b ? a : b; }

/* Any tokens do: spread over the vocabulary. */
static int32_t token_at(const struct spa_model *m, uint32_t pos)
{
    return (int32_t)((17 + (uint64_t)pos * 7919) % (uint64_t)m->info.n_vocab);
}

static struct spa_batch_token row_at(const struct probe *p, uint32_t seq, uint32_t pos, enum spa_want want)
{
    return (struct spa_batch_token){ token_at(p->m, pos), pos, seq, want };
}

static bool begin(const struct probe *p, uint32_t seq)
{
    if (p->before)
        return p->m->load(p->m->self, seq, p->before, p->before_len);
    return p->m->seq_rm(p->m->self, seq, 0);
}

static bool same(const struct probe *p, const struct spa_states *s, uint32_t row, uint32_t of)
{
    const size_t d = p->m->info.d;
    return memcmp(s->y_fin + row * d, p->alone + of * d, d * sizeof(float)) == 0;
}

static int make_before(struct probe *p)
{
    struct spa_batch_token rows[PREFIX_PIECE];
    struct spa_states states;
    for (uint32_t at = 0, n; at < p->depth; at += n) {
        n = min(min(PREFIX_PIECE, p->m->info.n_batch), p->depth - at);
        for (uint32_t i = 0; i < n; i++)
            rows[i] = row_at(p, 0, at + i, SPA_WANT_NONE);
        if (p->m->decode(p->m->self, rows, n, NULL, 0, &states) != 0)
            return -1;
    }
    return p->depth == 0 || p->m->save(p->m->self, 0, &p->before, &p->before_len) ? 0 : -1;
}

static int make_alone(struct probe *p, uint32_t n)
{
    struct spa_states states;
    if (!begin(p, 0))
        return -1;
    for (uint32_t i = 0; i < n; i++) {
        const struct spa_batch_token row = row_at(p, 0, p->depth + i, SPA_WANT_ALL);
        if (p->m->decode(p->m->self, &row, 1, NULL, 0, &states) != 0)
            return -1;
        memcpy(p->alone + (size_t)i * p->m->info.d, states.y_fin, p->m->info.d * sizeof(float));
    }
    return 0;
}

/* n tokens of one sequence in one piece. 1: bits as alone, 0: others, -1: failure. */
static int try_rows(const struct probe *p, uint32_t n)
{
    struct spa_batch_token rows[WIDEST];
    struct spa_states states;
    for (uint32_t i = 0; i < n; i++)
        rows[i] = row_at(p, 0, p->depth + i, SPA_WANT_ALL);
    if (!begin(p, 0) || p->m->decode(p->m->self, rows, n, NULL, 0, &states) != 0)
        return -1;
    bool all = true;
    for (uint32_t i = 0; i < n; i++)
        all = all && same(p, &states, i, i);
    return all;
}

/* n sequences, all with the probe, a token each at a time. */
static int try_company(const struct probe *p, uint32_t n)
{
    struct spa_batch_token rows[WIDEST];
    struct spa_states states;
    bool all = true;
    for (uint32_t s = 0; s < n; s++)
        if (!begin(p, s))
            return -1;
    for (uint32_t round = 0; all && round < ROUNDS; round++) {
        for (uint32_t s = 0; s < n; s++)
            rows[s] = row_at(p, s, p->depth + round, SPA_WANT_ALL);
        if (p->m->decode(p->m->self, rows, n, NULL, 0, &states) != 0)
            return -1;
        for (uint32_t s = 0; s < n; s++)
            all = all && same(p, &states, s, round);
    }
    return all;
}

/* The head over n of the states. logits: [WIDEST, n_vocab] and one row more. */
static int try_head(const struct probe *p, uint32_t n, float *logits)
{
    const size_t d = p->m->info.d, v = (size_t)p->m->info.n_vocab;
    float *one = logits + WIDEST * v;
    p->m->head(p->m->self, p->alone, n, logits);
    bool all = true;
    for (uint32_t i = 0; all && i < n; i = i + 1 < n / 2 ? n / 2 : i + 1 < n - 1 ? n - 1 : n) {   /* first, middle, last */
        p->m->head(p->m->self, p->alone + i * d, 1, one);
        all = memcmp(one, logits + i * v, v * sizeof *one) == 0;
    }
    return all;
}

static int widest(const struct probe *p, int (*try)(const struct probe *p, uint32_t n), uint32_t of, uint32_t *out)
{
    *out = 1;
    for (uint32_t n = 2; n <= of; n *= 2) {
        const int rc = try(p, n);
        if (rc <= 0)
            return rc;
        *out = n;
    }
    return 0;
}

int spa_invariant_check(const struct spa_model *m, uint32_t depth, struct spa_invariant *out)
{
    const struct spa_model_info *info = &m->info;
    const uint32_t room = min(info->n_ubatch, info->n_batch);
    const uint32_t of = min(min(WIDEST, room), info->n_ctx_slot);
    struct probe p = { .m = m, .depth = min(depth, info->n_ctx_slot - of) };
    float *logits = malloc((WIDEST + 1) * (size_t)info->n_vocab * sizeof *logits);
    p.alone = calloc((size_t)WIDEST * info->d, sizeof *p.alone);
    *out = (struct spa_invariant){ .rows_of = of, .company_of = min(min(WIDEST, room), info->n_slots), .head_of = min(WIDEST, info->n_slots), .head = 1 };
    int rc = logits && p.alone ? make_before(&p) : -1;
    if (rc == 0)
        rc = make_alone(&p, of);
    if (rc == 0)
        rc = widest(&p, try_rows, out->rows_of, &out->rows);
    if (rc == 0)
        rc = widest(&p, try_company, out->company_of, &out->company);
    for (uint32_t n = 2; rc == 0 && n <= out->head_of && try_head(&p, n, logits); n *= 2)
        out->head = n;
    for (uint32_t s = 0; s < info->n_slots; s++)
        m->seq_rm(m->self, s, 0);
    free(p.before);
    free(p.alone);
    free(logits);
    return rc < 0 ? -1 : 0;
}

uint32_t spa_invariant_width(const struct spa_invariant *v)
{
    /* What was tried less far because there is no more of it says nothing against a wider one. */
    const bool rows_all = v->rows * 2 > v->rows_of, company_all = v->company * 2 > v->company_of;
    if (company_all && !rows_all)
        return v->rows;
    if (rows_all && !company_all)
        return v->company;
    return rows_all ? v->rows : min(v->rows, v->company);
}
