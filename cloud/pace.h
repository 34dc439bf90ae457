/* pace.h - how many tokens go into one decode call when many users wait for their devices' states.
 *
 * A call of w tokens takes t(w) = a + b w: a however few there are, b for each. With all n users in one call, the machine idles for a
 * round trip R after each: everybody waits at the same time. In k groups, others compute meanwhile, but each call pays a:
 *
 *   a round of everybody's next token takes   max(k a + n b, t(n/k) + R)
 *
 * So k is chosen that makes this least. a and b are measured as it goes; nothing here reads a clock. */
#ifndef SPA_PACE_H
#define SPA_PACE_H

#include <stdbool.h>
#include <stdint.h>

struct spa_pace {                      /* zero-initialised: nothing is known */
    double n, w, t, ww, wt;            /* decayed sums over calls: 1, width, time, their products */
};

void     spa_pace_took(struct spa_pace *p, uint32_t width, double ms);       /* width 1 or more */
double   spa_pace_ms(const struct spa_pace *p, uint32_t width);              /* t(width); 0 while nothing is known */
/* Tokens of one call, 1 .. n_users (n_users of 0: 0), when a user's state comes wait_ms after its call. */
uint32_t spa_pace_width(const struct spa_pace *p, uint32_t n_users, double wait_ms);
/* Would the machine, at that width, hardly ever idle? */
bool     spa_pace_full(const struct spa_pace *p, uint32_t n_users, double wait_ms);

#endif
