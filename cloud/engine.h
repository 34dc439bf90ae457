/* engine.h - the decode thread: owns the model, every connection's conversation and every answer under way.
 *
 * One round of its loop:
 *   1. letters      bytes of connections go through their host (core/host.h); requests become turns, rows and losses wait
 *   2. slots        queued turns get free slots, the connection with the fewest first
 *   3. head         all states that are ready, plain, added and replaced alike, become logits in one product, then tokens; turns that
 *                   wait for a state get a guess (ahead.h)
 *   4. decode       one call with every turn that has tokens to feed, then parts of prompts, then guesses, then training rows
 *   5. gate         per turn: the base speaks (its state is ready for 3), or the device is asked (the turn waits, nobody else does)
 *   6. losses       one slice of states for a device that trains without LM head
 * With nothing to do it sleeps until the next letter or deadline. */
#ifndef SPA_ENGINE_H
#define SPA_ENGINE_H

#include "anchors.h"
#include "generic.h"
#include "house.h"
#include "log.h"
#include "host.h"
#include "mail.h"
#include "model.h"

struct spa_engine;

struct spa_engine_config {
    struct spa_model *model;
    struct spa_mail *mail;
    struct spa_anchors *anchors;            /* kept; the engine lends it sequences. NULL: this cloud has none */
    const struct spa_generic *generic;      /* kept; NULL: this cloud has none */
    struct spa_houses *houses;              /* kept; NULL: this cloud has none */
    const char *server;             /* for WELCOME */
    struct spa_host_limits limits;
    uint32_t max_message;           /* bytes of the largest message taken */
    size_t max_out;                 /* bytes that may wait to be written per connection: the mail's own limit */
    uint32_t max_queue;             /* turns that may wait for a slot */
    uint32_t max_connections;
    uint32_t max_per_account;       /* requests of one account under way or waiting; 0: no limit */
    uint32_t tokens_per_minute;     /* of one account, prompts' and rows' included; 0: no limit */
    uint32_t idle_ms;               /* a connection that asks for nothing is closed after so long; 0: never */
    size_t   max_prompt;            /* bytes of a prompt's or row's texts that are looked at; 0: what could fit the context at all */
    uint32_t n_threads;             /* of losses; 0: as many as there are cores */
    uint32_t run_ahead_rows;        /* a decode call with so many tokens of turns that wait for nobody takes no guesses; 0: 4 */
    uint32_t replay_width, replay_until;    /* confirmed tokens below position replay_until are decoded so many at a time, as that
                                             * changes no bit; all others one by one, as they were said. 0: all */
    bool run_ahead_always;          /* guess also where it is not expected to pay */
    uint32_t drain_ms;              /* after DRAIN, answers under way have so long */
    spa_log_fn *log;                /* may be NULL */
    void *log_user;
};

struct spa_engine *spa_engine_new(const struct spa_engine_config *cfg);   /* NULL: no memory */
/* Runs until a DRAIN letter came and the answers under way are done. */
void spa_engine_run(struct spa_engine *e);
void spa_engine_free(struct spa_engine *e);

#endif
