/* drafts.c - in: answers as token ids. out: how one that has begun may go on (drafts.h). */
#define _DEFAULT_SOURCE   /* madvise */
#include "drafts.h"
#include "feature_format.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
    START     = -1,             /* before every answer */
    DEPTH     = 16,             /* tokens that are looked back on */
    MATCH_MIN = 2,              /* fewer say nothing; the start counts as one */
    WAYS      = 4,
    WAY_FIRST = 32,             /* tokens of the likeliest way: it says what comes two round trips later, */
    WAY_OTHER = 4,              /* and of the others */
    LOOK_MAX  = 512,            /* places that are counted */
    FILE_MAX  = 256 << 20,      /* bytes of a feature file: larger ones take too long to read when a chat begins */
};

struct spa_drafts {
    uint32_t cap, n, n_fixed;   /* tokens, starts included; of features */
    int32_t  *text;             /* [cap] */
    uint32_t *order;            /* [n_order] places i: text[i] follows text[i-1], text[i-2] .. */
    uint32_t n_order;
};

struct spa_drafts *spa_drafts_new(uint32_t cap)
{
    struct spa_drafts *d = calloc(1, sizeof *d);
    if (!d)
        return NULL;
    d->cap = cap;
    d->text = malloc(cap * sizeof *d->text);
    d->order = malloc(cap * sizeof *d->order);
    if (!d->text || !d->order) {
        spa_drafts_free(d);
        return NULL;
    }
    return d;
}

void spa_drafts_free(struct spa_drafts *d)
{
    if (!d)
        return;
    free(d->text);
    free(d->order);
    free(d);
}

/* Places by what stands before them. Behind a start, and so behind it in `order`, nothing more is looked at. */
static int compare(const struct spa_drafts *d, uint32_t a, uint32_t b)
{
    for (uint32_t k = 1; k <= DEPTH; k++) {
        const int32_t x = d->text[a - k], y = d->text[b - k];
        if (x != y)
            return x < y ? -1 : 1;
        if (x == START)
            break;
    }
    return a < b ? -1 : a > b;
}

static void insert(struct spa_drafts *d, uint32_t place)
{
    uint32_t lo = 0, hi = d->n_order;
    while (lo < hi) {
        const uint32_t mid = lo + (hi - lo) / 2;
        if (compare(d, d->order[mid], place) < 0)
            lo = mid + 1;
        else
            hi = mid;
    }
    memmove(d->order + lo + 1, d->order + lo, (d->n_order - lo) * sizeof *d->order);
    d->order[lo] = place;
    d->n_order++;
}

/* Only what stands below n is kept. */
static void cut(struct spa_drafts *d, uint32_t n)
{
    uint32_t kept = 0;
    for (uint32_t i = 0; i < d->n_order; i++)
        if (d->order[i] < n)
            d->order[kept++] = d->order[i];
    d->n_order = kept;
    d->n = n;
}

void spa_drafts_add(struct spa_drafts *d, const int32_t *ids, uint32_t n)
{
    if (n == 0 || n >= d->cap - d->n_fixed)
        return;
    if (n >= d->cap - d->n)
        cut(d, d->n_fixed);
    d->text[d->n++] = START;
    for (uint32_t i = 0; i < n; i++) {
        d->text[d->n] = ids[i];
        insert(d, d->n++);
    }
}

/* ---- features ---- */

struct file {
    struct spa_drafts *d;
    const uint8_t *block;
    uint32_t answers;
};

/* The targets of a row are its answer: one run of them for each message that carries loss. */
static int take(void *user, const struct spa_feature_record *r)
{
    struct file *f = user;
    const uint32_t n = r->head.n_loss;
    if (r->kind != SPA_FEATURE_ROW || r->refused || n == 0 || r->bulk_len < 8 * (uint64_t)n || n + 1 > f->d->cap / 2 - f->d->n)
        return 0;
    const uint8_t *pos = f->block + r->at, *target = pos + 4 * (size_t)n;
    uint32_t before = 0;
    for (uint32_t i = 0; i < n && f->d->n + 2 <= f->d->cap; i++) {
        uint32_t p;
        int32_t id;
        memcpy(&p, pos + 4 * (size_t)i, 4);
        memcpy(&id, target + 4 * (size_t)i, 4);
        if (i == 0 || p != before + 1)
            f->d->text[f->d->n++] = START;
        f->d->text[f->d->n] = id;
        insert(f->d, f->d->n++);
        before = p;
    }
    f->answers++;
    return 0;
}

/* What was read leaves memory: a chat is to stay small beside a large file. */
static void give_back(void *user, size_t up_to)
{
    const struct file *f = user;
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    madvise((void *)(uintptr_t)f->block, up_to / page * page, MADV_DONTNEED);
}

uint32_t spa_drafts_add_features(struct spa_drafts *d, const char *path)
{
    struct file f = { .d = d };
    struct stat st;
    const int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return 0;
    if (fstat(fd, &st) == 0 && st.st_size > 0 && st.st_size <= FILE_MAX) {
        void *block = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
        struct spa_feature_scan scan;
        if (block != MAP_FAILED) {
            f.block = block;
            spa_feature_scan(block, (size_t)st.st_size, &scan, take, give_back, &f);
            munmap(block, (size_t)st.st_size);
        }
    }
    close(fd);
    d->n_fixed = d->n;
    return f.answers;
}

/* ---- looking ---- */

/* Narrows lo .. hi, whose places agree on k - 1 tokens before them, to those with `token` at k. */
static void narrow(const struct spa_drafts *d, uint32_t k, int32_t token, uint32_t *lo, uint32_t *hi)
{
    uint32_t a = *lo, b = *hi;
    while (a < b) {
        const uint32_t mid = a + (b - a) / 2;
        if (d->text[d->order[mid] - k] < token)
            a = mid + 1;
        else
            b = mid;
    }
    *lo = a;
    b = *hi;
    while (a < b) {
        const uint32_t mid = a + (b - a) / 2;
        if (d->text[d->order[mid] - k] <= token)
            a = mid + 1;
        else
            b = mid;
    }
    *hi = a;
}

struct way { uint32_t place, count; };

/* What follows in places lo .. hi, the most frequent first, of equally frequent ones the newest; returns how many ways there are. */
static uint32_t ways_of(const struct spa_drafts *d, uint32_t lo, uint32_t hi, struct way ways[WAYS])
{
    struct way seen[4 * WAYS], best;
    uint32_t n = 0, n_best = 0;
    hi = hi - lo > LOOK_MAX ? lo + LOOK_MAX : hi;
    for (uint32_t i = lo; i < hi; i++) {
        uint32_t k = 0;
        while (k < n && d->text[seen[k].place] != d->text[d->order[i]])
            k++;
        if (k < n)
            seen[k] = (struct way){ d->order[i], seen[k].count + 1 };   /* the newest answer's words */
        else if (n < sizeof seen / sizeof *seen)
            seen[n++] = (struct way){ d->order[i], 1 };
    }
    while (n_best < WAYS && n > 0) {
        uint32_t top = 0;
        for (uint32_t k = 1; k < n; k++)
            top = seen[k].count > seen[top].count || (seen[k].count == seen[top].count && seen[k].place > seen[top].place) ? k : top;
        best = seen[top];
        seen[top] = seen[--n];
        ways[n_best++] = best;
    }
    return n_best;
}

uint32_t spa_drafts_look(const struct spa_drafts *d, const int32_t *ids, uint32_t n, int32_t *out, uint32_t cap)
{
    uint32_t lo = 0, hi = d->n_order, match = 0, filled = 0;
    for (uint32_t k = 1; k <= DEPTH && k <= n + 1; k++) {
        uint32_t a = lo, b = hi;
        narrow(d, k, k <= n ? ids[n - k] : START, &a, &b);
        if (a == b)
            break;
        lo = a;
        hi = b;
        match = k;
    }
    if (match < MATCH_MIN && match < n + 1)   /* at the start of an answer there is nothing more to match */
        return 0;
    struct way ways[WAYS];
    const uint32_t n_ways = ways_of(d, lo, hi, ways);
    for (uint32_t w = 0; w < n_ways; w++) {
        const uint32_t len = w ? WAY_OTHER : WAY_FIRST;
        if (w && filled < cap)
            out[filled++] = -1;
        for (uint32_t i = ways[w].place; i < d->n && i < ways[w].place + len && d->text[i] != START && filled < cap; i++)
            out[filled++] = d->text[i];
    }
    return filled;
}
