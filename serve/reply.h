/* reply.h - what a local client gets: a job's events as OpenAI's JSON, whole or as server-sent events.
 *
 * Beside OpenAI's fields there is one of ours, `spa`: in a chunk who spoke its last token, at the end the statistics. */
#ifndef SPA_REPLY_H
#define SPA_REPLY_H

#include "job.h"

struct json_t;   /* jansson.h */

/* Text that grows. failed: there was no memory at some point; what is there is then of no use. */
struct spa_text { char *data; size_t len, cap; bool failed; };
void spa_text_add(struct spa_text *t, const char *bytes, size_t len);
void spa_text_add_json(struct spa_text *t, struct json_t *o);   /* takes o; NULL, as jansson gives it without memory, fails the text */
void spa_text_free(struct spa_text *t);

struct spa_reply {
    bool     chat, stream, include_usage;
    char     id[40];
    int64_t  created_unix_s;
    char     model[128];
    uint64_t seed;
    bool     begun;              /* of a stream: the first chunk is out */
    uint32_t plugin_tokens;
    struct spa_text text;        /* of an answer that goes out whole */
    struct json_t *marks;        /* logprobs whose text is yet to go out; NULL: none */
    int64_t  offset;             /* characters of the tokens whose logprobs went out, for /v1/completions */
};

void spa_reply_begin(struct spa_reply *r, const struct spa_job *j, const char *model, int64_t now_unix_s);
/* Adds what one event brings to *out: for a stream data: lines, otherwise nothing before the end and then the whole body. Returns the
 * HTTP status when the answer has ended with this event (200, or the error's, with its object in *out), 0 when it goes on.
 * An error in a stream that has begun is an event of the stream. */
int  spa_reply_event(struct spa_reply *r, const struct spa_job_event *ev, struct spa_text *out);
void spa_reply_free(struct spa_reply *r);

/* The error object. */
void spa_reply_error(const struct spa_api_error *e, struct spa_text *out);

#endif
