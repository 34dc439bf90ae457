/* sample.h - from logits to a token, with a random number that depends on nothing but (seed, position, token).
 *
 * Order, as llama-server's default chain has it for the same options: repeat penalty, top-k, top-p, min-p, temperature,
 * draw. The draw is the Gumbel-max trick: argmax over the tokens left of  logit / temp + G(seed, pos, token)  with G
 * standard Gumbel noise from a counter-based generator. It samples exactly from the softmax, and a guess made from other
 * logits at the same position meets the same noise, so run-ahead, replay and resume draw alike. temp <= 0: greedy, ties go
 * to the smaller id. */
#ifndef SPA_SAMPLE_H
#define SPA_SAMPLE_H

#include "err.h"
#include <stddef.h>
#include <stdint.h>

struct spa_sampling {
    float    temp;            /* 0.8; <= 0 greedy */
    int32_t  top_k;           /* 40; <= 0 all */
    float    top_p;           /* 0.95; >= 1 off */
    float    min_p;           /* 0.05; <= 0 off */
    float    repeat_penalty;  /* 1.0 off */
    int32_t  repeat_last_n;   /* 64; 0 off, -1 all */
    uint64_t seed;
};

struct spa_candidate { float logit; float p; int32_t id; };

/* logits [n_vocab] is not changed; recent [n_recent] are the tokens so far, oldest first, prompt included.
 * work: n_vocab candidates of the caller's. Returns the token. NaN logits are never chosen unless all are. */
int32_t spa_sample(const struct spa_sampling *cfg, const float *logits, int32_t n_vocab,
                   const int32_t *recent, size_t n_recent, uint64_t pos, struct spa_candidate *work);

/* 64 random bits of (seed, a, b): the same on every machine. */
uint64_t spa_noise64(uint64_t seed, uint64_t a, uint64_t b);

#endif
