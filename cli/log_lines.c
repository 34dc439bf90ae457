/* log_lines.c - in: events. out: lines on stderr (log_lines.h). */
#define _POSIX_C_SOURCE 200809L
#include "log_lines.h"

#include <jansson.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { LINE_MAX_BYTES = 2048 };

int32_t spa_log_level = SPA_LOG_INFO;
bool spa_log_json;

static const char *const names[] = { "error", "warn", "info", "debug" };

/* Control characters become blanks, and without UTF-8 all that is not ASCII a question mark: a file's name may be any bytes. */
static void clean(char *to, size_t cap, const char *line)
{
    json_t *utf8 = json_string(line);
    size_t n = 0;
    for (; line[n] && n + 1 < cap; n++) {
        const unsigned char c = (unsigned char)line[n];
        to[n] = c < 0x20 || c == 0x7f ? ' ' : !utf8 && c >= 0x80 ? '?' : line[n];
    }
    while (utf8 && line[n] && n > 0 && ((unsigned char)line[n] & 0xc0) == 0x80)   /* cut between characters */
        n--;
    to[n] = '\0';
    json_decref(utf8);
}

/* Reads "WORD NUMBER" off the front of an event, and a colon or blank behind it. -1: it does not begin so. */
static json_int_t number_of(const char **message, const char *word)
{
    char *end;
    const size_t len = strlen(word);
    const char *digits = *message + len;
    if (strncmp(*message, word, len) != 0 || *digits < '0' || *digits > '9')
        return -1;
    const unsigned long number = strtoul(digits, &end, 10);
    *message = end + strspn(end, ": ");
    return (json_int_t)number;
}

static void as_json(const char *when, const char *level, const char *message)
{
    json_t *event = json_pack("{s:s, s:s}", "time", when, "level", level);
    const json_int_t connection = number_of(&message, "connection "), request = connection < 0 ? -1 : number_of(&message, "request ");
    if (connection >= 0)
        json_object_set_new(event, "connection", json_integer(connection));
    if (request >= 0)
        json_object_set_new(event, "request", json_integer(request));
    json_object_set_new(event, "message", json_string(message));
    char *text = event ? json_dumps(event, JSON_COMPACT) : NULL;
    if (text)
        fprintf(stderr, "%s\n", text);
    free(text);
    json_decref(event);
}

void spa_log_line(void *user, enum spa_log_level level, const char *line)
{
    (void)user;
    if ((int32_t)level > spa_log_level)
        return;
    char when[40], day[32], message[LINE_MAX_BYTES];
    struct timespec now;
    struct tm tm;
    clock_gettime(CLOCK_REALTIME, &now);
    strftime(day, sizeof day, "%Y-%m-%dT%H:%M:%S", gmtime_r(&now.tv_sec, &tm));
    snprintf(when, sizeof when, "%s.%03dZ", day, (int)(now.tv_nsec / 1000000));
    clean(message, sizeof message, line);
    if (spa_log_json)
        as_json(when, names[level], message);
    else
        fprintf(stderr, "%s %c %s\n", when, "EWID"[level], message);
}

void spa_log(enum spa_log_level level, const char *fmt, ...)
{
    char line[LINE_MAX_BYTES];
    va_list args;
    va_start(args, fmt);
    vsnprintf(line, sizeof line, fmt, args);
    va_end(args);
    spa_log_line(NULL, level, line);
}

int spa_log_fail(const char *program, const char *sentence)
{
    if (spa_log_json)
        spa_log_line(NULL, SPA_LOG_ERROR, sentence);
    else
        fprintf(stderr, "%s: %s\n", program, sentence);
    return 1;
}
