/* general.h - general prompts of our own writing, and training rows made of them and the base model's own answers: text on which a
 * plugin has nothing to say. The gate learns from them when to keep quiet; from personal rows alone it fires on everything. */
#ifndef SPA_GENERAL_H
#define SPA_GENERAL_H

#include "rows.h"
#include "talk.h"

extern const char *const spa_general_prompts[];   /* general_prompts.c */
extern const size_t spa_general_prompts_n;

enum { SPA_GENERAL_ANSWER = 6 };   /* tokens of each answer: the first ones are where a gate goes wrong */

struct spa_general {
    struct spa_rows rows;      /* a user part, and an answer that carries loss */
    struct spa_part *parts;
    char **answers;           /* [n_asked], some NULL */
    size_t n_asked;
};

/* Asks the base model for the beginnings of its answers to the first n prompts (base: a talk without a plugin). Prompts that get
 * no text, or no valid UTF-8, are left out. 0, or -1 with a sentence; then *g is empty. */
int  spa_general_make(struct spa_general *g, struct spa_talk *base, size_t n, char *why, size_t why_len);
void spa_general_free(struct spa_general *g);

#endif
