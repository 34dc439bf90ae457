/* drafts.c - in: answers as token ids. out: how one that has begun may go on (drafts.h). */
#define _DEFAULT_SOURCE   /* madvise */
#include "drafts.h"
#include "feature_format.h"
#include "secret.h"

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
    WAY_OTHER = 4,              /* of the others, */
    WAY_NEAR  = 12,             /* and of those to near questions */
    LOOK_MAX  = 512,            /* places that are counted */
    FILE_MAX  = 256 << 20,      /* bytes of a feature file: larger ones take too long to read when a chat begins */
};

struct spa_drafts {
    uint32_t cap, n, n_fixed;   /* tokens, starts included; of features */
    int32_t  *text;             /* [cap] */
    uint32_t *order;            /* [n_order] places i: text[i] follows text[i-1], text[i-2] .. */
    uint32_t n_order;
    struct near {               /* answers of features with the taps of their first tokens, as their file keeps them */
        enum spa_dtype type;
        uint32_t groups, group, n;
        size_t   bytes;         /* of one */
        uint32_t *begins;       /* [n] the answer's first place */
        uint8_t  *taps;         /* [n, bytes] */
    } near;
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
    spa_secret_free(d->text, d->cap * sizeof *d->text);
    free(d->order);
    free(d->near.begins);
    spa_secret_free(d->near.taps, SPA_DRAFTS_TAPS);
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
    const struct spa_plugin *plugin;
    const struct spa_feature_scan *scan;
    const uint8_t *block;
    uint32_t answers;
};

/* Are the file's taps made as this plugin's are? The same layers in other coordinates would be near to nothing. */
static bool same_taps(const struct spa_plugin *p, const spa_Plugin *f)
{
    if (f->taps_count != p->shape.n_taps || f->k != p->shape.k || f->tap_dtype != (spa_Dtype)p->tap_dtype || f->basis != p->shape.basis)
        return false;
    for (pb_size_t i = 0; i < f->taps_count; i++)
        if (f->taps[i] != p->shape.taps[i])
            return false;
    return !f->basis || memcmp(f->basis_hash.bytes, p->basis_hash, SPA_HASH_BYTES) == 0;
}

/* Room for the taps of a file's answers; without memory none are kept. */
static void near_begin(struct near *near, const struct spa_plugin *p)
{
    const size_t bytes = spa_dtype_bytes(p->tap_dtype, p->shape.n_taps, p->shape.k);
    *near = (struct near){ .type = p->tap_dtype, .groups = p->shape.n_taps, .group = p->shape.k, .bytes = bytes };
    near->begins = malloc(SPA_DRAFTS_TAPS / bytes * sizeof *near->begins + 1);
    near->taps = malloc(SPA_DRAFTS_TAPS);
}

static void near_add(struct near *near, uint32_t begin, const uint8_t *taps)
{
    if (!near->begins || !near->taps || near->n == SPA_DRAFTS_TAPS / near->bytes)
        return;
    memcpy(near->taps + near->n * near->bytes, taps, near->bytes);
    near->begins[near->n++] = begin;
}

/* Does an answer begin with loss token i? */
static bool begins(const uint8_t *pos, uint32_t i)
{
    uint32_t before = 0, at;
    memcpy(&at, pos + 4 * (size_t)i, 4);
    if (i)
        memcpy(&before, pos + 4 * (size_t)(i - 1), 4);
    return i == 0 || at != before + 1;
}

static uint64_t runs_of(const uint8_t *pos, uint32_t n)
{
    uint64_t runs = 0;
    for (uint32_t i = 0; i < n; i++)
        runs += begins(pos, i);
    return runs;
}

/* The targets of a row are its answer: one run of them for each message that carries loss. */
static int take(void *user, const struct spa_feature_record *r)
{
    struct file *f = user;
    const spa_Plugin *form = &f->scan->base.plugin;
    const uint32_t n = r->head.n_loss;
    if (r->kind != SPA_FEATURE_ROW || r->refused || n == 0 || f->d->n + n + runs_of(f->block + r->at, n) > f->d->cap / 2)
        return 0;
    if (!f->d->near.bytes && f->plugin && same_taps(f->plugin, form))
        near_begin(&f->d->near, f->plugin);
    const uint8_t *pos = f->block + r->at, *target = pos + 4 * (size_t)n;
    const uint8_t *taps = target + 4 * (size_t)n + r->head.n_ctx * spa_dtype_bytes((enum spa_dtype)form->tap_dtype, form->ctx_taps_count, form->k);
    for (uint32_t i = 0; i < n; i++) {
        int32_t id;
        memcpy(&id, target + 4 * (size_t)i, 4);
        if (begins(pos, i)) {
            f->d->text[f->d->n++] = START;
            if (f->d->near.bytes)
                near_add(&f->d->near, f->d->n, taps + i * f->d->near.bytes);
        }
        f->d->text[f->d->n] = id;
        insert(f->d, f->d->n++);
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

uint32_t spa_drafts_add_features(struct spa_drafts *d, const char *path, const struct spa_plugin *plugin)
{
    struct file f = { .d = d, .plugin = plugin };
    struct stat st;
    const int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return 0;
    if (fstat(fd, &st) == 0 && st.st_size > 0 && st.st_size <= FILE_MAX) {
        void *block = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
        struct spa_feature_scan scan;
        if (block != MAP_FAILED) {
            f.block = block;
            f.scan = &scan;
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

static bool same_answer(const struct spa_drafts *d, uint32_t a, uint32_t b)
{
    for (;; a++, b++) {
        const int32_t x = a < d->n ? d->text[a] : START, y = b < d->n ? d->text[b] : START;
        if (x != y || x == START)
            return x == y;
    }
}

struct spa_drafts_near spa_drafts_near(const struct spa_drafts *d, const struct spa_shape *shape, const float *x)
{
    struct spa_drafts_near out = { 0 };
    const struct near *near = &d->near;
    const size_t width = (size_t)near->groups * near->group;
    float far[SPA_DRAFTS_NEAR], *y = NULL;
    if (near->n && near->groups == shape->n_taps && near->group == shape->k)
        y = malloc(width * sizeof *y);
    for (uint32_t i = 0; y && i < near->n; i++) {
        float sum = 0;
        if (spa_dtype_unpack(near->type, near->taps + i * near->bytes, near->groups, near->group, y) != SPA_OK)
            continue;
        for (size_t k = 0; k < width; k++)
            sum += (x[k] - y[k]) * (x[k] - y[k]);
        uint32_t at = 0, old = out.n;   /* where it belongs; where the same answer stands already */
        while (at < out.n && far[at] <= sum)
            at++;
        for (uint32_t k = 0; k < out.n; k++)
            old = same_answer(d, out.at[k], near->begins[i]) ? k : old;
        if (old < at || at == SPA_DRAFTS_NEAR)
            continue;
        out.n += old == out.n && out.n < SPA_DRAFTS_NEAR;
        for (uint32_t k = old < out.n ? old : out.n - 1; k > at; k--) {
            out.at[k] = out.at[k - 1];
            far[k] = far[k - 1];
        }
        out.at[at] = near->begins[i];
        far[at] = sum;
    }
    spa_secret_free(y, width * sizeof *y);
    return out;
}

struct draft { int32_t *out; uint32_t n, cap; };

static void add_way(const struct spa_drafts *d, struct draft *w, uint32_t place, uint32_t len)
{
    if (w->n && w->n < w->cap)
        w->out[w->n++] = -1;
    for (uint32_t i = place; i < d->n && i < place + len && d->text[i] != START && w->n < w->cap; i++)
        w->out[w->n++] = d->text[i];
}

/* Of the answers to near questions, those that begin so. */
static void add_near(const struct spa_drafts *d, const struct spa_drafts_near *near, const int32_t *ids, uint32_t n, struct draft *w)
{
    for (uint32_t i = 0; i < near->n; i++) {
        uint32_t same = 0;
        while (same < n && near->at[i] + same < d->n && d->text[near->at[i] + same] == ids[same])
            same++;
        const uint32_t place = near->at[i] + same;
        if (same == n && place < d->n && d->text[place] != START)
            add_way(d, w, place, w->n ? WAY_NEAR : WAY_FIRST);
    }
}

uint32_t spa_drafts_look(const struct spa_drafts *d, const struct spa_drafts_near *near, const int32_t *ids, uint32_t n, int32_t *out, uint32_t cap)
{
    struct draft w = { out, 0, cap };
    uint32_t lo = 0, hi = d->n_order, match = 0;
    if (near)
        add_near(d, near, ids, n, &w);
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
        return w.n;
    struct way ways[WAYS];
    const uint32_t n_ways = ways_of(d, lo, hi, ways);
    for (uint32_t i = 0; i < n_ways; i++)
        add_way(d, &w, ways[i].place, w.n ? WAY_OTHER : WAY_FIRST);
    return w.n;
}
