/* reply.c - events as JSON (reply.h). In: what the model said. Out: text for a socket. */
#include "reply.h"
#include "logprobs.h"
#include "secret.h"
#include "utf8.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- text ---- */

void spa_text_add(struct spa_text *t, const char *bytes, size_t len)
{
    if (len == 0)
        return;
    if (t->cap - t->len < len) {
        const size_t cap = 2 * (t->len + len) + 512;
        char *more = spa_secret_grow(t->data, t->cap, cap);
        if (!more) {
            t->failed = true;
            return;
        }
        t->data = more;
        t->cap = cap;
    }
    memcpy(t->data + t->len, bytes, len);
    t->len += len;
}

void spa_text_free(struct spa_text *t)
{
    spa_secret_free(t->data, t->cap);
    *t = (struct spa_text){ 0 };
}

static void add_string(struct spa_text *t, const char *s) { spa_text_add(t, s, strlen(s)); }

static int on_dump(const char *bytes, size_t len, void *user)
{
    struct spa_text *t = user;
    spa_text_add(t, bytes, len);
    return t->failed ? -1 : 0;
}

void spa_text_add_json(struct spa_text *t, json_t *o)
{
    if (!o || json_dump_callback(o, on_dump, t, JSON_COMPACT | JSON_REAL_PRECISION(9)) != 0)
        t->failed = true;
    json_decref(o);
}

static void add_event(struct spa_text *t, json_t *o)
{
    add_string(t, "data: ");
    spa_text_add_json(t, o);
    add_string(t, "\n\n");
}

/* ---- pieces ---- */

static json_t *error_object(const struct spa_api_error *e)
{
    char clean[3 * sizeof e->message + 1];
    spa_utf8_clean(e->message, strlen(e->message), clean);
    return json_pack("{s:{s:s, s:s, s:s?, s:s?}}", "error", "message", clean, "type", e->type, "param", e->param, "code", e->code);
}

void spa_reply_error(const struct spa_api_error *e, struct spa_text *out)
{
    spa_text_add_json(out, error_object(e));
}

static json_t *usage(const struct spa_talk_stats *s)
{
    return json_pack("{s:I, s:I, s:I, s:{s:I}}", "prompt_tokens", (json_int_t)s->prompt_tokens, "completion_tokens", (json_int_t)s->tokens,
                     "total_tokens", (json_int_t)s->prompt_tokens + s->tokens, "prompt_tokens_details", "cached_tokens",
                     (json_int_t)s->cached_tokens);
}

static double seconds(uint64_t from_us, uint64_t to_us) { return to_us > from_us ? (double)(to_us - from_us) / 1e6 : 0; }

static json_t *statistics(const struct spa_reply *r, const struct spa_talk_stats *s)
{
    return json_pack("{s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:f, s:f}", "seed", (json_int_t)r->seed, "tokens", (json_int_t)s->tokens,
                     "plugin_tokens", (json_int_t)r->plugin_tokens, "gated", (json_int_t)s->gated, "round_trips", (json_int_t)s->round_trips,
                     "waits", (json_int_t)s->waits, "cached_tokens", (json_int_t)s->cached_tokens, "bytes_down", (json_int_t)s->bytes_down,
                     "bytes_up", (json_int_t)s->bytes_up, "seconds", seconds(s->started_us, s->ended_us),
                     "first_token_seconds", seconds(s->started_us, s->first_token_us));
}

static const char *finish_word(spa_Finish f)
{
    return f == spa_Finish_FINISH_STOP ? "stop" : "length";   /* a full context is a length too */
}

static json_t *head(const struct spa_reply *r, bool whole)
{
    const char *object = !r->chat ? "text_completion" : whole ? "chat.completion" : "chat.completion.chunk";
    return json_pack("{s:s, s:s, s:I, s:s, s:s}", "id", r->id, "object", object, "created", (json_int_t)r->created_unix_s, "model", r->model,
                     "system_fingerprint", "spa");
}

/* The one choice of a chunk. delta: taken, for chat; text [len] otherwise. */
static json_t *choice(const struct spa_reply *r, json_t *delta, const char *text, size_t len, json_t *marks, const char *finish)
{
    json_t *c = json_pack("{s:i, s:s?}", "index", 0, "finish_reason", finish);
    if (r->chat)
        json_object_set_new(c, "delta", delta);
    else
        json_object_set_new(c, "text", json_stringn(text, len));
    json_object_set_new(c, "logprobs", marks ? marks : json_null());
    json_t *list = json_array();
    json_array_append_new(list, c);
    return list;
}

static json_t *chunk(const struct spa_reply *r, json_t *choices)
{
    json_t *o = head(r, false);
    json_object_set_new(o, "choices", choices);
    if (r->include_usage)
        json_object_set_new(o, "usage", json_null());
    return o;
}

/* ---- logprobs: one object for each token, collected until the text goes out that they belong to ---- */

static json_t *mark(const struct spa_logprob *l)
{
    char clean[3 * SPA_LOGPROB_BYTES_MAX + 1];
    const size_t n = spa_utf8_clean((const char *)l->bytes, l->len, clean);
    json_t *bytes = json_array();
    for (uint32_t i = 0; i < l->len; i++)
        json_array_append_new(bytes, json_integer(l->bytes[i]));
    return json_pack("{s:o, s:f, s:o}", "token", json_stringn(clean, n), "logprob", (double)l->logprob, "bytes", bytes);
}

static void note_marks(struct spa_reply *r, const struct spa_job_event *ev)
{
    struct spa_logprob l;
    size_t at = 0;
    const uint8_t *bulk = (const uint8_t *)ev->bytes;
    if (spa_logprob_next(bulk, ev->text_len, &at, &l) != SPA_OK)
        return;
    json_t *token = mark(&l), *top = json_array();
    while (spa_logprob_next(bulk, ev->text_len, &at, &l) == SPA_OK)
        json_array_append_new(top, mark(&l));
    json_object_set_new(token, "top_logprobs", top);
    if (!r->marks)
        r->marks = json_array();
    json_array_append_new(r->marks, token);
}

/* As /v1/completions has them: four lists. offset: characters of the text before the first of them. */
static json_t *lists(const json_t *marks, int64_t *offset)
{
    json_t *tokens = json_array(), *logprobs = json_array(), *tops = json_array(), *offsets = json_array(), *m, *one;
    size_t i, k;
    json_array_foreach(marks, i, m) {
        json_t *token = json_object_get(m, "token"), *top = json_object();
        json_array_foreach(json_object_get(m, "top_logprobs"), k, one)
            json_object_set(top, json_string_value(json_object_get(one, "token")), json_object_get(one, "logprob"));
        json_array_append(tokens, token);
        json_array_append(logprobs, json_object_get(m, "logprob"));
        json_array_append_new(tops, top);
        json_array_append_new(offsets, json_integer(*offset));
        for (const char *s = json_string_value(token); *s; s++)
            *offset += ((unsigned char)*s & 0xc0) != 0x80;
    }
    return json_pack("{s:o, s:o, s:o, s:o}", "tokens", tokens, "token_logprobs", logprobs, "top_logprobs", tops, "text_offset", offsets);
}

/* What was collected, in the form of its API; NULL: nothing was. */
static json_t *take_marks(struct spa_reply *r)
{
    json_t *marks = r->marks, *out;
    if (!marks)
        return NULL;
    r->marks = NULL;
    if (r->chat)
        return json_pack("{s:o, s:n}", "content", marks, "refusal");
    out = lists(marks, &r->offset);
    json_decref(marks);
    return out;
}

/* ---- a stream ---- */

static void begin_stream(struct spa_reply *r, struct spa_text *out)
{
    if (r->begun)
        return;
    r->begun = true;
    if (r->chat)   /* the role comes first, by itself */
        add_event(out, chunk(r, choice(r, json_pack("{s:s, s:s}", "role", "assistant", "content", ""), NULL, 0, NULL, NULL)));
}

static void stream_tokens(struct spa_reply *r, const struct spa_job_event *ev, struct spa_text *out)
{
    begin_stream(r, out);
    if (ev->text_len == 0)
        return;
    json_t *delta = r->chat ? json_object() : NULL;
    if (delta)
        json_object_set_new(delta, "content", json_stringn(ev->bytes, ev->text_len));
    json_t *o = chunk(r, choice(r, delta, ev->bytes, ev->text_len, take_marks(r), NULL));
    json_object_set_new(o, "spa", json_pack("{s:s}", "by", ev->plugin ? "plugin" : "base"));
    add_event(out, o);
}

static void stream_end(struct spa_reply *r, const struct spa_job_event *ev, struct spa_text *out)
{
    begin_stream(r, out);
    json_t *o = chunk(r, choice(r, r->chat ? json_object() : NULL, "", 0, take_marks(r), finish_word(ev->finish)));
    json_object_set_new(o, "spa", statistics(r, &ev->stats));
    add_event(out, o);
    if (r->include_usage) {
        o = chunk(r, json_array());
        json_object_set_new(o, "usage", usage(&ev->stats));
        add_event(out, o);
    }
    add_string(out, "data: [DONE]\n\n");
}

/* ---- whole ---- */

static void whole(struct spa_reply *r, const struct spa_job_event *ev, struct spa_text *out)
{
    json_t *o = head(r, true), *text = json_stringn(r->text.data ? r->text.data : "", r->text.len);
    json_t *c = json_pack("{s:i, s:s}", "index", 0, "finish_reason", finish_word(ev->finish));
    if (r->chat)
        json_object_set_new(c, "message", json_pack("{s:s, s:o, s:n}", "role", "assistant", "content", text, "refusal"));
    else
        json_object_set_new(c, "text", text);
    json_t *marks = take_marks(r);
    json_object_set_new(c, "logprobs", marks ? marks : json_null());
    json_object_set_new(o, "choices", json_pack("[o]", c));
    json_object_set_new(o, "usage", usage(&ev->stats));
    json_object_set_new(o, "spa", statistics(r, &ev->stats));
    out->failed |= r->text.failed;
    spa_text_add_json(out, o);
}

/* ---- */

void spa_reply_begin(struct spa_reply *r, const struct spa_job *j, const char *model, int64_t now_unix_s)
{
    const struct spa_question *q = &j->question;
    *r = (struct spa_reply){ .chat = q->chat, .stream = q->stream, .include_usage = q->include_usage,
                             .created_unix_s = now_unix_s, .seed = q->settings.seed };
    snprintf(r->model, sizeof r->model, "%s", model);
}

int spa_reply_event(struct spa_reply *r, const struct spa_job_event *ev, struct spa_text *out)
{
    switch (ev->type) {
    case SPA_JOB_TOKENS:
        r->plugin_tokens += ev->plugin ? ev->n : 0;
        if (r->stream)
            stream_tokens(r, ev, out);
        else
            spa_text_add(&r->text, ev->bytes, ev->text_len);
        return 0;
    case SPA_JOB_LOGPROBS:
        note_marks(r, ev);
        return 0;
    case SPA_JOB_DONE:
        if (r->stream)
            stream_end(r, ev, out);
        else
            whole(r, ev, out);
        return 200;
    default:
        if (r->stream && r->begun) {
            add_event(out, error_object(&ev->error));
            return 200;
        }
        spa_reply_error(&ev->error, out);
        return ev->error.status;
    }
}

void spa_reply_free(struct spa_reply *r)
{
    spa_text_free(&r->text);
    json_decref(r->marks);
    *r = (struct spa_reply){ 0 };
}
