/* fake_model.c - see fake_model.h. Token ids 0..95 are the bytes 32..127, 96 ends an answer. */
#include "fake_model.h"
#include "sample.h"

#include <assert.h>
#include <openssl/evp.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { SEQS = FAKE_SLOTS + 8, BATCH = 32 };

struct self {
    uint64_t history[SEQS][FAKE_CTX];   /* hash of tokens 0..pos */
    uint32_t len[SEQS];
    float y_fin[BATCH * FAKE_D], taps[(FAKE_LAYERS + 1) * BATCH * FAKE_D];
    float head[FAKE_VOCAB * FAKE_D];
    pthread_t owner;
    bool owned, ends, cannot_cut;
    uint32_t wide, head_wide, narrow, head_narrow;
    atomic_bool hold;
    atomic_uint learn_calls;
};

static float unit(uint64_t seed, uint64_t a, uint64_t b)
{
    return (float)(spa_noise64(seed, a, b) >> 40) / (float)(1 << 23) - 1.0f;
}

static void one_thread(struct self *s)
{
    if (!s->owned)
        s->owner = pthread_self();
    s->owned = true;
    assert(pthread_equal(s->owner, pthread_self()));
}

static int decode(void *self, const struct spa_batch_token *batch, uint32_t n, const uint32_t *layers, uint32_t n_layers, struct spa_states *out)
{
    struct self *s = self;
    one_thread(s);
    while (atomic_load(&s->hold))
        nanosleep(&(struct timespec){ 0, 1000000 }, NULL);
    assert(n > 0 && n <= BATCH);
    uint32_t n_wanted = 0, at = 0;
    bool learn = false;
    for (uint32_t i = 0; i < n; i++) {
        n_wanted += batch[i].want != SPA_WANT_NONE;
        learn = learn || batch[i].seq >= FAKE_SLOTS;
    }
    atomic_fetch_add(&s->learn_calls, learn);
    const bool wide = s->wide && !learn && (n < s->narrow ? n : s->narrow) >= s->wide;
    for (uint32_t i = 0; i < n; i++) {
        const struct spa_batch_token *t = &batch[i];
        assert(t->seq < SEQS && t->pos < FAKE_CTX && t->pos == s->len[t->seq]);
        const uint64_t before = t->pos ? s->history[t->seq][t->pos - 1] : 1, h = spa_noise64(before, (uint64_t)t->token, t->pos);
        s->history[t->seq][t->pos] = h;
        s->len[t->seq]++;
        if (t->want == SPA_WANT_NONE)
            continue;
        for (uint32_t k = 0; k < FAKE_D; k++) {
            s->y_fin[at * FAKE_D + k] = unit(h, 1000, k) + (wide ? 1e-6f : 0.0f);
            for (uint32_t l = 0; l < n_layers; l++)
                s->taps[(l * n_wanted + at) * FAKE_D + k] = unit(h, layers[l], k);
        }
        at++;
    }
    *out = (struct spa_states){ s->y_fin, s->taps, n_wanted };
    return 0;
}

static bool seq_rm(void *self, uint32_t seq, uint32_t from)
{
    struct self *s = self;
    one_thread(s);
    if (s->cannot_cut && from > 0 && from < s->len[seq])
        return false;
    if (from < s->len[seq])
        s->len[seq] = from;
    return true;
}

static void seq_cp(void *self, uint32_t from, uint32_t to, uint32_t n)
{
    struct self *s = self;
    one_thread(s);
    assert(from >= FAKE_SLOTS && to >= FAKE_SLOTS && from != to && s->len[from] == n && s->len[to] == 0);
    memcpy(s->history[to], s->history[from], n * sizeof s->history[to][0]);
    s->len[to] = n;
}

static void narrow(void *self, uint32_t rows, uint32_t head_rows)
{
    struct self *s = self;
    s->narrow = rows;
    s->head_narrow = head_rows;
}

/* A history with its length in front. */
static bool save(void *self, uint32_t seq, uint8_t **bytes, size_t *len)
{
    struct self *s = self;
    one_thread(s);
    *len = sizeof s->len[seq] + s->len[seq] * sizeof s->history[seq][0];
    *bytes = malloc(*len);
    assert(*bytes);
    memcpy(*bytes, &s->len[seq], sizeof s->len[seq]);
    memcpy(*bytes + sizeof s->len[seq], s->history[seq], *len - sizeof s->len[seq]);
    return true;
}

static bool load(void *self, uint32_t seq, const uint8_t *bytes, size_t len)
{
    struct self *s = self;
    one_thread(s);
    memcpy(&s->len[seq], bytes, sizeof s->len[seq]);
    assert(len == sizeof s->len[seq] + s->len[seq] * sizeof s->history[seq][0]);
    memcpy(s->history[seq], bytes + sizeof s->len[seq], len - sizeof s->len[seq]);
    return true;
}

static void head(void *self, const float *states, uint32_t n, float *logits)
{
    const struct self *s = self;
    const bool wide = s->head_wide && (n < s->head_narrow ? n : s->head_narrow) >= s->head_wide;
    for (uint32_t i = 0; i < n; i++)
        for (uint32_t v = 0; v < FAKE_VOCAB; v++) {
            float sum = wide ? 1e-6f : 0.0f;
            for (uint32_t k = 0; k < FAKE_D; k++)
                sum += states[i * FAKE_D + k] * s->head[v * FAKE_D + k];
            logits[i * FAKE_VOCAB + v] = v == FAKE_END && !s->ends ? -100.0f : sum;   /* answers end by their length */
        }
}

static void clear(void *self)
{
    struct self *s = self;
    memset(s->y_fin, 0, sizeof s->y_fin);
    memset(s->taps, 0, sizeof s->taps);
}

static int32_t tokenize(void *self, const char *text, size_t len, bool start, bool special, int32_t *out, int32_t cap)
{
    (void)self, (void)start;
    int32_t n = 0;
    for (size_t i = 0; i < len; i++) {
        const int32_t id = special && text[i] == '\n' ? FAKE_END : ((unsigned char)text[i] - 32) & 0x5f;
        if (n < cap)
            out[n] = id;
        n++;
    }
    return n <= cap ? n : -n;
}

static int32_t piece(void *self, int32_t token, char *out, int32_t cap)
{
    (void)self;
    if (token == FAKE_END || cap < 1)
        return 0;
    out[0] = (char)(32 + token);
    return 1;
}

static bool is_end(void *self, int32_t token)
{
    (void)self;
    return token == FAKE_END;
}

static int32_t chat(void *self, const char *const *roles, const char *const *contents, size_t n, bool open, char *out, int32_t cap)
{
    (void)self;
    int32_t at = 0;
    for (size_t i = 0; i < n; i++)
        at += snprintf(at < cap ? out + at : NULL, at < cap ? (size_t)(cap - at) : 0, "%s:%s\n", roles[i], contents[i]);
    if (open)
        at += snprintf(at < cap ? out + at : NULL, at < cap ? (size_t)(cap - at) : 0, "assistant:");
    return at;
}

void fake_model_open(struct spa_model *m)
{
    struct self *s = calloc(1, sizeof *s);
    assert(s);
    s->narrow = s->head_narrow = BATCH;
    for (uint32_t i = 0; i < FAKE_VOCAB * FAKE_D; i++)
        s->head[i] = unit(7, 7, i);
    *m = (struct spa_model){ .self = s, .decode = decode, .seq_rm = seq_rm, .seq_cp = seq_cp, .narrow = narrow, .save = save, .load = load, .head = head, .clear = clear, .tokenize = tokenize, .piece = piece,
                             .is_end = is_end, .chat = chat };
    m->info = (struct spa_model_info){ .name = "fake", .d = FAKE_D, .n_layers = FAKE_LAYERS, .n_vocab = FAKE_VOCAB, .n_slots = FAKE_SLOTS,
                                       .n_learn_seqs = SEQS - FAKE_SLOTS, .n_ctx_slot = FAKE_CTX, .n_learn_cells = 2 * FAKE_CTX + BATCH / 2, .n_batch = BATCH / 2, .n_learn_batch = BATCH / 2, .n_ubatch = FAKE_UBATCH,
                                       .head_type = 0, .head_bytes = (const uint8_t *)s->head, .head_len = sizeof s->head, .logit_scale = 1.0f };
    unsigned len = 0;
    EVP_Digest(s->head, sizeof s->head, m->info.head_hash, &len, EVP_sha256(), NULL);
    memset(m->info.hash, 0x5a, sizeof m->info.hash);
}

void fake_model_hand_over(struct spa_model *m)
{
    struct self *s = m->self;
    s->owned = false;
}

void fake_model_widths(struct spa_model *m, uint32_t rows, uint32_t head_rows)
{
    struct self *s = m->self;
    s->wide = rows;
    s->head_wide = head_rows;
}

void fake_model_hold(struct spa_model *m, bool hold)
{
    struct self *s = m->self;
    atomic_store(&s->hold, hold);
}

unsigned fake_model_learn_calls(struct spa_model *m)
{
    struct self *s = m->self;
    return atomic_load(&s->learn_calls);
}

void fake_model_ends(struct spa_model *m)
{
    struct self *s = m->self;
    s->ends = true;
}

void fake_model_cannot_cut(struct spa_model *m)
{
    struct self *s = m->self;
    s->cannot_cut = true;
}

void fake_model_close(struct spa_model *m)
{
    free(m->self);
    m->self = NULL;
}
