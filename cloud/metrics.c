/* metrics.c - in: counters. out: Prometheus' text format, version 0.0.4. */
#include "metrics.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const uint32_t answer_bounds_ms[SPA_ANSWER_BOUNDS] = { 1, 2, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 10000 };
static const uint32_t width_bounds[SPA_WIDTH_BOUNDS] = { 1, 2, 4, 8, 16, 32, 64, 128, 256, 512 };

static size_t bucket(const uint32_t *bounds, size_t n, uint64_t value)
{
    size_t i = 0;
    while (i < n && value > bounds[i])
        i++;
    return i;
}

void spa_metrics_answer(struct spa_metrics *m, uint64_t ms)
{
    m->answers[bucket(answer_bounds_ms, SPA_ANSWER_BOUNDS, ms)]++;
    m->answer_seconds += (double)ms / 1e3;
}

void spa_metrics_batch(struct spa_metrics *m, uint32_t n_tokens)
{
    m->batches[bucket(width_bounds, SPA_WIDTH_BOUNDS, n_tokens)]++;
    m->batch_tokens += n_tokens;
}

/* ---- the page ---- */

static void family(FILE *to, const char *name, const char *type, const char *help)
{
    fprintf(to, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, type);
}

static void counter(FILE *to, const char *name, const char *help, uint64_t value)
{
    family(to, name, "counter", help);
    fprintf(to, "%s %" PRIu64 "\n", name, value);
}

static void seconds(FILE *to, const char *name, const char *help, double value)
{
    family(to, name, "counter", help);
    fprintf(to, "%s %.17g\n", name, value);
}

static void gauge(FILE *to, const char *name, const char *help, int64_t value)
{
    family(to, name, "gauge", help);
    fprintf(to, "%s %" PRId64 "\n", name, value);
}

/* words [n], one label value each. */
static void counters(FILE *to, const char *name, const char *help, const char *label, const char *const *words, const uint64_t *values, size_t n)
{
    family(to, name, "counter", help);
    for (size_t i = 0; i < n; i++)
        fprintf(to, "%s{%s=\"%s\"} %" PRIu64 "\n", name, label, words[i], values[i]);
}

/* scale: a bound's unit in the metric's. */
static void histogram(FILE *to, const char *name, const char *help, const uint32_t *bounds, double scale, const uint64_t *buckets, size_t n, double sum)
{
    uint64_t so_far = 0;
    family(to, name, "histogram", help);
    for (size_t i = 0; i < n; i++)
        fprintf(to, "%s_bucket{le=\"%g\"} %" PRIu64 "\n", name, bounds[i] * scale, so_far += buckets[i]);
    so_far += buckets[n];
    fprintf(to, "%s_bucket{le=\"+Inf\"} %" PRIu64 "\n%s_sum %.17g\n%s_count %" PRIu64 "\n", name, so_far, name, sum, name, so_far);
}

/* A model file may be called anything; a label is UTF-8 on one line. */
static void label_value(FILE *to, const char *word)
{
    json_t *utf8 = json_string(word);
    for (const char *c = word; *c; c++) {
        if (*c == '"' || *c == '\\')
            fprintf(to, "\\%c", *c);
        else if ((unsigned char)*c < 0x20 || *c == 0x7f || (!utf8 && (unsigned char)*c >= 0x80))
            fputc('?', to);
        else
            fputc(*c, to);
    }
    json_decref(utf8);
}

static void guesses(FILE *to, const struct spa_metrics *m)
{
    static const char *const source[SPA_GUESSES] = { [SPA_GUESS_BASE] = "base", [SPA_GUESS_TEXT] = "text", [SPA_GUESS_DRAFT] = "draft" };
    const char *name = "spa_guesses_total";
    family(to, name, "counter", "Tokens that were guessed and decoded while a state was on its way; wrong ones, and those behind them, are dropped.");
    for (size_t i = 0; i < SPA_GUESSES; i++)
        fprintf(to, "%s{source=\"%s\",outcome=\"right\"} %" PRIu64 "\n%s{source=\"%s\",outcome=\"wrong\"} %" PRIu64 "\n", name, source[i],
                m->guesses_right[i], name, source[i], m->guesses_wrong[i]);
}

static void write_page(FILE *to, const struct spa_metrics *m, const struct spa_metrics_sockets *s, const struct spa_metrics_fixed *f)
{
    static const char *const speakers[2] = { "base", "plugin" };
    static const char *const ends[SPA_ENDS] = { "stop", "length", "cancelled", "context", "failed", "refused", "gone" };
    static const char *const prompts[2] = { "decoded", "kept" };
    static const char *const states[3] = { "late", "unusable", "stray" };
    static const char *const reasons[] = { "key", "draining", "full", "address", "per_key", "sockets", "unfinished" };
    static const char *const refusals[SPA_REFUSALS] = { "queue", "crowded_out", "key", "connection", "tokens", "context", "draining", "contents" };
    static const char *const cuts[SPA_CUTS] = { "states", "silent", "message", "size", "order", "unread", "idle", "key", "ping" };
    static const char *const reloads[2] = { "taken", "refused" };
    uint64_t cut[SPA_CUTS];
    memcpy(cut, m->cut, sizeof cut);
    cut[SPA_CUT_PING] += s->unanswered_pings;

    family(to, "spa_build_info", "gauge", "Version and model; always 1.");
    fputs("spa_build_info{version=\"", to);
    label_value(to, f->version);
    fputs("\",model=\"", to);
    label_value(to, f->model);
    fputs("\"} 1\n", to);
    gauge(to, "spa_start_time_seconds", "Unix time of the start.", f->started_unix_s);
    gauge(to, "spa_self_check_width_tokens", "Widest batch in which a token has the same bits as alone, as tried at start; 0: not tried.", f->check_width);

    counters(to, "spa_tokens_total", "Tokens of answers, by who spoke.", "speaker", speakers, m->tokens, 2);
    counter(to, "spa_gated_tokens_total", "Tokens of answers for which the device was asked.", m->gated_tokens);
    counters(to, "spa_prompt_tokens_total", "Tokens of prompts: decoded, or kept from an earlier turn or a house prompt.", "how", prompts,
             (const uint64_t[]){ m->prompt_tokens_decoded, m->prompt_tokens_kept }, 2);
    counters(to, "spa_requests_total", "Requests that are over, by how they ended.", "end", ends, m->ends, SPA_ENDS);
    counters(to, "spa_requests_refused_total", "Requests and training rows that were refused, by why.", "why", refusals, m->refused, SPA_REFUSALS);
    counter(to, "spa_requests_resumed_total", "Requests that brought the beginning of their answer from a connection that broke.", m->resumed);
    gauge(to, "spa_queue_requests", "Requests that wait for a slot.", m->queue);
    gauge(to, "spa_slots", "Slots: answers that can be made at the same time.", m->slots);
    gauge(to, "spa_slots_busy", "Slots in which an answer is being made.", m->slots_busy);

    histogram(to, "spa_answer_seconds", "From asking a device for a state to its coming.", answer_bounds_ms, 1e-3, m->answers, SPA_ANSWER_BOUNDS, m->answer_seconds);
    counters(to, "spa_states_unused_total", "States that did not become a token: late, unusable, or no longer awaited.", "why", states,
             (const uint64_t[]){ m->late, m->unusable, m->stray }, 3);
    gauge(to, "spa_states_awaited", "States that devices were asked for and that have not come.", m->states_awaited);
    guesses(to, m);

    histogram(to, "spa_batch_tokens", "Tokens in a decode call, prompts and training rows included.", width_bounds, 1, m->batches, SPA_WIDTH_BOUNDS, (double)m->batch_tokens);
    seconds(to, "spa_decode_seconds_total", "Time in decode calls.", m->decode_seconds);
    seconds(to, "spa_head_seconds_total", "Time in the LM head, for answers.", m->head_seconds);
    counter(to, "spa_training_tokens_total", "Tokens of training rows that were decoded.", m->training_tokens);
    gauge(to, "spa_training_streams", "Connections that have training rows, anchors or losses under way.", m->training_streams);
    gauge(to, "spa_training_waiting", "Of these, such as wait for their key's tokens of the next minutes.", m->training_waits);

    gauge(to, "spa_connections", "Devices that are connected.", s->open);
    counter(to, "spa_connections_opened_total", "Connections that devices opened.", s->opened);
    counters(to, "spa_connections_refused_total", "Connections that were refused, by why.", "why", reasons,
             (const uint64_t[]){ s->refused_key, s->refused_draining, s->refused_full + m->refused_full, s->refused_address, s->refused_per_key,
                                 s->refused_sockets, s->unfinished }, sizeof reasons / sizeof *reasons);
    counters(to, "spa_connections_cut_total", "Connections that the cloud ended because of what the device did or did not do, by why.", "why", cuts, cut, SPA_CUTS);
    counter(to, "spa_reads_paused_total", "Times that a connection was read no further, since as much of it as may wait for the decode thread did.", s->pauses);
    counters(to, "spa_key_reloads_total", "Times that the key file was read again, by what came of it.", "outcome", reloads, s->key_reloads, 2);
    counter(to, "spa_received_bytes_total", "Bytes of messages from devices.", s->bytes_in);
    counter(to, "spa_sent_bytes_total", "Bytes of messages to devices.", s->bytes_out);
}

char *spa_metrics_text(const struct spa_metrics *m, const struct spa_metrics_sockets *s, const struct spa_metrics_fixed *f, size_t *len)
{
    char *text = NULL;
    FILE *to = open_memstream(&text, len);
    if (!to)
        return NULL;
    write_page(to, m, s, f);
    const bool failed = ferror(to);
    if (fclose(to) != 0 || failed) {
        free(text);
        return NULL;
    }
    return text;
}
