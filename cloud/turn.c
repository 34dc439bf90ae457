/* turn.c - in: GENERATE, sampled tokens. out: prompt tokens, text that may be shown, the end of the answer. */
#include "turn.h"
#include "secret.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- prompt ---- */

char *spa_chat_text(const struct spa_model *m, const struct spa_part *parts, size_t n, bool open)
{
    static const char *const role_of[] = { [SPA_PART_SYSTEM] = "system", [SPA_PART_USER] = "user", [SPA_PART_ASSISTANT] = "assistant" };
    const char **roles = calloc(2 * n + 1, sizeof *roles), **contents = roles ? roles + n : NULL;
    size_t bytes = 64;
    bool ok = roles != NULL;
    for (size_t i = 0; ok && i < n; i++) {
        char *copy = malloc((size_t)parts[i].len + 1);
        if (copy) {
            memcpy(copy, parts[i].bytes, parts[i].len);
            copy[parts[i].len] = '\0';
        }
        roles[i] = role_of[parts[i].kind];
        contents[i] = copy;
        bytes += 2 * (size_t)parts[i].len + 64;
        ok = copy != NULL;
    }
    char *out = ok ? malloc(bytes) : NULL;
    int32_t len = out ? m->chat(m->self, roles, contents, n, open, out, (int32_t)bytes) : -1;
    if (len >= 0 && (size_t)len >= bytes) {
        char *more = spa_secret_grow(out, bytes, (size_t)len + 1);
        out = more ? more : out;
        len = more ? m->chat(m->self, roles, contents, n, open, out, len + 1) : -1;
    }
    if (len < 0) {
        free(out);
        out = NULL;
    } else {
        out[len] = '\0';
    }
    for (size_t i = 0; roles && i < n; i++)
        spa_secret_free((void *)(uintptr_t)contents[i], parts[i].len);
    free(roles);
    return out;
}

int32_t *spa_tokens_of(const struct spa_model *m, const char *text, size_t len, bool start, bool special, uint32_t *n)
{
    if (len > INT32_MAX / 2)
        return NULL;
    int32_t cap = (int32_t)len + 8;
    int32_t *tokens = malloc((size_t)cap * sizeof *tokens);
    int32_t got = tokens ? m->tokenize(m->self, text, len, start, special, tokens, cap) : INT32_MIN;
    if (got < 0 && got != INT32_MIN) {
        spa_secret_free(tokens, (size_t)cap * sizeof *tokens);
        cap = -got;
        tokens = malloc((size_t)cap * sizeof *tokens);
        got = tokens ? m->tokenize(m->self, text, len, start, special, tokens, cap) : INT32_MIN;
    }
    if (got < 0) {
        spa_secret_free(tokens, (size_t)cap * sizeof *tokens);
        return NULL;
    }
    *n = (uint32_t)got;
    return tokens;
}

static int add_stop(struct spa_turn *t, const struct spa_part *p)
{
    struct spa_stop *more = spa_secret_grow(t->stops, t->n_stops * sizeof *more, (t->n_stops + 1) * sizeof *more);
    if (!more)
        return -1;
    t->stops = more;
    struct spa_stop *s = &t->stops[t->n_stops++];
    memcpy(s->bytes, p->bytes, p->len);
    s->len = p->len;
    return 0;
}

/* Prompt text of the request: the chat by the template, or the raw texts one after the other. malloc'd, NULL on failure. */
static char *prompt_text(const struct spa_model *m, bool raw, const struct spa_part *parts, size_t n)
{
    if (!raw)
        return spa_chat_text(m, parts, n, true);
    size_t bytes = 1, at = 0;
    for (size_t i = 0; i < n; i++)
        bytes += parts[i].len;
    char *out = malloc(bytes);
    for (size_t i = 0; out && i < n; i++) {
        memcpy(out + at, parts[i].bytes, parts[i].len);
        at += parts[i].len;
    }
    if (out)
        out[at] = '\0';
    return out;
}

/* A confirmed token goes the way that it went when it was said first, so that what was held back then is held back now: half
 * characters, beginnings of stop strings, and of a padded answer the text that found no room. false: it is an end token. */
static bool say_again(struct spa_turn *t, const struct spa_model *m, int32_t token)
{
    const char *text;
    size_t text_len;
    bool shown;
    t->over = spa_turn_token(t, m, token, &text, &text_len, &shown, &t->over_by);
    if (!spa_turn_say(t, token, shown, text, text_len)) {
        spa_turn_said(t, t->said_len);
        spa_turn_say(t, token, shown, text, text_len);
    }
    spa_turn_said(t, spa_turn_said_text(t));
    return shown;
}

struct spa_turn *spa_turn_new(const struct spa_model *m, const spa_Generate *g, const uint8_t *bulk, size_t bulk_len,
                              spa_Code *code, char *why, size_t why_len)
{
    struct spa_turn *t = calloc(1, sizeof *t);
    struct spa_part *parts = calloc(SPA_PARTS_MAX, sizeof *parts), part, confirmed = { 0 };
    size_t at = 0, n = 0;
    char *text = NULL;
    int32_t *prompt = NULL;
    uint32_t n_prompt = 0;
    *code = spa_Code_INTERNAL;
    snprintf(why, why_len, "the cloud is out of memory; try again later");
    if (!t || !parts)
        goto fail;
    while (spa_part_next(bulk, bulk_len, &at, &part) == SPA_OK) {
        if (part.kind == SPA_PART_STOP) {
            if (add_stop(t, &part) != 0)
                goto fail;
        } else if (part.kind == SPA_PART_CONFIRMED) {
            confirmed = part;
        } else if (n < SPA_PARTS_MAX) {
            parts[n++] = part;
        }
    }
    text = prompt_text(m, g->raw, parts, n);
    if (!text) {
        *code = spa_Code_BAD_REQUEST;
        snprintf(why, why_len, "this model has no chat template that the cloud knows; send raw text (spa complete)");
        goto fail;
    }
    prompt = spa_tokens_of(m, text, strlen(text), true, true, &n_prompt);
    if (!prompt || n_prompt == 0) {
        *code = spa_Code_BAD_REQUEST;
        snprintf(why, why_len, "the prompt tokenizes to nothing; send some text");
        goto fail;
    }
    const uint32_t room = m->info.n_ctx_slot, n_confirmed = confirmed.len / 4;
    if (n_confirmed > 0 && g->n_predict >= 0 && n_confirmed > (uint32_t)g->n_predict) {
        *code = spa_Code_BAD_REQUEST;
        snprintf(why, why_len, "%u tokens are confirmed and n_predict is %d: these are of another answer", n_confirmed, (int)g->n_predict);
        goto fail;
    }
    if (n_prompt >= room || n_confirmed > room - n_prompt) {
        *code = spa_Code_CONTEXT_FULL;
        snprintf(why, why_len, "the prompt has %u tokens and a request may have %u in all; shorten it, or start spa-cloud with a larger -c",
                 n_prompt + n_confirmed, room);
        goto fail;
    }
    t->request = g->request;
    t->d = m->info.d;
    t->sampling = (struct spa_sampling){ g->temp, g->top_k, g->top_p, g->min_p, g->repeat_penalty, g->repeat_last_n, g->seed };
    t->gate = g->gate;
    t->ignore_end = g->ignore_eos;
    t->pad = g->pad;
    t->after = g->after;
    t->after_from = g->after_from;
    t->after_to = g->after_to;
    t->n_prompt = n_prompt;
    t->limit_is_context = g->n_predict < 0 || (uint32_t)g->n_predict > room - n_prompt;
    t->n_limit = t->limit_is_context ? room : n_prompt + (uint32_t)g->n_predict;
    t->n_cap = t->n_limit;
    t->n_tokens = n_prompt;
    t->n_confirmed = n_confirmed;
    t->logprobs = g->logprobs;
    t->tokens = calloc(t->n_cap, sizeof *t->tokens);
    t->state = malloc(m->info.d * sizeof *t->state);
    t->y_fin = malloc(m->info.d * sizeof *t->y_fin);
    t->text_cap = SPA_PIECE_MAX + SPA_STOP_LEN_MAX;
    t->text = malloc(t->text_cap);
    t->said_text = malloc(SPA_SAID_MAX);
    if (!t->tokens || !t->state || !t->y_fin || !t->text || !t->said_text)
        goto fail;
    memcpy(t->tokens, prompt, n_prompt * sizeof *prompt);
    for (uint32_t i = 0; i < n_confirmed; i++) {
        const uint8_t *b = confirmed.bytes + 4 * (size_t)i;
        const uint32_t id = b[0] | (uint32_t)b[1] << 8 | (uint32_t)b[2] << 16 | (uint32_t)b[3] << 24;
        if (id >= (uint32_t)m->info.n_vocab) {
            *code = spa_Code_BAD_REQUEST;
            snprintf(why, why_len, "a confirmed token is not in the model's vocabulary; it was another model's answer");
            goto fail;
        }
        if (t->over || !say_again(t, m, (int32_t)id)) {
            *code = spa_Code_BAD_REQUEST;
            snprintf(why, why_len, "the confirmed tokens go on behind the end of the answer; they are of another request");
            goto fail;
        }
    }
    spa_secret_free(prompt, n_prompt * sizeof *prompt);
    spa_secret_free(text, strlen(text));
    free(parts);
    return t;
fail:
    spa_secret_free(prompt, n_prompt * sizeof *prompt);
    spa_secret_free(text, text ? strlen(text) : 0);
    free(parts);
    spa_turn_free(t);
    return NULL;
}

void spa_turn_retire(struct spa_turn *t)
{
    spa_secret_free(t->text, t->text_cap);
    spa_secret_free(t->said_text, SPA_SAID_MAX);
    spa_secret_free(t->state, t->d * sizeof *t->state);
    spa_secret_free(t->y_fin, t->d * sizeof *t->y_fin);
    spa_secret_free(t->stops, t->n_stops * sizeof *t->stops);
    spa_secret_free(t->ahead.rows, (size_t)t->ahead.window * sizeof *t->ahead.rows);
    spa_secret_free(t->ahead.states, (size_t)t->ahead.window * t->d * sizeof *t->ahead.states);
    t->ahead = (struct spa_ahead){ 0 };
    t->text = t->said_text = NULL;
    t->state = t->y_fin = NULL;
    t->stops = NULL;
    t->n_stops = 0;
}

void spa_turn_free(struct spa_turn *t)
{
    if (!t)
        return;
    spa_turn_retire(t);
    spa_secret_free(t->tokens, (size_t)t->n_cap * sizeof *t->tokens);
    spa_secret_free(t->ctx_rows, t->ctx_rows_cap);
    spa_secret_free(t, sizeof *t);
}

/* ---- answer ---- */

/* Bytes at the end of s that are the beginning of a UTF-8 character whose rest is still to come. */
static size_t unfinished_utf8(const char *s, size_t len)
{
    for (size_t back = 1; back <= 3 && back <= len; back++) {
        const unsigned char c = (unsigned char)s[len - back];
        if ((c & 0xc0) == 0x80)
            continue;
        const size_t want = c >= 0xf0 ? 4 : c >= 0xe0 ? 3 : c >= 0xc0 ? 2 : 1;
        return want > back ? back : 0;
    }
    return 0;
}

/* Where a stop string begins in the text, or SIZE_MAX; *held: bytes at the end that may be the start of one. */
static size_t find_stop(const struct spa_turn *t, size_t *held)
{
    size_t first = SIZE_MAX;
    *held = 0;
    for (uint32_t i = 0; i < t->n_stops; i++) {
        const struct spa_stop *s = &t->stops[i];
        for (size_t at = 0; at < t->text_len; at++) {
            const size_t left = t->text_len - at, n = left < s->len ? left : s->len;
            if (memcmp(t->text + at, s->bytes, n) != 0)
                continue;
            if (n == s->len)
                first = at < first ? at : first;
            else
                *held = left > *held ? left : *held;
            break;
        }
    }
    return first;
}

bool spa_turn_token(struct spa_turn *t, const struct spa_model *m, int32_t token, const char **text, size_t *text_len,
                    bool *shown, spa_Finish *finish)
{
    /* What was released by the last call leaves the front of the buffer now. */
    memmove(t->text, t->text + t->released, t->text_len - t->released);
    t->text_len -= t->released;
    t->released = 0;

    const bool end = !t->ignore_end && m->is_end(m->self, token);
    *shown = !end;
    *finish = spa_Finish_FINISH_STOP;
    bool done = end;
    size_t held = 0;
    if (!end) {
        t->tokens[t->n_tokens++] = token;
        t->n_answer++;
        const size_t room = t->text_cap - t->text_len;
        t->text_len += (size_t)m->piece(m->self, token, t->text + t->text_len, (int32_t)(room < SPA_PIECE_MAX ? room : SPA_PIECE_MAX));
        const size_t stop = find_stop(t, &held);
        if (stop != SIZE_MAX) {
            t->text_len = stop;
            held = 0;
            done = true;
        } else if (t->n_tokens >= t->n_limit) {
            *finish = t->limit_is_context ? spa_Finish_FINISH_CONTEXT : spa_Finish_FINISH_LENGTH;
            done = true;
        }
    }
    if (!done) {
        const size_t part = unfinished_utf8(t->text, t->text_len);
        held = part > held ? part : held;
    } else {
        held = 0;
    }
    t->released = t->text_len - held;
    *text = t->text;
    *text_len = t->released;
    return done;
}

bool spa_turn_say(struct spa_turn *t, int32_t token, bool shown, const char *text, size_t text_len)
{
    if (t->n_said == SPA_ASKED_MAX || text_len > SPA_SAID_MAX - t->said_len)
        return false;
    if (t->n_said == 0)
        t->said_index = t->n_answer - (shown ? 1 : 0);
    if (shown) {
        t->said[t->n_said] = token;
        t->said_by[t->n_said++] = (uint8_t)t->by;
    }
    if (text_len)
        memcpy(t->said_text + t->said_len, text, text_len);
    t->said_len += text_len;
    return true;
}

size_t spa_turn_said_text(const struct spa_turn *t)
{
    size_t n = t->said_len;
    if (!t->pad || n <= SPA_PAD_TEXT_MAX)
        return n;
    for (n = SPA_PAD_TEXT_MAX; n > SPA_PAD_TEXT_MAX - 3 && (t->said_text[n] & 0xc0) == 0x80;)
        n--;
    return n;
}

void spa_turn_said(struct spa_turn *t, size_t text_len)
{
    t->said_len -= text_len;
    memmove(t->said_text, t->said_text + text_len, t->said_len);
    t->said_index += t->n_said;
    t->n_said = 0;
}
