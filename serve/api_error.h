/* api_error.h - what a local client did wrong, or what went wrong for it: HTTP status and OpenAI's error object. */
#ifndef SPA_API_ERROR_H
#define SPA_API_ERROR_H

struct spa_api_error {
    int status;                 /* of HTTP; 0: no error */
    const char *type, *code;    /* static; code may be NULL */
    unsigned retry_s;           /* with 429 and 503: try again after so long; 0: 1 */
    const char *param;          /* static: the field that is meant; NULL: none */
    char message[512];          /* one sentence; may hold any bytes */
};

/* Fills *e; type follows from the status. Returns -1. */
int spa_api_fail(struct spa_api_error *e, int status, const char *code, const char *param, const char *fmt, ...)
    __attribute__((format(printf, 5, 6)));

#endif
