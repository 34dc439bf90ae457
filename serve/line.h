/* line.h - a plugin with its connection to the cloud, on a thread of its own: takes jobs, has them answered side by side over the one
 * connection, connects again when it was lost. The thread exists so that looking up a name, a handshake or a long step of the ladder
 * never stops the sockets of local clients. */
#ifndef SPA_LINE_H
#define SPA_LINE_H

#include "job.h"
#include "retry.h"

struct spa_line;

enum spa_line_state { SPA_LINE_OPENING, SPA_LINE_OPEN, SPA_LINE_LOST, SPA_LINE_FAILED };

struct spa_line_config {
    /* Opens a link with the plugin (NULL: the base model alone), as spa_connect_again does. Called from the line's thread. */
    int  (*connect)(void *user, struct spa_clouds *clouds, const struct spa_plugin_file *plugin, struct spa_link **out, char *why, size_t why_len);
    void *connect_user;
    void (*wake)(void *user);        /* after each change that others may want to know; from the line's thread */
    void *wake_user;
    bool  drafts;                    /* help the cloud's guesses with answers given before, */
    uint32_t retry_ms;               /* jobs outlive a lost connection so long; 0: they fail with it */
    const char *features;            /* and with those of this feature file, if it is there; only read while the line is made */
};

struct spa_line_counts {             /* since the line began */
    uint64_t bytes_down, bytes_up, reconnects;
    uint64_t resumed;                /* times that an answer went on over another connection than it began on */
    uint64_t continued;              /* answers that went on from an earlier one's sequence */
    uint64_t cancelled;              /* answers that the cloud stopped because nobody wanted them any more */
    uint32_t open;                   /* jobs that are being answered or wait */
};

/* Takes over what *plugin holds (NULL: none) on success. NULL: no memory or no thread, with a sentence. */
struct spa_line *spa_line_new(const struct spa_line_config *cfg, struct spa_plugin_file *plugin, char *why, size_t why_len);
/* A line that never opened hands its jobs to this one; borrowed. Before the first job. */
void spa_line_fall_back(struct spa_line *l, struct spa_line *other);
/* Takes the job on and holds it. false: the line has FAILED or is retired. */
bool spa_line_submit(struct spa_line *l, struct spa_job *j);
/* Something about its jobs has changed (one is cancelled). */
void spa_line_look(struct spa_line *l);
enum spa_line_state spa_line_state(struct spa_line *l);
void spa_line_why(struct spa_line *l, char *why, size_t why_len);   /* of LOST and FAILED: the sentence */
/* The base model's name; empty before the line was open. */
void spa_line_base_name(struct spa_line *l, char *name, size_t len);
struct spa_line_counts spa_line_counts(struct spa_line *l);
/* No more jobs; it ends when those it has are answered. */
void spa_line_retire(struct spa_line *l);
bool spa_line_ended(struct spa_line *l);
void spa_line_free(struct spa_line *l);   /* ends its jobs, waits for its thread; takes NULL */

#endif
