/* question.c - JSON to a request (question.h). In: a body of a stranger. Out: parts and settings, or an error object. */
#define _DEFAULT_SOURCE
#include "question.h"
#include "secret.h"
#include "talk.h"

#include <jansson.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

int spa_api_fail(struct spa_api_error *e, int status, const char *code, const char *param, const char *fmt, ...)
{
    va_list args;
    e->status = status;
    e->type = status == 401 ? "authentication_error" : status == 403 ? "permission_error" : status == 404 ? "not_found_error" :
              status == 429 ? "rate_limit_error" : status >= 500 ? "server_error" : "invalid_request_error";
    e->code = code;
    e->param = param;
    va_start(args, fmt);
    vsnprintf(e->message, sizeof e->message, fmt, args);
    va_end(args);
    return -1;
}

static int bad(struct spa_api_error *e, const char *field, const char *wants)
{
    return spa_api_fail(e, 400, NULL, field, "'%s' has to be %s", field, wants);
}

static int not_served(struct spa_api_error *e, const char *field, const char *instead)
{
    return spa_api_fail(e, 400, "unsupported_parameter", field, "'%s' is not served here; %s", field, instead);
}

static int no_memory(struct spa_api_error *e)
{
    return spa_api_fail(e, 503, NULL, NULL, "there is not enough memory for this request");
}

/* ---- fields ---- */

/* NULL: absent or null. */
static const json_t *field(const json_t *o, const char *name)
{
    const json_t *v = json_object_get(o, name);
    return json_is_null(v) ? NULL : v;
}

static int take_bool(const json_t *o, const char *name, bool *out, struct spa_api_error *e)
{
    const json_t *v = field(o, name);
    if (v && !json_is_boolean(v))
        return bad(e, name, "true or false");
    if (v)
        *out = json_is_true(v);
    return 0;
}

static int take_float(const json_t *o, const char *name, double lo, double hi, float *out, struct spa_api_error *e)
{
    const json_t *v = field(o, name);
    char wants[64];
    if (!v)
        return 0;
    const double x = json_number_value(v);
    if (!json_is_number(v) || !(x >= lo && x <= hi)) {
        snprintf(wants, sizeof wants, "a number from %g to %g", lo, hi);
        return bad(e, name, wants);
    }
    *out = (float)x;
    return 0;
}

/* JSON tells 1 and 1.0 apart, but nobody means two numbers by them. */
static bool as_integer(const json_t *v, int64_t *out)
{
    const double x = json_number_value(v);
    if (json_is_integer(v))
        *out = json_integer_value(v);
    else if (json_is_real(v) && x == floor(x) && fabs(x) < 9e15)
        *out = (int64_t)x;
    else
        return false;
    return true;
}

/* 1: *out filled; 0: absent; -1 with *e. */
static int take_int(const json_t *o, const char *name, int64_t lo, int64_t hi, int64_t *out, struct spa_api_error *e)
{
    const json_t *v = field(o, name);
    char wants[96];
    if (!v)
        return 0;
    int64_t x;
    if (!as_integer(v, &x) || x < lo || x > hi) {
        snprintf(wants, sizeof wants, "a whole number from %lld to %lld", (long long)lo, (long long)hi);
        return bad(e, name, wants);
    }
    *out = x;
    return 1;
}

/* ---- parts ---- */

static int add_part(struct spa_question *q, uint8_t kind, char *text, size_t len, struct spa_api_error *e)
{
    if (!text)
        return no_memory(e);
    q->parts[q->n_parts++] = (struct spa_part){ .kind = kind, .bytes = (const uint8_t *)text, .len = (uint32_t)len };
    return 0;
}

static char *copied(const json_t *string, size_t *len)
{
    *len = json_string_length(string);
    char *copy = malloc(*len + 1);
    if (copy)
        memcpy(copy, json_string_value(string), *len + 1);
    return copy;
}

/* A message's content: a string, or an array of text parts, put together. */
static char *text_of(const json_t *content, size_t *len, struct spa_api_error *e)
{
    static const char name[] = "messages";
    if (!content || json_is_string(content)) {
        char *text = content ? copied(content, len) : calloc(1, 1);
        *len = content ? *len : 0;
        if (!text)
            no_memory(e);
        return text;
    }
    if (!json_is_array(content)) {
        bad(e, name, "messages whose content is a string or an array of text parts");
        return NULL;
    }
    size_t total = 0, i;
    const json_t *part;
    json_array_foreach(content, i, part) {
        const json_t *text = json_object_get(part, "text"), *type = json_object_get(part, "type");
        if (!json_is_string(type) || strcmp(json_string_value(type), "text") != 0 || !json_is_string(text)) {
            spa_api_fail(e, 400, NULL, name, "a part of a message's content is no text; only {\"type\": \"text\", \"text\": ...} is served here");
            return NULL;
        }
        total += json_string_length(text);
    }
    char *all = malloc(total + 1);
    if (!all) {
        no_memory(e);
        return NULL;
    }
    *len = 0;
    json_array_foreach(content, i, part) {
        const json_t *text = json_object_get(part, "text");
        memcpy(all + *len, json_string_value(text), json_string_length(text));
        *len += json_string_length(text);
    }
    return all;
}

static int take_message(struct spa_question *q, const json_t *message, struct spa_api_error *e)
{
    static const struct { const char *name; uint8_t kind; } roles[] = {
        { "system", SPA_PART_SYSTEM }, { "developer", SPA_PART_SYSTEM }, { "user", SPA_PART_USER }, { "assistant", SPA_PART_ASSISTANT },
    };
    const json_t *role = json_object_get(message, "role"), *content = field(message, "content");
    uint8_t kind = 0;
    if (!json_is_object(message) || !json_is_string(role))
        return bad(e, "messages", "an array of objects with role and content");
    for (size_t i = 0; i < sizeof roles / sizeof roles[0]; i++)
        if (strcmp(json_string_value(role), roles[i].name) == 0)
            kind = roles[i].kind;
    if (!kind)
        return spa_api_fail(e, 400, NULL, "messages", "a message's role is system, developer, user or assistant; others are not served here");
    if (!content && kind != SPA_PART_ASSISTANT)
        return spa_api_fail(e, 400, NULL, "messages", "a message has no content");
    size_t len;
    char *text = text_of(content, &len, e);
    return text ? add_part(q, kind, text, len, e) : -1;
}

static int take_messages(struct spa_question *q, const json_t *body, struct spa_api_error *e)
{
    const json_t *messages = field(body, "messages"), *m;
    const size_t n = json_array_size(messages);
    size_t i;
    if (!json_is_array(messages) || n == 0)
        return bad(e, "messages", "an array with at least one message");
    if (n > SPA_PARTS_MAX - SPA_STOPS_MAX)
        return bad(e, "messages", "shorter: a conversation has at most 1008 messages");
    q->parts = calloc(n + SPA_STOPS_MAX, sizeof *q->parts);
    if (!q->parts)
        return no_memory(e);
    json_array_foreach(messages, i, m)
        if (take_message(q, m, e) != 0)
            return -1;
    return 0;
}

static int take_prompt(struct spa_question *q, const json_t *body, struct spa_api_error *e)
{
    const json_t *prompt = field(body, "prompt");
    if (json_is_array(prompt) && json_array_size(prompt) == 1)
        prompt = json_array_get(prompt, 0);
    if (!json_is_string(prompt) || json_string_length(prompt) == 0)
        return bad(e, "prompt", "one string that is not empty (token numbers and several prompts are not served here)");
    q->parts = calloc(1 + SPA_STOPS_MAX, sizeof *q->parts);
    if (!q->parts)
        return no_memory(e);
    size_t len;
    char *text = copied(prompt, &len);
    return add_part(q, SPA_PART_TEXT, text, len, e);
}

static int add_stop(struct spa_question *q, const json_t *v, struct spa_api_error *e)
{
    size_t len = json_is_string(v) ? json_string_length(v) : 0;
    if (len == 0 || len > SPA_STOP_LEN_MAX)
        return bad(e, "stop", "a string of 1 to 256 bytes, or an array of at most 16 such strings");
    char *text = copied(v, &len);
    return add_part(q, SPA_PART_STOP, text, len, e);
}

static int take_stops(struct spa_question *q, const json_t *body, struct spa_api_error *e)
{
    const json_t *stop = field(body, "stop"), *one;
    size_t i;
    q->n_said = q->n_parts;
    if (!stop)
        return 0;
    if (!json_is_array(stop))
        return add_stop(q, stop, e);
    if (json_array_size(stop) > SPA_STOPS_MAX)
        return bad(e, "stop", "a string of 1 to 256 bytes, or an array of at most 16 such strings");
    json_array_foreach(stop, i, one)
        if (add_stop(q, one, e) != 0)
            return -1;
    return 0;
}

/* ---- settings ---- */

static int take_sampling(struct spa_question *q, const json_t *body, struct spa_api_error *e)
{
    spa_Generate *g = &q->settings;
    int64_t top_k = g->top_k, n = -1, seed = -1;
    if (take_float(body, "temperature", 0, 2, &g->temp, e) != 0 || take_float(body, "top_p", 0, 1, &g->top_p, e) != 0 ||
        take_float(body, "min_p", 0, 1, &g->min_p, e) != 0 || take_float(body, "repeat_penalty", 0.01, 100, &g->repeat_penalty, e) != 0 ||
        take_int(body, "top_k", -1, 1 << 30, &top_k, e) < 0 || take_int(body, "seed", INT64_MIN, INT64_MAX, &seed, e) < 0)
        return -1;
    int rc = take_int(body, "max_completion_tokens", -1, INT32_MAX, &n, e);
    if (rc == 0)
        rc = take_int(body, "max_tokens", -1, INT32_MAX, &n, e);
    if (rc < 0)
        return -1;
    if (n == 0)
        return bad(e, "max_tokens", "1 or more (-1: until the model ends)");
    g->top_k = (int32_t)top_k;
    g->n_predict = (int32_t)n;
    g->seed = (uint64_t)seed;
    if (seed == -1) {
        if (getrandom(&g->seed, sizeof g->seed, 0) != sizeof g->seed)
            return spa_api_fail(e, 503, NULL, "seed", "this machine gives no random numbers; say a seed");
        g->seed >>= 11;   /* 53 bits: every JSON reader keeps them all */
    }
    return take_bool(body, "ignore_eos", &g->ignore_eos, e);
}

static int take_logprobs(struct spa_question *q, const json_t *body, struct spa_api_error *e)
{
    int64_t n = 0;
    if (!q->chat) {
        const int rc = take_int(body, "logprobs", 0, SPA_QUESTION_TOP_MAX, &n, e);
        q->logprobs = rc == 1;
        q->n_top = (int32_t)n;
        return rc < 0 ? -1 : 0;
    }
    if (take_bool(body, "logprobs", &q->logprobs, e) != 0 || take_int(body, "top_logprobs", 0, SPA_QUESTION_TOP_MAX, &n, e) < 0)
        return -1;
    if (n > 0 && !q->logprobs)
        return spa_api_fail(e, 400, NULL, "top_logprobs", "'top_logprobs' goes with 'logprobs': true");
    q->n_top = (int32_t)n;
    return 0;
}

static int take_streaming(struct spa_question *q, const json_t *body, struct spa_api_error *e)
{
    const json_t *options = field(body, "stream_options");
    if (take_bool(body, "stream", &q->stream, e) != 0)
        return -1;
    if (options && !json_is_object(options))
        return bad(e, "stream_options", "an object");
    return take_bool(options, "include_usage", &q->include_usage, e);
}

/* What would change the answer if we served it. Empty and neutral values are what client libraries send by themselves. */
static int refuse_others(const struct spa_question *q, const json_t *body, struct spa_api_error *e)
{
    static const char *const penalties[] = { "frequency_penalty", "presence_penalty" };
    static const char *const lists[] = { "tools", "functions", "logit_bias" };
    int64_t n = 1;
    float penalty = 0;
    bool echo = false;
    for (size_t i = 0; i < sizeof penalties / sizeof penalties[0]; i++) {
        if (take_float(body, penalties[i], -2, 2, &penalty, e) != 0)
            return -1;
        if (penalty != 0)
            return not_served(e, penalties[i], "leave it out or 0; repeat_penalty is served");
    }
    for (size_t i = 0; i < sizeof lists / sizeof lists[0]; i++) {
        const json_t *v = field(body, lists[i]);
        if (v && (json_is_object(v) == (i < 2) || !(json_is_object(v) || json_is_array(v))))
            return bad(e, lists[i], i < 2 ? "an array" : "an object");
        if (json_array_size(v) || json_object_size(v))
            return not_served(e, lists[i], "leave it out");
    }
    if (take_int(body, "n", 1, INT32_MAX, &n, e) < 0)
        return -1;
    if (n != 1)
        return not_served(e, "n", "one choice is what there is: ask again for another");
    if (!q->chat && take_int(body, "best_of", 1, INT32_MAX, &n, e) < 0)
        return -1;
    if (n != 1)
        return not_served(e, "best_of", "leave it out or 1");
    if (!q->chat && take_bool(body, "echo", &echo, e) != 0)
        return -1;
    if (echo)
        return not_served(e, "echo", "leave it out or false");
    if (!q->chat && field(body, "suffix"))
        return not_served(e, "suffix", "leave it out");
    const json_t *format = field(body, "response_format"), *type = json_object_get(format, "type");
    if (format && (!json_is_object(format) || !json_is_string(type)))
        return bad(e, "response_format", "an object with a type");
    if (format && strcmp(json_string_value(type), "text") != 0)
        return not_served(e, "response_format", "leave it out or {\"type\": \"text\"}");
    return 0;
}

static int take_body(struct spa_question *q, const json_t *body, struct spa_api_error *e)
{
    const json_t *model = field(body, "model");
    if (model && !json_is_string(model))
        return bad(e, "model", "a string");
    if (model && !(q->model = strdup(json_string_value(model))))
        return no_memory(e);
    if ((q->chat ? take_messages(q, body, e) : take_prompt(q, body, e)) != 0 || take_stops(q, body, e) != 0)
        return -1;
    if (take_sampling(q, body, e) != 0 || take_logprobs(q, body, e) != 0 || take_streaming(q, body, e) != 0)
        return -1;
    return refuse_others(q, body, e);
}

int spa_question_parse(struct spa_question *q, bool chat, const char *body, size_t len, struct spa_api_error *e)
{
    *q = (struct spa_question){ .chat = chat };
    spa_talk_defaults(&q->settings);
    q->settings.raw = !chat;
    json_error_t at;
    json_t *root = json_loadb(body, len, 0, &at);
    if (!root)
        return spa_api_fail(e, 400, NULL, NULL, "the body is no JSON that can be read: %s (line %d)", at.text, at.line);
    const int rc = json_is_object(root) ? take_body(q, root, e)
                                        : spa_api_fail(e, 400, NULL, NULL, "the body has to be a JSON object");
    json_decref(root);
    return rc;
}

void spa_question_free(struct spa_question *q)
{
    for (size_t i = 0; i < q->n_parts; i++)
        spa_secret_free((void *)q->parts[i].bytes, q->parts[i].len);
    free(q->parts);
    free(q->model);
    *q = (struct spa_question){ 0 };
}
