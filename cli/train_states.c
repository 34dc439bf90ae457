/* train_states.c - in: rows, a feature file of older runs, a cloud. out: the plugin's shape, the LM head, the basis and the features
 * that training needs. What the file holds is not asked for; when it holds all, there is no cloud. */
#define _POSIX_C_SOURCE 200809L
#include "train.h"
#include "members.h"
#include "basis.h"
#include "sample.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>
#include <unistd.h>

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
    if (r->wishes->last_answer_only) {
        spa_rows_last_answer_only(&r->rows);
        spa_rows_last_answer_only(&r->held);
    }
    spa_progress_end(&r->progress, "%zu to learn from, %zu held back", r->rows.n, r->held.n);
    return 0;
}

/* ---- the feature file ---- */

/* The user has named the file: then it is not ours to replace. */
static bool is_named(const struct spa_train *r) { return r->wishes->features != NULL; }

/* --from: the old plugin's rows are beside it; they come along, so that they can be replayed. */
static int take_old_features(struct spa_train *r, const char *path)
{
    enum { FEATURES_MAX = 1 << 30 };
    char old[PATH_MAX];
    uint8_t *bytes;
    size_t len;
    if (!r->wishes->from || r->wishes->features || access(path, F_OK) == 0)
        return 0;
    if ((size_t)snprintf(old, sizeof old, "%s.features", r->wishes->from) >= sizeof old || access(old, F_OK) != 0) {
        spa_progress_say(&r->progress, "from         no '%.300s.features': old rows are not replayed", r->wishes->from);
        return 0;
    }
    if (spa_store_read(old, FEATURES_MAX, &bytes, &len, WHY) != 0)
        return -1;
    const int rc = spa_store_replace(path, bytes, len, true, WHY);
    free(bytes);
    return rc;
}

static int open_store(struct spa_train *r)
{
    static char path[PATH_MAX];
    const struct spa_train_wishes *w = r->wishes;
    struct spa_train_store *s = &r->store;
    const char *slash = strrchr(w->out, '/');
    if (w->features && strcmp(w->features, "none") == 0) {
        snprintf(path, sizeof path, "%.*s", slash ? (int)(slash - w->out) + 1 : 1, slash ? w->out : ".");
        return spa_feature_file_open(&s->file, NULL, path, WHY);
    }
    if ((size_t)snprintf(path, sizeof path, "%s%s", w->features ? w->features : w->out, w->features ? "" : ".features") >= sizeof path)
        return spa_train_say(r, "the feature file's name is too long; name another with --features");
    s->shown = path;
    if (take_old_features(r, path) != 0)
        return -1;
    if (spa_feature_file_open(&s->file, path, NULL, WHY) != 0)
        return -1;
    return w->fresh ? spa_feature_file_forget(s->file, WHY) : 0;
}

static int make_keys(struct spa_train *r)
{
    struct spa_train_store *s = &r->store;
    s->rows = spa_features_keys(&r->rows);
    s->held = spa_features_keys(&r->held);
    return s->rows && s->held ? 0 : spa_train_say(r, "out of memory for the rows' keys");
}

/* Which of the model's anchors this run wants. */
static int make_general_keys(struct spa_train *r, const spa_Welcome *model)
{
    struct spa_train_store *s = &r->store;
    const size_t wish = (size_t)r->wishes->general;
    s->n_general = wish < model->n_anchors ? wish : model->n_anchors;
    free(s->general);
    s->general = malloc((s->n_general + 1) * sizeof *s->general);
    if (!s->general)
        return spa_train_say(r, "out of memory for the rows' keys");
    for (size_t i = 0; i < s->n_general; i++)
        spa_feature_key_anchor(model->model_hash.bytes, (uint32_t)spa_features_anchor(model->n_anchors, s->n_general, i), &s->general[i]);
    return 0;
}

void spa_train_store_free(struct spa_train *r)
{
    struct spa_train_store *s = &r->store;
    spa_feature_file_close(s->file);
    free(s->rows);
    free(s->held);
    free(s->general);
    free(s->all);
    *s = (struct spa_train_store){ 0 };
}

int spa_train_forget(struct spa_train *r)
{
    return r->wishes->forget ? spa_feature_file_forget(r->store.file, WHY) : 0;
}

static spa_Plugin announced(const struct spa_train *r)
{
    const struct spa_plugin *p = &r->file.plugin;
    spa_Plugin out;
    spa_wire_plugin_from_shape(&p->shape, &out);
    out.tap_dtype = (spa_Dtype)p->tap_dtype;
    out.generic = r->file.generic;   /* read by feature files alone: links announce r->file */
    if (r->file.basis) {
        out.basis_hash.size = SPA_HASH_BYTES;
        memcpy(out.basis_hash.bytes, p->basis_hash, SPA_HASH_BYTES);
    }
    return out;
}

/* --from: all of the old plugin but its weights' end. Its basis is what the old rows' features were made with. */
static int shape_of_old(struct spa_train *r, const spa_Welcome *w, spa_Plugin *out)
{
    const struct spa_plugin *old = &r->from.plugin;
    struct spa_plugin *p = &r->file.plugin;
    if (old->has_base_hash && w->model_hash.size == SPA_HASH_BYTES && memcmp(old->base_hash, w->model_hash.bytes, SPA_HASH_BYTES) != 0) {
        snprintf(WHY, "--from %.300s was trained for %.100s, and this cloud serves %.100s; use its own model or train anew", r->wishes->from,
                 old->base_name, w->model);
        return -1;
    }
    *p = *old;
    p->weights = SPA_F32;   /* a smaller form is for `spa convert` to choose */
    p->has_gate = false;
    if (old->shape.basis && !r->file.basis) {
        const size_t bytes = spa_basis_floats(&old->shape) * sizeof(float);
        r->file.basis = malloc(bytes);
        if (!r->file.basis)
            return spa_train_say(r, "out of memory for the basis");
        memcpy(r->file.basis, r->from.basis, bytes);
    }
    *out = announced(r);
    return 0;
}

/* The plugin's shape and forms for a model, and how they are announced. */
static int shape_for(struct spa_train *r, const spa_Welcome *w, spa_Plugin *out)
{
    enum { AS_FITS = 3 };
    struct spa_plugin *p = &r->file.plugin;
    if (r->from.params)
        return shape_of_old(r, w, out);
    struct spa_shape member;
    if (spa_shape_from_wishes(&r->wishes->shape, w->d, w->n_layers, &member, WHY) != 0)
        return -1;
    if (spa_members_shape(&member, (uint32_t)r->wishes->members, &p->shape) != SPA_OK) {
        snprintf(WHY, "--members %d of rank %u, inner width %u and context width %u are more than a plugin may have (%d each together); take fewer or smaller ones",
                 (int)r->wishes->members, member.r, member.m, member.e, SPA_MAX_WIDTH);
        return -1;
    }
    snprintf(p->base_name, sizeof p->base_name, "%.*s", (int)sizeof p->base_name - 1, w->model);
    p->has_base_hash = w->model_hash.size == SPA_HASH_BYTES;
    memcpy(p->base_hash, w->model_hash.bytes, sizeof p->base_hash);
    p->tap_dtype = r->wishes->tap_dtype < AS_FITS ? (enum spa_dtype)r->wishes->tap_dtype : p->shape.basis ? SPA_I8 : SPA_F16;
    p->state_dtype = r->wishes->state_dtype < AS_FITS ? (enum spa_dtype)r->wishes->state_dtype : p->shape.basis ? SPA_I8 : SPA_F16;
    r->file.generic = spa_shape_wants_generic(&r->wishes->shape);
    *out = announced(r);
    return 0;
}

/* A file that does not serve: the one that was named is left alone, our own is made anew. */
static int check_store(struct spa_train *r, const spa_Welcome *model, const spa_Plugin *wanted)
{
    char cause[SPA_WHY_MAX];
    if (spa_feature_file_check(r->store.file, model, wanted, cause, sizeof cause) == 0)
        return 0;
    if (!is_named(r)) {
        spa_progress_say(&r->progress, "%s; it is made anew", cause);
        return 0;
    }
    snprintf(WHY, "%.900s; --fresh makes it anew", cause);
    return -1;
}

/* Is everything here that a run needs before its eval? Then the model is the file's. 1, 0, or -1. */
static int from_store(struct spa_train *r)
{
    struct spa_train_store *s = &r->store;
    const spa_Welcome *model = spa_feature_file_model(s->file);
    spa_Plugin wanted;
    if (!model || r->wishes->head != 0 || shape_for(r, model, &wanted) != 0 || make_general_keys(r, model) != 0)
        return 0;   /* what is wrong is said of the cloud's model */
    if (!spa_feature_file_serves(s->file, &wanted, SPA_FEATURE_ROW, s->rows, r->rows.n) ||
        !spa_feature_file_serves(s->file, &wanted, SPA_FEATURE_HELD, s->held, r->held.n) ||
        !spa_feature_file_serves(s->file, &wanted, SPA_FEATURE_ANCHOR, s->general, s->n_general))
        return 0;
    int rc = spa_lm_head_open_cached(&r->head, model, r->wishes->cache_dir, WHY);
    if (rc == 1) {
        s->model = *model;
        s->complete = true;
    }
    return rc;
}

/* ---- the links before training ---- */

static void count_bytes(struct spa_train *r, const struct spa_link *l)
{
    struct spa_link_bytes b = spa_link_bytes(l);
    r->bytes_down += b.down;
    r->bytes_up += b.up;
}

/* The model's numbers decide the plugin's shape, so the first link announces none. */
static int meet_cloud(struct spa_train *r)
{
    struct spa_link *l;
    spa_Plugin wanted;
    if (spa_connect_open(&r->wishes->cloud, NULL, 0, SPA_MESSAGE_MIN, &l, WHY) != 0)
        return -1;
    r->store.model = spa_link_session(l)->welcome;
    int rc = shape_for(r, &r->store.model, &wanted);
    if (rc == 0)
        rc = make_general_keys(r, &r->store.model);
    if (rc == 0)
        rc = check_store(r, &r->store.model, &wanted);
    if (rc == 0)
        rc = spa_connect_head(&r->wishes->cloud, r->wishes->head, &r->head, l, r->wishes->cache_dir, spa_progress_count, &r->progress, WHY);
    count_bytes(r, l);
    spa_link_close(l);
    return rc;
}

int spa_train_meet(struct spa_train *r)
{
    if (r->wishes->from && spa_plugin_file_load(r->wishes->from, &r->from, WHY) != 0)
        return -1;
    if (r->wishes->from && spa_train_check_from(r) != 0)
        return -1;
    const struct spa_plugin *p = &r->file.plugin;
    char cause[SPA_WHY_MAX];
    spa_progress_begin(&r->progress, "head");
    if (open_store(r) != 0 || make_keys(r) != 0)
        return -1;
    if (is_named(r) && spa_feature_file_check(r->store.file, NULL, NULL, cause, sizeof cause) != 0)
        return check_store(r, NULL, NULL);   /* before anything is asked */
    int rc = from_store(r);
    if (rc < 0 || (rc == 0 && meet_cloud(r) != 0))
        return -1;
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

/* Goes on from the file when it has enough of the rows; its basis is then the plugin's. */
static int choose_store(struct spa_train *r)
{
    struct spa_train_store *s = &r->store;
    struct spa_plugin *p = &r->file.plugin;
    const spa_Plugin wanted = announced(r);
    bool used;
    /* With --from the basis is given, so whatever the file holds is of use. */
    int rc = spa_feature_file_use(s->file, &s->model, &wanted, s->rows, r->from.params ? 0 : r->rows.n, &used, WHY);
    if (rc != 0 || !used)
        return rc;
    const struct spa_feature_base *base = spa_feature_file_base(s->file);
    s->there = spa_feature_file_records(s->file);
    if (!p->shape.basis || r->file.basis)
        return 0;
    const size_t bytes = spa_basis_floats(&p->shape) * sizeof(float);
    r->file.basis = malloc(bytes);
    if (!r->file.basis)
        return spa_train_say(r, "out of memory for the basis");
    memcpy(r->file.basis, base->basis, bytes);
    memcpy(p->basis_hash, base->plugin.basis_hash.bytes, SPA_HASH_BYTES);
    return 0;
}

static int fit_basis(struct spa_train *r, struct spa_link *l)
{
    const struct spa_features_progress progress = { spa_progress_count, &r->progress };
    struct spa_plugin *p = &r->file.plugin;
    uint8_t *basis, hash[SPA_HASH_BYTES];
    size_t len;
    if (!p->shape.basis || r->file.basis)
        return 0;
    spa_progress_begin(&r->progress, "basis");
    int rc = r->file.generic ? spa_features_generic(l, &basis, &len, hash, WHY) : spa_features_fit(l, &r->rows, &basis, &len, hash, progress, WHY);
    if (rc != 0)
        return rc;
    memcpy(p->basis_hash, hash, sizeof hash);
    r->file.basis = (float *)(void *)basis;   /* from malloc, so aligned; plugin files and this code are little-endian */
    r->seconds_states += spa_progress_end(&r->progress, "%u taps, %u numbers each, %.0f kB", p->shape.n_taps, p->shape.k, (double)len / 1e3);
    return 0;
}

static void add_up(const struct spa_train *r, enum spa_feature_kind kind, const struct spa_feature_key *keys, size_t n, struct spa_features *sum)
{
    for (size_t i = 0; i < n; i++) {
        const struct spa_feature_record *record = spa_feature_file_find(r->store.file, kind, &keys[i]);
        sum->n_tokens += record->head.n_tokens;
        sum->n_loss += record->head.n_loss;
        sum->bytes += record->bulk_len;
    }
}

/* One link's worth: goes on where the file ends. */
static int ask_cloud(struct spa_train *r, struct spa_link *l)
{
    const struct spa_features_progress progress = { spa_progress_count, &r->progress };
    struct spa_train_store *s = &r->store;
    struct spa_features sum = { 0 };
    int rc = fit_basis(r, l);
    if (rc == 0 && !spa_feature_file_base(s->file)) {
        const spa_Plugin plugin = announced(r);
        rc = spa_feature_file_start(s->file, &s->model, &plugin, r->file.basis, WHY);
    }
    spa_progress_begin(&r->progress, "states");
    if (rc == 0)
        rc = spa_features_ask(s->file, l, SPA_FEATURE_ROW, &r->rows, s->rows, progress, WHY);
    if (rc == 0)
        rc = spa_features_ask(s->file, l, SPA_FEATURE_HELD, &r->held, s->held, progress, WHY);
    if (rc != 0)
        return rc;
    add_up(r, SPA_FEATURE_ROW, s->rows, r->rows.n, &sum);
    add_up(r, SPA_FEATURE_HELD, s->held, r->held.n, &sum);
    r->seconds_states += spa_progress_end(&r->progress, "%llu tokens, %llu of them carry loss, %.1f MB", (unsigned long long)sum.n_tokens,
                                          (unsigned long long)sum.n_loss, (double)sum.bytes / 1e6);
    return 0;
}

/* The base model's own answers to general prompts, to be held by: the cloud has them, with their states. */
static int ask_general(struct spa_train *r, struct spa_link *l)
{
    const struct spa_features_progress progress = { spa_progress_count, &r->progress };
    struct spa_train_store *s = &r->store;
    if (spa_features_all_there(s->file, SPA_FEATURE_ANCHOR, s->general, s->n_general))
        return 0;
    const uint32_t n_anchors = spa_link_session(l)->welcome.n_anchors;
    if (n_anchors != s->model.n_anchors) {   /* their numbers are not those that were chosen */
        snprintf(WHY, "the cloud has %u general prompts now, and had %u a moment ago; run it again", n_anchors, s->model.n_anchors);
        return -1;
    }
    spa_progress_begin(&r->progress, "general");
    const int rc = spa_features_ask_anchors(s->file, l, s->general, s->n_general, progress, WHY);
    if (rc == 0)
        r->seconds_states += spa_progress_end(&r->progress, "%zu general prompts and the base model's answers", s->n_general);
    return rc;
}

/* What the first link has said of the model decided the plugin's shape, the head and which tokens there are. */
static int check_same(struct spa_train *r, const spa_Welcome *w)
{
    const spa_Welcome *m = &r->store.model;
    if (w->d == m->d && w->n_layers == m->n_layers && w->n_vocab == m->n_vocab && w->model_hash.size == m->model_hash.size &&
        memcmp(w->model_hash.bytes, m->model_hash.bytes, m->model_hash.size) == 0)
        return 0;
    snprintf(WHY, "the cloud serves another model than when this run began ('%s', not '%s'); start again", w->model, m->model);
    return -1;
}

/* Roughly, of rows that are not in the file yet. */
static uint64_t guessed_tokens(const struct spa_train *r, enum spa_feature_kind kind, const struct spa_rows *rows, const struct spa_feature_key *keys)
{
    enum { BYTES_A_TOKEN = 3, MARKUP = 10 };
    const bool begun = spa_feature_file_base(r->store.file);
    uint64_t n = 0;
    for (size_t i = 0; i < rows->n; i++)
        for (size_t k = 0; k < rows->rows[i].n_parts && !(begun && spa_feature_file_find(r->store.file, kind, &keys[i])); k++)
            n += rows->rows[i].parts[k].len / BYTES_A_TOKEN + MARKUP;
    return n;
}

/* Before it is silent for long. */
static void say_how_long(struct spa_train *r, uint32_t a_minute)
{
    const uint64_t n = guessed_tokens(r, SPA_FEATURE_ROW, &r->rows, r->store.rows) + guessed_tokens(r, SPA_FEATURE_HELD, &r->held, r->store.held);
    if (r->store.said_pace || a_minute == 0 || n <= a_minute)
        return;
    r->store.said_pace = true;
    spa_progress_say(&r->progress, "cloud        it gives this key %u tokens a minute; the states take about %llu minutes", a_minute,
                     (unsigned long long)((n + a_minute - 1) / a_minute));
}

static int attempt(struct spa_train *r)
{
    struct spa_link *l;
    int rc = spa_connect_again(&r->wishes->cloud, &r->store.clouds, &r->file, 0, SPA_MESSAGE_MAX, &l, WHY);
    r->store.retry.later_ms = rc == -1 ? r->store.clouds.later_ms : 0;
    if (rc != 0)
        return rc != SPA_LINK_REFUSED ? SPA_FEATURES_LOST : -1;   /* it was met a moment ago: it may start again */
    rc = check_same(r, &spa_link_session(l)->welcome);
    if (rc == 0)
        say_how_long(r, spa_link_session(l)->welcome.tokens_per_minute);
    if (rc == 0)
        rc = ask_cloud(r, l);
    if (rc == 0)
        rc = ask_general(r, l);
    count_bytes(r, l);
    spa_link_close(l);
    return rc;
}

/* What a run that ends here leaves behind. */
static int say_what_is_safe(struct spa_train *r)
{
    char cause[SPA_WHY_MAX];
    const uint64_t n = spa_feature_file_records(r->store.file);
    if (n == 0 || !r->store.shown)
        return -1;
    snprintf(cause, sizeof cause, "%s", r->why);
    snprintf(WHY, "%.500s; the states of %llu rows are safe beside '%.300s', and the same command goes on from there", cause,
             (unsigned long long)n, r->store.shown);
    return -1;
}

static int gather(struct spa_train *r)
{
    struct spa_train_store *s = &r->store;
    const int32_t retry_s = r->wishes->cloud.retry_s;
    for (;;) {
        const uint64_t before = spa_feature_file_added(s->file);
        int rc = attempt(r);
        if (rc == 0)
            return 0;
        if (spa_feature_file_added(s->file) > before)
            s->retry.begun = false;   /* it went on for a while */
        if (rc == SPA_FEATURES_LOST && !s->retry.begun && retry_s)
            spa_progress_say(&r->progress, "cloud        %s; trying again for %d s", r->why, retry_s);
        if (rc != SPA_FEATURES_LOST || !spa_connect_pause(&s->retry, retry_s))
            return say_what_is_safe(r);
    }
}

static int has_key(const void *a, const void *b) { return memcmp(a, b, sizeof(struct spa_feature_key)); }

/* The keys of what is trained on: this run's rows, and with --from a share of the rows of older runs, of which the file has the features. */
static int choose_rows(struct spa_train *r)
{
    struct spa_train_store *s = &r->store;
    struct spa_feature_key *old = NULL;
    size_t n_old = r->from.params && r->wishes->replay > 0 ? spa_feature_file_keys(s->file, SPA_FEATURE_ROW, &old) : 0;
    const size_t n_own = r->rows.n + r->held.n;
    struct spa_feature_key *own = malloc((n_own + 1) * sizeof *own);
    s->all = n_old != SIZE_MAX ? malloc((r->rows.n + n_old + 1) * sizeof *s->all) : NULL;
    if (!own || !s->all) {
        free(own);
        free(old);
        return spa_train_say(r, "out of memory for the rows' keys");
    }
    memcpy(own, s->rows, r->rows.n * sizeof *own);
    memcpy(own + r->rows.n, s->held, r->held.n * sizeof *own);
    qsort(own, n_own, sizeof *own, has_key);
    memcpy(s->all, s->rows, r->rows.n * sizeof *s->all);
    s->n_all = r->rows.n;
    for (size_t i = 0; i < n_old; i++)
        if (!bsearch(&old[i], own, n_own, sizeof *own, has_key) &&
            (double)(spa_noise64(r->wishes->seed, 0, i) >> 11) < (double)r->wishes->replay * 0x1p53)
            s->all[s->n_all++] = old[i];
    free(own);
    free(old);
    return 0;
}

static int bind_all(struct spa_train *r)
{
    struct spa_train_store *s = &r->store;
    const size_t n_asked = r->rows.n;
    if (choose_rows(r) != 0 ||
        spa_features_bind(&r->f, s->file, SPA_FEATURE_ROW, s->rows, n_asked, &r->rows, &s->left, WHY) != 0 ||
        spa_features_bind(&r->held_f, s->file, SPA_FEATURE_HELD, s->held, r->held.n, &r->held, &s->left, WHY) != 0 ||
        spa_features_bind(&r->general_f, s->file, SPA_FEATURE_ANCHOR, s->general, s->n_general, NULL, NULL, WHY) != 0)
        return -1;
    if (s->n_all > n_asked) {   /* once more, with the old rows behind them */
        s->replayed = s->n_all - n_asked;
        spa_features_free(&r->f);
        if (spa_features_bind(&r->f, s->file, SPA_FEATURE_ROW, s->all, s->n_all, NULL, NULL, WHY) != 0)
            return -1;
    }
    return spa_train_split_general(r);
}

int spa_train_states(struct spa_train *r)
{
    struct spa_train_store *s = &r->store;
    if (choose_store(r) != 0)
        return say_what_is_safe(r);
    if (!s->complete && gather(r) != 0)
        return -1;
    spa_progress_begin(&r->progress, "features");
    if (spa_feature_file_finish(s->file, WHY) != 0)
        return say_what_is_safe(r);
    if (bind_all(r) != 0)
        return -1;
    r->seconds_states += spa_progress_end(&r->progress, "%llu rows were there, %llu came from the cloud; %.1f MB in %s",
                                          (unsigned long long)s->there, (unsigned long long)spa_feature_file_added(s->file),
                                          (double)spa_feature_file_bytes(s->file) / 1e6, s->shown ? s->shown : "no file");
    return 0;
}
