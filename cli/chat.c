/* chat.c - `spa chat`: one answer with -p, otherwise a conversation on stdin that remembers its turns. */
#define _DEFAULT_SOURCE
#include "answer.h"
#include "commands.h"
#include "secret.h"

#include <ctype.h>
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { IDLE_MS = 500, READ_BYTES = 4096 };

struct chat {
    struct spa_answer answer;
    struct spa_part *turns;          /* texts are malloc'd */
    size_t n_turns, turns_cap;
    bool   on_terminal;
    char  *line;                     /* bytes of stdin not used yet, then the line */
    size_t line_len, line_cap;
    size_t line_used;                /* of the line handed out last, newline included */
};

static int no_memory(const struct chat *c)
{
    spa_answer_complain(c->answer.options->command, "there is not enough memory for the conversation");
    return SPA_EXIT_FAILED;
}

static int add_turn(struct chat *c, uint8_t kind, const char *text, size_t len)
{
    if (c->n_turns == c->turns_cap) {
        size_t cap = 2 * c->turns_cap + 8;
        struct spa_part *turns = realloc(c->turns, cap * sizeof *turns);
        if (!turns)
            return no_memory(c);
        c->turns = turns;
        c->turns_cap = cap;
    }
    uint8_t *copy = malloc(len + 1);
    if (!copy)
        return no_memory(c);
    if (len)
        memcpy(copy, text, len);
    c->turns[c->n_turns++] = (struct spa_part){ .kind = kind, .bytes = copy, .len = (uint32_t)len };
    return 0;
}

static void forget_turns(struct chat *c, size_t keep)
{
    while (c->n_turns > keep) {
        const struct spa_part *last = &c->turns[--c->n_turns];
        spa_secret_free((void *)last->bytes, last->len);
    }
}

/* The next line without its end. 1; 0 at the end of stdin; -1 Ctrl-C; other: an exit code. While it waits the connection
 * is kept alive. */
static int read_line(struct chat *c, const char **line, size_t *len)
{
    memmove(c->line, c->line + c->line_used, c->line_len - c->line_used);
    c->line_len -= c->line_used;
    c->line_used = 0;
    for (bool ended = false;;) {
        char *newline = memchr(c->line, '\n', c->line_len);
        if (newline || (ended && c->line_len)) {
            *len = newline ? (size_t)(newline - c->line) : c->line_len;
            c->line_used = newline ? *len + 1 : *len;
            if (*len && c->line[*len - 1] == '\r')
                --*len;
            *line = c->line;
            return 1;
        }
        if (ended)
            return 0;
        if (c->line_cap - c->line_len < READ_BYTES) {
            size_t cap = 2 * c->line_cap;
            char *more = spa_secret_grow(c->line, c->line_cap, cap);
            if (!more)
                return no_memory(c) + 1;
            c->line = more;
            c->line_cap = cap;
        }
        struct pollfd p = { .fd = STDIN_FILENO, .events = POLLIN };
        int ready = poll(&p, 1, IDLE_MS);
        if (spa_answer_interrupted())
            return -1;
        if (ready <= 0) {
            spa_answer_idle(&c->answer);
            continue;
        }
        ssize_t n = read(STDIN_FILENO, c->line + c->line_len, READ_BYTES);
        if (n > 0)
            c->line_len += (size_t)n;
        ended = n == 0 || (n < 0 && errno != EINTR);
    }
}

/* One turn of the conversation. Returns 0 to go on, or an exit code. */
static int take_turn(struct chat *c, const char *line, size_t len)
{
    struct spa_answer *a = &c->answer;
    size_t before = c->n_turns;
    if (!a->link && spa_answer_reconnect(a) != 0)   /* it was lost while nobody asked */
        return SPA_EXIT_FAILED;
    if (add_turn(c, SPA_PART_USER, line, len) != 0)
        return SPA_EXIT_FAILED;
    int rc = spa_answer_run(a, c->turns, c->n_turns, false);
    if (rc != 0) {
        /* What was not answered is not remembered. A refusal ends a script; a person may ask something else. */
        forget_turns(c, before);
        return a->link && c->on_terminal ? 0 : rc;
    }
    a->settings.after = a->link ? a->request : 0;   /* the next turn sends and decodes only what this one has not */
    if (a->options->json)
        rc = spa_answer_print_json(a);
    else
        fputs("\n", stdout);
    fflush(stdout);
    if (a->text_len == 0) {
        forget_turns(c, before);
        return rc;
    }
    if (rc != 0)
        return rc;
    char *text = spa_answer_clean_text(a, &len);
    rc = text ? add_turn(c, SPA_PART_ASSISTANT, text, len) : no_memory(c);
    spa_secret_free(text, len);
    return rc;
}

static bool is(const char *line, size_t len, const char *word)
{
    return len == strlen(word) && memcmp(line, word, len) == 0;
}

/* A word behind a slash is no question of a person's; of a file's lines it may be one. */
static bool is_command(const struct chat *c, const char *line, size_t len)
{
    size_t i = 1;
    while (i < len && (isalpha((unsigned char)line[i]) || line[i] == '?'))
        i++;
    return c->on_terminal && len > 1 && line[0] == '/' && i == len;
}

static const char commands[] = "Ctrl-C stops an answer, /new forgets the conversation, Ctrl-D or /bye ends it.\n";

static int converse(struct chat *c, size_t first_turns)
{
    c->on_terminal = isatty(STDIN_FILENO);
    if (c->on_terminal)
        fputs(commands, stderr);
    for (;;) {
        const char *line = "";
        size_t len = 0;
        if (c->on_terminal) {
            fputs("\n> ", stderr);
            fflush(stderr);
        }
        int got = read_line(c, &line, &len);
        if (got == -1)
            return SPA_EXIT_INTERRUPTED;
        if (got == 0)
            return 0;
        if (got > 1)
            return SPA_EXIT_FAILED;
        if (is(line, len, "/new")) {
            forget_turns(c, first_turns);
        } else if (is_command(c, line, len)) {
            if (is(line, len, "/bye") || is(line, len, "/exit") || is(line, len, "/quit"))
                return 0;
            fputs(commands, stderr);
        } else if (len) {
            int rc = take_turn(c, line, len);
            if (rc != 0)
                return rc;
        }
    }
}

static int run(struct chat *c, const struct spa_answer_options *o, const char *system)
{
    c->line_cap = 2 * READ_BYTES;
    c->line = malloc(c->line_cap);
    if (!c->line)
        return no_memory(c);
    if (system && add_turn(c, SPA_PART_SYSTEM, system, strlen(system)) != 0)
        return SPA_EXIT_FAILED;
    spa_answer_catch_interrupt();
    if (!o->prompt)
        return converse(c, c->n_turns);
    if (add_turn(c, SPA_PART_USER, o->prompt, strlen(o->prompt)) != 0)
        return SPA_EXIT_FAILED;
    return spa_answer_once(&c->answer, c->turns, c->n_turns, false);
}

int spa_cmd_chat(int argc, char **argv)
{
    struct spa_answer_options o;
    struct spa_option rows[SPA_ANSWER_OPTIONS + 1];
    const char *system = NULL;
    spa_answer_options_init(&o, "spa chat", rows);
    rows[SPA_ANSWER_OPTIONS] = (struct spa_option){ "system", "sys", "TEXT", "instructions before the conversation", SPA_OPT_STRING,
                                                    &system, 0, 0 };
    const struct spa_usage usage = { "spa chat", "", "Talks with the model through your plugin: one answer with -p, otherwise line by line.",
                                     rows, SPA_ANSWER_OPTIONS + 1, 0, 0 };
    int rc = spa_answer_parse(&o, &usage, argc, argv);
    if (rc != SPA_OPTIONS_GO)
        return rc;
    if (o.prompt && !*o.prompt) {
        spa_answer_complain(o.command, "-p is empty; leave it out to talk line by line");
        return SPA_EXIT_USAGE;
    }
    struct chat c = { 0 };
    rc = spa_answer_open(&c.answer, &o);
    if (rc == 0)
        rc = run(&c, &o, system);
    forget_turns(&c, 0);
    free(c.turns);
    spa_secret_free(c.line, c.line_cap);
    spa_answer_close(&c.answer);
    return rc;
}
