/* cell_model.c - see cell_model.h. */
#include "cell_model.h"
#include "sample.h"

#include <assert.h>
#include <string.h>

enum { SEQS = FAKE_SLOTS + 8, CELLS = 4 * FAKE_CTX, BATCH = 32 };

struct cell { uint32_t pos; int32_t token; };
static struct sequence {
    struct cell cells[CELLS];
    uint32_t n;
    bool used;
} sequences[SEQS];
static float y_fin[BATCH * FAKE_D], taps[(FAKE_LAYERS + 1) * BATCH * FAKE_D];
static struct cell_counts counts;
static unsigned leak_every, emptied;
static const float *rows;

static float unit(uint64_t seed, uint64_t a, uint64_t b)
{
    return (float)(spa_noise64(seed, a, b) >> 40) / (float)(1 << 23) - 1.0f;
}

static void put(struct sequence *s, uint32_t seq, uint32_t pos, int32_t token)
{
    for (uint32_t i = 0; i < s->n; i++)
        counts.residual += s->cells[i].pos >= pos;
    counts.begun += pos == 0 && s->used && seq < FAKE_SLOTS;
    s->used = true;
    assert(s->n < CELLS);
    s->cells[s->n++] = (struct cell){ pos, token };
}

/* Of all cells at or before pos, in whatever order they lie. */
static uint64_t hash_to(const struct sequence *s, uint32_t pos)
{
    uint64_t sum = 1;
    for (uint32_t i = 0; i < s->n; i++)
        if (s->cells[i].pos <= pos)
            sum += spa_noise64(3, (uint64_t)s->cells[i].token, s->cells[i].pos);
    return sum;
}

/* What stands CELL_ECHO - 1 positions before; the oldest cell there, whoever's it is. */
static int32_t echo_of(const struct sequence *s, uint32_t pos)
{
    for (uint32_t i = 0; i < s->n; i++)
        if (s->cells[i].pos + CELL_ECHO - 1 == pos)
            return s->cells[i].token;
    return s->cells[s->n - 1].token;
}

static int decode(void *self, const struct spa_batch_token *batch, uint32_t n, const uint32_t *layers, uint32_t n_layers, struct spa_states *out)
{
    (void)self;
    uint32_t n_wanted = 0, at = 0;
    assert(n > 0 && n <= BATCH);
    for (uint32_t i = 0; i < n; i++)
        n_wanted += batch[i].want != SPA_WANT_NONE;
    for (uint32_t i = 0; i < n; i++) {
        const struct spa_batch_token *t = &batch[i];
        struct sequence *s = &sequences[t->seq];
        put(s, t->seq, t->pos, t->token);
        if (t->want == SPA_WANT_NONE)
            continue;
        const uint64_t h = hash_to(s, t->pos);
        const float *row = rows + (size_t)echo_of(s, t->pos) * FAKE_D;
        for (uint32_t k = 0; k < FAKE_D; k++) {
            y_fin[at * FAKE_D + k] = row[k];
            for (uint32_t l = 0; l < n_layers; l++)
                taps[(l * n_wanted + at) * FAKE_D + k] = unit(h, layers[l], k);
        }
        at++;
    }
    *out = (struct spa_states){ y_fin, taps, n_wanted };
    return 0;
}

/* The token whose row is the nearest. */
static void head(void *self, const float *states, uint32_t n, float *logits)
{
    (void)self;
    for (uint32_t i = 0; i < n; i++)
        for (uint32_t v = 0; v < FAKE_VOCAB; v++) {
            float sum = 0;
            for (uint32_t k = 0; k < FAKE_D; k++) {
                const float w = rows[v * FAKE_D + k];
                sum += states[i * FAKE_D + k] * w - w * w / 2;
            }
            logits[i * FAKE_VOCAB + v] = v == FAKE_END ? -1000.0f : sum;
        }
}

static bool seq_rm(void *self, uint32_t seq, uint32_t from)
{
    (void)self;
    struct sequence *s = &sequences[seq];
    if (from == 0 && s->n > 0 && leak_every && ++emptied % leak_every == 0)
        return true;
    uint32_t n = 0;
    for (uint32_t i = 0; i < s->n; i++)
        if (s->cells[i].pos < from)
            s->cells[n++] = s->cells[i];
    s->n = n;
    return true;
}

void cell_model_take_over(struct spa_model *m)
{
    memset(sequences, 0, sizeof sequences);
    counts = (struct cell_counts){ 0 };
    emptied = 0;
    rows = (const float *)(const void *)m->info.head_bytes;
    m->decode = decode;
    m->head = head;
    m->seq_rm = seq_rm;
    m->save = NULL;
    m->load = NULL;
}

void cell_model_leak(unsigned every)
{
    leak_every = every;
}

struct cell_counts cell_model_counts(void)
{
    return counts;
}
