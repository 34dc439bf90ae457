/* log.h - how the parts of a program tell of an event, whoever writes it down (cli/log_lines.h does).
 *
 * An event is one line of text without a line end: what happened, to which connection and request by their numbers. Never a prompt, an
 * answer, a key or a state. */
#ifndef SPA_LOG_H
#define SPA_LOG_H

enum spa_log_level {
    SPA_LOG_ERROR,   /* the program, or a part of it, does not do its work */
    SPA_LOG_WARN,    /* something that somebody may have to look after */
    SPA_LOG_INFO,    /* what goes on: connections and requests as they come and end */
    SPA_LOG_DEBUG,   /* and the steps between */
};

/* May be called from any thread. */
typedef void spa_log_fn(void *user, enum spa_log_level level, const char *line);

#endif
