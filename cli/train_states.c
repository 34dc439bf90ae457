/* train_states.c - in: rows and a cloud. out: the plugin's shape, the LM head, the basis and the features that training needs. */
#define _POSIX_C_SOURCE 200809L
#include "train.h"
#include "basis.h"
#include "general.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>

enum { FILE_HEAD_BYTES = 16384 };   /* keys and tensor table of a plugin file, roughly */

/* ---- rows ---- */

int spa_train_rows(struct spa_train *r, const char *const *paths, size_t n_paths)
{
    const char *eval = r->wishes->eval;
    spa_progress_begin(&r->progress, "rows");
    if (spa_rows_read(paths, n_paths, &r->rows, WHY) != 0)
        return -1;
    if (eval) {
        char *end;
        float share = strtof(eval, &end);
        bool is_share = *end == '\0' && end != eval;
        if (is_share && !(share > 0 && share < 1)) {
            snprintf(WHY, "--eval %s: a share of the rows lies between 0 and 1; otherwise name a file", eval);
            return -1;
        }
        int rc = is_share ? spa_rows_hold_back(&r->rows, share, r->wishes->seed, &r->held, WHY)
                          : spa_rows_read(&eval, 1, &r->held, WHY);
        if (rc != 0)
            return -1;
    }
    if (r->rows.n == 0)
        return spa_train_say(r, "there is no row to learn from");
    spa_progress_end(&r->progress, "%zu to learn from, %zu held back", r->rows.n, r->held.n);
    return 0;
}

/* ---- the links before training ---- */

static void count_bytes(struct spa_train *r, const struct spa_link *l)
{
    struct spa_link_bytes b = spa_link_bytes(l);
    r->bytes_down += b.down;
    r->bytes_up += b.up;
}

/* The model's numbers decide the plugin's shape, so the first link announces none. */
int spa_train_meet(struct spa_train *r)
{
    struct spa_link *l;
    struct spa_plugin *p = &r->file.plugin;
    spa_progress_begin(&r->progress, "head");
    if (spa_connect_open(&r->wishes->cloud, NULL, 0, SPA_MESSAGE_MIN, &l, WHY) != 0)
        return -1;
    const spa_Welcome *w = &spa_link_session(l)->welcome;
    int rc = spa_shape_from_wishes(&r->wishes->shape, w->d, w->n_layers, &p->shape, WHY);
    if (rc == 0)
        rc = spa_lm_head_open(&r->head, l, r->wishes->cache_dir, spa_progress_count, &r->progress, WHY);
    snprintf(p->base_name, sizeof p->base_name, "%.*s", (int)sizeof p->base_name - 1, w->model);
    p->has_base_hash = w->model_hash.size == SPA_HASH_BYTES;
    memcpy(p->base_hash, w->model_hash.bytes, sizeof p->base_hash);
    count_bytes(r, l);
    spa_link_close(l);
    if (rc != 0)
        return -1;
    enum { AS_FITS = 3 };
    p->tap_dtype = r->wishes->tap_dtype < AS_FITS ? (enum spa_dtype)r->wishes->tap_dtype : p->shape.basis ? SPA_I8 : SPA_F16;
    p->state_dtype = (enum spa_dtype)r->wishes->state_dtype;
    r->seconds_head = spa_progress_end(&r->progress, "%s: %u layers, d %u, %.1f MB of LM head", p->base_name, p->shape.n_layers,
                                       p->shape.d, (double)r->head.len / 1e6);
    return 0;
}

/* A disk that is full in the end would cost the whole training; one that is full now costs nothing. */
int spa_train_room(struct spa_train *r)
{
    const struct spa_shape *shape = &r->file.plugin.shape;
    const char *slash = strrchr(r->wishes->out, '/');
    char folder[PATH_MAX];
    struct statvfs disk;
    uint64_t needed = 4 * (uint64_t)(spa_param_count(shape) + spa_basis_floats(shape) + 2 * (size_t)shape->d) + FILE_HEAD_BYTES;
    snprintf(folder, sizeof folder, "%.*s", slash ? (int)(slash - r->wishes->out) + 1 : 1, slash ? r->wishes->out : ".");
    if (statvfs(folder, &disk) != 0 || (uint64_t)disk.f_bavail * disk.f_frsize >= needed)
        return 0;   /* a file system that does not say has room until it has none */
    snprintf(WHY, "%.700s has no room for the plugin: it needs %.1f MB, %.1f MB are free", folder, (double)needed / 1e6,
             (double)disk.f_bavail * (double)disk.f_frsize / 1e6);
    return -1;
}

static int fit_basis(struct spa_train *r, struct spa_link *l)
{
    const struct spa_features_progress progress = { spa_progress_count, &r->progress };
    uint8_t *basis;
    size_t len;
    if (!r->file.plugin.shape.basis)
        return 0;
    spa_progress_begin(&r->progress, "basis");
    if (spa_features_fit(l, &r->rows, &basis, &len, r->file.plugin.basis_hash, progress, WHY) != 0)
        return -1;
    r->file.basis = (float *)(void *)basis;   /* from malloc, so aligned; plugin files and this code are little-endian */
    r->seconds_states += spa_progress_end(&r->progress, "%u taps, %u numbers each, %.0f kB", r->file.plugin.shape.n_taps,
                                          r->file.plugin.shape.k, (double)len / 1e3);
    return 0;
}

/* The base model's own answers to general prompts, for the gate: a link without a plugin asks, l brings their states. */
static int ask_general(struct spa_train *r, struct spa_link *l)
{
    struct spa_link *base;
    struct spa_talk *t = NULL;
    struct spa_general g;
    if (r->wishes->general == 0)
        return 0;
    spa_progress_begin(&r->progress, "general");
    if (spa_connect_open(&r->wishes->cloud, NULL, 0, SPA_MESSAGE_MIN, &base, WHY) != 0)
        return -1;
    int rc = spa_talk_new(&t, base, NULL, WHY);
    if (rc == 0)
        rc = spa_general_make(&g, t, (size_t)r->wishes->general, WHY);
    spa_talk_free(t);
    count_bytes(r, base);
    spa_link_close(base);
    if (rc != 0)
        return -1;
    const size_t n = g.rows.n;
    rc = n ? spa_features_ask(&r->general_f, l, &g.rows, (struct spa_features_progress){ 0 }, WHY) : 0;
    spa_general_free(&g);
    if (rc == 0)
        r->seconds_states += spa_progress_end(&r->progress, "%zu general prompts and the base model's answers", n);
    return rc;
}

int spa_train_states(struct spa_train *r)
{
    const struct spa_features_progress progress = { spa_progress_count, &r->progress };
    struct spa_link *l;
    if (spa_connect_open(&r->wishes->cloud, &r->file, 0, SPA_MESSAGE_MAX, &l, WHY) != 0)
        return -1;
    int rc = fit_basis(r, l);
    if (rc == 0) {
        spa_progress_begin(&r->progress, "states");
        rc = spa_features_ask(&r->f, l, &r->rows, progress, WHY);
        if (rc == 0 && r->held.n > 0)
            rc = spa_features_ask(&r->held_f, l, &r->held, progress, WHY);
    }
    if (rc == 0)
        r->seconds_states += spa_progress_end(&r->progress, "%llu tokens, %llu of them carry loss, %.1f MB",
                                              (unsigned long long)(r->f.n_tokens + r->held_f.n_tokens),
                                              (unsigned long long)(r->f.n_loss + r->held_f.n_loss),
                                              (double)(r->f.bytes + r->held_f.bytes) / 1e6);
    if (rc == 0)
        rc = ask_general(r, l);
    count_bytes(r, l);
    spa_link_close(l);
    return rc;
}
