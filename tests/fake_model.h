/* fake_model.h - a small deterministic base model for tests of everything around it: states are a hash of the tokens before
 * them, text is bytes. It asserts what libllama would silently take: one thread, positions without gaps. */
#ifndef SPA_FAKE_MODEL_H
#define SPA_FAKE_MODEL_H

#include "model.h"

enum { FAKE_D = 16, FAKE_LAYERS = 3, FAKE_VOCAB = 97, FAKE_END = 96, FAKE_SLOTS = 4, FAKE_CTX = 800, FAKE_UBATCH = 8 };

void fake_model_open(struct spa_model *m);
/* While held, a decode call does not return. From any thread. */
void fake_model_hold(struct spa_model *m, bool hold);
/* Decode calls so far with tokens of training rows or anchors. From any thread. */
unsigned fake_model_learn_calls(struct spa_model *m);
/* Another thread takes the model over. */
void fake_model_hand_over(struct spa_model *m);
/* From `rows` rows computed together on, states have other bits; from `head_rows` on, logits. 0: never. */
void fake_model_widths(struct spa_model *m, uint32_t rows, uint32_t head_rows);
/* Before the model is used: answers may end by themselves; a sequence cannot be cut, only emptied. */
void fake_model_ends(struct spa_model *m);
void fake_model_cannot_cut(struct spa_model *m);
void fake_model_close(struct spa_model *m);

#endif
