/* row_features.c - rows to the cloud, features back (row_features.h). In: rows, a link. Out: packed features in memory, a basis. */
#include "row_features.h"

#include "basis.h"
#include "blob.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    SILENCE_MS     = 300000,   /* a long row's prefill, or the fit, on a small machine */
    FIT_TOKENS     = 3000,     /* loss tokens that a basis is fitted on; more did not help */
    BYTES_PER_TOKEN = 6,       /* guessed high, so that there are rather too many rows than too few */
};

/* A pass over some rows: `fit` rows come back without numbers. */
struct pass {
    struct spa_link *link;
    const struct spa_rows *rows;
    size_t stride, n;            /* rows 0, stride, 2 stride ...: n of them */
    size_t n_anchors;            /* the cloud's, when anchors are asked for: n of them, and no rows */
    bool   fit;
    bool   fitted;
    spa_Fitted basis;
    struct spa_features *out;    /* NULL with fit */
    struct spa_features_progress progress;
};

/* The anchor that index stands for, n of them spread over all; and back: SIZE_MAX when none does. */
static uint32_t anchor_number(const struct pass *p, size_t index)
{
    return (uint32_t)(index * p->n_anchors / p->n);
}

static size_t anchor_index(const struct pass *p, uint32_t number)
{
    const size_t index = (number * p->n + p->n_anchors - 1) / p->n_anchors;
    return index < p->n && anchor_number(p, index) == number ? index : SIZE_MAX;
}

static int send_anchor(struct pass *p, size_t index, char *why, size_t why_len)
{
    const spa_Learn learn = { .row = anchor_number(p, index), .anchor = true };
    const enum spa_err e = spa_session_learn(spa_link_session(p->link), &learn, NULL, 0, NULL);
    if (e != SPA_OK)
        snprintf(why, why_len, "anchor %u could not be asked for: %s", learn.row, spa_err_name(e));
    return e == SPA_OK ? 0 : -1;
}

/* What a sentence about index is about. */
static struct spa_example named(const struct pass *p, size_t index)
{
    return p->n_anchors ? (struct spa_example){ .file = "the cloud's anchors,", .line = anchor_number(p, index) } : p->rows->rows[index * p->stride];
}

static int send_row(struct pass *p, size_t index, char *why, size_t why_len)
{
    if (p->n_anchors)
        return send_anchor(p, index, why, why_len);
    const struct spa_example *row = &p->rows->rows[index * p->stride];
    const spa_Learn learn = { .row = (uint32_t)index, .fit = p->fit, .last = p->fit && index + 1 == p->n };
    uint8_t *work = malloc(spa_parts_len(row->parts, row->n_parts) + 1);
    if (!work) {
        snprintf(why, why_len, "out of memory");
        return -1;
    }
    enum spa_err e = spa_session_learn(spa_link_session(p->link), &learn, row->parts, row->n_parts, work);
    free(work);
    if (e == SPA_OK)
        return 0;
    if (e == SPA_ERR_LIMIT)
        snprintf(why, why_len, "%s line %u: the row is longer than the cloud takes", row->file, row->line);
    else
        snprintf(why, why_len, "%s line %u: the row could not be sent: %s", row->file, row->line, spa_err_name(e));
    return -1;
}

static struct spa_message message_of(const struct spa_feature_row *r)
{
    struct spa_message m = { .type = SPA_MSG_FEATURES, .bulk = r->bulk, .bulk_len = r->bulk_len };
    m.head.features = r->head;
    return m;
}

/* Lengths, targets and positions were checked by the session; whether the numbers are numbers is checked here, once. */
static int check_row(const struct spa_features *f, size_t index, const struct spa_example *row, char *why, size_t why_len)
{
    const struct spa_feature_row *r = &f->rows[index];
    size_t n_loss = r->head.n_loss, n_ctx = r->head.n_ctx;
    size_t width = (size_t)f->shape.n_taps * f->shape.k, ctx_width = (size_t)f->shape.n_ctx_taps * f->shape.k;
    if (n_loss == 0) {
        snprintf(why, why_len, "%s line %u: nothing to learn: the answer has no token", row->file, row->line);
        return -1;
    }
    uint32_t *words = malloc(2 * n_loss * sizeof *words);
    float *numbers = malloc((n_ctx * ctx_width + n_loss * (width + f->shape.d)) * sizeof *numbers);
    int rc = -1;
    if (!words || !numbers) {
        snprintf(why, why_len, "out of memory");
    } else {
        float *x_ctx = numbers, *x = x_ctx + n_ctx * ctx_width;
        const struct spa_message m = message_of(r);
        if (spa_features_unpack(f->wire, &m, words, (int32_t *)(words + n_loss), x_ctx, x, x + n_loss * width) == SPA_OK)
            rc = 0;
        else
            snprintf(why, why_len, "%s line %u: the cloud's numbers for this row are not finite", row->file, row->line);
    }
    free(words);
    free(numbers);
    return rc;
}

static int keep_row(struct pass *p, const struct spa_message *m, size_t index, char *why, size_t why_len)
{
    struct spa_features *f = p->out;
    struct spa_feature_row *r = &f->rows[index];
    r->bulk = malloc(m->bulk_len + (size_t)1);
    if (!r->bulk) {
        snprintf(why, why_len, "out of memory with %zu rows still to come", p->n - index);
        return -1;
    }
    memcpy(r->bulk, m->bulk, m->bulk_len);
    r->bulk_len = m->bulk_len;
    r->head = m->head.features;
    const struct spa_example row = named(p, index);
    if (check_row(f, index, &row, why, why_len) != 0)
        return -1;
    f->n_loss += r->head.n_loss;
    f->n_tokens += r->head.n_tokens;
    f->bytes += r->bulk_len;
    f->max_ctx = r->head.n_ctx > f->max_ctx ? r->head.n_ctx : f->max_ctx;
    f->max_loss = r->head.n_loss > f->max_loss ? r->head.n_loss : f->max_loss;
    return 0;
}

static size_t index_of(const struct pass *p, uint32_t number)
{
    return p->n_anchors ? anchor_index(p, number) : number;
}

/* One event: 1 when it answered a row, 0 when not, -1 with a sentence. */
static int take_event(struct pass *p, const struct spa_session_event *ev, bool *answered, char *why, size_t why_len)
{
    const struct spa_message *m = ev->msg;
    if (ev->type == SPA_MSG_ERROR && m->head.error.is_row && index_of(p, m->head.error.row) < p->n) {
        const struct spa_example row = named(p, index_of(p, m->head.error.row));
        snprintf(why, why_len, "%s line %u: %.*s", row.file, row.line, (int)m->bulk_len, (const char *)m->bulk);
        return -1;
    }
    if (ev->type == SPA_MSG_ERROR) {
        snprintf(why, why_len, "the cloud says: %.*s", (int)m->bulk_len, (const char *)m->bulk);
        return -1;
    }
    if (ev->type == SPA_MSG_FITTED) {
        p->fitted = true;
        p->basis = m->head.fitted;
        return 0;
    }
    if (ev->type != SPA_MSG_FEATURES)
        return 0;
    const size_t index = index_of(p, m->head.features.row);
    if (index >= p->n || answered[index]) {
        snprintf(why, why_len, "the cloud answered a row that was not asked");
        return -1;
    }
    answered[index] = true;
    if (!p->fit && keep_row(p, m, index, why, why_len) != 0)
        return -1;
    return 1;
}

static int run_pass(struct pass *p, bool *answered, char *why, size_t why_len)
{
    const struct spa_session *s = spa_link_session(p->link);
    size_t sent = 0, done = 0;
    while (done < p->n || (p->fit && !p->fitted)) {
        for (; sent < p->n && s->learn_open < s->welcome.learn_window; sent++)
            if (send_row(p, sent, why, why_len) != 0)
                return -1;
        struct spa_session_event ev;
        int rc = spa_link_wait(p->link, SILENCE_MS, &ev, why, why_len);
        if (rc == 0)
            snprintf(why, why_len, "the cloud has been silent for %d seconds", SILENCE_MS / 1000);
        if (rc <= 0)
            return -1;
        rc = take_event(p, &ev, answered, why, why_len);
        if (rc < 0)
            return -1;
        done += (size_t)rc;
        if (rc > 0 && p->progress.done)
            p->progress.done(p->progress.user, done, p->n);
    }
    return 0;
}

static int pass(struct pass *p, char *why, size_t why_len)
{
    if (spa_link_session(p->link)->welcome.learn_window == 0) {
        snprintf(why, why_len, "the cloud takes no training rows");
        return -1;
    }
    bool *answered = calloc(p->n + 1, sizeof *answered);
    if (!answered) {
        snprintf(why, why_len, "out of memory");
        return -1;
    }
    int rc = run_pass(p, answered, why, why_len);
    free(answered);
    return rc;
}

static size_t guessed_loss_tokens(const struct spa_example *row)
{
    size_t n = 0;
    for (size_t i = 0; i < row->n_parts; i++)
        if (row->parts[i].loss)
            n += row->parts[i].len / BYTES_PER_TOKEN + 1;
    return n;
}

struct block {
    uint8_t *bytes;
    size_t   len;
};

static int take_piece(void *user, const uint8_t *bytes, size_t len, char *why, size_t why_len)
{
    struct block *b = user;
    (void)why, (void)why_len;
    memcpy(b->bytes + b->len, bytes, len);   /* room for the whole; spa_blob_fetch takes no more than that */
    b->len += len;
    return 0;
}

static int fit(struct pass *p, uint8_t **basis, size_t *basis_len, uint8_t hash[SPA_HASH_BYTES], char *why, size_t why_len);

int spa_features_generic(struct spa_link *l, uint8_t **basis, size_t *basis_len, uint8_t hash[SPA_HASH_BYTES], char *why, size_t why_len)
{
    struct pass p = { .link = l, .fit = true };   /* no rows: FITTED comes by itself */
    return fit(&p, basis, basis_len, hash, why, why_len);
}

int spa_features_fit(struct spa_link *l, const struct spa_rows *rows, uint8_t **basis, size_t *basis_len,
                     uint8_t hash[SPA_HASH_BYTES], struct spa_features_progress progress, char *why, size_t why_len)
{
    size_t tokens = 0;
    for (size_t i = 0; i < rows->n; i++)
        tokens += guessed_loss_tokens(&rows->rows[i]);
    size_t stride = tokens / FIT_TOKENS > 0 ? tokens / FIT_TOKENS : 1;
    stride = stride > rows->n ? rows->n : stride;
    struct pass p = { .link = l, .rows = rows, .stride = stride, .n = (rows->n + stride - 1) / stride, .fit = true, .progress = progress };
    return fit(&p, basis, basis_len, hash, why, why_len);
}

/* Waits for FITTED and fetches what it names. */
static int fit(struct pass *p, uint8_t **basis, size_t *basis_len, uint8_t hash[SPA_HASH_BYTES], char *why, size_t why_len)
{
    if (pass(p, why, why_len) != 0)
        return -1;

    const struct spa_shape *shape = &spa_link_session(p->link)->shape;
    size_t expected = spa_basis_floats(shape) * sizeof(float);
    if (p->basis.hash.size != SPA_HASH_BYTES || p->basis.total != expected) {
        snprintf(why, why_len, "the cloud fitted a basis of %llu bytes, not of %zu", (unsigned long long)p->basis.total, expected);
        return -1;
    }
    struct block block = { malloc(expected), 0 };
    if (!block.bytes) {
        snprintf(why, why_len, "out of memory");
        return -1;
    }
    memcpy(hash, p->basis.hash.bytes, SPA_HASH_BYTES);
    const struct spa_blob_sink sink = { &block, take_piece, NULL, NULL };
    if (spa_blob_fetch(p->link, spa_BlobKind_BLOB_BASIS, hash, expected, &sink, why, why_len) != 0) {
        free(block.bytes);
        return -1;
    }
    if (spa_basis_check(shape, (const float *)(const void *)block.bytes) != SPA_OK) {
        snprintf(why, why_len, "the basis that the cloud fitted is not usable: it has numbers that are not finite");
        free(block.bytes);
        return -1;
    }
    *basis = block.bytes;
    *basis_len = expected;
    return 0;
}

/* Runs a pass whose answers are kept in *f. */
static int ask(struct spa_features *f, struct pass *p, char *why, size_t why_len)
{
    struct spa_link *l = p->link;
    memset(f, 0, sizeof *f);
    f->wire = malloc(sizeof *f->wire);
    f->rows = calloc(p->n + 1, sizeof *f->rows);
    if (!f->wire || !f->rows) {
        snprintf(why, why_len, "out of memory");
        spa_features_free(f);
        return -1;
    }
    *f->wire = *spa_link_session(l);
    f->shape = f->wire->shape;
    f->n = p->n;
    p->out = f;
    if (pass(p, why, why_len) != 0) {
        spa_features_free(f);
        return -1;
    }
    return 0;
}

int spa_features_ask(struct spa_features *f, struct spa_link *l, const struct spa_rows *rows,
                     struct spa_features_progress progress, char *why, size_t why_len)
{
    struct pass p = { .link = l, .rows = rows, .stride = 1, .n = rows->n, .progress = progress };
    return ask(f, &p, why, why_len);
}

int spa_features_ask_anchors(struct spa_features *f, struct spa_link *l, size_t n, struct spa_features_progress progress, char *why,
                             size_t why_len)
{
    const size_t all = spa_link_session(l)->welcome.n_anchors;
    struct pass p = { .link = l, .n_anchors = all, .n = n < all ? n : all, .progress = progress };
    return ask(f, &p, why, why_len);
}

void spa_features_free(struct spa_features *f)
{
    for (size_t i = 0; i < f->n; i++)
        free(f->rows[i].bulk);
    free(f->rows);
    free(f->wire);
    memset(f, 0, sizeof *f);
}

void spa_features_row(const struct spa_features *f, size_t i, uint32_t *pos, int32_t *target, float *x_ctx, float *x,
                      float *y_fin)
{
    const struct spa_feature_row *r = &f->rows[i];
    const struct spa_message m = message_of(r);
    enum spa_err e = spa_features_unpack(f->wire, &m, pos, target, x_ctx, x, y_fin);
    assert(e == SPA_OK);   /* it was when the row came */
    (void)e;
}
