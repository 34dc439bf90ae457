/* api.c - in: a path. out: what stands there (api.h). */
#include "api.h"

#include <jansson.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char as_json[] = "application/json";
static const int statuses[SPA_API_STATUSES] = { 200, 400, 401, 403, 404, 405, 408, 411, 413, 415, 429, 500, 502, 503, 0 };

void spa_api_count(struct spa_api_counts *c, enum spa_api_kind kind, int status)
{
    size_t i = 0;
    while (i + 1 < SPA_API_STATUSES && statuses[i] != status)
        i++;
    c->requests[kind][i]++;
}

static const struct spa_page *page_at(const char *path)
{
    for (size_t i = 0; i < spa_n_pages; i++)
        if (strcmp(spa_pages[i].path, path) == 0)
            return &spa_pages[i];
    return NULL;
}

static const char one_model[] = "/v1/models/";

struct spa_api_way spa_api_way(const char *path)
{
    if (strcmp(path, "/v1/chat/completions") == 0)
        return (struct spa_api_way){ .post = true, .kind = SPA_API_CHAT };
    if (strcmp(path, "/v1/completions") == 0)
        return (struct spa_api_way){ .post = true, .kind = SPA_API_COMPLETIONS };
    if (strcmp(path, "/health") == 0 || page_at(path))
        return (struct spa_api_way){ .get = true, .is_public = true };
    return (struct spa_api_way){ .get = strcmp(path, "/v1/models") == 0 || strcmp(path, "/metrics") == 0 || strncmp(path, one_model, sizeof one_model - 1) == 0 };
}

static void add(struct spa_text *t, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void add(struct spa_text *t, const char *fmt, ...)
{
    char line[512];
    va_list args;
    va_start(args, fmt);
    const int n = vsnprintf(line, sizeof line, fmt, args);
    va_end(args);
    spa_text_add(t, line, n > 0 && (size_t)n < sizeof line ? (size_t)n : 0);
}

/* ---- models, health ---- */

static json_t *model(const char *name, bool is_base, int64_t created)
{
    return json_pack("{s:s, s:s, s:I, s:s, s:{s:b}}", "id", name, "object", "model", "created", (json_int_t)created, "owned_by", "spa",
                     "spa", "plugin", !is_base);
}

static void models(const struct spa_models *m, int64_t created, struct spa_text *out)
{
    json_t *list = json_array();
    bool is_base;
    const char *name;
    for (size_t i = 0; (name = spa_models_name(m, i, &is_base)) != NULL; i++)
        json_array_append_new(list, model(name, is_base, created));
    spa_text_add_json(out, json_pack("{s:s, s:o}", "object", "list", "data", list));
}

static int find_model(const struct spa_models *m, int64_t created, const char *wanted, struct spa_text *out)
{
    bool is_base;
    const char *name;
    for (size_t i = 0; (name = spa_models_name(m, i, &is_base)) != NULL; i++)
        if (strcmp(name, wanted) == 0) {
            spa_text_add_json(out, model(name, is_base, created));
            return 200;
        }
    struct spa_api_error e;
    spa_api_fail(&e, 404, "model_not_found", "model", "there is no model of this name here; GET /v1/models lists them");
    spa_reply_error(&e, out);
    return 404;
}

static int health(struct spa_models *m, struct spa_text *out)
{
    char why[1024];
    if (spa_models_connected(m, why, sizeof why)) {
        add(out, "{\"status\":\"ok\"}");
        return 200;
    }
    struct spa_api_error e;
    spa_api_fail(&e, 503, "cloud_unavailable", NULL, "%s", why);
    spa_reply_error(&e, out);
    return 503;
}

/* ---- metrics: Prometheus' text format ---- */

static void metric(struct spa_text *out, const char *name, const char *type, const char *help)
{
    add(out, "# HELP spa_serve_%s %s\n# TYPE spa_serve_%s %s\n", name, help, name, type);
}

static void number(struct spa_text *out, const char *name, const char *type, const char *help, uint64_t value)
{
    metric(out, name, type, help);
    add(out, "spa_serve_%s %llu\n", name, (unsigned long long)value);
}

static void metrics(struct spa_models *m, const struct spa_api_counts *c, int64_t started, struct spa_text *out)
{
    static const char *const kinds[SPA_API_KINDS] = { "other", "chat", "completions" };
    const struct spa_models_counts l = spa_models_counts(m);
    metric(out, "requests_total", "counter", "Requests answered, by API and HTTP status.");
    for (size_t k = 0; k < SPA_API_KINDS; k++)
        for (size_t i = 0; i < SPA_API_STATUSES; i++)
            if (c->requests[k][i])
                add(out, "spa_serve_requests_total{api=\"%s\",code=\"%d\"} %llu\n", kinds[k], statuses[i], (unsigned long long)c->requests[k][i]);
    number(out, "requests_cancelled_total", "counter", "Answers that the cloud stopped because the client had gone.", l.lines.cancelled);
    number(out, "requests_continued_total", "counter", "Answers that went on from an earlier one's sequence.", l.lines.continued);
    number(out, "requests_open", "gauge", "Answers under way or waiting.", l.lines.open);
    number(out, "connections_open", "gauge", "HTTP connections of local clients.", c->connections);
    number(out, "connections_refused_total", "counter", "Connections that were closed at once: there were as many as there may be.", c->refused);
    number(out, "connections_unfinished_total", "counter", "Connections that ended before a whole request had come: too long a head, or too slow.", c->unfinished);
    number(out, "prompt_tokens_total", "counter", "Tokens of prompts.", c->prompt_tokens);
    metric(out, "tokens_total", "counter", "Tokens of answers, by who spoke.");
    add(out, "spa_serve_tokens_total{by=\"base\"} %llu\nspa_serve_tokens_total{by=\"plugin\"} %llu\n", (unsigned long long)c->base_tokens,
        (unsigned long long)c->plugin_tokens);
    number(out, "gated_tokens_total", "counter", "Tokens for which the plugin was asked.", c->gated);
    number(out, "round_trips_total", "counter", "States sent to the cloud.", c->round_trips);
    metric(out, "cloud_bytes_total", "counter", "Bytes of messages of ended answers, by direction.");
    add(out, "spa_serve_cloud_bytes_total{direction=\"down\"} %llu\nspa_serve_cloud_bytes_total{direction=\"up\"} %llu\n",
        (unsigned long long)l.lines.bytes_down, (unsigned long long)l.lines.bytes_up);
    number(out, "cloud_lost", "gauge", "Connections to the cloud that are down.", l.lost);
    number(out, "requests_resumed_total", "counter", "Times that an answer went on over another connection to the cloud than it began on.", l.lines.resumed);
    number(out, "cloud_reconnects_total", "counter", "Connections to the cloud that were made again.", l.lines.reconnects);
    number(out, "plugin_reloads_total", "counter", "Plugin files that were taken up after a change.", l.reloads);
    number(out, "plugin_reloads_refused_total", "counter", "Changed plugin files that could not be used.", l.reloads_refused);
    number(out, "start_time_seconds", "gauge", "When the server started, in Unix time.", (uint64_t)started);
}

/* ---- */

int spa_api_get(struct spa_models *m, const struct spa_api_counts *counts, int64_t started_unix_s, const char *path, struct spa_text *out,
                const char **type)
{
    const struct spa_page *page = page_at(path);
    *type = page ? page->type : as_json;
    if (page) {
        spa_text_add(out, (const char *)page->bytes, page->len);
        return 200;
    }
    if (strcmp(path, "/health") == 0)
        return health(m, out);
    if (strncmp(path, one_model, sizeof one_model - 1) == 0)
        return find_model(m, started_unix_s, path + sizeof one_model - 1, out);
    if (strcmp(path, "/metrics") == 0) {
        *type = "text/plain; version=0.0.4; charset=utf-8";
        metrics(m, counts, started_unix_s, out);
        return 200;
    }
    models(m, started_unix_s, out);
    return 200;
}
