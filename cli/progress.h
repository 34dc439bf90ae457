/* progress.h - how far long work is, on stderr: one line that moves on a terminal, plain lines elsewhere (a pipe, TERM=dumb or
 * none). With NO_COLOR set to anything, a terminal gets no escape sequence but the one that clears the line to be drawn again.
 * The line is never wider than the terminal: what matters least is left out first. */
#ifndef SPA_PROGRESS_H
#define SPA_PROGRESS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct spa_progress {
    bool   tty, colour, quiet;
    const char *phase;      /* under way; a static string */
    double started, drawn;  /* seconds of the monotonic clock: of the phase, of the last drawing */
    const char *unit;       /* of the rate; NULL: no rate is shown */
    uint64_t from;          /* units that were done before the phase began */
};

double spa_seconds(void);   /* the monotonic clock */

/* quiet: nothing is printed; times are kept all the same. */
void spa_progress_init(struct spa_progress *p, bool quiet);
void spa_progress_begin(struct spa_progress *p, const char *phase);
/* After begin: the line shows a rate too, in units a second ("steps"; a static string). from: units done before, in an earlier run;
 * they count in the bar, not in the rate and the time left. */
void spa_progress_measure(struct spa_progress *p, const char *unit, uint64_t from);
/* A bar with the time left. note: what to say beside it, NULL nothing. */
void spa_progress_draw(struct spa_progress *p, uint64_t done, uint64_t of, const char *note);
/* The same as a callback; user is the spa_progress. */
void spa_progress_count(void *user, uint64_t done, uint64_t of);
void spa_progress_count32(void *user, uint32_t done, uint32_t of);
/* A line that stays, on every kind of stderr. */
void spa_progress_say(struct spa_progress *p, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* Ends the phase with a line "phase  text  seconds"; returns the seconds. */
double spa_progress_end(struct spa_progress *p, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* The moving line as text of at most columns - 1 characters (a terminal wraps after the last column), no escape sequences. now:
 * seconds of spa_seconds(). Apart for tests; the drawing functions use it. */
void spa_progress_line(const struct spa_progress *p, uint64_t done, uint64_t of, const char *note, double now, unsigned columns,
                       char *line, size_t line_len);
/* Ends a phase that failed: an empty line's start for the sentence. */
void spa_progress_abort(struct spa_progress *p);

#endif
