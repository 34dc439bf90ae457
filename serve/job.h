/* job.h - a question on its way and what has come of it: handed from the thread of the sockets to the thread of a line, and events back.
 *
 * Both hold it; the last one to let go frees it. Only what is said here may be touched from both sides. */
#ifndef SPA_JOB_H
#define SPA_JOB_H

#include "confirmed.h"
#include "question.h"

#include <stdatomic.h>

enum spa_job_event_type { SPA_JOB_TOKENS, SPA_JOB_DONE, SPA_JOB_FAILED, SPA_JOB_LOGPROBS };
struct spa_job_event {
    struct spa_job_event *next;
    enum spa_job_event_type type;
    size_t   text_len;              /* of bytes. TOKENS: UTF-8 without zeros; LOGPROBS, of the next TOKENS: entries as in logprobs.h */
    uint32_t n;                     /* tokens */
    bool     plugin;                /* who spoke the last of them */
    spa_Finish finish;              /* DONE */
    struct spa_talk_stats stats;    /* DONE */
    struct spa_api_error error;     /* FAILED */
    char     bytes[];
};

struct spa_job {
    struct spa_question question;   /* not changed once it is submitted */
    bool     base;                  /* the base model alone answers */
    atomic_bool cancelled;          /* nobody wants the answer any more */
    /* the line's */
    struct spa_job *next;
    uint32_t request;
    bool     cancel_sent;
    struct spa_confirmed confirmed; /* of an answer that may have to go on over another connection */
    uint64_t deadline_ms;           /* it has to be under way again by then; 0: it is */
    uint64_t left_ms;               /* from now to then, had it no token since it is under way again; 0: it had, or was never lost */
    char    *text;                  /* the answer so far, for a conversation that goes on from it */
    size_t   text_len, text_cap;
    void    *inside;                /* job.c's */
};

/* Takes what q holds; *q is empty afterwards. NULL: no memory, q keeps it. wake: called after each event, from the line's thread. */
struct spa_job *spa_job_new(struct spa_question *q, bool base, void (*wake)(void *user), void *user);
void spa_job_hold(struct spa_job *j);
void spa_job_let_go(struct spa_job *j);   /* takes NULL */

/* From the line. TOKENS without memory for them becomes FAILED. */
void spa_job_tokens(struct spa_job *j, const struct spa_talk_event *ev);
void spa_job_logprobs(struct spa_job *j, const struct spa_talk_event *ev);
void spa_job_done(struct spa_job *j, spa_Finish finish, const struct spa_talk_stats *stats);
void spa_job_fail(struct spa_job *j, const struct spa_api_error *e);

/* To the sockets: the next event, to be freed; NULL: none now. */
struct spa_job_event *spa_job_next(struct spa_job *j);
void spa_job_event_free(struct spa_job_event *ev);

#endif
