/* house.c - in: system prompts, a model with an empty slot. out: sequences that begin with them, and their raw taps (house.h).
 *
 * Keys and values are kept as the model saves them and copied into a slot when a request begins with the same tokens. Raw taps are
 * needed by plugins that look back. Which layers those want is not known at the start and all of them would be a lot (n_layers d
 * floats a token), so a layer is kept from the first request that decodes it; until it is complete, requests decode for
 * themselves. Whole micro-batches: what follows is then cut as it would have been without sharing. */
#include "house.h"
#include "turn.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct spa_house {
    int32_t *tokens;      /* [n] */
    uint32_t n, n_layers, d;
    uint8_t *sequence;    /* as the model saves it */
    size_t   sequence_len;
    float  **taps;        /* [n_layers + 1] NULL, or [n, d] */
    uint32_t *known;      /* [n_layers + 1] positions of it, from the first on */
};

struct spa_houses {
    struct spa_house *all[SPA_HOUSES_MAX];
    size_t n;
    uint32_t n_ubatch;
};

static uint32_t min(uint32_t a, uint32_t b) { return a < b ? a : b; }

static uint32_t common(const int32_t *a, uint32_t n_a, const int32_t *b, uint32_t n_b)
{
    const uint32_t n = min(n_a, n_b);
    uint32_t at = 0;
    while (at < n && a[at] == b[at])
        at++;
    return at;
}

static int32_t *tokens_with(const struct spa_model *m, const char *system, const char *user, uint32_t *n)
{
    const struct spa_part parts[2] = {
        { .kind = SPA_PART_SYSTEM, .bytes = (const uint8_t *)system, .len = (uint32_t)strlen(system) },
        { .kind = SPA_PART_USER, .bytes = (const uint8_t *)user, .len = (uint32_t)strlen(user) },
    };
    char *text = spa_chat_text(m, parts, 2, true);
    int32_t *tokens = text ? spa_tokens_of(m, text, strlen(text), true, true, n) : NULL;
    free(text);
    return tokens;
}

static void house_free(struct spa_house *h)
{
    if (!h)
        return;
    for (uint32_t l = 0; h->taps && l <= h->n_layers; l++)
        free(h->taps[l]);
    free(h->taps);
    free(h->known);
    free(h->tokens);
    free(h->sequence);
    free(h);
}

static int prefill(struct spa_house *h, const struct spa_model *m)
{
    const uint32_t cap = m->info.n_batch - m->info.n_batch % m->info.n_ubatch;
    struct spa_batch_token *rows = malloc(cap * sizeof *rows);
    struct spa_states states;
    int rc = rows ? 0 : -1;
    for (uint32_t at = 0, n; rc == 0 && at < h->n; at += n) {
        n = min(cap, h->n - at);
        for (uint32_t i = 0; i < n; i++)
            rows[i] = (struct spa_batch_token){ h->tokens[at + i], at + i, 0, SPA_WANT_NONE };
        rc = m->decode(m->self, rows, n, NULL, 0, &states);
    }
    if (rc == 0 && !m->save(m->self, 0, &h->sequence, &h->sequence_len))
        rc = -1;
    m->seq_rm(m->self, 0, 0);
    free(rows);
    return rc;
}

/* NULL with a sentence that goes on from the prompt's name. */
static struct spa_house *house_new(const struct spa_model *m, const char *text, char *why, size_t why_len)
{
    const struct spa_model_info *info = &m->info;
    struct spa_house *h = calloc(1, sizeof *h);
    uint32_t n_a = 0, n_b = 0;
    int32_t *a = tokens_with(m, text, "a", &n_a), *b = tokens_with(m, text, "2", &n_b);
    bool ok = false;
    if (!a || !b) {
        snprintf(why, why_len, "this model has no chat template that the cloud knows; leave --house-prompt out");
    } else if (!h) {
        snprintf(why, why_len, "out of memory");
    } else {
        h->n = common(a, n_a, b, n_b);
        const uint32_t whole = h->n - h->n % info->n_ubatch;
        if (h->n >= info->n_ctx_slot)
            snprintf(why, why_len, "it has %u tokens and a slot holds %u; shorten it, raise -c or lower -np", h->n, info->n_ctx_slot);
        else if (whole == 0)
            snprintf(why, why_len, "it has %u tokens, and what is shared are whole micro-batches of %u: it is not worth sharing", h->n, info->n_ubatch);
        else
            ok = true;
        h->n = whole;
    }
    if (ok) {
        h->d = info->d;
        h->n_layers = info->n_layers;
        h->tokens = a;
        a = NULL;
        h->taps = calloc(info->n_layers + 1, sizeof *h->taps);
        h->known = calloc(info->n_layers + 1, sizeof *h->known);
        ok = h->taps && h->known && prefill(h, m) == 0;
        if (!ok)
            snprintf(why, why_len, "the model could not prefill it; shorten it, or leave --house-prompt out");
    }
    free(a);
    free(b);
    if (!ok) {
        house_free(h);
        return NULL;
    }
    return h;
}

struct spa_houses *spa_houses_new(const struct spa_model *m, const char *const *texts, size_t n, size_t *failed, char *why, size_t why_len)
{
    struct spa_houses *h = calloc(1, sizeof *h);
    *failed = 0;
    if (!h || n > SPA_HOUSES_MAX) {
        snprintf(why, why_len, h ? "more than %d house prompts; leave some out" : "out of memory for %d house prompts", SPA_HOUSES_MAX);
        free(h);
        return NULL;
    }
    h->n_ubatch = m->info.n_ubatch;
    for (size_t i = 0; i < n; i++) {
        h->all[i] = house_new(m, texts[i], why, why_len);
        if (!h->all[i]) {
            *failed = i;
            spa_houses_free(h);
            return NULL;
        }
        h->n++;
    }
    return h;
}

void spa_houses_free(struct spa_houses *h)
{
    for (size_t i = 0; h && i < h->n; i++)
        house_free(h->all[i]);
    free(h);
}

struct spa_house *spa_house_of(struct spa_houses *h, const int32_t *tokens, uint32_t n_tokens, uint32_t *n)
{
    struct spa_house *best = NULL;
    *n = 0;
    for (size_t i = 0; h && i < h->n; i++) {
        uint32_t same = common(h->all[i]->tokens, h->all[i]->n, tokens, n_tokens - 1);   /* one at least is left to decode */
        same -= same % h->n_ubatch;
        if (same > *n) {
            best = h->all[i];
            *n = same;
        }
    }
    return best;
}

bool spa_house_enter(const struct spa_house *h, const struct spa_model *m, uint32_t slot, uint32_t n)
{
    if (m->load(m->self, slot, h->sequence, h->sequence_len) && (n == h->n || m->seq_rm(m->self, slot, n)))
        return true;
    m->seq_rm(m->self, slot, 0);
    return false;
}

const float *spa_house_taps(const struct spa_house *h, uint32_t layer, uint32_t n)
{
    return h->known[layer] >= n ? h->taps[layer] : NULL;
}

void spa_house_note(struct spa_house *h, uint32_t layer, uint32_t pos, const float *y)
{
    if (pos >= h->n || pos != h->known[layer])
        return;
    if (!h->taps[layer])
        h->taps[layer] = malloc((size_t)h->n * h->d * sizeof(float));
    if (!h->taps[layer])
        return;   /* the next request tries again */
    memcpy(h->taps[layer] + (size_t)pos * h->d, y, h->d * sizeof(float));
    h->known[layer]++;
}

uint32_t spa_house_len(const struct spa_houses *h, size_t i)
{
    return h->all[i]->n;
}
