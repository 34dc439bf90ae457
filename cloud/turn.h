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

enum { SPA_PIECE_MAX = 512, SPA_SAID_MAX = 4096 };   /* bytes of one token's text; of text that waits to be sent */

struct spa_stop { uint8_t bytes[SPA_STOP_LEN_MAX]; uint32_t len; };

struct spa_turn {
    uint32_t request;
    enum spa_turn_state status;
    uint32_t slot;                  /* when not QUEUED */
    uint64_t arrived;               /* order of arrival */
    uint64_t entered_ms;            /* when it got its slot */
    struct spa_sampling sampling;
    spa_GateMode gate;
    bool     ignore_end;
    bool     pad;                   /* as in GENERATE: the device is asked for every token, */
    bool     quiet;                 /* and what it says of the front is not for use: the gate is closed */

    int32_t *tokens;                /* [n_cap] prompt, then answer, then guesses (ahead.h) */
    uint32_t n_cap, n_prompt, n_tokens, n_past;
    uint32_t n_cached;              /* prompt tokens that were not decoded again */
    uint32_t n_confirmed;           /* answer tokens that came with GENERATE: tokens n_prompt .. n_prompt + n_confirmed - 1 */
    bool     over;                  /* and the last of them ended the answer, */
    spa_Finish over_by;             /* so */
    struct spa_house *house;        /* the prompt begins with n_house of its tokens; NULL: with none */
    uint32_t n_house;
    uint32_t after, after_from, after_to;   /* as in GENERATE */
    uint32_t logprobs;              /* too */
    uint32_t n_limit;               /* n_tokens may not grow beyond: prompt + n_predict, or the slot's room */
    bool     limit_is_context;

    uint32_t d;
    float   *state;                 /* [d] what the head is to turn into a token */
    float   *y_fin;                 /* [d] of position n_tokens-1, kept while the device is asked */
    spa_Speaker by;                 /* who spoke `state` */
    bool     asked;                 /* and whether the device was asked for it, for the count */
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

    /* said and not sent yet: tokens, the first one's number, the text that became complete with them */
    int32_t  said[SPA_ASKED_MAX];
    uint8_t  said_by[SPA_ASKED_MAX];
    uint32_t n_said, said_index;
    char    *said_text;             /* [SPA_SAID_MAX] */
    size_t   said_len;
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

/* Notes what spa_turn_token has given, to be sent. false: there is no room; what is there has to leave first. */
bool spa_turn_say(struct spa_turn *t, int32_t token, bool shown, const char *text, size_t text_len);
/* Bytes of said_text that a TOKENS takes: all, or, where it is padded, whole characters that fit. */
size_t spa_turn_said_text(const struct spa_turn *t);
/* All said tokens, and so much of the text, have left. */
void spa_turn_said(struct spa_turn *t, size_t text_len);

/* The chat of parts as prompt tokens, shared with training rows: writes the template's text of the first n parts to a
 * malloc'd string. NULL: the model has no chat template that we know, or no memory. */
char *spa_chat_text(const struct spa_model *m, const struct spa_part *parts, size_t n, bool open);
/* Tokens of text, malloc'd; *n how many. NULL: no memory or the text is too long. */
int32_t *spa_tokens_of(const struct spa_model *m, const char *text, size_t len, bool start, bool special, uint32_t *n);

#endif
