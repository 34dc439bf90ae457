/* make.h - what `spa-cloud anchors` and `spa-cloud basis` do: the model's public by-products, made ahead of time without a server.
 * Each runs the model's decodes itself, so nothing else may use the model meanwhile. */
#ifndef SPA_MAKE_H
#define SPA_MAKE_H

#include "anchors.h"

/* Told how far it is; may be NULL. */
struct spa_make_progress {
    void (*done)(void *user, uint32_t done, uint32_t of);
    void *user;
};

/* Has every anchor made for these layers (none: the answers alone) and written. 0, or -1 with a sentence. */
int spa_make_anchors(struct spa_anchors *a, const struct spa_model *m, const uint32_t *layers, uint32_t n_layers,
                     struct spa_make_progress progress, char *why, size_t why_len);

/* Tokens that are decoded from an empty context. */
struct spa_make_text {
    const int32_t *tokens;
    uint32_t n;            /* no more than a slot holds */
};
/* The file of a generic basis (generic.h), malloc'd, from the states of every position of the texts. 0, or -1 with a sentence. */
int spa_make_generic(const struct spa_model *m, const struct spa_make_text *texts, size_t n_texts, uint32_t k,
                     struct spa_make_progress progress, uint8_t **bytes, size_t *len, char *why, size_t why_len);
/* The same from all anchors, prompts and answers (which are made if need be), or from a text file's bytes. */
int spa_make_generic_of_anchors(struct spa_anchors *a, const struct spa_model *m, uint32_t k, struct spa_make_progress progress,
                                uint8_t **bytes, size_t *len, char *why, size_t why_len);
int spa_make_generic_of_text(const struct spa_model *m, const char *text, size_t text_len, uint32_t k, struct spa_make_progress progress,
                             uint8_t **bytes, size_t *len, char *why, size_t why_len);

#endif
