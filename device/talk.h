/* talk.h - answers: opens requests over a link, runs the ladder on the taps that come, hands out text.
 *
 * Several requests may be open at once, each with its own context cache. Caches of ended requests stay for a while, for a
 * request that goes on from there. Memory is taken when the talk is made, for each
 * question, and when a context cache doubles; never per token. */
#ifndef SPA_TALK_H
#define SPA_TALK_H

#include "drafts.h"
#include "link.h"
#include "plugin_file.h"

struct spa_talk;

struct spa_talk_request {              /* what to ask; defaults by spa_talk_defaults */
    const struct spa_part *parts;
    size_t n_parts;
    spa_Generate settings;             /* request, after_from, after_to are set by spa_talk_ask; after: an ended request or 0 */
};
void spa_talk_defaults(spa_Generate *g);   /* llama-server's: n_predict -1, temp 0.8, top_k 40, top_p 0.95, min_p 0.05 ...; run_ahead as far as the cloud does */

struct spa_talk_stats {
    uint32_t tokens, prompt_tokens, cached_tokens, gated, round_trips, late, refused, steps, shared_steps;
    uint32_t guessed_base, right_base, guessed_text, right_text, guessed_draft, right_draft, wasted_steps, waits;   /* as in DONE */
    uint64_t bytes_down, bytes_up;     /* of this request's messages, prefix included */
    uint64_t ladder_us;                /* time in the ladder, context rows included */
    uint64_t started_us, first_token_us, ended_us;
};

enum spa_talk_event_type { SPA_TALK_TOKENS, SPA_TALK_DONE, SPA_TALK_ERROR, SPA_TALK_LOGPROBS };
struct spa_talk_event {
    enum spa_talk_event_type type;
    uint32_t request;
    const spa_Tokens *tokens;          /* TOKENS: ids and who spoke */
    const char *text;                  /* TOKENS: UTF-8; ERROR: the sentence; LOGPROBS, of the token that comes next: entries as in logprobs.h;
                                          not zero-terminated */
    size_t text_len;
    spa_Finish finish;                 /* DONE */
    spa_Code code;                     /* ERROR */
    uint32_t retry_ms;                 /* ERROR, BUSY: ask again after so long; 0: not known */
};

/* plugin NULL: base model alone. Both are borrowed until spa_talk_free. */
int  spa_talk_new(struct spa_talk **out, struct spa_link *link, const struct spa_plugin_file *plugin, char *why, size_t why_len);
void spa_talk_free(struct spa_talk *t);
/* The ladder looks back on so many tokens at most, and a request's cache holds hardly more. 0, the default: on all of the
 * cloud's context. Before the first question. */
void spa_talk_window(struct spa_talk *t, uint32_t tokens);
/* From now on requests are padded: every token is asked and looks like any other on the wire, at the price of a round trip each; nothing runs
 * ahead and no drafts travel. A cloud that does not know it refuses to be asked. */
void spa_talk_pad(struct spa_talk *t, bool pad);
/* From now on states carry what d knows of how the answer may go on, and answers that are given are added to it. Borrowed until
 * spa_talk_free; NULL, the default: nothing travels. */
void spa_talk_drafts(struct spa_talk *t, struct spa_drafts *d);
/* Opens a request; *request gets its id. With settings.after its context cache is the one of that request, as far as the texts
 * agree, and the cloud sends only what is new; if either end has forgotten it, this is a request like any other. With a CONFIRMED part among the
 * parts the answer goes on behind these tokens. 1: ok, 0: too many are open, ask again after a DONE; with a sentence: -1: the connection is
 * lost; SPA_LINK_REFUSED: it cannot be asked. */
int  spa_talk_ask(struct spa_talk *t, const struct spa_talk_request *r, uint32_t *request, char *why, size_t why_len);
void spa_talk_cancel(struct spa_talk *t, uint32_t request);
/* 1: *ev filled; 0: time is up; -1 and SPA_LINK_REFUSED as spa_link_wait has them, with a sentence. */
int  spa_talk_wait(struct spa_talk *t, int timeout_ms, struct spa_talk_event *ev, char *why, size_t why_len);
/* Of a request, until its place is taken by a new one. */
const struct spa_talk_stats *spa_talk_stats(const struct spa_talk *t, uint32_t request);

#endif
