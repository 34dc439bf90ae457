/* cell_model.h - the fake model with a memory as a real one has it: cells of tokens, which stay in a sequence until somebody removes them.
 * A token's state comes of all cells of its sequence at or before its position, so one that was left behind by an earlier user changes the
 * answer; and without a plugin the answer repeats the last CELL_ECHO tokens again and again, so that what it can see is what it says. */
#ifndef SPA_CELL_MODEL_H
#define SPA_CELL_MODEL_H

#include "fake_model.h"

enum { CELL_ECHO = 24 };

/* Takes the place of an open fake model; one at a time. */
void cell_model_take_over(struct spa_model *m);
/* From now on every nth sequence that is emptied keeps its cells, though the caller is told otherwise. 0: none does. */
void cell_model_leak(unsigned every);

struct cell_counts {
    unsigned long begun;      /* sequences of answers that began at position 0 in a slot that had been used before */
    unsigned long residual;   /* cells that a token found at its own position or behind it */
};
struct cell_counts cell_model_counts(void);

#endif
