/* row_features.c - rows to the cloud, features back (row_features.h). In: rows, a link. Out: records of a feature file, a basis. */
#include "row_features.h"

#include "basis.h"
#include "blob.h"
#include "store.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    FIT_TOKENS     = 3000,     /* loss tokens that a basis is fitted on; more did not help */
    BYTES_PER_TOKEN = 6,       /* guessed high, so that there are rather too many rows than too few */
};

/* A pass over some rows: with fit they come back without numbers, otherwise what comes goes into the file. */
struct pass {
    struct spa_link *link;
    const struct spa_rows *rows; /* NULL: anchors */
    const size_t *which;         /* [n] of rows, or numbers of the cloud's anchors */
    const size_t *group;         /* [n] number of the group that each is decoded with */
    size_t n, n_before;          /* n_before: rows that were there already, for progress */
    bool   fit;
    bool   fitted;
    spa_Fitted basis;
    struct spa_feature_file *file;   /* NULL with fit */
    enum spa_feature_kind kind;
    const struct spa_feature_key *keys;   /* of rows */
    float *numbers;              /* [numbers_len] for looking at a row's */
    size_t numbers_len;
    struct spa_features_progress progress;
};

static const struct spa_example *row_of(const struct pass *p, size_t index) { return &p->rows->rows[p->which[index]]; }

/* The number that a row has on the wire, and back: SIZE_MAX when it is none of ours. */
static uint32_t number_of(const struct pass *p, size_t index) { return (uint32_t)(p->rows ? index : p->which[index]); }

static size_t index_of(const struct pass *p, uint32_t number)
{
    if (p->rows)
        return number < p->n ? number : SIZE_MAX;
    for (size_t i = 0; i < p->n; i++)
        if (p->which[i] == number)
            return i;
    return SIZE_MAX;
}

/* What a sentence about a row begins with. */
static const char *name_of(const struct pass *p, size_t index, char *out, size_t out_len)
{
    if (p->rows)
        snprintf(out, out_len, "%s line %u", row_of(p, index)->file, row_of(p, index)->line);
    else
        snprintf(out, out_len, "the cloud's anchor %zu", p->which[index]);
    return out;
}

/* Notes in the file that there will be nothing. */
static int keep_refusal(struct pass *p, size_t index, spa_Code code, const char *sentence, size_t len, char *why, size_t why_len)
{
    enum { SENTENCE_MAX = 400 };
    struct spa_feature_record r = { .kind = p->kind, .key = p->keys[p->which[index]], .refused = code,
                                    .limit = spa_link_session(p->link)->welcome.n_ctx,
                                    .bulk_len = (uint32_t)(len < SENTENCE_MAX ? len : SENTENCE_MAX) };
    return spa_feature_file_add(p->file, &r, (const uint8_t *)sentence, why, why_len);
}

static bool is_sendable(const struct pass *p, size_t index)
{
    if (!p->rows)
        return true;
    const struct spa_example *row = row_of(p, index);
    return spa_parts_len(row->parts, row->n_parts) <= spa_link_session(p->link)->welcome.max_message - SPA_HEAD_MAX;
}

/* Does another row of the pass, or only of this row's group, still leave? */
static bool more_to_send(const struct pass *p, size_t index, bool in_group)
{
    for (size_t i = index + 1; i < p->n && (!in_group || p->group[i] == p->group[index]); i++)
        if (is_sendable(p, i))
            return true;
    return false;
}

static int sent(const struct pass *p, size_t index, enum spa_err e, char *why, size_t why_len)
{
    char name[300];
    if (e == SPA_OK)
        return 1;
    snprintf(why, why_len, "%s: the row could not be asked for: %s", name_of(p, index, name, sizeof name), spa_err_name(e));
    return e == SPA_ERR_CLOSED ? SPA_FEATURES_LOST : -1;
}

/* 1: sent; 0: larger than the cloud takes; -1 or SPA_FEATURES_LOST with a sentence. */
static int send_row(struct pass *p, size_t index, char *why, size_t why_len)
{
    if (!p->rows) {
        const spa_Learn anchor = { .row = number_of(p, index), .anchor = true };
        return sent(p, index, spa_session_learn(spa_link_session(p->link), &anchor, NULL, 0, NULL), why, why_len);
    }
    const struct spa_example *row = row_of(p, index);
    const spa_Learn learn = { .row = (uint32_t)index, .fit = p->fit, .last = p->fit && !more_to_send(p, index, false),
                              .more = more_to_send(p, index, true) };
    if (!is_sendable(p, index))
        return 0;
    uint8_t *work = malloc(spa_parts_len(row->parts, row->n_parts) + 1);
    if (!work) {
        snprintf(why, why_len, "out of memory");
        return -1;
    }
    enum spa_err e = spa_session_learn(spa_link_session(p->link), &learn, row->parts, row->n_parts, work);
    free(work);
    return sent(p, index, e, why, why_len);
}

/* Lengths, targets and positions were checked by the session; whether the numbers are numbers is checked here, once. */
static int check_numbers(struct pass *p, const struct spa_message *m, size_t index, char *why, size_t why_len)
{
    const struct spa_session *s = spa_feature_file_wire(p->file);
    const struct spa_shape *shape = &s->shape;
    const size_t n_loss = m->head.features.n_loss, n_ctx = m->head.features.n_ctx;
    const size_t width = (size_t)shape->n_taps * shape->k, ctx_width = (size_t)shape->n_ctx_taps * shape->k;
    const size_t need = 2 * n_loss + n_ctx * ctx_width + n_loss * (width + shape->d);
    if (need > p->numbers_len) {
        free(p->numbers);
        p->numbers_len = 0;
        p->numbers = malloc(need * sizeof *p->numbers);
        if (!p->numbers) {
            snprintf(why, why_len, "out of memory");
            return -1;
        }
        p->numbers_len = need;
    }
    uint32_t *words = (uint32_t *)(void *)p->numbers;
    float *x_ctx = p->numbers + 2 * n_loss, *x = x_ctx + n_ctx * ctx_width;
    if (spa_features_unpack(s, m, words, (int32_t *)(words + n_loss), x_ctx, x, x + n_loss * width) == SPA_OK)
        return 0;
    char name[300];
    snprintf(why, why_len, "%s: the cloud's numbers for this row are not finite", name_of(p, index, name, sizeof name));
    return -1;
}

static int keep_row(struct pass *p, const struct spa_message *m, size_t index, char *why, size_t why_len)
{
    static const char nothing[] = "the answer has no token, so there is nothing to learn from it";
    const spa_Features *head = &m->head.features;
    if (head->n_loss == 0)
        return keep_refusal(p, index, spa_Code_BAD_REQUEST, nothing, sizeof nothing - 1, why, why_len);
    if (check_numbers(p, m, index, why, why_len) != 0)
        return -1;
    const struct spa_feature_record r = {
        .kind = p->kind, .key = p->keys[p->which[index]], .bulk_len = m->bulk_len,
        .head = { .n_tokens = head->n_tokens, .n_ctx = head->n_ctx, .n_loss = head->n_loss },
    };
    return spa_feature_file_add(p->file, &r, m->bulk, why, why_len);
}

/* An answer that is none. 1: the row counts as answered; -1 or SPA_FEATURES_LOST with a sentence. */
static int take_error(struct pass *p, const struct spa_message *m, bool *answered, char *why, size_t why_len)
{
    const spa_Error *e = &m->head.error;
    const char *sentence = (const char *)m->bulk;
    const size_t index = e->is_row ? index_of(p, e->row) : SIZE_MAX;
    const bool of_row = index != SIZE_MAX && !answered[index];
    char name[300];
    if (of_row && (e->code == spa_Code_CONTEXT_FULL || e->code == spa_Code_TOO_LARGE || e->code == spa_Code_BAD_REQUEST)) {
        answered[index] = true;
        return p->fit || keep_refusal(p, index, e->code, sentence, m->bulk_len, why, why_len) == 0 ? 1 : -1;
    }
    if (of_row)
        snprintf(why, why_len, "%s: %.*s", name_of(p, index, name, sizeof name), (int)m->bulk_len, sentence);
    else
        snprintf(why, why_len, "the cloud says: %.*s", (int)m->bulk_len, sentence);
    return e->code == spa_Code_DRAINING ? SPA_FEATURES_LOST : -1;
}

/* One event: 1 when it answered a row, 0 when not, -1 or SPA_FEATURES_LOST with a sentence. */
static int take_event(struct pass *p, const struct spa_session_event *ev, bool *answered, char *why, size_t why_len)
{
    const struct spa_message *m = ev->msg;
    if (ev->type == SPA_MSG_ERROR)
        return take_error(p, m, answered, why, why_len);
    if (ev->type == SPA_MSG_FITTED) {
        p->fitted = true;
        p->basis = m->head.fitted;
        return 0;
    }
    if (ev->type != SPA_MSG_FEATURES)
        return 0;
    const size_t index = index_of(p, m->head.features.row);
    if (index == SIZE_MAX || answered[index]) {
        snprintf(why, why_len, "the cloud answered a row that was not asked");
        return -1;
    }
    answered[index] = true;
    if (!p->fit && keep_row(p, m, index, why, why_len) != 0)
        return -1;
    return 1;
}

/* The link says no more. A peer that broke the rules would do so again; one that is gone may come back. */
static int no_event(const struct pass *p, int rc, char *why, size_t why_len)
{
    const struct spa_session *s = spa_link_session(p->link);
    if (rc == 0)
        snprintf(why, why_len, "the cloud has been silent for %d seconds", spa_link_patience_ms(p->link) / 1000);
    const bool draining = s->error == SPA_ERR_CLOSED && s->msg.type == SPA_MSG_ERROR && s->msg.head.error.code == spa_Code_DRAINING;
    return s->error == SPA_OK || draining ? SPA_FEATURES_LOST : -1;
}

static int run_pass(struct pass *p, bool *answered, char *why, size_t why_len)
{
    static const char larger[] = "the row's text is larger than the cloud takes in one message";
    const struct spa_session *s = spa_link_session(p->link);
    size_t next = 0, done = 0;
    while (done < p->n || (p->fit && !p->fitted)) {
        for (; next < p->n && s->learn_open < s->welcome.learn_window; next++) {
            int rc = send_row(p, next, why, why_len);
            if (rc < 0)
                return rc;
            if (rc > 0)
                continue;
            if (!p->fit && keep_refusal(p, next, spa_Code_TOO_LARGE, larger, sizeof larger - 1, why, why_len) != 0)
                return -1;
            answered[next] = true;
            done++;
        }
        if (done == p->n && !p->fit)
            break;
        struct spa_session_event ev;
        int rc = spa_link_wait(p->link, spa_link_patience_ms(p->link), &ev, why, why_len);
        if (rc <= 0)
            return no_event(p, rc, why, why_len);
        rc = take_event(p, &ev, answered, why, why_len);
        if (rc < 0)
            return rc;
        done += (size_t)rc;
        if (rc > 0 && p->progress.done)
            p->progress.done(p->progress.user, p->n_before + done, p->n_before + p->n);
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
    free(p->numbers);
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

/* Rows that a pass asks for: which [n], and with which others each is decoded. */
struct choice {
    size_t *which, *group, n;
};

struct text { struct spa_feature_key key; size_t row; };

static int by_key(const void *a, const void *b)
{
    const struct text *x = a, *y = b;
    const int order = memcmp(&x->key, &y->key, sizeof x->key);
    return order ? order : (x->row > y->row) - (x->row < y->row);
}

static int by_row(const void *a, const void *b)
{
    const size_t x = *(const size_t *)a, y = *(const size_t *)b;
    return (x > y) - (x < y);
}

static void choice_free(struct choice *c)
{
    free(c->which);
    free(c->group);
}

struct lack {
    const struct spa_feature_file *file;
    enum spa_feature_kind kind;
    const struct spa_feature_key *keys;
    uint32_t limit;              /* tokens that this cloud takes */
};

static bool is_lacking(const void *user, size_t row, size_t group)
{
    const struct lack *k = user;
    const struct spa_feature_record *r = spa_feature_file_find(k->file, k->kind, &k->keys[row]);
    (void)group;
    return !r || (r->refused == spa_Code_CONTEXT_FULL && r->limit < k->limit);
}

/* All rows, each text once, less those that a finished run has left in the file (file NULL: none), cut into groups. The cloud's
 * numbers depend in their last bits on what a row is decoded with; so groups must be the same when a run that was cut off goes on,
 * whatever has come of them. 0, or -1 without memory. */
static int in_groups(struct choice *c, const struct spa_feature_file *file, struct spa_link *l, enum spa_feature_kind kind,
                     const struct spa_feature_key *keys, size_t n)
{
    const uint32_t window = spa_link_session(l)->welcome.learn_window;
    const size_t group_rows = window > 1 ? window / 2 : 1;   /* one group is on its way while another is decoded */
    struct text *t = malloc((n + 1) * sizeof *t);
    *c = (struct choice){ malloc((n + 1) * sizeof *c->which), malloc((n + 1) * sizeof *c->group), 0 };
    if (!t || !c->which || !c->group) {
        free(t);
        return -1;
    }
    for (size_t i = 0; i < n; i++)
        t[i] = (struct text){ keys[i], i };
    qsort(t, n, sizeof *t, by_key);
    const struct lack lack = { file, kind, keys, spa_link_session(l)->welcome.n_ctx };
    for (size_t i = 0; i < n; i++)
        if ((i == 0 || memcmp(&t[i].key, &t[i - 1].key, sizeof t[i].key) != 0) &&
            !(file && spa_feature_file_settled(file, kind, &t[i].key) && !is_lacking(&lack, t[i].row, 0)))
            c->which[c->n++] = t[i].row;
    free(t);
    qsort(c->which, c->n, sizeof *c->which, by_row);
    for (size_t i = 0; i < c->n; i++)
        c->group[i] = i / group_rows;
    return 0;
}

/* Keeps the groups that are wanted. */
static void keep_groups(struct choice *c, bool (*wanted)(const void *user, size_t row, size_t group), const void *user)
{
    size_t n = 0;
    for (size_t from = 0, to; from < c->n; from = to) {
        bool any = false;
        for (to = from; to < c->n && c->group[to] == c->group[from]; to++)
            any = any || wanted(user, c->which[to], c->group[to]);
        for (size_t i = from; any && i < to; i++, n++) {
            c->which[n] = c->which[i];
            c->group[n] = c->group[i];
        }
    }
    c->n = n;
}

static bool in_stride(const void *user, size_t row, size_t group)
{
    (void)row;
    return group % *(const size_t *)user == 0;
}

/* Groups enough for the basis, evenly over the rows; whole ones, so that the cloud can use their states again. */
static int rows_to_fit(struct choice *c, struct spa_link *l, const struct spa_rows *rows)
{
    struct spa_feature_key *keys = spa_features_keys(rows);
    size_t tokens = 0;
    const int rc = keys ? in_groups(c, NULL, l, SPA_FEATURE_ROW, keys, rows->n) : -1;
    free(keys);
    for (size_t i = 0; rc == 0 && i < c->n; i++)
        tokens += guessed_loss_tokens(&rows->rows[c->which[i]]);
    const size_t stride = tokens / FIT_TOKENS > 0 ? tokens / FIT_TOKENS : 1;
    if (rc == 0)
        keep_groups(c, in_stride, &stride);
    return rc;
}

/* Fetches what FITTED has named. */
static int fetch_basis(struct spa_link *l, const spa_Fitted *fitted, uint8_t **basis, size_t *basis_len, uint8_t hash[SPA_HASH_BYTES],
                       char *why, size_t why_len)
{
    const struct spa_shape *shape = &spa_link_session(l)->shape;
    size_t expected = spa_basis_floats(shape) * sizeof(float);
    if (fitted->hash.size != SPA_HASH_BYTES || fitted->total != expected) {
        snprintf(why, why_len, "the cloud fitted a basis of %llu bytes, not of %zu", (unsigned long long)fitted->total, expected);
        return -1;
    }
    struct block block = { malloc(expected), 0 };
    if (!block.bytes) {
        snprintf(why, why_len, "out of memory");
        return -1;
    }
    memcpy(hash, fitted->hash.bytes, SPA_HASH_BYTES);
    const struct spa_blob_sink sink = { &block, take_piece, NULL, NULL };
    if (spa_blob_fetch(l, spa_BlobKind_BLOB_BASIS, hash, expected, &sink, why, why_len) != 0) {
        free(block.bytes);
        return spa_link_session(l)->error == SPA_OK ? SPA_FEATURES_LOST : -1;
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

int spa_features_fit(struct spa_link *l, const struct spa_rows *rows, uint8_t **basis, size_t *basis_len,
                     uint8_t hash[SPA_HASH_BYTES], struct spa_features_progress progress, char *why, size_t why_len)
{
    struct choice c = { 0 };
    int rc = rows_to_fit(&c, l, rows);
    struct pass p = { .link = l, .rows = rows, .which = c.which, .group = c.group, .n = c.n, .fit = true, .progress = progress };
    if (rc != 0) {
        snprintf(why, why_len, "out of memory");
    } else if (c.n == 0 || (!is_sendable(&p, 0) && !more_to_send(&p, 0, false))) {
        snprintf(why, why_len, "there is no row that fits into one message of the cloud");
        rc = -1;
    } else {
        rc = pass(&p, why, why_len);
    }
    choice_free(&c);
    return rc == 0 ? fetch_basis(l, &p.basis, basis, basis_len, hash, why, why_len) : rc;
}

int spa_features_generic(struct spa_link *l, uint8_t **basis, size_t *basis_len, uint8_t hash[SPA_HASH_BYTES], char *why, size_t why_len)
{
    struct pass p = { .link = l, .fit = true };   /* no rows: FITTED comes by itself */
    const int rc = pass(&p, why, why_len);
    return rc == 0 ? fetch_basis(l, &p.basis, basis, basis_len, hash, why, why_len) : rc;
}

/* ---- rows into the file, and out of it ---- */

struct spa_feature_key *spa_features_keys(const struct spa_rows *rows)
{
    struct spa_feature_key *keys = malloc((rows->n + 1) * sizeof *keys);
    for (size_t i = 0; keys && i < rows->n; i++)
        if (spa_feature_key_row(rows->rows[i].parts, rows->rows[i].n_parts, &keys[i]) != 0) {
            free(keys);
            return NULL;
        }
    return keys;
}

bool spa_features_all_there(const struct spa_feature_file *file, enum spa_feature_kind kind, const struct spa_feature_key *keys, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (!spa_feature_file_find(file, kind, &keys[i]))
            return false;
    return true;
}

int spa_features_ask(struct spa_feature_file *file, struct spa_link *l, enum spa_feature_kind kind, const struct spa_rows *rows,
                     const struct spa_feature_key *keys, struct spa_features_progress progress, char *why, size_t why_len)
{
    const struct lack lack = { file, kind, keys, spa_link_session(l)->welcome.n_ctx };
    struct choice c;
    int rc = in_groups(&c, file, l, kind, keys, rows->n);
    if (rc != 0)
        snprintf(why, why_len, "out of memory");
    else
        keep_groups(&c, is_lacking, &lack);
    if (rc == 0 && c.n > 0) {
        struct pass p = { .link = l, .rows = rows, .which = c.which, .group = c.group, .n = c.n, .n_before = rows->n - c.n, .file = file,
                          .kind = kind, .keys = keys, .progress = progress };
        rc = pass(&p, why, why_len);
    }
    choice_free(&c);
    return rc;
}

size_t spa_features_anchor(uint32_t n_anchors, size_t n, size_t i) { return i * n_anchors / (n < n_anchors ? n : n_anchors); }

int spa_features_ask_anchors(struct spa_feature_file *file, struct spa_link *l, const struct spa_feature_key *keys, size_t n,
                             struct spa_features_progress progress, char *why, size_t why_len)
{
    const uint32_t n_anchors = spa_link_session(l)->welcome.n_anchors;
    if (n > n_anchors) {
        snprintf(why, why_len, "the cloud has %u general prompts and not the %zu that are wanted; use --general %u", n_anchors, n, n_anchors);
        return -1;
    }
    size_t *which = malloc((n + 1) * sizeof *which), *group = calloc(n + 1, sizeof *group), missing = 0;
    struct spa_feature_key *wanted = malloc((n_anchors + (size_t)1) * sizeof *wanted);
    int rc = which && group && wanted ? 0 : -1;
    if (rc != 0)
        snprintf(why, why_len, "out of memory");
    for (size_t i = 0; rc == 0 && i < n; i++) {
        const size_t number = spa_features_anchor(n_anchors, n, i);
        wanted[number] = keys[i];
        if (!spa_feature_file_find(file, SPA_FEATURE_ANCHOR, &keys[i]))
            which[missing++] = number;
    }
    if (rc == 0 && missing) {
        struct pass p = { .link = l, .which = which, .group = group, .n = missing, .n_before = n - missing, .file = file, .kind = SPA_FEATURE_ANCHOR,
                          .keys = wanted, .progress = progress };
        rc = pass(&p, why, why_len);
    }
    free(which);
    free(group);
    free(wanted);
    return rc;
}

static void leave_out(struct spa_left_out *left, const struct spa_example *row, const struct spa_feature_record *r, const uint8_t *sentence)
{
    left->rows++;
    if (r && r->refused == spa_Code_CONTEXT_FULL) {
        left->limit = r->limit;
        if (left->too_long++ == 0) {
            left->long_file = row->file;
            left->long_line = row->line;
        }
        return;
    }
    if (left->refused++ == 0) {
        left->refused_file = row->file;
        left->refused_line = row->line;
        snprintf(left->sentence, sizeof left->sentence, "%.*s", r ? (int)r->bulk_len : 0, (const char *)sentence);
    }
}

void spa_left_out_say(const struct spa_left_out *left, char *out, size_t out_len)
{
    size_t n = 0;
    if (out_len)
        out[0] = '\0';
    if (left->rows == 0)
        return;
    n += (size_t)snprintf(out, out_len, "left out: %u of %u rows: ", left->rows, left->of);
    if (left->too_long && n < out_len)
        n += (size_t)snprintf(out + n, out_len - n, "%u longer than the cloud's context of %u tokens (first: %s line %u)%s", left->too_long,
                              left->limit, left->long_file, left->long_line, left->refused ? ", " : "");
    if (left->refused && n < out_len)
        snprintf(out + n, out_len - n, "%u that the cloud refused (first: %s line %u: %s)", left->refused, left->refused_file,
                 left->refused_line, left->sentence);
}

static void bind_row(struct spa_features *f, const struct spa_feature_file *file, const struct spa_feature_record *r)
{
    f->rows[f->n++] = (struct spa_feature_row){ r->head, (uint8_t *)(uintptr_t)spa_feature_file_bulk(file, r), r->bulk_len };
    f->n_loss += r->head.n_loss;
    f->n_tokens += r->head.n_tokens;
    f->bytes += r->bulk_len;
    f->max_ctx = r->head.n_ctx > f->max_ctx ? r->head.n_ctx : f->max_ctx;
    f->max_loss = r->head.n_loss > f->max_loss ? r->head.n_loss : f->max_loss;
}

static enum spa_err unpack(const struct spa_features *f, size_t i, uint32_t *pos, int32_t *target, float *x_ctx, float *x, float *y_fin)
{
    const struct spa_feature_row *r = &f->rows[i];
    struct spa_message m = { .type = SPA_MSG_FEATURES, .bulk = r->bulk, .bulk_len = r->bulk_len };
    m.head.features = r->head;
    return spa_features_unpack(f->wire, &m, pos, target, x_ctx, x, y_fin);
}

/* A file whose sums are right was still not written by this program if its numbers are none. */
static int check_finite(const struct spa_features *f, char *why, size_t why_len)
{
    const size_t width = (size_t)f->shape.n_taps * f->shape.k, ctx = (size_t)f->shape.n_ctx_taps * f->shape.k * f->max_ctx, n = f->max_loss;
    float *x = malloc((ctx + n * (width + f->shape.d)) * sizeof *x + 1);
    uint32_t *words = malloc(2 * n * sizeof *words + 1);
    enum spa_err e = x && words ? SPA_OK : SPA_ERR_NOMEM;
    for (size_t i = 0; e == SPA_OK && i < f->n; i++)
        e = unpack(f, i, words, (int32_t *)(words + n), x, x + ctx, x + ctx + n * width);
    free(x);
    free(words);
    if (e != SPA_OK)
        snprintf(why, why_len, e == SPA_ERR_NOMEM ? "out of memory" : "the feature file holds a number that is not finite; train with --fresh to make it anew");
    return e == SPA_OK ? 0 : -1;
}

int spa_features_bind(struct spa_features *f, const struct spa_feature_file *file, enum spa_feature_kind kind,
                      const struct spa_feature_key *keys, size_t n, struct spa_rows *rows, struct spa_left_out *left, char *why,
                      size_t why_len)
{
    memset(f, 0, sizeof *f);
    f->mapped = true;
    f->wire = malloc(sizeof *f->wire);
    f->rows = calloc(n + 1, sizeof *f->rows);
    if (!f->wire || !f->rows) {
        snprintf(why, why_len, "out of memory");
        spa_features_free(f);
        return -1;
    }
    *f->wire = *spa_feature_file_wire(file);
    f->shape = f->wire->shape;
    for (size_t i = 0; i < n; i++) {
        const struct spa_feature_record *r = spa_feature_file_find(file, kind, &keys[i]);
        if (r && !r->refused) {
            if (left)
                rows->rows[f->n] = rows->rows[i];
            bind_row(f, file, r);
        } else if (left) {
            leave_out(left, &rows->rows[i], r, r ? spa_feature_file_bulk(file, r) : NULL);
        }
    }
    if (check_finite(f, why, why_len) != 0) {
        spa_features_free(f);
        return -1;
    }
    if (!left)
        return 0;
    left->of += (uint32_t)n;
    rows->n = f->n;
    if (f->n > 0 || n == 0)
        return 0;
    char cause[SPA_WHY_MAX];
    spa_left_out_say(left, cause, sizeof cause);
    snprintf(why, why_len, "no row is left to work with; %.900s", cause);
    spa_features_free(f);
    return -1;
}

void spa_features_free(struct spa_features *f)
{
    for (size_t i = 0; i < f->n && !f->mapped; i++)
        free(f->rows[i].bulk);
    free(f->rows);
    free(f->wire);
    memset(f, 0, sizeof *f);
}

void spa_features_row(const struct spa_features *f, size_t i, uint32_t *pos, int32_t *target, float *x_ctx, float *x,
                      float *y_fin)
{
    enum spa_err e = unpack(f, i, pos, target, x_ctx, x, y_fin);
    assert(e == SPA_OK);   /* it was when the row came, or was bound */
    (void)e;
}
