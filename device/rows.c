/* rows.c - training and evaluation rows from files (rows.h). In: JSONL or a JSON array. Out: parts for the wire, or one
 * sentence that names file, line and field. What a row may look like is row_forms.c's matter. */
#define _POSIX_C_SOURCE 200809L
#include "rows.h"
#include "row_forms.h"
#include "sample.h"
#include "store.h"
#include "utf8.h"

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { FILE_BYTES_MAX = 1 << 30 };

/* Memory of all rows: blocks that are freed together, when the last list that points into them goes. */
struct block { struct block *next; };
struct arena { struct block *blocks; unsigned lists; };

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

/* Parts and their bytes in one block. */
static int keep(struct arena *a, const struct spa_row_place *at, const struct spa_part *parts, size_t n, struct spa_example *out)
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

static int take_row(struct arena *a, const struct spa_row_place *at, const json_t *row, struct spa_example *out)
{
    struct spa_part *parts = malloc(SPA_PARTS_MAX * sizeof *parts);
    size_t n;
    char *owned = NULL;
    if (!parts)
        return no_memory(at->why, at->why_len);
    int rc = spa_row_parts(at, row, parts, &n, &owned);
    if (rc == 0)
        rc = keep(a, at, parts, n, out);
    free(owned);
    free(parts);
    return rc;
}

/* ---- files ---- */

static int add_row(struct spa_rows *rows, size_t *cap, const struct spa_row_place *at, const json_t *row)
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

static int check_text(const struct spa_row_place *at, const char *text, size_t len)
{
    size_t good = spa_utf8_good_len(text, len);
    if (good == len)
        return 0;
    char field[64];
    field_of(text, good, field, sizeof field);
    return spa_row_refuse(at, "the field %s holds bytes that are no UTF-8 (byte %zu of the row is 0x%02x); save the file as UTF-8", field,
                  good + 1, (unsigned)(unsigned char)text[good]);
}

static int refuse_json(const struct spa_row_place *at, const json_error_t *e)
{
    return spa_row_refuse(at, "the row is no JSON object (column %d: %s)", e->column, e->text);
}

static int read_lines(struct spa_rows *rows, size_t *cap, struct spa_row_place *at, const char *text, size_t len)
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
static void skip_blank(const char *text, size_t len, size_t *i, struct spa_row_place *at)
{
    for (; *i < len && is_blank(text + *i, 1); ++*i)
        at->line += text[*i] == '\n';
}

/* Row by row rather than all at once, so that each has its line and only one is in memory as JSON. */
static int read_array(struct spa_rows *rows, size_t *cap, struct spa_row_place *at, const char *text, size_t len)
{
    size_t i = 0;
    skip_blank(text, len, &i, at);
    i++;   /* [ */
    for (bool first = true;; first = false) {
        skip_blank(text, len, &i, at);
        if (first && i < len && text[i] == ']')
            break;
        if (i >= len)
            return spa_row_refuse(at, "the array of rows does not end");
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
            return spa_row_refuse(at, i >= len ? "the array of rows does not end" : "a comma or the array's end is missing between rows");
        i++;
    }
    i++;   /* ] */
    skip_blank(text, len, &i, at);
    return i < len ? spa_row_refuse(at, "something follows the array of rows") : 0;
}

static int parse(struct spa_rows *rows, size_t *cap, const char *path, const char *text, size_t len, char *why, size_t why_len)
{
    size_t before = rows->n, i = 0;
    char *name = arena_take(rows->arena, strlen(path) + 1);
    if (!name)
        return no_memory(why, why_len);
    strcpy(name, path);
    struct spa_row_place at = { name, 1, why, why_len }, unused = at;
    if (len >= 2 && (memcmp(text, "\xff\xfe", 2) == 0 || memcmp(text, "\xfe\xff", 2) == 0))
        return spa_row_refuse(&at, "the file is UTF-16; save it as UTF-8");
    if (len >= 3 && memcmp(text, "\xef\xbb\xbf", 3) == 0) {
        text += 3;
        len -= 3;
    }
    skip_blank(text, len, &i, &unused);
    if ((i < len && text[i] == '[' ? read_array : read_lines)(rows, cap, &at, text, len) != 0)
        return -1;
    if (rows->n > before)
        return 0;
    snprintf(why, why_len, "%s holds no rows", path);
    return -1;
}

static int read_file(struct spa_rows *rows, size_t *cap, const char *path, char *why, size_t why_len)
{
    uint8_t *bytes;
    size_t len;
    if (spa_store_read(path, FILE_BYTES_MAX, &bytes, &len, why, why_len) != 0)
        return -1;
    int rc = parse(rows, cap, path, (const char *)bytes, len, why, why_len);
    free(bytes);
    return rc;
}

static int begin(struct spa_rows *out, char *why, size_t why_len)
{
    *out = (struct spa_rows){ 0 };
    struct arena *a = calloc(1, sizeof *a);
    if (!a)
        return no_memory(why, why_len);
    a->lists = 1;
    out->arena = a;
    return 0;
}

int spa_rows_parse(const char *name, const char *text, size_t len, struct spa_rows *out, char *why, size_t why_len)
{
    size_t cap = 0;
    if (begin(out, why, why_len) == 0 && parse(out, &cap, name, text, len, why, why_len) == 0)
        return 0;
    spa_rows_free(out);
    return -1;
}

int spa_rows_read(const char *const *paths, size_t n_paths, struct spa_rows *out, char *why, size_t why_len)
{
    size_t cap = 0;
    if (begin(out, why, why_len) != 0)
        return -1;
    for (size_t i = 0; i < n_paths; i++) {
        if (read_file(out, &cap, paths[i], why, why_len) != 0) {
            spa_rows_free(out);
            return -1;
        }
    }
    return 0;
}

void spa_rows_last_answer_only(struct spa_rows *r)
{
    for (size_t i = 0; i < r->n; i++)
        for (size_t k = 0; k + 1 < r->rows[i].n_parts; k++)
            r->rows[i].parts[k].loss = false;
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
