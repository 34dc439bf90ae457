/* question.h - the body of POST /v1/chat/completions or /v1/completions, read into what the cloud is asked.
 *
 * Known fields are checked for type and range, unknown ones are ignored, null is as good as absent. What OpenAI's API knows and
 * this one does not serve (several choices, tools, images, penalties other than repeat_penalty) is refused, not dropped in silence. */
#ifndef SPA_QUESTION_H
#define SPA_QUESTION_H

#include "api_error.h"
#include "wire.h"

enum { SPA_QUESTION_TOP_MAX = 20 };

struct spa_question {
    bool   chat, stream, include_usage;
    bool   logprobs;
    int32_t n_top;               /* alternatives with logprobs, 0 .. SPA_QUESTION_TOP_MAX */
    char  *model;                /* NULL: not said */
    struct spa_part *parts;      /* messages or raw text, then stop strings; bytes are malloc'd */
    size_t n_parts, n_said;      /* n_said: without the stop strings */
    spa_Generate settings;       /* sampling, n_predict, seed, raw; the rest as spa_talk_defaults */
};

/* 0, or -1 with *e. *q is to be freed in either case. A seed that is absent or -1 is drawn. */
int  spa_question_parse(struct spa_question *q, bool chat, const char *body, size_t len, struct spa_api_error *e);
void spa_question_free(struct spa_question *q);

#endif
