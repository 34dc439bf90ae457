/* anchors.c - in: prompts, a model's decodes. out: answers and states, by number (anchors.h). Files are anchors_file.c's. */
#include "anchors_parts.h"
#include "dtype.h"
#include "turn.h"

#include <assert.h>
#include <math.h>
#include <openssl/evp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    FORMAT = 1,                 /* of the files: a new number makes them all anew */
    ROUND_TOKENS = 64,          /* of anchors in one decode: others' answers wait for it */
};
static const size_t blocks_max = (size_t)512 << 20;   /* bytes of states in memory, of all sets */

void anchors_log(const struct spa_anchors *a, enum spa_log_level level, const char *fmt, ...)
{
    char line[512];
    va_list args;
    va_start(args, fmt);
    vsnprintf(line, sizeof line, fmt, args);
    va_end(args);
    if (a->log)
        a->log(a->log_user, level, line);
}

void anchor_hash(const void *bytes, size_t len, uint8_t hash[ANCHOR_HASH])
{
    if (!EVP_Digest(bytes, len, hash, NULL, EVP_sha256(), NULL))
        abort();   /* only without memory, or in an OpenSSL that lacks SHA-256: a hash must never be wrong in silence */
}

/* ---- records ---- */

size_t anchor_group_bytes(const struct spa_anchors *a)
{
    return sizeof(float) + spa_dtype_bytes(SPA_F16, 1, a->model->info.d);
}

size_t anchor_record_bytes(const struct spa_anchor_set *s, uint32_t n_prompt, uint32_t n_tokens)
{
    const size_t groups = (size_t)(n_tokens - 1) * s->n_layers + (n_tokens - n_prompt);
    return 8 + (size_t)n_tokens * sizeof(int32_t) + groups * anchor_group_bytes(s->owner);
}

static void pack_group(uint32_t d, const float *y, float *scratch, uint8_t *out)
{
    double squares = 0;
    for (uint32_t i = 0; i < d; i++)
        squares += (double)y[i] * y[i];
    const float rms = (float)sqrt(squares / d), inv = rms > 0 ? 1 / rms : 0;
    for (uint32_t i = 0; i < d; i++)
        scratch[i] = y[i] * inv;
    memcpy(out, &rms, sizeof rms);
    spa_dtype_pack(SPA_F16, scratch, 1, d, out + sizeof rms);
}

static void unpack_group(uint32_t d, const uint8_t *in, float *y)
{
    float rms;
    memcpy(&rms, in, sizeof rms);
    (void)spa_dtype_unpack(SPA_F16, in + sizeof rms, 1, d, y);   /* what is not finite shows on the device, as with any row */
    for (uint32_t i = 0; i < d; i++)
        y[i] *= rms;
}

static struct spa_anchor view(const struct spa_anchor_set *s, const uint8_t *record)
{
    struct spa_anchor v;
    memcpy(&v.n_prompt, record, 4);
    memcpy(&v.n_tokens, record + 4, 4);
    v.tokens = (const int32_t *)(const void *)(record + 8);   /* records begin at multiples of 8 */
    v.taps = record + 8 + (size_t)v.n_tokens * sizeof(int32_t);
    v.y_fin = v.taps + (size_t)(v.n_tokens - 1) * s->n_layers * anchor_group_bytes(s->owner);
    return v;
}

void spa_anchor_taps(const struct spa_anchor_set *s, const struct spa_anchor *anchor, uint32_t pos, float *y)
{
    const size_t group = anchor_group_bytes(s->owner);
    const uint32_t d = s->owner->model->info.d;
    for (uint32_t i = 0; i < s->n_layers; i++)
        unpack_group(d, anchor->taps + ((size_t)pos * s->n_layers + i) * group, y + (size_t)i * d);
}

void spa_anchor_y_fin(const struct spa_anchor_set *s, const struct spa_anchor *anchor, uint32_t i, float *y)
{
    unpack_group(s->owner->model->info.d, anchor->y_fin + i * anchor_group_bytes(s->owner), y);
}

void anchor_drop_block(struct spa_anchor_set *s, struct anchor_entry *e)
{
    if (!e->block)
        return;
    s->owner->block_bytes -= e->len;
    free(e->block);
    e->block = NULL;
}

/* ---- all anchors ---- */

/* The prompt as the model's template writes it. NULL: it cannot, or no slot has room for it and an answer. */
static int32_t *prompt_tokens(const struct spa_model *m, const char *prompt, uint32_t *n)
{
    const struct spa_part part = { .kind = SPA_PART_USER, .bytes = (const uint8_t *)prompt, .len = (uint32_t)strlen(prompt) };
    char *text = spa_chat_text(m, &part, 1, true);
    int32_t *tokens = text ? spa_tokens_of(m, text, strlen(text), true, true, n) : NULL;
    free(text);
    const uint32_t room = m->info.n_ctx_slot < m->info.n_learn_cells ? m->info.n_ctx_slot : m->info.n_learn_cells;
    int32_t *longer = tokens && *n > 0 && *n + SPA_ANCHOR_ANSWER <= room ? realloc(tokens, (*n + SPA_ANCHOR_ANSWER) * sizeof *tokens) : NULL;
    if (!longer)
        free(tokens);
    return longer;
}

static int make_key(struct spa_anchors *a)
{
    const uint32_t format[2] = { FORMAT, SPA_ANCHOR_ANSWER };
    EVP_MD_CTX *md = EVP_MD_CTX_new();
    int ok = md && EVP_DigestInit_ex(md, EVP_sha256(), NULL) && EVP_DigestUpdate(md, format, sizeof format) &&
             EVP_DigestUpdate(md, a->model->info.hash, sizeof a->model->info.hash);
    for (uint32_t i = 0; ok && i < a->n; i++)
        ok = EVP_DigestUpdate(md, &a->texts[i].n_prompt, 4) && EVP_DigestUpdate(md, a->texts[i].tokens, a->texts[i].n_prompt * sizeof(int32_t));
    ok = ok && EVP_DigestFinal_ex(md, a->key, NULL);
    EVP_MD_CTX_free(md);
    return ok ? 0 : -1;
}

struct spa_anchors *spa_anchors_new(const struct spa_anchors_config *cfg)
{
    const struct spa_model_info *info = &cfg->model->info;
    struct spa_anchors *a = calloc(1, sizeof *a);
    if (!a)
        return NULL;
    a->model = cfg->model;
    a->log = cfg->log;
    a->log_user = cfg->log_user;
    a->texts = calloc(cfg->n_prompts + 1, sizeof *a->texts);
    a->states = malloc((size_t)ANCHOR_JOBS * info->d * sizeof *a->states);
    a->logits = malloc((size_t)ANCHOR_JOBS * (size_t)info->n_vocab * sizeof *a->logits);
    a->folder = cfg->folder ? strdup(cfg->folder) : NULL;
    if (!a->texts || !a->states || !a->logits || (cfg->folder && !a->folder))
        goto fail;
    for (size_t i = 0; i < cfg->n_prompts; i++) {
        uint32_t n;
        int32_t *tokens = prompt_tokens(a->model, cfg->prompts[i], &n);
        if (tokens)
            a->texts[a->n++] = (struct anchor_text){ tokens, n, n };
    }
    if (make_key(a) != 0)
        goto fail;
    anchors_read_answers(a);
    return a;
fail:
    spa_anchors_free(a);
    return NULL;
}

void spa_anchors_sit(struct spa_anchors *a, struct spa_anchors_seats seats)
{
    a->seats = seats;
}

uint32_t spa_anchors_n(const struct spa_anchors *a)
{
    return a ? a->n : 0;
}

/* ---- sets ---- */

static void set_free(struct spa_anchor_set *s)
{
    for (uint32_t i = 0; i < s->owner->n; i++)
        anchor_drop_block(s, &s->entries[i]);
    anchors_unmap(s);
    free(s->entries);
    free(s);
}

static bool idle(const struct spa_anchor_set *s)
{
    return s->users == 0 && s->n_running == 0 && !s->dirty && s->owner->writer.set != s;
}

struct spa_anchor_set *spa_anchor_set_get(struct spa_anchors *a, const uint32_t *layers, uint32_t n_layers)
{
    size_t place = SPA_ANCHOR_SETS;
    for (size_t i = 0; i < SPA_ANCHOR_SETS; i++) {
        struct spa_anchor_set *s = a->sets[i];
        if (s && s->n_layers == n_layers && memcmp(s->layers, layers, n_layers * sizeof *layers) == 0) {
            s->users++;
            s->last_used = ++a->clock;
            return s;
        }
        if (!s ? place == SPA_ANCHOR_SETS || a->sets[place]
               : idle(s) && (place == SPA_ANCHOR_SETS || (a->sets[place] && s->last_used < a->sets[place]->last_used)))
            place = i;
    }
    struct spa_anchor_set *s = place < SPA_ANCHOR_SETS ? calloc(1, sizeof *s) : NULL;
    if (!s)
        return NULL;
    s->owner = a;
    s->entries = calloc(a->n + 1, sizeof *s->entries);
    if (!s->entries) {
        free(s);
        return NULL;
    }
    if (a->sets[place])
        set_free(a->sets[place]);
    a->sets[place] = s;
    s->n_layers = n_layers;
    if (n_layers)
        memcpy(s->layers, layers, n_layers * sizeof *layers);
    s->users = 1;
    s->last_used = ++a->clock;
    anchors_map(s);
    return s;
}

static void no_longer_wanted(struct spa_anchor_set *s, struct anchor_entry *e)
{
    s->n_wanted -= e->wanted;
    e->wanted = false;
}

void spa_anchor_set_put(struct spa_anchor_set *s)
{
    if (!s || --s->users > 0)
        return;
    for (uint32_t i = 0; i < s->owner->n; i++)
        if (!s->entries[i].running)
            no_longer_wanted(s, &s->entries[i]);
}

/* Its tokens are the prompt's and then the model's: they reach devices as targets. */
static bool tokens_good(const struct spa_anchor_set *s, const struct spa_anchor *v, const struct anchor_text *t)
{
    bool good = memcmp(v->tokens, t->tokens, t->n_prompt * sizeof *t->tokens) == 0;
    for (uint32_t i = t->n_prompt; good && i < v->n_tokens; i++)
        good = v->tokens[i] >= 0 && v->tokens[i] < s->owner->model->info.n_vocab;
    return good;
}

/* The record of an entry, checked once against its hash; NULL: none, or damaged. */
static const uint8_t *record_of(struct spa_anchor_set *s, struct anchor_entry *e, uint32_t number)
{
    if (e->block || !e->mapped)
        return e->block;
    uint8_t hash[ANCHOR_HASH];
    if (!e->checked) {
        anchor_hash(e->mapped, e->len, hash);
        if (memcmp(hash, e->hash, ANCHOR_HASH) == 0 && e->len > 8) {
            const struct spa_anchor v = view(s, e->mapped);
            e->checked = v.n_prompt == s->owner->texts[number].n_prompt && v.n_tokens > v.n_prompt &&
                         v.n_tokens <= v.n_prompt + SPA_ANCHOR_ANSWER && e->len == anchor_record_bytes(s, v.n_prompt, v.n_tokens) &&
                         tokens_good(s, &v, &s->owner->texts[number]);
        }
        if (!e->checked) {
            anchors_log(s->owner, SPA_LOG_WARN, "anchors: the states of anchor %u are damaged in the cache folder and are made again", number);
            e->mapped = NULL;
        }
    }
    return e->mapped;
}

enum spa_anchor_status spa_anchor_get(struct spa_anchor_set *s, uint32_t number, struct spa_anchor *out)
{
    struct spa_anchors *a = s->owner;
    assert(number < a->n);
    struct anchor_entry *e = &s->entries[number];
    const struct anchor_text *t = &a->texts[number];
    const uint8_t *record = s->n_layers ? record_of(s, e, number) : NULL;
    if (record) {
        *out = view(s, record);
        return SPA_ANCHOR_HERE;
    }
    if (s->n_layers == 0 && t->n_tokens > t->n_prompt) {
        *out = (struct spa_anchor){ .tokens = t->tokens, .n_prompt = t->n_prompt, .n_tokens = t->n_tokens };
        return SPA_ANCHOR_HERE;
    }
    if (e->failed) {
        e->failed = false;
        return SPA_ANCHOR_FAILED;
    }
    s->n_wanted += !e->wanted;
    e->wanted = true;
    return SPA_ANCHOR_COMING;
}

/* ---- jobs ---- */

static void job_clear(struct anchor_job *j)
{
    free(j->tokens);
    free(j->state);
    free(j->record);
    *j = (struct anchor_job){ 0 };
}

static void job_end(struct spa_anchors *a, struct anchor_job *j)
{
    a->model->seq_rm(a->model->self, a->model->info.n_slots + j->seq, 0);
    a->seats.give(a->seats.user, j->seq, j->cells);
    j->set->entries[j->number].running = false;
    j->set->n_running--;
    no_longer_wanted(j->set, &j->set->entries[j->number]);
    job_clear(j);
}

static void job_fail(struct spa_anchors *a, struct anchor_job *j)
{
    j->set->entries[j->number].failed = true;
    job_end(a, j);
}

/* The answer is known: its states, in one pass over prompt and answer whoever made it. */
static void begin_states(struct spa_anchors *a, struct anchor_job *j)
{
    if (j->set->n_layers == 0) {
        job_end(a, j);
        return;
    }
    a->model->seq_rm(a->model->self, a->model->info.n_slots + j->seq, 0);
    j->n_past = 0;
    j->phase = JOB_STATES;
    j->record_len = anchor_record_bytes(j->set, j->n_prompt, j->n_tokens);
    j->record = malloc(j->record_len);
    if (!j->record) {
        job_fail(a, j);
        return;
    }
    memcpy(j->record, &j->n_prompt, 4);
    memcpy(j->record + 4, &j->n_tokens, 4);
    memcpy(j->record + 8, j->tokens, (size_t)j->n_tokens * sizeof *j->tokens);
}

static void states_here(struct spa_anchors *a, struct anchor_job *j)
{
    struct anchor_entry *e = &j->set->entries[j->number];
    e->block = j->record;
    e->len = j->record_len;
    anchor_hash(e->block, e->len, e->hash);
    a->block_bytes += e->len;
    j->set->dirty = a->folder != NULL;
    j->record = NULL;
    job_end(a, j);
}

static bool job_begin(struct spa_anchors *a, struct anchor_job *j, struct spa_anchor_set *s, uint32_t number)
{
    const struct anchor_text *t = &a->texts[number];
    const uint32_t d = a->model->info.d, cells = t->n_prompt + SPA_ANCHOR_ANSWER;
    const int32_t seq = a->seats.take(a->seats.user, cells);
    if (seq < 0)
        return false;
    *j = (struct anchor_job){ .phase = JOB_ANSWER, .set = s, .number = number, .seq = (uint32_t)seq, .cells = cells,
                              .tokens = malloc(cells * sizeof *j->tokens), .state = malloc(d * sizeof *j->state),
                              .n_prompt = t->n_prompt, .n_tokens = t->n_tokens };
    s->entries[number].running = true;
    s->n_running++;
    if (!j->tokens || !j->state) {
        job_fail(a, j);
        return true;
    }
    memcpy(j->tokens, t->tokens, (size_t)t->n_tokens * sizeof *j->tokens);
    if (t->n_tokens > t->n_prompt)
        begin_states(a, j);
    return true;
}

/* Nothing more fits into memory. What goes to a file has left soon; otherwise unused sets go, and then nobody gets more. */
static bool memory_full(struct spa_anchors *a)
{
    for (size_t i = 0; a->block_bytes > blocks_max && !a->folder && i < SPA_ANCHOR_SETS; i++)
        if (a->sets[i] && idle(a->sets[i])) {
            set_free(a->sets[i]);
            a->sets[i] = NULL;
        }
    if (a->block_bytes <= blocks_max)
        return false;
    for (size_t i = 0; !a->folder && i < SPA_ANCHOR_SETS; i++)
        for (uint32_t k = 0; a->sets[i] && k < a->n; k++) {
            struct anchor_entry *e = &a->sets[i]->entries[k];
            e->failed |= e->wanted && !e->running;
            if (!e->running)
                no_longer_wanted(a->sets[i], e);
        }
    return true;
}

static struct spa_anchor_set *next_wanting(struct spa_anchors *a, uint32_t *number)
{
    for (uint32_t i = 0; i < SPA_ANCHOR_SETS; i++) {
        struct spa_anchor_set *s = a->sets[(a->next_set + i) % SPA_ANCHOR_SETS];
        for (uint32_t k = 0; s && s->n_wanted > s->n_running && k < a->n; k++)
            if (s->entries[k].wanted && !s->entries[k].running) {
                a->next_set = (a->next_set + i + 1) % SPA_ANCHOR_SETS;
                *number = k;
                return s;
            }
    }
    return NULL;
}

static void begin_jobs(struct spa_anchors *a)
{
    if (memory_full(a))
        return;
    for (size_t i = 0; i < ANCHOR_JOBS; i++) {
        uint32_t number;
        struct spa_anchor_set *s = a->jobs[i].phase == JOB_FREE ? next_wanting(a, &number) : NULL;
        if (s && !job_begin(a, &a->jobs[i], s, number))
            return;
    }
}

static uint32_t to_feed(const struct anchor_job *j)
{
    return j->phase == JOB_ANSWER ? j->n_tokens - j->n_past : j->phase == JOB_STATES ? j->n_tokens - 1 - j->n_past : 0;
}

static enum spa_want want_of(const struct spa_anchors *a, const struct anchor_job *j, uint32_t pos)
{
    if (j->phase == JOB_ANSWER)
        return pos + 1 == j->n_tokens ? SPA_WANT_ALL : SPA_WANT_NONE;
    const bool last_layer = j->set->layers[j->set->n_layers - 1] == a->model->info.n_layers;
    return last_layer || pos + 1 >= j->n_prompt ? SPA_WANT_ALL : SPA_WANT_MID;
}

uint32_t spa_anchors_collect(struct spa_anchors *a, struct spa_batch_token *batch, uint32_t room, int32_t *layer_at)
{
    uint32_t n = 0;
    room = room < ROUND_TOKENS ? room : ROUND_TOKENS;
    begin_jobs(a);
    for (size_t i = 0; i < ANCHOR_JOBS; i++) {
        struct anchor_job *j = &a->jobs[i];
        const uint32_t left = to_feed(j);
        j->n_run = left < room - n ? left : room - n;
        for (uint32_t k = 0; k < j->n_run; k++) {
            const uint32_t pos = j->n_past + k;
            batch[n++] = (struct spa_batch_token){ j->tokens[pos], pos, a->model->info.n_slots + j->seq, want_of(a, j, pos) };
        }
        for (uint32_t k = 0; j->n_run && j->phase == JOB_STATES && k < j->set->n_layers; k++)
            layer_at[j->set->layers[k]] = 0;
    }
    return n;
}

static void keep_position(const struct spa_anchors *a, struct anchor_job *j, uint32_t pos, const struct spa_states *s, uint32_t wanted,
                          const int32_t *layer_at)
{
    const uint32_t d = a->model->info.d;
    const size_t group = anchor_group_bytes(a);
    uint8_t *taps = j->record + 8 + (size_t)j->n_tokens * sizeof(int32_t), *y_fin = taps + (size_t)(j->n_tokens - 1) * j->set->n_layers * group;
    for (uint32_t i = 0; i < j->set->n_layers; i++)
        pack_group(d, s->taps + ((size_t)layer_at[j->set->layers[i]] * s->n_wanted + wanted) * d, a->states,
                   taps + ((size_t)pos * j->set->n_layers + i) * group);
    if (pos + 1 >= j->n_prompt)
        pack_group(d, s->y_fin + (size_t)wanted * d, a->states, y_fin + (pos + 1 - j->n_prompt) * group);
}

void spa_anchors_deliver(struct spa_anchors *a, const struct spa_states *s, uint32_t wanted, const int32_t *layer_at)
{
    for (size_t i = 0; i < ANCHOR_JOBS; i++) {
        struct anchor_job *j = &a->jobs[i];
        for (uint32_t k = 0; k < j->n_run; k++) {
            const uint32_t pos = j->n_past + k;
            if (want_of(a, j, pos) == SPA_WANT_NONE)
                continue;
            if (j->phase == JOB_STATES)
                keep_position(a, j, pos, s, wanted, layer_at);
            else
                memcpy(j->state, s->y_fin + (size_t)wanted * a->model->info.d, a->model->info.d * sizeof *j->state);
            wanted++;
        }
        const bool through = j->n_run > 0 && j->n_run == to_feed(j);
        j->n_past += j->n_run;
        j->n_run = 0;
        if (through && j->phase == JOB_STATES)
            states_here(a, j);
        else if (through)
            j->phase = JOB_HEAD;
    }
}

void spa_anchors_decode_failed(struct spa_anchors *a)
{
    for (size_t i = 0; i < ANCHOR_JOBS; i++)
        if (a->jobs[i].n_run)
            job_fail(a, &a->jobs[i]);
}

static int32_t greedy(const float *logits, int32_t n)
{
    int32_t best = 0;
    for (int32_t i = 1; i < n; i++)
        best = logits[i] > logits[best] ? i : best;
    return best;
}

void spa_anchors_speak(struct spa_anchors *a)
{
    const struct spa_model_info *info = &a->model->info;
    struct anchor_job *who[ANCHOR_JOBS];
    uint32_t n = 0;
    for (size_t i = 0; i < ANCHOR_JOBS; i++)
        if (a->jobs[i].phase == JOB_HEAD) {
            memcpy(a->states + (size_t)n * info->d, a->jobs[i].state, info->d * sizeof(float));
            who[n++] = &a->jobs[i];
        }
    if (n)
        a->model->head(a->model->self, a->states, n, a->logits);
    for (uint32_t i = 0; i < n; i++) {
        struct anchor_job *j = who[i];
        struct anchor_text *t = &a->texts[j->number];
        const int32_t token = greedy(a->logits + (size_t)i * (size_t)info->n_vocab, info->n_vocab);
        j->tokens[j->n_tokens++] = token;
        j->phase = JOB_ANSWER;
        if (!a->model->is_end(a->model->self, token) && j->n_tokens < j->cells)
            continue;
        memcpy(t->tokens, j->tokens, (size_t)j->n_tokens * sizeof *t->tokens);
        t->n_tokens = j->n_tokens;
        a->answers_dirty = a->folder != NULL;
        begin_states(a, j);
    }
}

/* ---- writing ---- */

static bool making(const struct spa_anchors *a)
{
    for (size_t i = 0; i < ANCHOR_JOBS; i++)
        if (a->jobs[i].phase != JOB_FREE)
            return true;
    for (size_t i = 0; i < SPA_ANCHOR_SETS; i++)
        if (a->sets[i] && a->sets[i]->n_wanted)
            return true;
    return false;
}

static struct spa_anchor_set *dirty_set(const struct spa_anchors *a)
{
    for (size_t i = 0; a->folder && i < SPA_ANCHOR_SETS; i++)
        if (a->sets[i] && a->sets[i]->dirty)
            return a->sets[i];
    return NULL;
}

bool spa_anchors_busy(const struct spa_anchors *a)
{
    return a && (making(a) || a->writer.set || dirty_set(a) || a->answers_dirty);
}

void spa_anchors_file_step(struct spa_anchors *a)
{
    if (a->writer.set)
        anchors_write_step(a);
    else if (making(a) && a->block_bytes <= blocks_max)
        return;   /* one file for all that is asked for now */
    else if (a->answers_dirty)
        anchors_write_answers(a);
    else if (dirty_set(a))
        anchors_write_begin(dirty_set(a));
}

void spa_anchors_free(struct spa_anchors *a)
{
    if (!a)
        return;
    anchors_write_abort(a);
    for (size_t i = 0; i < ANCHOR_JOBS; i++)
        job_clear(&a->jobs[i]);   /* the model's sequences are nobody's any more */
    for (size_t i = 0; i < SPA_ANCHOR_SETS; i++)
        if (a->sets[i])
            set_free(a->sets[i]);
    for (uint32_t i = 0; a->texts && i < a->n; i++)
        free(a->texts[i].tokens);
    free(a->texts);
    free(a->states);
    free(a->logits);
    free(a->folder);
    free(a);
}
