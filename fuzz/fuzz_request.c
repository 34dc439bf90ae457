/* fuzz_request.c - any bytes as the body of a local client's request (byte 0: which API), and as its Host and Origin. What is accepted must be
 * what a cloud accepts: the same checks as there, on the parts as they would be sent. Start from fuzz/corpus/request. */
#include "guard.h"
#include "question.h"
#include "request.h"
#include "talk.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len);

static void must(bool holds)
{
    if (!holds)
        abort();
}

static void check_accepted(struct spa_question *q)
{
    const size_t n = spa_parts_len(q->parts, q->n_parts);
    uint8_t *bulk = malloc(n + 1);
    const char *why = "";
    must(q->n_said > 0 && q->n_said <= q->n_parts && q->n_top >= 0 && q->n_top <= SPA_QUESTION_TOP_MAX);
    spa_parts_write(q->parts, q->n_parts, bulk);
    spa_Generate g = q->settings;
    g.gate = spa_GateMode_GATE_NEVER;
    const enum spa_err err = spa_request_check_generate(&g, bulk, n, false, 1000, &why);
    must(err == SPA_OK || (err == SPA_ERR_RANGE && strcmp(why, "the prompt is empty") == 0));   /* messages may all be empty: the cloud says so */
    free(bulk);
}

static void check_heads(const uint8_t *bytes, size_t len)
{
    static const char *const names[] = { "house.example" };
    char *text = malloc(len + 1), *host = memchr(bytes, '\n', len) ? (char *)memchr(bytes, '\n', len) + 1 : NULL;
    memcpy(text, bytes, len);
    text[len] = 0;
    if (spa_guard_host(text, names, 1))
        must(strlen(text) <= 300 && !strchr(text, '/') && !strchr(text, '@'));
    char *rest = host ? text + (host - (const char *)bytes) : text + len;
    if (host)
        rest[-1] = 0;
    if (spa_guard_origin(text, rest))
        must(strlen(rest) > 0 || strstr(text, "//"));
    free(text);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len)
{
    struct spa_question q;
    struct spa_api_error e = { 0 };
    if (len == 0)
        return 0;
    char *body = malloc(len);   /* exactly so long: a read beyond is seen */
    memcpy(body, bytes + 1, len - 1);
    if (spa_question_parse(&q, bytes[0] & 1, body, len - 1, &e) == 0)
        check_accepted(&q);
    else
        must(e.status >= 400 && e.status < 600 && e.type && strlen(e.message) > 8);
    spa_question_free(&q);
    check_heads(bytes + 1, len - 1);
    free(body);
    return 0;
}
