/* progress.c - bars and phase lines on stderr (progress.h). */
#define _POSIX_C_SOURCE 200809L

#include "progress.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

enum { BAR = 24, NARROW_BAR = 10, DEFAULT_COLUMNS = 80, LINE_BYTES = 512, SENTENCE_BYTES = 2048 };
static const double redraw_seconds = 0.1;
static const double believable_seconds = 0.5;   /* before that a rate says little */

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
    p->unit = NULL;
    p->from = 0;
}

void spa_progress_measure(struct spa_progress *p, const char *unit, uint64_t from)
{
    p->unit = unit;
    p->from = from;
}

/* ---- the moving line ---- */

/* Printed columns of UTF-8 text, wide characters aside: those that say more (CJK) are not said here. */
static size_t width(const char *text)
{
    size_t n = 0;
    for (; *text; text++)
        n += ((unsigned char)*text & 0xc0) != 0x80;
    return n;
}

/* Ends text after so many columns, never inside a character. */
static void cut(char *text, size_t columns)
{
    for (; *text; text++)
        if (((unsigned char)*text & 0xc0) != 0x80 && columns-- == 0) {
            *text = '\0';
            return;
        }
}

static void time_left(double seconds, char *text, size_t text_len)
{
    if (!(seconds < 1e8))
        snprintf(text, text_len, "long");
    else if (seconds < 100)
        snprintf(text, text_len, "%.0f s left", seconds);
    else if (seconds < 6000)
        snprintf(text, text_len, "%.0f min left", seconds / 60);
    else
        snprintf(text, text_len, "%.1f h left", seconds / 3600);
}

void spa_progress_line(const struct spa_progress *p, uint64_t done, uint64_t of, const char *note, double now, unsigned columns,
                       char *line, size_t line_len)
{
    /* From the whole line to the shortest: the first that fits is taken. */
    static const struct { uint64_t bar; bool rate, note, left; } forms[] = {
        { BAR, true, true, true }, { NARROW_BAR, true, true, true }, { 0, true, true, true }, { 0, false, true, true },
        { 0, false, true, false }, { 0, false, false, false },
    };
    const double seconds = now - p->started;
    const size_t room = columns > 1 ? columns - 1 : 1;
    const bool measured = done > p->from && seconds >= believable_seconds;
    char rate[64] = "", left[64] = "", bar[BAR + 4] = "";
    done = done < of ? done : of;
    if (measured) {
        double per_second = (double)(done - p->from) / seconds;
        if (p->unit)
            snprintf(rate, sizeof rate, "  %.*f %s/s", per_second < 10 ? 1 : 0, per_second, p->unit);
        time_left((double)(of - done) / per_second, left + 2, sizeof left - 2);
        memcpy(left, "  ", 2);
    }
    for (size_t i = 0; i < sizeof forms / sizeof forms[0]; i++) {
        bar[0] = '\0';
        if (forms[i].bar > 0) {
            strcpy(bar, " [");
            for (uint64_t j = 0; j < forms[i].bar; j++)
                bar[2 + j] = (double)j < (double)done / (double)of * (double)forms[i].bar ? '#' : '.';
            strcpy(bar + 2 + forms[i].bar, "]");
        }
        const bool has_note = note && forms[i].note;
        snprintf(line, line_len, "%-12s%s %3d %%%s%s%s%s", p->phase, bar, (int)((double)done / (double)of * 100), has_note ? "  " : "",
                 has_note ? note : "", forms[i].rate ? rate : "", forms[i].left ? left : "");
        if (width(line) <= room)
            return;
    }
    cut(line, room);
}

static unsigned terminal_columns(void)
{
    struct winsize size;
    return ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : DEFAULT_COLUMNS;
}

void spa_progress_draw(struct spa_progress *p, uint64_t done, uint64_t of, const char *note)
{
    char line[LINE_BYTES];
    double now = spa_seconds();
    if (p->quiet || !p->tty || of == 0 || now - p->drawn < redraw_seconds)
        return;
    p->drawn = now;
    spa_progress_line(p, done, of, note, now, terminal_columns(), line, sizeof line);
    size_t bold = strcspn(line, " ");   /* the phase's name */
    clear_line(p);
    fprintf(stderr, "%s%.*s%s%s", p->colour ? "\033[1m" : "", (int)bold, line, p->colour ? "\033[0m" : "", line + bold);
    fflush(stderr);
}

/* ---- callbacks, and lines that stay ---- */

void spa_progress_count(void *user, uint64_t done, uint64_t of)
{
    spa_progress_draw(user, done, of, NULL);
}

void spa_progress_count32(void *user, uint32_t done, uint32_t of)
{
    spa_progress_draw(user, done, of, NULL);
}

/* Part of it may be the cloud's words: nothing in it steers a terminal. */
static void print_line(const char *format, va_list args)
{
    char line[SENTENCE_BYTES];
    vsnprintf(line, sizeof line, format, args);
    for (const char *s = line; *s; s++)
        fputc((unsigned char)*s < ' ' || *s == 127 ? '?' : *s, stderr);
}

void spa_progress_say(struct spa_progress *p, const char *format, ...)
{
    if (p->quiet)
        return;
    clear_line(p);
    va_list args;
    va_start(args, format);
    print_line(format, args);
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
    print_line(format, args);
    va_end(args);
    fprintf(stderr, "  %.1f s\n", seconds);
    return seconds;
}

void spa_progress_abort(struct spa_progress *p)
{
    clear_line(p);
}
