/* ahead.h - one turn's run-ahead: tokens that were guessed while a state is on its way, and what was decoded of them.
 *
 *   tokens   0 ..        n_tokens-1 | n_tokens ..     n_tokens+n-1     of the turn
 *            confirmed              | guessed: number 0 .. n-1
 *   decoded  0 ..                              n_past-1                n_past <= n_tokens + n
 *
 * The *front* is position n_tokens-1: its state makes the next true token, and the turn's own fields (status, state, y_fin) are
 * about it. Behind it row i is the decoded position n_tokens+i, where guess i stands: what it would say and whether the
 * device was asked, if all guesses up to number i are right. Only what becomes the front is ever said.
 *
 *   guess    the newest row, or the front, has no token behind it: one is made, of the device's draft, the text so far, or what the base
 *            would say, whichever was right more often
 *   decode   one guess of a turn at a time, only into what ready turns leave of a batch; the gate looks at it, the device is asked
 *   confirm  the front's true token is there. It is guess 0: row 0 becomes the front. It is not: rows and guesses are dropped, the
 *            cache is cut, and, if the device saw any of it, the epoch rises
 *
 * Is it worth it? A step that is under way when the true token turns out to be another one delays it. With the round trip and the step as
 * measured, and the share of guesses that were right, a guess is decoded when what it may save outweighs that (ahead.c, worth).
 *
 * Rows that ask nobody are as certain as what stands before them: the guess behind one is *sure*, and once it is the front that
 * token is said without another look. Nothing is guessed behind an end token or the last token that the request may have. */
#ifndef SPA_AHEAD_H
#define SPA_AHEAD_H

#include "wire.h"

enum spa_guess { SPA_GUESS_BASE, SPA_GUESS_TEXT, SPA_GUESS_DRAFT, SPA_GUESSES, SPA_GUESS_SURE = SPA_GUESSES };   /* where a guess came from */

struct spa_ahead_row {
    enum spa_guess source;   /* of guess i */
    bool asked, answered;    /* of the row: the device was asked, and answered or was given up */
    uint64_t asked_ms;
    spa_Speaker by;
    spa_Code refused;        /* OK, or why the request ends when this row becomes the front */
};

struct spa_ahead {
    uint32_t window;         /* guesses at once, at most; 0: none, the turn waits for every state */
    uint32_t n, first;       /* guesses; place of number 0 in rows */
    bool     closed;         /* nothing follows the last guess */
    uint64_t asked_ms;       /* when the front's state was asked for */
    struct spa_ahead_row *rows;   /* [window], a ring */
    float   *states;         /* [window, d]: y_fin, or the state once it is answered */
    uint32_t draft[SPA_DRAFT_MAX], n_draft, draft_at;   /* as in STATE; of which token of the turn the first one is */
    uint32_t guessed[SPA_GUESSES], right[SPA_GUESSES];   /* that were decoded; those that are sure do not count */
    uint32_t wasted_steps;   /* rows that were dropped */
    uint32_t waits;          /* states asked for from the front */
};

#endif
