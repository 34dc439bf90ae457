/* models.c - names, plugin files and their lines (models.h). In: a name. Out: a job on the right line. */
#define _DEFAULT_SOURCE
#include "models.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

enum { WHY_MAX = 1024, POLL_MS = 5 };

/* What tells one version of a file from the next. */
struct version { struct timespec changed; off_t size; ino_t inode; };

struct entry {
    char  name[SPA_MODEL_NAME_MAX + 1];
    char *path;                    /* NULL: the base model alone */
    struct version seen;           /* of the newest file that was looked at */
    struct spa_line *line, *next;  /* next: of a newer file, being opened */
};

struct spa_models {
    struct spa_models_config cfg;
    struct entry entries[SPA_MODELS_MAX];
    size_t n;
    char base_name[SPA_MODEL_NAME_MAX + 1];
    struct spa_line *retired[SPA_MODELS_MAX];   /* answering their last jobs */
    struct spa_models_counts counts;            /* of lines that are gone */
};

struct spa_models *spa_models_new(const struct spa_models_config *cfg)
{
    struct spa_models *m = calloc(1, sizeof *m);
    if (m)
        m->cfg = *cfg;
    return m;
}

static bool version_of(const char *path, struct version *v)
{
    struct stat s;
    memset(v, 0, sizeof *v);
    if (stat(path, &s) != 0)
        return false;
    *v = (struct version){ .changed = s.st_mtim, .size = s.st_size, .inode = s.st_ino };
    return true;
}

static bool same_version(const struct version *a, const struct version *b)
{
    return a->changed.tv_sec == b->changed.tv_sec && a->changed.tv_nsec == b->changed.tv_nsec && a->size == b->size && a->inode == b->inode;
}

static struct spa_line *start_line(struct spa_models *m, const struct entry *en, struct spa_plugin_file *plugin, char *why, size_t why_len)
{
    struct spa_line_config cfg = m->cfg.line;
    char features[PATH_MAX];
    const int len = en->path ? snprintf(features, sizeof features, "%s.features", en->path) : -1;
    cfg.features = len > 0 && (size_t)len < sizeof features ? features : NULL;
    return spa_line_new(&cfg, plugin, why, why_len);
}

/* ---- start ---- */

static int name_of(const char *spec, struct entry *en, char *why, size_t why_len)
{
    const char *equals = strchr(spec, '='), *slash = strchr(spec, '/');
    const bool named = equals && (!slash || equals < slash);
    const char *path = named ? equals + 1 : spec, *from = named ? spec : strrchr(spec, '/') ? strrchr(spec, '/') + 1 : spec;
    size_t len = named ? (size_t)(equals - spec) : strlen(from);
    if (!named && len > 5 && strcmp(from + len - 5, ".gguf") == 0)
        len -= 5;
    bool plain = len > 0 && len <= SPA_MODEL_NAME_MAX;
    for (size_t i = 0; i < len; i++)
        plain = plain && from[i] > ' ' && from[i] < 127 && from[i] != '"' && from[i] != '\\';
    if (!plain || !*path) {
        snprintf(why, why_len, "--plugin %s: a model's name has 1 to %d plain characters; say --plugin NAME=FILE", spec, SPA_MODEL_NAME_MAX);
        return -1;
    }
    memcpy(en->name, from, len);
    en->name[len] = 0;
    en->path = strdup(path);
    if (!en->path)
        snprintf(why, why_len, "there is not enough memory for a plugin's name");
    return en->path ? 0 : -1;
}

int spa_models_add(struct spa_models *m, const char *spec, char *why, size_t why_len)
{
    if (m->n == SPA_MODELS_MAX) {
        snprintf(why, why_len, "--plugin may be given %d times", SPA_MODELS_MAX);
        return -1;
    }
    struct entry *en = &m->entries[m->n];
    struct spa_plugin_file plugin;
    if (name_of(spec, en, why, why_len) != 0)
        return -1;
    m->n++;
    for (size_t i = 0; i + 1 < m->n; i++)
        if (strcmp(m->entries[i].name, en->name) == 0) {
            snprintf(why, why_len, "two plugins have the name '%s'; say --plugin NAME=FILE", en->name);
            return -1;
        }
    version_of(en->path, &en->seen);
    if (spa_plugin_file_load(en->path, &plugin, why, why_len) != 0)
        return -1;
    en->line = start_line(m, en, &plugin, why, why_len);
    if (!en->line)
        spa_plugin_file_free(&plugin);
    return en->line ? 0 : -1;
}

static void nap(void)
{
    const struct timespec t = { 0, POLL_MS * 1000000L };
    nanosleep(&t, NULL);
}

int spa_models_open(struct spa_models *m, char *why, size_t why_len)
{
    if (m->n == 0) {   /* the base model alone */
        struct entry *en = &m->entries[m->n++];
        en->line = start_line(m, en, NULL, why, why_len);
        if (!en->line)
            return -1;
    }
    for (size_t i = 0; i < m->n; i++) {
        while (spa_line_state(m->entries[i].line) == SPA_LINE_OPENING)   /* ends: a link has its deadline */
            nap();
        if (spa_line_state(m->entries[i].line) == SPA_LINE_FAILED) {
            spa_line_why(m->entries[i].line, why, why_len);
            return -1;
        }
    }
    spa_line_base_name(m->entries[0].line, m->base_name, sizeof m->base_name);
    if (!m->entries[0].path)
        memcpy(m->entries[0].name, m->base_name, sizeof m->base_name);
    for (size_t i = 0; i < m->n; i++)
        if (m->entries[i].path && strcmp(m->entries[i].name, m->base_name) == 0) {
            snprintf(why, why_len, "the plugin '%s' has the base model's own name; say --plugin NAME=FILE", m->base_name);
            return -1;
        }
    return 0;
}

/* ---- files that change ---- */

static void retire(struct spa_models *m, struct spa_line *line)
{
    spa_line_retire(line);
    for (size_t i = 0; i < SPA_MODELS_MAX; i++)
        if (!m->retired[i]) {
            m->retired[i] = line;
            return;
        }
    spa_line_free(line);   /* so many old ones that still answer: this one's jobs end with an error */
}

static void add_counts(struct spa_line_counts *to, const struct spa_line_counts *c)
{
    to->bytes_down += c->bytes_down;
    to->bytes_up += c->bytes_up;
    to->reconnects += c->reconnects;
    to->resumed += c->resumed;
    to->continued += c->continued;
    to->cancelled += c->cancelled;
    to->open += c->open;
}

static void bury(struct spa_models *m)
{
    for (size_t i = 0; i < SPA_MODELS_MAX; i++)
        if (m->retired[i] && spa_line_ended(m->retired[i])) {
            const struct spa_line_counts c = spa_line_counts(m->retired[i]);
            add_counts(&m->counts.lines, &c);
            spa_line_free(m->retired[i]);
            m->retired[i] = NULL;
        }
}

static void say(struct spa_models *m, const struct entry *en, const char *what, const char *why)
{
    char sentence[WHY_MAX + 256];
    snprintf(sentence, sizeof sentence, "model '%s': %s%s%s", en->name, what, *why ? ": " : "", why);
    m->cfg.log(sentence);
}

/* The line of a newer file: has it come to anything? */
static void look_at_next(struct spa_models *m, struct entry *en)
{
    char why[WHY_MAX];
    if (!en->next)
        return;
    switch (spa_line_state(en->next)) {
    case SPA_LINE_OPENING:
        return;
    case SPA_LINE_FAILED:
        spa_line_why(en->next, why, sizeof why);
        say(m, en, "the new plugin file cannot be used and the old one stays", why);
        m->counts.reloads_refused++;
        retire(m, en->next);
        break;
    default:
        say(m, en, "the new plugin file is taken up", "");
        m->counts.reloads++;
        spa_line_fall_back(en->next, NULL);
        retire(m, en->line);
        en->line = en->next;
        break;
    }
    en->next = NULL;
}

static void look_at_file(struct spa_models *m, struct entry *en)
{
    char why[WHY_MAX];
    struct version now;
    struct spa_plugin_file plugin;
    /* A file that is away is being replaced, or was deleted: what we hold is what there is. */
    if (!en->path || en->next || !version_of(en->path, &now) || same_version(&now, &en->seen))
        return;
    en->seen = now;
    if (spa_plugin_file_load(en->path, &plugin, why, sizeof why) != 0) {
        say(m, en, "the new plugin file cannot be used and the old one stays", why);
        m->counts.reloads_refused++;
        return;
    }
    en->next = start_line(m, en, &plugin, why, sizeof why);
    if (en->next) {
        spa_line_fall_back(en->next, en->line);
        return;
    }
    spa_plugin_file_free(&plugin);
    say(m, en, "the new plugin file is not taken up now", why);
}

/* ---- asking ---- */

enum spa_models_found spa_models_ask(struct spa_models *m, struct spa_question *q, void (*wake)(void *user), void *user,
                                     struct spa_job **job, const char **name)
{
    struct entry *en = NULL;
    bool base = false;
    for (size_t i = 0; i < m->n && !en; i++)
        if (!q->model || !*q->model || strcmp(q->model, m->entries[i].name) == 0)
            en = &m->entries[i];
    if (!en && strcmp(q->model, m->base_name) == 0) {
        en = &m->entries[0];   /* any line does: its plugin is not asked */
        base = true;
    }
    if (!en)
        return SPA_MODELS_UNKNOWN;
    *name = base ? m->base_name : en->name;
    *job = spa_job_new(q, base, wake, user);
    if (!*job)
        return SPA_MODELS_NO_MEMORY;
    look_at_next(m, en);
    look_at_file(m, en);
    if ((en->next && spa_line_submit(en->next, *job)) || spa_line_submit(en->line, *job))
        return SPA_MODELS_TAKEN;
    const struct spa_api_error e = { .status = 503, .type = "server_error", .code = "cloud_unavailable", .message = "spa serve is shutting down" };
    spa_job_fail(*job, &e);
    return SPA_MODELS_TAKEN;
}

void spa_models_rouse(struct spa_models *m)
{
    for (size_t i = 0; i < m->n; i++) {
        spa_line_look(m->entries[i].line);
        if (m->entries[i].next)
            spa_line_look(m->entries[i].next);
    }
    for (size_t i = 0; i < SPA_MODELS_MAX; i++)
        if (m->retired[i])
            spa_line_look(m->retired[i]);
}

void spa_models_look(struct spa_models *m)
{
    for (size_t i = 0; i < m->n; i++)
        look_at_next(m, &m->entries[i]);
    bury(m);
}

const char *spa_models_name(const struct spa_models *m, size_t i, bool *is_base)
{
    *is_base = i == m->n || !m->entries[i < m->n ? i : 0].path;
    if (i < m->n)
        return m->entries[i].name;
    return i == m->n && m->entries[0].path ? m->base_name : NULL;
}

bool spa_models_connected(struct spa_models *m, char *why, size_t why_len)
{
    for (size_t i = 0; i < m->n; i++)
        if (spa_line_state(m->entries[i].line) != SPA_LINE_OPEN) {
            spa_line_why(m->entries[i].line, why, why_len);
            return false;
        }
    return true;
}

struct spa_models_counts spa_models_counts(struct spa_models *m)
{
    struct spa_models_counts all = m->counts;
    for (size_t i = 0; i < m->n + SPA_MODELS_MAX; i++) {
        struct spa_line *of[2] = { i < m->n ? m->entries[i].line : m->retired[i - m->n], i < m->n ? m->entries[i].next : NULL };
        for (size_t k = 0; k < 2; k++) {
            if (!of[k])
                continue;
            const struct spa_line_counts c = spa_line_counts(of[k]);
            add_counts(&all.lines, &c);
            all.lost += i < m->n && k == 0 && spa_line_state(of[k]) != SPA_LINE_OPEN;
        }
    }
    return all;
}

void spa_models_free(struct spa_models *m)
{
    if (!m)
        return;
    for (size_t i = 0; i < m->n; i++) {
        spa_line_free(m->entries[i].next);   /* first: it may hand jobs back */
        spa_line_free(m->entries[i].line);
        free(m->entries[i].path);
    }
    for (size_t i = 0; i < SPA_MODELS_MAX; i++)
        spa_line_free(m->retired[i]);
    free(m);
}
