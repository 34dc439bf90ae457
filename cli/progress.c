/* progress.c - bars and phase lines on stderr (progress.h). */
#define _POSIX_C_SOURCE 200809L

#include "progress.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { BAR = 24 };
static const double redraw_seconds = 0.1;

double spa_seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

void spa_progress_init(struct spa_progress *p, bool quiet)
{
    const char *term = getenv("TERM"), *no_colour = getenv("NO_COLOR");
    memset(p, 0, sizeof *p);
    p->quiet = quiet;
    p->tty = isatty(STDERR_FILENO) && term && strcmp(term, "dumb") != 0;
    p->colour = p->tty && !(no_colour && no_colour[0]);
}

static void clear_line(const struct spa_progress *p)
{
    if (p->tty && !p->quiet)
        fputs("\r\033[K", stderr);
}

void spa_progress_begin(struct spa_progress *p, const char *phase)
{
    p->phase = phase;
    p->started = spa_seconds();
    p->drawn = 0;
}

void spa_progress_draw(struct spa_progress *p, uint64_t done, uint64_t of, const char *note)
{
    double now = spa_seconds();
    if (p->quiet || !p->tty || of == 0 || now - p->drawn < redraw_seconds)
        return;
    p->drawn = now;
    char bar[BAR + 1];
    uint64_t filled = done >= of ? BAR : done * BAR / of;
    for (uint64_t i = 0; i < BAR; i++)
        bar[i] = i < filled ? '#' : '.';
    bar[BAR] = '\0';
    clear_line(p);
    fprintf(stderr, "%s%-12s%s [%s] %3d %%", p->colour ? "\033[1m" : "", p->phase, p->colour ? "\033[0m" : "", bar,
            (int)(done * 100 / of));
    if (note)
        fprintf(stderr, "  %s", note);
    if (done > 0)
        fprintf(stderr, "  %.0f s left", (now - p->started) * (double)(of - done) / (double)done);
    fflush(stderr);
}

void spa_progress_count(void *user, uint64_t done, uint64_t of)
{
    spa_progress_draw(user, done, of, NULL);
}

void spa_progress_count32(void *user, uint32_t done, uint32_t of)
{
    spa_progress_draw(user, done, of, NULL);
}

void spa_progress_say(struct spa_progress *p, const char *format, ...)
{
    if (p->quiet)
        return;
    clear_line(p);
    va_list args;
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fputc('\n', stderr);
}

double spa_progress_end(struct spa_progress *p, const char *format, ...)
{
    double seconds = spa_seconds() - p->started;
    if (p->quiet)
        return seconds;
    clear_line(p);
    fprintf(stderr, "%s%-12s%s ", p->colour ? "\033[1m" : "", p->phase, p->colour ? "\033[0m" : "");
    va_list args;
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fprintf(stderr, "  %.1f s\n", seconds);
    return seconds;
}

void spa_progress_abort(struct spa_progress *p)
{
    clear_line(p);
}
