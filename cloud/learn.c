/* learn.c - in: LEARN, decoded states. out: the bulk of FEATURES. */
#include "learn.h"
#include "secret.h"
#include "turn.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Appends tokens; with loss each of them up to and including the first end token is a target. */
static int append(struct spa_learn_row *r, const struct spa_model *m, const char *text, size_t len, bool loss)
{
    uint32_t n = 0;
    int32_t *t = len ? spa_tokens_of(m, text, len, r->n_tokens == 0, true, &n) : NULL;
    if (len && !t)
        return -1;
    int32_t *tokens = spa_secret_grow(r->tokens, r->n_tokens * sizeof *tokens, (r->n_tokens + n + 1) * sizeof *tokens);
    if (tokens)
        r->tokens = tokens;
    uint32_t *pos = tokens ? realloc(r->pos, (r->n_loss + n + 1) * sizeof *pos) : NULL;
    if (pos)
        r->pos = pos;
    for (uint32_t i = 0; pos && i < n; i++) {
        if (loss && r->n_tokens > 0)
            r->pos[r->n_loss++] = r->n_tokens - 1;
        loss = loss && !m->is_end(m->self, t[i]);
        r->tokens[r->n_tokens++] = t[i];
    }
    spa_secret_free(t, n * sizeof *t);
    return pos ? 0 : -1;
}

/* The chat up to each assistant turn that carries loss, then that turn: the prompt is tokenized as it will be when the
 * question is asked, the answer apart from it. */
static int append_chat(struct spa_learn_row *r, const struct spa_model *m, const struct spa_part *parts, size_t n)
{
    size_t done = 0;   /* bytes of the template's text that are tokens already */
    for (size_t i = 0; i < n; i++) {
        if (!parts[i].loss)
            continue;
        char *before = spa_chat_text(m, parts, i, true), *through = before ? spa_chat_text(m, parts, i + 1, false) : NULL;
        const size_t at = before ? strlen(before) : 0;
        const bool ok = through && at >= done && strncmp(before, through, at) == 0;
        const int rc = ok && append(r, m, through + done, at - done, false) == 0 &&
                       append(r, m, through + at, strlen(through) - at, true) == 0 ? 0 : -1;
        done = ok ? strlen(through) : done;
        spa_secret_free(before, at);
        spa_secret_free(through, through ? strlen(through) : 0);
        if (rc != 0)
            return -1;
    }
    return 0;
}

static bool lay_out(struct spa_learn_row *r, const struct spa_shape *shape, enum spa_dtype t)
{
    if (r->fit)
        return true;
    const size_t fin = t == SPA_F32 ? 4 : 2;
    r->n_ctx = shape->n_ctx_taps ? r->n_feed : 0;
    r->at_ctx = (size_t)r->n_loss * 8;
    r->at_full = r->at_ctx + r->n_ctx * spa_wire_ctx_row_bytes(shape, t);
    r->at_fin = r->at_full + r->n_loss * spa_wire_row_bytes(shape, t);
    r->bulk_len = r->at_fin + (size_t)r->n_loss * shape->d * fin;
    r->bulk = malloc(r->bulk_len);
    if (!r->bulk)
        return false;
    for (uint32_t i = 0; i < r->n_loss; i++) {
        const uint32_t v[2] = { r->pos[i], (uint32_t)r->tokens[r->pos[i] + 1] };
        for (size_t w = 0; w < 2; w++)
            for (size_t b = 0; b < 4; b++)
                r->bulk[(w * r->n_loss + i) * 4 + b] = (uint8_t)(v[w] >> (8 * b));
    }
    return true;
}

/* Lays the answer out and sees whether the device takes one so long. */
static int finish_row(struct spa_learn_row *r, const struct spa_shape *shape, enum spa_dtype tap_dtype, uint32_t max_message, spa_Code *code,
                      char *why, size_t why_len)
{
    if (!lay_out(r, shape, tap_dtype)) {
        *code = spa_Code_INTERNAL;
        snprintf(why, why_len, "the cloud is out of memory; try again later");
        return -1;
    }
    if (r->bulk_len + SPA_HEAD_MAX > max_message) {
        *code = spa_Code_TOO_LARGE;
        snprintf(why, why_len, "the row's states need %zu bytes in one message and the device takes %u; shorten the row", r->bulk_len,
                 max_message);
        return -1;
    }
    return 0;
}

struct spa_learn_row *spa_learn_row_of_tokens(uint32_t id, const int32_t *tokens, uint32_t n_prompt, uint32_t n_tokens,
                                              const struct spa_shape *shape, enum spa_dtype tap_dtype, uint32_t max_message,
                                              spa_Code *code, char *why, size_t why_len)
{
    struct spa_learn_row *r = calloc(1, sizeof *r);
    const uint32_t n_loss = n_tokens - n_prompt;
    *code = spa_Code_INTERNAL;
    snprintf(why, why_len, "the cloud is out of memory; try again later");
    if (!r)
        return NULL;
    *r = (struct spa_learn_row){ .id = id, .n_tokens = n_tokens, .n_feed = n_tokens - 1, .n_loss = n_loss,
                                 .tokens = malloc(n_tokens * sizeof *r->tokens), .pos = malloc(n_loss * sizeof *r->pos) };
    if (r->tokens && r->pos) {
        memcpy(r->tokens, tokens, n_tokens * sizeof *tokens);
        for (uint32_t i = 0; i < n_loss; i++)
            r->pos[i] = n_prompt - 1 + i;
        if (finish_row(r, shape, tap_dtype, max_message, code, why, why_len) == 0)
            return r;
    }
    spa_learn_row_free(r);
    return NULL;
}

struct spa_learn_row *spa_learn_row_new(const struct spa_model *m, const spa_Learn *l, const uint8_t *bulk, size_t bulk_len,
                                        const struct spa_shape *shape, enum spa_dtype tap_dtype, uint32_t max_message,
                                        spa_Code *code, char *why, size_t why_len)
{
    struct spa_learn_row *r = calloc(1, sizeof *r);
    struct spa_part *parts = calloc(SPA_PARTS_MAX, sizeof *parts), part;
    size_t at = 0, n = 0;
    *code = spa_Code_INTERNAL;
    snprintf(why, why_len, "the cloud is out of memory; try again later");
    if (!r || !parts)
        goto fail;
    while (n < SPA_PARTS_MAX && spa_part_next(bulk, bulk_len, &at, &part) == SPA_OK)
        parts[n++] = part;
    r->id = l->row;
    r->fit = l->fit;
    *code = spa_Code_BAD_REQUEST;
    const bool raw = n > 0 && parts[0].kind == SPA_PART_TEXT;
    int rc = 0;
    for (size_t i = 0; raw && rc == 0 && i < n; i++)
        rc = append(r, m, (const char *)parts[i].bytes, parts[i].len, parts[i].loss);
    if (!raw)
        rc = append_chat(r, m, parts, n);
    if (rc != 0) {
        snprintf(why, why_len, "the row cannot be written with this model's chat template");
        goto fail;
    }
    if (r->n_loss == 0) {
        snprintf(why, why_len, "the row's answer tokenizes to nothing, so there is nothing to learn from it");
        goto fail;
    }
    r->n_feed = r->pos[r->n_loss - 1] + 1;
    if (r->n_tokens > m->info.n_ctx_slot) {
        *code = spa_Code_CONTEXT_FULL;
        snprintf(why, why_len, "the row has %u tokens and the cloud takes %u; shorten it, or start spa-cloud with a larger -c",
                 r->n_tokens, m->info.n_ctx_slot);
        goto fail;
    }
    if (finish_row(r, shape, tap_dtype, max_message, code, why, why_len) != 0)
        goto fail;
    free(parts);
    return r;
fail:
    free(parts);
    spa_learn_row_free(r);
    return NULL;
}

void spa_learn_row_free(struct spa_learn_row *r)
{
    if (!r)
        return;
    spa_learn_raw_drop(r);
    spa_secret_free(r->tokens, (size_t)r->n_tokens * sizeof *r->tokens);
    free(r->pos);
    spa_secret_free(r->bulk, r->bulk_len);
    free(r);
}

bool spa_learn_is_loss(const struct spa_learn_row *r, uint32_t pos)
{
    uint32_t i = r->loss_done;
    while (i < r->n_loss && r->pos[i] < pos)
        i++;
    return i < r->n_loss && r->pos[i] == pos;
}

void spa_learn_row_state(struct spa_learn_row *r, const struct spa_shape *shape, enum spa_dtype tap_dtype, uint32_t pos,
                         const float *x_ctx, const float *x, const float *y_fin)
{
    if (x_ctx && pos < r->n_ctx)
        spa_dtype_pack(tap_dtype, x_ctx, shape->n_ctx_taps, shape->k,
                       r->bulk + r->at_ctx + pos * spa_wire_ctx_row_bytes(shape, tap_dtype));
    if (!x)
        return;
    const uint32_t i = r->loss_done++;
    const enum spa_dtype fin = tap_dtype == SPA_F32 ? SPA_F32 : SPA_F16;
    spa_dtype_pack(tap_dtype, x, shape->n_taps, shape->k, r->bulk + r->at_full + i * spa_wire_row_bytes(shape, tap_dtype));
    spa_dtype_pack(fin, y_fin, 1, shape->d, r->bulk + r->at_fin + i * spa_dtype_bytes(fin, 1, shape->d));
}

static size_t raw_places(const struct spa_learn_row *r, const struct spa_shape *shape)
{
    return shape->n_ctx_taps ? r->n_feed : r->n_loss;
}

size_t spa_learn_raw_bytes(const struct spa_learn_row *r, const struct spa_shape *shape)
{
    return (raw_places(r, shape) * shape->n_taps + r->n_loss) * shape->d * sizeof(float);
}

bool spa_learn_raw_make(struct spa_learn_row *r, const struct spa_shape *shape)
{
    r->raw_len = raw_places(r, shape) * shape->n_taps * shape->d * sizeof *r->raw;
    r->raw_fin_len = (size_t)r->n_loss * shape->d * sizeof *r->raw_fin;
    r->raw = malloc(r->raw_len);
    r->raw_fin = malloc(r->raw_fin_len);
    if (r->raw && r->raw_fin)
        return true;
    spa_learn_raw_drop(r);
    return false;
}

void spa_learn_raw_drop(struct spa_learn_row *r)
{
    spa_secret_free(r->raw, r->raw_len);
    spa_secret_free(r->raw_fin, r->raw_fin_len);
    r->raw = r->raw_fin = NULL;
}

float *spa_learn_raw_at(const struct spa_learn_row *r, const struct spa_shape *shape, uint32_t pos, uint32_t loss_index)
{
    return r->raw + (size_t)(shape->n_ctx_taps ? pos : loss_index) * shape->n_taps * shape->d;
}
