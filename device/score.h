/* score.h - exact match: asks every row's question greedily and compares the answer with the expected one, white space at
 * both ends aside. Requests run side by side, as many as the cloud allows. Rows of raw text ask nothing and are not counted. */
#ifndef SPA_SCORE_H
#define SPA_SCORE_H

#include "confirmed.h"
#include "rows.h"

struct spa_score {
    uint32_t rows, exact;
    uint64_t tokens, gated, bytes_down, bytes_up;   /* tokens spoken, of them asked; bytes of those requests */
    uint64_t ladder_us;
    uint32_t shared_steps, steps;
};

/* Makes a talk in place of *t, whose connection is lost (-1) or of no use (SPA_LINK_REFUSED), as rc and why say. fresh: tokens have come since
 * the last call. *t is freed, or stays where it is of no more use. 0, or -1 with a sentence in why. */
struct spa_score_again {
    int (*again)(void *user, int rc, bool fresh, struct spa_talk **t, char *why, size_t why_len);
    void *user;
};

/* answers: NULL, or [rows->n] strings of the caller's to free, each malloc'd. n_predict: tokens at most per answer.
 * again: NULL: a lost connection fails. With it the answers under way go on, and *t is the last talk.
 * progress: NULL or called after each answer. 0, or -1 with a sentence. */
int spa_score_rows(struct spa_talk **t, const struct spa_score_again *again, const struct spa_rows *rows, spa_GateMode gate, int32_t n_predict, struct spa_score *out,
                   char **answers, void (*progress)(void *user, uint32_t done, uint32_t of), void *user, char *why, size_t why_len);

/* Are two texts the same, white space at both ends aside? */
bool spa_score_same(const char *a, const char *b);

#endif
