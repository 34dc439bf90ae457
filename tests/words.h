/* words.h - a line of a conversation file, taken apart: words, name=value, lists, choices.
 *
 * For test_conversation.c alone, which says what the language is. failure() ends the test. */
#ifndef SPA_TEST_WORDS_H
#define SPA_TEST_WORDS_H

#include "wire.h"

#include <stdlib.h>
#include <string.h>

enum { MAX_WORDS = 24 };

static void failure(const char *fmt, ...);

static char *words[MAX_WORDS];
static int n_words;

static void split(char *line)
{
    n_words = 0;
    for (char *p = line;;) {
        while (*p == ' ' || *p == '\t' || *p == '\n') p++;
        if (*p == 0 || *p == '#') return;
        if (n_words == MAX_WORDS) failure("too many words");
        char *out = words[n_words++] = p;
        bool quoted = false;
        for (; *p && (quoted || (*p != ' ' && *p != '\n')); p++) {
            if (*p == '"') { quoted = !quoted; continue; }
            if (*p == '\\' && p[1] == 'x') {
                char hex[3] = { p[2], p[3], 0 };
                *out++ = (char)strtol(hex, NULL, 16);
                p += 3;
            } else {
                if (*p == '\\') p++;
                *out++ = *p;
            }
        }
        bool end = *p == 0;
        *out = 0;
        if (end) return;
        p++;
    }
}

static const char *value(const char *key)
{
    size_t n = strlen(key);
    for (int i = 1; i < n_words; i++)
        if (strncmp(words[i], key, n) == 0 && words[i][n] == '=') return words[i] + n + 1;
    return NULL;
}
static bool flag(const char *name)
{
    for (int i = 1; i < n_words; i++) if (strcmp(words[i], name) == 0) return true;
    return false;
}
static uint32_t number(const char *key, uint32_t otherwise)
{
    const char *v = value(key);
    return v ? (uint32_t)strtol(v, NULL, 0) : otherwise;
}
static uint32_t numbers(const char *key, uint32_t *out, uint32_t cap)
{
    const char *v = value(key);
    uint32_t n = 0;
    while (v && *v && n < cap) {
        char *next;
        out[n++] = (uint32_t)strtol(v, &next, 0);
        v = *next == ',' ? next + 1 : "";
    }
    return n;
}
static uint32_t choice(const char *key, const char *names, uint32_t otherwise) {   /* names: "a|b|c" */
    const char *v = value(key);
    if (!v) return otherwise;
    size_t len = strlen(v);
    for (uint32_t i = 0; *names; i++) {
        size_t n = strcspn(names, "|");
        if (n == len && memcmp(names, v, n) == 0) return i;
        names += n + (names[n] == '|');
    }
    failure("%s=%s?", key, v);
    return 0;
}
static void hash_of(uint8_t out[SPA_HASH_BYTES]) { memset(out, (int)strtol(value("hash"), NULL, 16), SPA_HASH_BYTES); }

#endif
