/* options.c - the command line against a table (options.h). In: argv. Out: values in the caller's variables, or one sentence. */
#include "options.h"

#include <errno.h>
#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { WORD_MAX = 64 };   /* longer words are no option of ours, so they have no nearest one */

/* Levenshtein distance; both words are shorter than WORD_MAX. */
static size_t edit_distance(const char *a, const char *b)
{
    size_t row[WORD_MAX + 1], n = strlen(b);
    for (size_t j = 0; j <= n; j++)
        row[j] = j;
    for (size_t i = 1; a[i - 1]; i++) {
        size_t diagonal = row[0];
        row[0] = i;
        for (size_t j = 1; j <= n; j++) {
            size_t best = diagonal + (a[i - 1] != b[j - 1]);
            diagonal = row[j];
            if (row[j] + 1 < best)
                best = row[j] + 1;
            if (row[j - 1] + 1 < best)
                best = row[j - 1] + 1;
            row[j] = best;
        }
    }
    return row[n];
}

/* Typed words further away than half their length were not meant; a word that the typed one begins is. */
static bool is_near(const char *word, const char *candidate, size_t *distance)
{
    size_t len = strlen(word);
    if (len == 0 || len >= WORD_MAX || strlen(candidate) >= WORD_MAX)
        return false;
    *distance = len >= 3 && strncmp(word, candidate, len) == 0 ? 1 : edit_distance(word, candidate);
    return *distance <= (len + 1) / 2 && *distance < len;
}

const char *spa_options_nearest(const char *word, const char *const *words, size_t n)
{
    const char *best = NULL;
    size_t best_distance = SIZE_MAX, distance;
    for (size_t i = 0; i < n; i++) {
        if (is_near(word, words[i], &distance) && distance < best_distance) {
            best_distance = distance;
            best = words[i];
        }
    }
    return best;
}

static const char *nearest_option(const struct spa_usage *usage, const char *word)
{
    const char *best = spa_options_nearest(word, (const char *const[]) { "help" }, 1);
    size_t best_distance = best ? edit_distance(word, best) : SIZE_MAX, distance;
    for (size_t i = 0; i < usage->n_options; i++) {
        const char *name = usage->options[i].name;
        if (is_near(word, name, &distance) && distance < best_distance) {
            best_distance = distance;
            best = name;
        }
    }
    return best;
}

void spa_options_help(const struct spa_usage *usage)
{
    printf("usage: %s%s%s [options]\n\n%s\n\n", usage->command, *usage->positional ? " " : "", usage->positional,
           usage->about);
    for (size_t i = 0; i < usage->n_options; i++) {
        const struct spa_option *o = &usage->options[i];
        char left[128];
        snprintf(left, sizeof left, "%s%s%s--%s%s%s", o->brief ? "-" : "", o->brief ? o->brief : "", o->brief ? ", " : "",
                 o->name, o->arg ? " " : "", o->arg ? o->arg : "");
        printf("  %-34s %s\n", left, o->help);
    }
    printf("  %-34s %s\n", "-h, --help", "this text");
}

static void field(const char *text, char end)
{
    for (const char *c = text ? text : ""; *c; c++)
        if (*c == '\n' || *c == '\t')
            fputs("\\n", stdout);
        else if (*c == '\\')
            fputs("\\\\", stdout);
        else
            putchar(*c);
    putchar(end);
}

void spa_options_describe(const struct spa_usage *usage)
{
    static const char *const kinds[] = { "flag", "string", "list", "int", "u64", "float", "choice" };
    field("command", '\t');
    field(usage->command, '\t');
    field(usage->positional, '\t');
    field(usage->about, '\n');
    for (size_t i = 0; i < usage->n_options; i++) {
        const struct spa_option *o = &usage->options[i];
        field("option", '\t');
        field(o->name, '\t');
        field(o->brief, '\t');
        field(o->arg, '\t');
        field(kinds[o->kind], '\t');
        field(o->help, '\n');
    }
}

void spa_options_describe_verb(const char *name, const char *help)
{
    field("verb", '\t');
    field(name, '\t');
    field(help, '\n');
}

static int complain_value(const struct spa_usage *usage, const struct spa_option *o, const char *value,
                          const char *wanted)
{
    fprintf(stderr, "%s: --%s wants %s, not '%s'\n", usage->command, o->name, wanted, value);
    return SPA_EXIT_USAGE;
}

static int set_number(const struct spa_usage *usage, const struct spa_option *o, const char *value)
{
    char *end, wanted[96];
    bool ranged = o->lo != 0 || o->hi != 0, fits;
    double number;
    errno = 0;
    if (o->kind == SPA_OPT_INT) {
        long long v = strtoll(value, &end, 10);
        number = (double)v;
        fits = v >= INT32_MIN && v <= INT32_MAX;
        snprintf(wanted, sizeof wanted, ranged ? "a whole number from %.0f to %.0f" : "a whole number", o->lo, o->hi);
    } else {
        number = strtod(value, &end);
        fits = isfinite(number);
        snprintf(wanted, sizeof wanted, ranged ? "a number from %g to %g" : "a number", o->lo, o->hi);
    }
    if (end == value || *end || !fits || (ranged && (number < o->lo || number > o->hi)))
        return complain_value(usage, o, value, wanted);
    if (o->kind == SPA_OPT_INT)
        *(int32_t *)o->to = (int32_t)number;
    else
        *(float *)o->to = (float)number;
    return SPA_OPTIONS_GO;
}

static int set_u64(const struct spa_usage *usage, const struct spa_option *o, const char *value)
{
    char *end;
    errno = 0;
    unsigned long long v = strtoull(value, &end, 10);
    if (value[0] < '0' || value[0] > '9' || *end || errno == ERANGE)
        return complain_value(usage, o, value, "a whole number from 0 to 2^64-1");
    *(uint64_t *)o->to = v;
    return SPA_OPTIONS_GO;
}

static int set_choice(const struct spa_usage *usage, const struct spa_option *o, const char *value)
{
    size_t len = strlen(value);
    int32_t index = 0;
    for (const char *word = o->arg; word; index++) {
        const char *bar = strchr(word, '|');
        size_t word_len = bar ? (size_t)(bar - word) : strlen(word);
        if (word_len == len && memcmp(word, value, len) == 0) {
            *(int32_t *)o->to = index;
            return SPA_OPTIONS_GO;
        }
        word = bar ? bar + 1 : NULL;
    }
    return complain_value(usage, o, value, o->arg);
}

static int set_value(const struct spa_usage *usage, const struct spa_option *o, const char *value)
{
    switch (o->kind) {
    case SPA_OPT_STRING:
        *(const char **)o->to = value;
        return SPA_OPTIONS_GO;
    case SPA_OPT_LIST: {
        struct spa_opt_list *list = o->to;
        if (list->n == SPA_OPT_LIST_MAX)
            return complain_value(usage, o, value, "to be given at most 16 times");
        list->at[list->n++] = value;
        return SPA_OPTIONS_GO;
    }
    case SPA_OPT_U64:
        return set_u64(usage, o, value);
    case SPA_OPT_CHOICE:
        return set_choice(usage, o, value);
    default:
        return set_number(usage, o, value);
    }
}

static bool name_is(const char *name, const char *text, size_t len)
{
    return name && strlen(name) == len && memcmp(name, text, len) == 0;
}

/* The option that arg names ("--name", "--name=v", "-short", "-short=v"), or NULL. *value: after "=", or NULL.
 * "--" names long options, "-" short ones. */
static const struct spa_option *find(const struct spa_usage *usage, const char *arg, const char **value)
{
    bool is_long = arg[0] == '-' && arg[1] == '-';
    const char *name = arg + (is_long ? 2 : 1), *equals = strchr(name, '=');
    size_t len = equals ? (size_t)(equals - name) : strlen(name);
    *value = equals ? equals + 1 : NULL;
    for (size_t i = 0; i < usage->n_options; i++) {
        const struct spa_option *o = &usage->options[i];
        if (name_is(is_long ? o->name : o->brief, name, len))
            return o;
    }
    return NULL;
}

static bool is_option(const char *arg)
{
    bool negative_number = arg[0] == '-' && ((arg[1] >= '0' && arg[1] <= '9') || arg[1] == '.');
    return arg[0] == '-' && arg[1] && !negative_number;
}

static int complain_unknown(const struct spa_usage *usage, const char *arg)
{
    char word[WORD_MAX];
    const char *name = arg + strspn(arg, "-");
    snprintf(word, sizeof word, "%.*s", (int)strcspn(name, "="), name);
    const char *nearest = nearest_option(usage, word);
    if (nearest)
        fprintf(stderr, "%s: there is no option %s; did you mean --%s?\n", usage->command, arg, nearest);
    else
        fprintf(stderr, "%s: there is no option %s; '%s --help' lists them\n", usage->command, arg, usage->command);
    return SPA_EXIT_USAGE;
}

/* One option at argv[*i]; *i moves on when the next argument is its value. */
static int take(const struct spa_usage *usage, int argc, char **argv, int *i)
{
    const char *value, *unused;
    const struct spa_option *o = find(usage, argv[*i], &value);
    if (!o)
        return complain_unknown(usage, argv[*i]);
    if (o->kind == SPA_OPT_FLAG) {
        if (value) {
            fprintf(stderr, "%s: --%s takes no value\n", usage->command, o->name);
            return SPA_EXIT_USAGE;
        }
        *(bool *)o->to = true;
        return SPA_OPTIONS_GO;
    }
    if (!value) {
        /* "--out --json": the value was forgotten. A value that looks like an option can be given as --out=--json. */
        bool missing = *i + 1 >= argc || (is_option(argv[*i + 1]) && find(usage, argv[*i + 1], &unused));
        if (missing) {
            fprintf(stderr, "%s: --%s needs a value: --%s %s\n", usage->command, o->name, o->name, o->arg);
            return SPA_EXIT_USAGE;
        }
        value = argv[++*i];
    }
    return set_value(usage, o, value);
}

int spa_options_parse(const struct spa_usage *usage, int argc, char **argv, int *n_positional)
{
    int n = 0;
    bool options_ended = false;
    for (int i = 1; i < argc; i++) {
        char *arg = argv[i];
        if (options_ended || !is_option(arg)) {
            argv[n++] = arg;   /* n < i always: slot 0 is free from the start */
        } else if (strcmp(arg, "--") == 0) {
            options_ended = true;
        } else if (strcmp(arg, "--help") == 0 || strcmp(arg, "-h") == 0) {
            spa_options_help(usage);
            return 0;
        } else if (strcmp(arg, "--describe") == 0) {
            spa_options_describe(usage);
            return 0;
        } else {
            int rc = take(usage, argc, argv, &i);
            if (rc != SPA_OPTIONS_GO)
                return rc;
        }
    }
    *n_positional = n;
    if (n > usage->max_positional) {
        fprintf(stderr, "%s: '%s' is one argument too many; '%s --help' says what is expected\n", usage->command,
                argv[usage->max_positional], usage->command);
        return SPA_EXIT_USAGE;
    }
    if (n < usage->min_positional) {
        fprintf(stderr, "%s: %s is missing; '%s --help' says what is expected\n", usage->command, usage->positional,
                usage->command);
        return SPA_EXIT_USAGE;
    }
    return SPA_OPTIONS_GO;
}
