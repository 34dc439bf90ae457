/* confirmed.h - what a device has of an answer, so that it can go on on another connection: its tokens, and what else came behind or
 * before them. The beginning that is asked for again is GENERATE's CONFIRMED; here is seen to it that nothing is said twice. */
#ifndef SPA_CONFIRMED_H
#define SPA_CONFIRMED_H

#include "talk.h"

struct spa_confirmed {               /* all zeros: nothing */
    int32_t *ids;
    size_t   n, cap;
    uint32_t by_plugin;              /* of them */
    size_t   n_logprobs;             /* tokens whose logprobs came: n, or one more */
    size_t   tail;                   /* bytes of text that came behind the last token, */
    size_t   skip;                   /* and of them those that come again */
    uint32_t breaks;                 /* how often the connection was lost under it */
    struct spa_talk_stats before;    /* of the connections that were lost, sums */
};

void spa_confirmed_begin(struct spa_confirmed *c);   /* a new answer */
void spa_confirmed_free(struct spa_confirmed *c);

/* Notes an event of this answer. 1: it is for the caller, less the text that came before the break; 0: all of it came before; -1: no
 * memory for the tokens. */
int  spa_confirmed_take(struct spa_confirmed *c, struct spa_talk_event *ev);
/* The connection is lost; s: what was counted on it. */
void spa_confirmed_broken(struct spa_confirmed *c, const struct spa_talk_stats *s);
/* For the request that goes on; borrows ids. Not to be sent when n is 0. */
struct spa_part spa_confirmed_part(const struct spa_confirmed *c);
/* Adds to what was counted on the last connection what was counted on those before. */
void spa_confirmed_stats(const struct spa_confirmed *c, struct spa_talk_stats *s);

#endif
