/* log_lines.h - a program's log: one line per event on stderr, from any thread.
 *
 *   2026-01-31T12:00:00.123Z I connection 1: hello                                                   letters E W I D
 *   {"time":"2026-01-31T12:00:00.123Z","level":"info","connection":1,"message":"hello"}              with --log-json
 *
 * Events that begin with "connection N", "connection N request M", say so in fields of the object: connection, request.
 * A line stays a line whatever is in it: line ends and other control characters become blanks, or are escaped in JSON. */
#ifndef SPA_LOG_LINES_H
#define SPA_LOG_LINES_H

#include "log.h"

#include <stdbool.h>
#include <stdint.h>

/* For a program's option table. */
extern int32_t spa_log_level;   /* SPA_LOG_INFO */
extern bool spa_log_json;
#define SPA_LOG_OPTIONS \
    { "log-level", "lv", "error|warn|info|debug", "how much to log on stderr (info)", SPA_OPT_CHOICE, &spa_log_level, 0, 0 }, \
    { "log-json", NULL, NULL, "log as JSON, an object a line", SPA_OPT_FLAG, &spa_log_json, 0, 0 }

/* A spa_log_fn; user is not used. */
void spa_log_line(void *user, enum spa_log_level level, const char *line);
void spa_log(enum spa_log_level level, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* Why a program does not start or ends: for a person at a terminal "PROGRAM: SENTENCE", in JSON a line like all others. Returns 1. */
int  spa_log_fail(const char *program, const char *sentence);

#endif
