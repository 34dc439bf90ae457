/* answer.h - what `spa chat` and `spa complete` share: their options, one answer streamed or as JSON, Ctrl-C. */
#ifndef SPA_ANSWER_H
#define SPA_ANSWER_H

#include "confirmed.h"
#include "connect.h"
#include "talk.h"

enum { SPA_ANSWER_OPTIONS = SPA_CONNECT_OPTIONS + 21, SPA_EXIT_INTERRUPTED = 130 };

struct spa_answer_options {
    const char *command;             /* "spa chat", for sentences */
    struct spa_connect connect;
    const char *plugin_path;         /* NULL: the base model alone */
    const char *gate_word;           /* auto, always, never or a threshold */
    int32_t     late;                /* spa_Late */
    int32_t     answer_ms, retry_s;
    const char *ahead_word;          /* auto, off or a number of tokens */
    const char *drafts_word;         /* auto, off or a feature file */
    int32_t     n_predict, top_k;
    int32_t     context_window;      /* 0: the cloud's context */
    float       temp, top_p, min_p, repeat_penalty;
    uint64_t    seed;                /* UINT64_MAX: a random one */
    int32_t     state_dtype;         /* enum spa_dtype, or SPA_AS_TRAINED */
    bool        ignore_eos, json, pad;
    const char *stop_shown;          /* only so that --stop is in the table; spa_answer_parse collects all of them */
    const char *stops[SPA_STOPS_MAX];
    size_t      n_stops;
    const char *prompt;              /* -p */
};

/* Defaults, and the shared rows of the option table (SPA_ANSWER_OPTIONS of them). */
void spa_answer_options_init(struct spa_answer_options *o, const char *command, struct spa_option *rows);
/* spa_options_parse, and what one table cannot say. Returns as that does. */
int  spa_answer_parse(struct spa_answer_options *o, const struct spa_usage *usage, int argc, char **argv);

/* A connection with a plugin on it. Functions print their own sentence on stderr. */
struct spa_answer {
    const struct spa_answer_options *options;
    struct spa_plugin_file plugin;   /* while connected without its basis */
    bool basis_dropped;              /* the file has one */
    struct spa_drafts *drafts;       /* NULL: none */
    struct spa_link *link;           /* NULL: lost or not yet there */
    struct spa_talk *talk;
    spa_Generate settings;           /* after: set it to the request before to go on with a conversation; 0 after a reconnect */
    float threshold;                 /* of the gate; 0: the plugin's own */
    struct spa_clouds clouds;
    struct spa_retry retry;          /* begun: the connection was lost, and no token has come since */
    /* the answer so far or last */
    uint32_t request;
    char    *text;
    size_t   text_len, text_cap;
    struct spa_confirmed confirmed;  /* its tokens, */
    uint8_t *by;                     /* and who spoke each: a spa_Speaker */
    size_t   by_cap;
    spa_Finish finish;
};

/* Loads the plugin and connects. 0 or an exit code. spa_answer_close is due in either case. */
int  spa_answer_open(struct spa_answer *a, const struct spa_answer_options *o);
int  spa_answer_reconnect(struct spa_answer *a);   /* after link became NULL; tries for --retry seconds */
void spa_answer_close(struct spa_answer *a);

/* Asks and waits for the whole answer, streaming its text to stdout unless --json; over as many connections as it takes, within
 * --retry. 0: answered or interrupted by Ctrl-C
 * (finish says which); SPA_EXIT_FAILED: a sentence was printed; then link is NULL when the connection is gone. */
enum { SPA_EXIT_FAILED = 1 };
int  spa_answer_run(struct spa_answer *a, const struct spa_part *parts, size_t n_parts, bool raw);
/* Of the whole last answer, over all its connections. link is there. */
struct spa_talk_stats spa_answer_stats(const struct spa_answer *a);
/* The object that --json prints. 0 or SPA_EXIT_FAILED. */
int  spa_answer_print_json(const struct spa_answer *a);
/* run, then what ends it: a newline or the JSON. Returns the exit code. */
int  spa_answer_once(struct spa_answer *a, const struct spa_part *parts, size_t n_parts, bool raw);

/* The answer's text, malloc'd, with U+FFFD for what is no UTF-8 or zero: a model may well say such bytes, but neither JSON
 * nor a later question may hold them. NULL: no memory. */
char *spa_answer_clean_text(const struct spa_answer *a, size_t *len);

/* Lets the connection live while nobody asks (pings of the cloud are answered); notices that it is gone. */
void spa_answer_idle(struct spa_answer *a);

/* Ctrl-C sets a flag from now on. taken: was it set? It is cleared. */
void spa_answer_catch_interrupt(void);
bool spa_answer_interrupted(void);

void spa_answer_complain(const char *command, const char *sentence);

#endif
