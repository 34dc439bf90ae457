/* rows.c - training and evaluation rows from files (rows.h). In: JSONL or a JSON array. Out: parts for the wire, or one
 * sentence that names file, line and field. */
#define _POSIX_C_SOURCE 200809L
#include "rows.h"
#include "sample.h"
#include "store.h"
#include "utf8.h"

#include <jansson.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { FILE_BYTES_MAX = 1 << 30 };

/* Memory of all rows: blocks that are freed together, when the last list that points into them goes. */
struct block { struct block *next; };
struct arena { struct block *blocks; unsigned lists; };

/* Where we are, for sentences. */
struct place { const char *path; uint32_t line; char *why; size_t why_len; };

static int refuse(const struct place *at, const char *format, ...)
{
    int n = snprintf(at->why, at->why_len, "%s line %u: ", at->path, at->line);
    if (n >= 0 && (size_t)n < at->why_len) {
        va_list args;
        va_start(args, format);
        vsnprintf(at->why + n, at->why_len - (size_t)n, format, args);
        va_end(args);
    }
    return -1;
}

static int no_memory(char *why, size_t why_len)
{
    snprintf(why, why_len, "there is not enough memory for the rows");
    return -1;
}

static void *arena_take(struct arena *a, size_t len)
{
    struct block *b = malloc(sizeof *b + len);
    if (!b)
        return NULL;
    b->next = a->blocks;
    a->blocks = b;
    return b + 1;
}

/* ---- one row ---- */

static bool is_blank(const char *s, size_t len)
{
    for (size_t i = 0; i < len; i++)
        if (s[i] != ' ' && s[i] != '\t' && s[i] != '\r' && s[i] != '\n')
            return false;
    return true;
}

static const char *type_name(const json_t *v)
{
    static const char *const names[] = { "an object", "an array", "a string", "a number", "a number", "a boolean", "a boolean",
                                         "null" };
    return names[json_typeof(v)];
}

/* A field that must be a string; NULL after a sentence. */
static const json_t *need_string(const struct place *at, const json_t *object, const char *prefix, const char *field)
{
    const json_t *v = json_object_get(object, field);
    if (!v)
        refuse(at, "the field %s%s is missing", prefix, field);
    else if (!json_is_string(v))
        refuse(at, "the field %s%s is %s, not a string", prefix, field, type_name(v));
    else
        return v;
    return NULL;
}

/* Parts and their bytes in one block. */
static int keep(struct arena *a, const struct place *at, const struct spa_part *parts, size_t n, struct spa_example *out)
{
    size_t bytes = 0;
    for (size_t i = 0; i < n; i++)
        bytes += parts[i].len;
    out->parts = arena_take(a, n * sizeof *parts + bytes);
    if (!out->parts)
        return no_memory(at->why, at->why_len);
    uint8_t *text = (uint8_t *)(out->parts + n);
    for (size_t i = 0; i < n; i++) {
        out->parts[i] = parts[i];
        out->parts[i].bytes = text;
        memcpy(text, parts[i].bytes, parts[i].len);
        text += parts[i].len;
    }
    out->n_parts = n;
    out->file = at->path;
    out->line = at->line;
    return 0;
}

static int take_message(const struct place *at, const json_t *message, size_t index, struct spa_part *out)
{
    static const struct { const char *name; uint8_t kind; } roles[] = {
        { "system", SPA_PART_SYSTEM }, { "user", SPA_PART_USER }, { "assistant", SPA_PART_ASSISTANT } };
    char prefix[40];
    snprintf(prefix, sizeof prefix, "messages[%zu].", index);
    if (!json_is_object(message))
        return refuse(at, "the field messages[%zu] is %s, not an object", index, type_name(message));
    const json_t *role = need_string(at, message, prefix, "role");
    const json_t *content = role ? need_string(at, message, prefix, "content") : NULL;
    if (!content)
        return -1;
    *out = (struct spa_part){ .bytes = (const uint8_t *)json_string_value(content),
                              .len = (uint32_t)json_string_length(content) };
    for (size_t i = 0; i < sizeof roles / sizeof roles[0]; i++)
        if (strcmp(json_string_value(role), roles[i].name) == 0)
            out->kind = roles[i].kind;
    if (!out->kind)
        return refuse(at, "the field %srole is '%.40s', not system, user or assistant", prefix, json_string_value(role));
    out->loss = out->kind == SPA_PART_ASSISTANT;
    if (out->loss && is_blank(json_string_value(content), out->len))
        return refuse(at, "the field %scontent is an empty answer", prefix);
    return 0;
}

static int take_messages(struct arena *a, const struct place *at, const json_t *messages, struct spa_example *out)
{
    if (!json_is_array(messages))
        return refuse(at, "the field messages is %s, not an array", type_name(messages));
    size_t n = json_array_size(messages);
    if (n == 0 || n > SPA_PARTS_MAX)
        return refuse(at, "the field messages has %zu entries; 1 to %d are allowed", n, SPA_PARTS_MAX);
    struct spa_part *parts = calloc(n, sizeof *parts);
    if (!parts)
        return no_memory(at->why, at->why_len);
    int rc = 0;
    for (size_t i = 0; i < n && rc == 0; i++)
        rc = take_message(at, json_array_get(messages, i), i, &parts[i]);
    if (rc == 0 && !parts[n - 1].loss)
        rc = refuse(at, "the field messages[%zu].role is not assistant: the row ends without an answer", n - 1);
    if (rc == 0)
        rc = keep(a, at, parts, n, out);
    free(parts);
    return rc;
}

static int take_alpaca(struct arena *a, const struct place *at, const json_t *row, struct spa_example *out)
{
    const json_t *instruction = need_string(at, row, "", "instruction");
    const json_t *output = instruction ? need_string(at, row, "", "output") : NULL;
    if (!output)
        return -1;
    const json_t *input = json_object_get(row, "input");
    if (input && !json_is_string(input))
        return refuse(at, "the field input is %s, not a string", type_name(input));
    if (is_blank(json_string_value(instruction), json_string_length(instruction)))
        return refuse(at, "the field instruction is empty");
    if (is_blank(json_string_value(output), json_string_length(output)))
        return refuse(at, "the field output is an empty answer");
    size_t n = json_string_length(instruction), more = input ? json_string_length(input) : 0;
    char *user = malloc(n + 2 + more);
    if (!user)
        return no_memory(at->why, at->why_len);
    memcpy(user, json_string_value(instruction), n);
    if (more) {
        memcpy(user + n, "\n\n", 2);
        memcpy(user + n + 2, json_string_value(input), more);
        n += 2 + more;
    }
    const struct spa_part parts[] = {
        { .kind = SPA_PART_USER, .bytes = (const uint8_t *)user, .len = (uint32_t)n },
        { .kind = SPA_PART_ASSISTANT, .loss = true, .bytes = (const uint8_t *)json_string_value(output),
          .len = (uint32_t)json_string_length(output) } };
    int rc = keep(a, at, parts, 2, out);
    free(user);
    return rc;
}

static int take_text(struct arena *a, const struct place *at, const json_t *row, struct spa_example *out)
{
    const json_t *text = need_string(at, row, "", "text");
    if (!text)
        return -1;
    const struct spa_part part = { .kind = SPA_PART_TEXT, .loss = true, .bytes = (const uint8_t *)json_string_value(text),
                                   .len = (uint32_t)json_string_length(text) };
    if (is_blank(json_string_value(text), part.len))
        return refuse(at, "the field text is empty");
    return keep(a, at, &part, 1, out);
}

static int take_row(struct arena *a, const struct place *at, const json_t *row, struct spa_example *out)
{
    if (!json_is_object(row))
        return refuse(at, "the row is %s, not an object", type_name(row));
    const json_t *messages = json_object_get(row, "messages");
    if (messages && json_object_get(row, "instruction"))
        return refuse(at, "the row has both the fields messages and instruction; which one is meant?");
    if (messages)
        return take_messages(a, at, messages, out);
    if (json_object_get(row, "instruction") || json_object_get(row, "output"))
        return take_alpaca(a, at, row, out);
    if (json_object_get(row, "text"))
        return take_text(a, at, row, out);
    return refuse(at, "the row has none of the fields messages, instruction and output, text");
}

/* ---- files ---- */

static int add_row(struct spa_rows *rows, size_t *cap, const struct place *at, const json_t *row)
{
    if (rows->n == *cap) {
        size_t more = *cap ? 2 * *cap : 256;
        struct spa_example *grown = realloc(rows->rows, more * sizeof *grown);
        if (!grown)
            return no_memory(at->why, at->why_len);
        rows->rows = grown;
        *cap = more;
    }
    if (take_row(rows->arena, at, row, &rows->rows[rows->n]) != 0)
        return -1;
    rows->n++;
    return 0;
}

/* The last key before text[bad] in a piece of JSON, as well as it can be told in one that is broken. */
static void field_of(const char *text, size_t bad, char *out, size_t out_len)
{
    size_t start = 0, end = 0;
    bool inside = false;
    snprintf(out, out_len, "(none)");
    for (size_t i = 0; i < bad; i++) {
        if (inside && text[i] == '\\') {
            i++;
        } else if (text[i] == '"') {
            inside = !inside;
            *(inside ? &start : &end) = inside ? i + 1 : i;
        } else if (!inside && text[i] == ':' && end > start) {
            snprintf(out, out_len, "%.*s", (int)(end - start < 60 ? end - start : 60), text + start);
        }
    }
}

static int check_text(const struct place *at, const char *text, size_t len)
{
    size_t good = spa_utf8_good_len(text, len);
    if (good == len)
        return 0;
    char field[64];
    field_of(text, good, field, sizeof field);
    return refuse(at, "the field %s holds bytes that are no UTF-8 (byte %zu of the row is 0x%02x); save the file as UTF-8", field,
                  good + 1, (unsigned)(unsigned char)text[good]);
}

static int refuse_json(const struct place *at, const json_error_t *e)
{
    return refuse(at, "the row is no JSON object (column %d: %s)", e->column, e->text);
}

static int read_lines(struct spa_rows *rows, size_t *cap, struct place *at, const char *text, size_t len)
{
    for (size_t start = 0; start < len; at->line++) {
        const char *end = memchr(text + start, '\n', len - start);
        size_t n = end ? (size_t)(end - text) - start : len - start;
        if (!is_blank(text + start, n)) {
            if (check_text(at, text + start, n) != 0)
                return -1;
            json_error_t e;
            json_t *row = json_loadb(text + start, n, JSON_REJECT_DUPLICATES, &e);
            if (!row)
                return refuse_json(at, &e);
            int rc = add_row(rows, cap, at, row);
            json_decref(row);
            if (rc != 0)
                return -1;
        }
        start += n + 1;
    }
    return 0;
}

/* Moves *i past white space and counts its lines. */
static void skip_blank(const char *text, size_t len, size_t *i, struct place *at)
{
    for (; *i < len && is_blank(text + *i, 1); ++*i)
        at->line += text[*i] == '\n';
}

/* Row by row rather than all at once, so that each has its line and only one is in memory as JSON. */
static int read_array(struct spa_rows *rows, size_t *cap, struct place *at, const char *text, size_t len)
{
    size_t i = 0;
    skip_blank(text, len, &i, at);
    i++;   /* [ */
    for (bool first = true;; first = false) {
        skip_blank(text, len, &i, at);
        if (first && i < len && text[i] == ']')
            break;
        if (i >= len)
            return refuse(at, "the array of rows does not end");
        json_error_t e;
        json_t *row = json_loadb(text + i, len - i, JSON_REJECT_DUPLICATES | JSON_DISABLE_EOF_CHECK, &e);
        if (!row) {
            size_t good = spa_utf8_good_len(text + i, len - i);
            bool is_text = good == len - i || good > (size_t)e.position;   /* as far as it was read */
            return is_text ? refuse_json(at, &e) : check_text(at, text + i, len - i);
        }
        int rc = add_row(rows, cap, at, row);
        json_decref(row);
        if (rc != 0)
            return -1;
        for (size_t end = i + (size_t)e.position; i < end; i++)
            at->line += text[i] == '\n';
        skip_blank(text, len, &i, at);
        if (i < len && text[i] == ']')
            break;
        if (i >= len || text[i] != ',')
            return refuse(at, i >= len ? "the array of rows does not end" : "a comma or the array's end is missing between rows");
        i++;
    }
    i++;   /* ] */
    skip_blank(text, len, &i, at);
    return i < len ? refuse(at, "something follows the array of rows") : 0;
}

static int read_file(struct spa_rows *rows, size_t *cap, const char *path, char *why, size_t why_len)
{
    uint8_t *bytes;
    size_t len, before = rows->n, skip = 0, i = 0;
    if (spa_store_read(path, FILE_BYTES_MAX, &bytes, &len, why, why_len) != 0)
        return -1;
    char *name = arena_take(rows->arena, strlen(path) + 1);
    if (!name) {
        free(bytes);
        return no_memory(why, why_len);
    }
    strcpy(name, path);
    struct place at = { name, 1, why, why_len }, unused = at;
    if (len >= 3 && memcmp(bytes, "\xef\xbb\xbf", 3) == 0)
        skip = 3;
    const char *text = (const char *)bytes + skip;
    len -= skip;
    skip_blank(text, len, &i, &unused);
    int rc = (i < len && text[i] == '[' ? read_array : read_lines)(rows, cap, &at, text, len);
    free(bytes);
    if (rc == 0 && rows->n == before) {
        snprintf(why, why_len, "%s holds no rows", path);
        rc = -1;
    }
    return rc;
}

int spa_rows_read(const char *const *paths, size_t n_paths, struct spa_rows *out, char *why, size_t why_len)
{
    *out = (struct spa_rows){ 0 };
    struct arena *a = calloc(1, sizeof *a);
    if (!a)
        return no_memory(why, why_len);
    a->lists = 1;
    out->arena = a;
    size_t cap = 0;
    for (size_t i = 0; i < n_paths; i++) {
        if (read_file(out, &cap, paths[i], why, why_len) != 0) {
            spa_rows_free(out);
            return -1;
        }
    }
    return 0;
}

void spa_rows_free(struct spa_rows *r)
{
    struct arena *a = r ? r->arena : NULL;
    if (!r)
        return;
    if (a && --a->lists == 0) {
        for (struct block *b = a->blocks, *next; b; b = next) {
            next = b->next;
            free(b);
        }
        free(a);
    }
    free(r->rows);
    *r = (struct spa_rows){ 0 };
}

int spa_rows_hold_back(struct spa_rows *rows, float share, uint64_t seed, struct spa_rows *held, char *why, size_t why_len)
{
    *held = (struct spa_rows){ 0 };
    size_t want = (size_t)lround((double)share * (double)rows->n);
    if (share > 0 && want == 0)
        want = 1;
    if (want == 0)
        return 0;
    if (want >= rows->n) {
        snprintf(why, why_len, "holding back %zu of %zu rows leaves none to train on", want, rows->n);
        return -1;
    }
    held->rows = malloc(want * sizeof *held->rows);
    if (!held->rows)
        return no_memory(why, why_len);
    held->arena = rows->arena;
    ((struct arena *)rows->arena)->lists++;
    size_t kept = 0;
    for (size_t i = 0; i < rows->n; i++) {
        /* Of the rows left, each is as likely as any other to be among those still wanted. */
        if (spa_noise64(seed, i, 0) % (rows->n - i) < want - held->n)
            held->rows[held->n++] = rows->rows[i];
        else
            rows->rows[kept++] = rows->rows[i];
    }
    rows->n = kept;
    return 0;
}
