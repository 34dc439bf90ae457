/* past.h - conversations that may go on: which messages ended in which request of a line's connection (GENERATE's after). */
#ifndef SPA_PAST_H
#define SPA_PAST_H

#include "question.h"

enum { SPA_PAST_KEPT = 8 };   /* as many as talk.c keeps caches */

struct spa_past {             /* all zeros: empty */
    /* An answer that has ended: its messages and text as parts, and the request whose sequence holds them. */
    struct { uint32_t request; uint8_t *bytes; size_t len; uint64_t when; } kept[SPA_PAST_KEPT];
    uint64_t endings;
};

/* The messages of q, and its answer as one more: what a longer conversation begins with. The oldest makes room. */
void     spa_past_keep(struct spa_past *p, const struct spa_question *q, uint32_t request, const char *text, size_t text_len);
/* The ended request that q's messages go on from, the longest; 0: none. */
uint32_t spa_past_find(const struct spa_past *p, const struct spa_question *q);
/* Requests of one connection mean nothing on the next. */
void     spa_past_forget(struct spa_past *p);

#endif
