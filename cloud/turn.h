/* turn.h - one answer: from the request's parts to a prompt, from sampled tokens to text, stop strings and an end.
 * Knows the model's vocabulary and nothing of batches, slots or sockets (engine.h). */
#ifndef SPA_TURN_H
#define SPA_TURN_H

#include "ahead.h"
#include "model.h"

struct spa_house;

enum spa_turn_state {
    SPA_TURN_QUEUED,     /* waits for a slot */
    SPA_TURN_FEEDING,    /* tokens n_past .. n_tokens-1 are to be decoded */
    SPA_TURN_STATE,      /* `state` waits for the LM head */
    SPA_TURN_AWAITING,   /* the device owes the state of position n_tokens-1; meanwhile the turn may run ahead */
};

struct spa_stop { uint8_t bytes[SPA_STOP_LEN_MAX]; uint32_t len; };

struct spa_turn {
    uint32_t request;
    enum spa_turn_state status;
    uint32_t slot;                  /* when not QUEUED */
    uint64_t arrived;               /* order of arrival */
    struct spa_sampling sampling;
    spa_GateMode gate;
    bool     ignore_end;

    int32_t *tokens;                /* [n_cap] prompt, then answer, then guesses (ahead.h) */
    uint32_t n_cap, n_prompt, n_tokens, n_past;
    uint32_t n_cached;              /* prompt tokens that were not decoded again */
    struct spa_house *house;        /* the prompt begins with n_house of its tokens; NULL: with none */
    uint32_t n_house;
    uint32_t after, after_from, after_to;   /* as in GENERATE */
    uint32_t logprobs;              /* too */
    uint32_t n_limit;               /* n_tokens may not grow beyond: prompt + n_predict, or the slot's room */
    bool     limit_is_context;

    float   *state;                 /* [d] what the head is to turn into a token */
    float   *y_fin;                 /* [d] of position n_tokens-1, kept while the device is asked */
    spa_Speaker by;                 /* who spoke `state` */
    spa_Code refused;               /* OK; otherwise there is no `state`, and the request ends with this */

    struct spa_ahead ahead;
    uint32_t epoch;                 /* how often the device was told to go back */

    uint32_t sent_pos;              /* context rows of positions below it have left */
    uint8_t *ctx_rows;              /* packed context rows of positions sent_pos .. sent_pos+n_ctx_rows-1, not sent yet */
    uint32_t n_ctx_rows, ctx_rows_cap;

    struct spa_stop *stops;
    uint32_t n_stops;
    char    *text;                  /* bytes not yet released: part of a character, or the start of a stop string */
    size_t   text_len, text_cap, released;
    uint32_t n_answer, steps, shared_steps;
};

/* Tokenizes a GENERATE and makes a turn of it. NULL with a code and one sentence (static or in why). */
struct spa_turn *spa_turn_new(const struct spa_model *m, const spa_Generate *g, const uint8_t *bulk, size_t bulk_len,
                              spa_Code *code, char *why, size_t why_len);
/* Of an ended turn only the tokens and context rows stay, for a turn that goes on from it (kept.c). */
void spa_turn_retire(struct spa_turn *t);
void spa_turn_free(struct spa_turn *t);   /* clears the text and tokens; takes NULL */

/* Adds a sampled token. *text, *text_len: what may be shown now (valid until the next call). Returns true when the turn
 * has ended, with *finish. *shown: the token belongs to the answer (an end token does not). */
bool spa_turn_token(struct spa_turn *t, const struct spa_model *m, int32_t token, const char **text, size_t *text_len,
                    bool *shown, spa_Finish *finish);

/* The chat of parts as prompt tokens, shared with training rows: writes the template's text of the first n parts to a
 * malloc'd string. NULL: the model has no chat template that we know, or no memory. */
char *spa_chat_text(const struct spa_model *m, const struct spa_part *parts, size_t n, bool open);
/* Tokens of text, malloc'd; *n how many. NULL: no memory or the text is too long. */
int32_t *spa_tokens_of(const struct spa_model *m, const char *text, size_t len, bool start, bool special, uint32_t *n);

#endif
