/* options.h - one table per program: reads the command line, prints --help from the same table.
 *
 *   static const char *cloud; static int32_t n = 256; static bool json;
 *   const struct spa_option options[] = {
 *       { "cloud", NULL, "URL", "where spa-cloud listens",    SPA_OPT_STRING, &cloud, 0, 0 },
 *       { "n",     "n",  "N",   "at most so many new tokens", SPA_OPT_INT,    &n,     1, 1 << 20 },
 *       { "json",  NULL, NULL,  "print one JSON object",      SPA_OPT_FLAG,   &json,  0, 0 },
 *   };
 *   const struct spa_usage usage = { "spa complete", "", "Continues raw text.", options, 3, 0, 0 };
 *   int n_pos, rc = spa_options_parse(&usage, argc, argv, &n_pos);
 *   if (rc != SPA_OPTIONS_GO) return rc;
 *
 * Forms:  --name value   --name=value   -short value   -short=value   flags without value   "--" ends options.
 * A short name may have several letters (-np, -ctk). "-" alone and what is no option is positional. A lone negative number
 * is a value or positional, never an option. --help and -h are always there. Knows nothing of core: spa-cloud links it too. */
#ifndef SPA_OPTIONS_H
#define SPA_OPTIONS_H

#include <stddef.h>

enum spa_opt_kind {
    SPA_OPT_FLAG,     /* bool *         set to true */
    SPA_OPT_STRING,   /* const char **  points into argv */
    SPA_OPT_LIST,     /* struct spa_opt_list *   may be given again and again */
    SPA_OPT_INT,      /* int32_t * */
    SPA_OPT_U64,      /* uint64_t *     no range check */
    SPA_OPT_FLOAT,    /* float *        finite */
    SPA_OPT_CHOICE,   /* int32_t *      index of the word in arg: "on|off" */
};

enum { SPA_OPT_LIST_MAX = 16 };
struct spa_opt_list {
    const char *at[SPA_OPT_LIST_MAX];   /* point into argv */
    size_t n;
};

struct spa_option {
    const char *name;    /* long name without dashes */
    const char *brief;   /* short name without dash, or NULL */
    const char *arg;     /* argument's name for --help; the words for SPA_OPT_CHOICE; NULL for a flag */
    const char *help;    /* one line, with the default where it matters */
    enum spa_opt_kind kind;
    void *to;            /* keeps its value when the option is not given: set the default before */
    double lo, hi;       /* SPA_OPT_INT and SPA_OPT_FLOAT: smallest and largest value; no check when both are 0 */
};

struct spa_usage {
    const char *command;      /* "spa train" */
    const char *positional;   /* "ROWS..." for --help; "" when there is none */
    const char *about;        /* what it does, in a sentence or some lines */
    const struct spa_option *options;
    size_t n_options;
    int min_positional, max_positional;
};

enum { SPA_OPTIONS_GO = -1, SPA_EXIT_USAGE = 2 };

/* argv[0] is the program's or verb's name and is skipped. On SPA_OPTIONS_GO the positional arguments lie in
 * argv[0 .. *n_positional-1] in their order. Any other value is the exit code: 0 after --help (printed to stdout),
 * SPA_EXIT_USAGE after one sentence on stderr. */
int spa_options_parse(const struct spa_usage *usage, int argc, char **argv, int *n_positional);

/* The --help text, to stdout. */
void spa_options_help(const struct spa_usage *usage);

/* The same for programs, to stdout: what --describe prints, which no --help names. Man pages and completions are made of it (tools/pages.py).
 * Lines of fields between tabs, with \n and \\ for line ends and backslashes in them:
 *
 *   command     COMMAND  POSITIONAL  ABOUT
 *   option      NAME  BRIEF  ARG  KIND  HELP        KIND: flag string list int u64 float choice
 *   verb        NAME  HELP                          of a program that has verbs */
void spa_options_describe(const struct spa_usage *usage);
void spa_options_describe_verb(const char *name, const char *help);

/* Of n words the one with the smallest edit distance to `word`, or NULL when none is near enough to be meant. */
const char *spa_options_nearest(const char *word, const char *const *words, size_t n);

#endif
