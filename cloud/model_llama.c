/* model_llama.c - in: a GGUF and options. out: a spa_model on libllama. Leaves scheduling, gate and wire to turn.c and friends.
 *
 * IMPLEMENTATION NOTES
 *
 * Taps. libllama names every graph node; the public cb_eval callback sees "embd" (or "inp_scaled" or "inpL" where the architecture
 * scales it or adds positions), "l_out-0" .. "l_out-(N-1)" and "result_norm". Asking for a node ends a piece of the graph there, which
 * costs nothing measurable, and copies are made only of the rows that the caller wants.
 *
 * Which row is which, and the same bits in company as alone. Each sequence has a K/V stream of its own (kv_unified off): its cells
 * stand in the order of its positions whatever others do. One decode of ours is several calls of libllama's: one with all
 * sequences that bring a single token, then one for each sequence that brings more, then one for the training rows. So libllama, which may only put equally long
 * pieces of neighbouring sequences into one micro-batch, always takes consecutive rows of ours, and the n-th "embd" of a call
 * tells where a micro-batch begins. A prompt meets the same arithmetic alone and in a full house. Two paths of
 * ggml's flash attention would still differ: the tiled one, from 64 tokens of a sequence on, which micro-batches of at most 32
 * keep out, and the one that splits a long cache for a single lone token (from 512 padded cells on), which keys and values of two
 * types keep out: --invariant does that, and what else invariant.c names.
 *
 * Training rows have a context of their own, made for throughput: all sequences in one K/V stream, micro-batches of 512, and, where
 * ggml was built with it, the BLAS backend, which turns weights into F32 once per micro-batch and then multiplies far faster than
 * the dot products of a quantised type (bench/RESULTS.md). Last bits there depend on what a batch is made of, so batches are
 * made of whole groups that the device names (feed.c), never of what happens to have arrived. Answers never see that backend: it
 * is registered only while this context is made, since one token of the same user must not change with the width of a batch.
 *
 * Recurrent and hybrid models advance all sequences of a call in step, which would mix their rows: their training rows are one call
 * for each sequence. Nothing of them can be cut (seq_rm), so nobody runs ahead with them (ahead.c).
 *
 * In the last layer libllama keeps only the rows that have an output: there row j is the j-th output row of the micro-batch.
 * Both cases are told apart by the tensor's height.
 *
 * The head. The callback answers false at "result_norm": the graph ends there and libllama's own LM head, which would run on
 * states that the device is about to replace, is never computed. Our head is one product with the same tensor from the
 * same file, batched over whatever states there are: plain, replaced and added ones alike. A check at start compares it
 * with libllama's own logits, so an architecture that does more between the final norm and the logits is refused. */
#include "model_llama.h"
#include "model_file.h"
#include "rpc.h"
#include "secret.h"

#include <assert.h>
#include <ggml-backend.h>
#include <ggml-cpu.h>
#include <ggml.h>
#include <llama.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { LEARN_SEQS = 64, LEARN_BATCH = 512, HEAD_ROWS = 64, HEAD_GRAPH_BYTES = 64 * 1024, MAX_LAYERS = 1024 };

/* A sequence with one token in a batch. */
struct single {
    uint32_t seq, row;
};

struct self {
    struct single *singles;           /* [n_rows_max] */
    struct spa_model_file file;
    struct llama_model *model;
    struct llama_context *ctx;        /* answers */
    struct llama_context *learn_ctx;  /* training rows */
    const struct llama_vocab *vocab;
    ggml_threadpool_t pool;
    int n_threads;
    struct llama_batch batch;
    uint32_t n_width, n_head_width;   /* rows computed together at most */
    bool     recurrent;               /* some of its memory is a state that is overwritten, not a cache of all tokens */
    uint32_t d, n_layers, n_slots, n_rows_max;   /* n_rows_max: of one decode, answers and training rows together */

    /* The decode under way, for the callback. */
    const struct spa_batch_token *rows;
    uint32_t *row_of;                 /* [n_rows_max] row of the call that runs now -> row of the batch */
    uint32_t n_rows;                  /* of that call */
    const uint32_t *layers;
    uint32_t n_layers_asked;
    uint32_t ubatch_at, ubatch_len;   /* rows of the micro-batch that runs now */
    bool     whole_graph;             /* the start-up check wants libllama's logits as well */
    uint64_t seen[MAX_LAYERS / 64];
    bool     seen_norm;
    uint32_t *wanted_of;              /* [n_rows_max] row -> index among the wanted, or UINT32_MAX */
    uint32_t n_wanted;
    float   *y_fin, *taps;            /* as spa_states */
    size_t   taps_cap, taps_used;     /* floats; used: since they were cleared */
    uint32_t rows_used;               /* of a batch, as well */

    uint8_t *head_work, *head_meta;
    size_t   head_work_len;
};

/* ---- taps ---- */

/* Copies the wanted rows of a [d, height] tensor to out [n_wanted, d]. only_outputs: rows that have no output are not in it. */
static void copy_rows(const struct self *s, const struct ggml_tensor *t, bool only_outputs, float *out)
{
    uint32_t at = 0;
    for (uint32_t i = s->ubatch_at; i < s->ubatch_at + s->ubatch_len; i++) {
        const uint32_t row = s->row_of[i];
        const bool is_output = s->rows[row].want == SPA_WANT_ALL;
        if (s->wanted_of[row] != UINT32_MAX && (is_output || !only_outputs))
            ggml_backend_tensor_get(t, out + (size_t)s->wanted_of[row] * s->d, (size_t)at * t->nb[1], s->d * sizeof(float));
        at += is_output || !only_outputs;
    }
}

/* The first node of a micro-batch that carries its tokens. */
static bool is_embedding(const char *name) { return strcmp(name, "embd") == 0 || strcmp(name, "model.embed_tokens") == 0; }

/* Layer number of a node's name: 0 for the embedding, i+1 for l_out-i, -1 for none, -2 for the final norm. */
static int layer_of(const char *name)
{
    if (strncmp(name, "l_out-", 6) == 0)
        return atoi(name + 6) + 1;
    /* The last of these that a graph has: scaled where the architecture does that, with learned positions where it has them. */
    if (is_embedding(name) || strcmp(name, "inp_scaled") == 0 || strcmp(name, "inpL") == 0)
        return 0;
    return strcmp(name, "result_norm") == 0 ? -2 : -1;
}

static int asked_index(const struct self *s, uint32_t layer)
{
    for (uint32_t i = 0; i < s->n_layers_asked; i++)
        if (s->layers[i] == layer)
            return (int)i;
    return -1;
}

static bool on_node(struct ggml_tensor *t, bool ask, void *user)
{
    struct self *s = user;
    const int layer = layer_of(t->name);
    if (ask) {
        if (layer >= 0 && layer < MAX_LAYERS)
            s->seen[layer / 64] |= UINT64_C(1) << (layer % 64);
        s->seen_norm |= layer == -2;
        /* The embedding is always looked at: it tells where a micro-batch begins. */
        return layer == -2 || layer == 0 || (layer > 0 && asked_index(s, (uint32_t)layer) >= 0);
    }
    if (is_embedding(t->name)) {
        s->ubatch_at += s->ubatch_len;
        s->ubatch_len = (uint32_t)t->ne[1];
        assert(s->ubatch_at + s->ubatch_len <= s->n_rows);
    }
    if (t->type != GGML_TYPE_F32 || t->ne[0] != s->d)
        return true;
    const bool all_rows = t->ne[1] == s->ubatch_len;
    if (layer == -2) {
        copy_rows(s, t, !all_rows, s->y_fin);
        return s->whole_graph;
    }
    const int index = asked_index(s, (uint32_t)layer);
    if (index >= 0)
        copy_rows(s, t, !all_rows, s->taps + (size_t)index * s->n_wanted * s->d);
    return true;
}

/* One call of libllama's over the n batch rows that s->row_of names. first_seq: which of our sequences is ctx's number 0. */
static int call(struct self *s, struct llama_context *ctx, uint32_t first_seq, uint32_t n)
{
    for (uint32_t j = 0; j < n; j++) {
        const struct spa_batch_token *t = &s->rows[s->row_of[j]];
        s->batch.token[j] = t->token;
        s->batch.pos[j] = (llama_pos)t->pos;
        s->batch.n_seq_id[j] = 1;
        s->batch.seq_id[j][0] = (llama_seq_id)(t->seq - first_seq);
        s->batch.logits[j] = t->want == SPA_WANT_ALL;
    }
    s->batch.n_tokens = (int32_t)n;
    s->n_rows = n;
    s->ubatch_at = s->ubatch_len = 0;
    if (n == 0)
        return 0;
    spa_rpc_begin();
    const int rc = llama_decode(ctx, s->batch);
    spa_rpc_end();
    return rc == 0 ? 0 : -1;
}

/* Rows of answers, no more of them at a time than bits allow. */
static int call_narrow(struct self *s, uint32_t n)
{
    uint32_t *const all = s->row_of;
    int rc = 0;
    for (uint32_t at = 0; rc == 0 && at < n; at += s->n_width) {
        s->row_of = all + at;
        rc = call(s, s->ctx, 0, n - at < s->n_width ? n - at : s->n_width);
    }
    s->row_of = all;
    return rc;
}

static int by_sequence(const void *a, const void *b)
{
    const struct single *x = a, *y = b;
    return x->seq < y->seq ? -1 : x->seq > y->seq;
}

/* Rows of one sequence stand together in a batch: that is how a run of them is found. */
static uint32_t run_length(const struct spa_batch_token *rows, uint32_t n, uint32_t at)
{
    uint32_t len = 1;
    while (at + len < n && rows[at + len].seq == rows[at].seq)
        len++;
    return len;
}

static int decode(void *self, const struct spa_batch_token *rows, uint32_t n, const uint32_t *layers, uint32_t n_layers,
                  struct spa_states *out)
{
    struct self *s = self;
    assert(n > 0 && n <= s->n_rows_max);
    s->n_wanted = 0;
    for (uint32_t i = 0; i < n; i++)
        s->wanted_of[i] = rows[i].want == SPA_WANT_NONE ? UINT32_MAX : s->n_wanted++;
    const size_t need = (size_t)n_layers * s->n_wanted * s->d;
    if (need > s->taps_cap) {
        spa_secret_free(s->taps, s->taps_used * sizeof *s->taps);
        s->taps = malloc(need * sizeof *s->taps);
        s->taps_used = 0;
        s->taps_cap = s->taps ? need : 0;
        if (!s->taps)
            return -1;
    }
    s->taps_used = need > s->taps_used ? need : s->taps_used;
    s->rows_used = n > s->rows_used ? n : s->rows_used;
    s->rows = rows;
    s->layers = layers;
    s->n_layers_asked = n_layers;

    uint32_t n_singles = 0, n_learn = 0;
    for (uint32_t at = 0, len; at < n; at += len) {
        len = run_length(rows, n, at);
        if (len == 1 && rows[at].seq < s->n_slots)
            s->singles[n_singles++] = (struct single){ rows[at].seq, at };
    }
    qsort(s->singles, n_singles, sizeof *s->singles, by_sequence);
    for (uint32_t j = 0; j < n_singles; j++)
        s->row_of[j] = s->singles[j].row;
    int rc = call_narrow(s, n_singles);
    for (uint32_t at = 0, len; rc == 0 && at < n; at += len) {
        len = run_length(rows, n, at);
        const bool prompt = len > 1 && rows[at].seq < s->n_slots;
        for (uint32_t j = 0; prompt && j < len; j++)
            s->row_of[j] = at + j;
        rc = prompt ? call_narrow(s, len) : 0;
    }
    for (uint32_t at = 0; at < n; at++) {
        if (rows[at].seq < s->n_slots)
            continue;
        s->row_of[n_learn++] = at;
        const bool last = at + 1 == n || rows[at + 1].seq != rows[at].seq;
        if (s->recurrent && last) {
            rc = rc == 0 ? call(s, s->learn_ctx, s->n_slots, n_learn) : rc;
            n_learn = 0;
        }
    }
    rc = rc == 0 ? call(s, s->learn_ctx, s->n_slots, n_learn) : rc;
    *out = (struct spa_states){ .y_fin = s->y_fin, .taps = s->taps, .n_wanted = s->n_wanted };
    return rc;
}

static bool seq_rm(void *self, uint32_t seq, uint32_t from)
{
    struct self *s = self;
    const bool learn = seq >= s->n_slots;
    const llama_seq_id id = (llama_seq_id)(learn ? seq - s->n_slots : seq);
    llama_memory_t memory = llama_get_memory(learn ? s->learn_ctx : s->ctx);
    /* Recurrent states cannot be cut; a sliding window's cache may have lost its beginning. */
    return llama_memory_seq_rm(memory, id, (llama_pos)from, -1) && (from == 0 || llama_memory_seq_pos_min(memory, id) == 0);
}

static void seq_cp(void *self, uint32_t from, uint32_t to, uint32_t n)
{
    struct self *s = self;
    assert(from >= s->n_slots && to >= s->n_slots);
    llama_memory_seq_cp(llama_get_memory(s->learn_ctx), (llama_seq_id)(from - s->n_slots), (llama_seq_id)(to - s->n_slots), 0, (llama_pos)n);
}

static void narrow(void *self, uint32_t rows, uint32_t head_rows)
{
    struct self *s = self;
    s->n_width = rows;
    s->n_head_width = head_rows < HEAD_ROWS ? head_rows : HEAD_ROWS;
}

static bool save(void *self, uint32_t seq, uint8_t **bytes, size_t *len)
{
    struct self *s = self;
    spa_rpc_begin();
    const size_t size = llama_state_seq_get_size(s->ctx, (llama_seq_id)seq);
    *bytes = size ? malloc(size) : NULL;
    *len = *bytes ? llama_state_seq_get_data(s->ctx, *bytes, size, (llama_seq_id)seq) : 0;
    spa_rpc_end();
    if (*len)
        return true;
    free(*bytes);
    *bytes = NULL;
    return false;
}

static bool load(void *self, uint32_t seq, const uint8_t *bytes, size_t len)
{
    struct self *s = self;
    /* An emptied sequence takes its cells from the first one on, as it would by decoding. */
    spa_rpc_begin();
    const bool ok = llama_memory_seq_rm(llama_get_memory(s->ctx), (llama_seq_id)seq, -1, -1) &&
                    llama_state_seq_set_data(s->ctx, bytes, len, (llama_seq_id)seq) == len;
    spa_rpc_end();
    return ok;
}

/* ---- head ---- */

static void head(void *self, const float *states, uint32_t n, float *logits)
{
    struct self *s = self;
    const int64_t d = s->d, n_vocab = s->file.n_vocab;
    for (uint32_t at = 0; at < n; at += s->n_head_width) {
        const int64_t m = n - at < s->n_head_width ? n - at : s->n_head_width;
        struct ggml_context *g = ggml_init((struct ggml_init_params){ HEAD_GRAPH_BYTES, s->head_meta, true });
        struct ggml_tensor *w = ggml_new_tensor_2d(g, (enum ggml_type)s->file.head_type, d, n_vocab);
        struct ggml_tensor *x = ggml_new_tensor_2d(g, GGML_TYPE_F32, d, m);
        struct ggml_tensor *y = ggml_mul_mat(g, w, x);
        w->data = (void *)(uintptr_t)s->file.head_bytes;
        x->data = (void *)(uintptr_t)(states + (size_t)at * s->d);
        y->data = logits + (size_t)at * (size_t)n_vocab;
        struct ggml_cgraph *graph = ggml_new_graph_custom(g, 8, false);
        ggml_build_forward_expand(graph, y);
        struct ggml_cplan plan = ggml_graph_plan(graph, s->n_threads, s->pool);
        if (plan.work_size > s->head_work_len) {
            spa_secret_free(s->head_work, s->head_work_len);
            s->head_work = malloc(plan.work_size);
            s->head_work_len = s->head_work ? plan.work_size : 0;
        }
        plan.work_data = s->head_work;
        if (s->head_work_len < plan.work_size || ggml_graph_compute(graph, &plan) != GGML_STATUS_SUCCESS)
            for (size_t i = 0; i < (size_t)(m * n_vocab); i++)
                logits[(size_t)at * (size_t)n_vocab + i] = NAN;
        ggml_free(g);
    }
    const size_t n_all = (size_t)n * (size_t)n_vocab;
    if (s->file.logit_scale != 1.0f)
        for (size_t i = 0; i < n_all; i++)
            logits[i] *= s->file.logit_scale;
    for (uint32_t i = 0; s->file.head_bias && i < n; i++)
        for (size_t v = 0; v < (size_t)n_vocab; v++)
            logits[i * (size_t)n_vocab + v] += s->file.head_bias[v];
    if (s->file.softcap > 0.0f)
        for (size_t i = 0; i < n_all; i++)
            logits[i] = s->file.softcap * tanhf(logits[i] / s->file.softcap);
}

static void clear_bytes(void *p, size_t len)
{
    if (p)
        explicit_bzero(p, len);
}

static void clear(void *self)
{
    struct self *s = self;
    clear_bytes(s->batch.token, s->rows_used * sizeof *s->batch.token);
    clear_bytes(s->y_fin, (size_t)s->rows_used * s->d * sizeof *s->y_fin);
    clear_bytes(s->taps, s->taps_used * sizeof *s->taps);
    clear_bytes(s->head_work, s->head_work_len);   /* states in the form in which they are multiplied */
    s->taps_used = 0;
    s->rows_used = 0;
}

/* ---- text ---- */

static int32_t tokenize(void *self, const char *text, size_t len, bool start, bool special, int32_t *out, int32_t cap)
{
    const struct self *s = self;
    return llama_tokenize(s->vocab, text, (int32_t)len, out, cap, start, special);
}

static int32_t piece(void *self, int32_t token, char *out, int32_t cap)
{
    const struct self *s = self;
    const int32_t n = llama_token_to_piece(s->vocab, token, out, cap, 0, false);
    return n > 0 ? n : 0;
}

static bool is_end(void *self, int32_t token)
{
    const struct self *s = self;
    return llama_vocab_is_eog(s->vocab, token);
}

static int32_t chat(void *self, const char *const *roles, const char *const *contents, size_t n, bool open, char *out, int32_t cap)
{
    const struct self *s = self;
    const char *template = llama_model_chat_template(s->model, NULL);
    struct llama_chat_message *m = template ? calloc(n, sizeof *m) : NULL;
    if (!m)
        return -1;
    for (size_t i = 0; i < n; i++)
        m[i] = (struct llama_chat_message){ roles[i], contents[i] };
    const int32_t len = llama_chat_apply_template(template, m, n, open, out, cap);
    free(m);
    return len;
}

/* ---- open and close ---- */

/* libllama's log belongs to the process, like this: pieces of a line until its end comes. Loading a model and decoding are one thread at a
 * time. */
static struct {
    spa_log_fn *log;
    bool verbose;
    enum spa_log_level level;
    char line[512];
    size_t len;
} said;

static void on_said(enum ggml_log_level level, const char *text, void *user)
{
    (void)user;
    if (level != GGML_LOG_LEVEL_CONT)
        said.level = level == GGML_LOG_LEVEL_ERROR ? SPA_LOG_ERROR : level == GGML_LOG_LEVEL_WARN ? SPA_LOG_WARN
                   : level == GGML_LOG_LEVEL_DEBUG ? SPA_LOG_DEBUG : SPA_LOG_INFO;
    for (const char *c = text; *c; c++) {
        if (*c != '\n') {
            if (said.len + 1 < sizeof said.line)
                said.line[said.len++] = *c;
            continue;
        }
        said.line[said.len] = '\0';
        if (said.log && said.len && (said.verbose || said.level == SPA_LOG_ERROR))
            said.log(NULL, said.level, said.line);
        said.len = 0;
    }
}

static int kv_type(const char *name, enum ggml_type *out)
{
    static const enum ggml_type types[] = { GGML_TYPE_F32, GGML_TYPE_F16, GGML_TYPE_BF16, GGML_TYPE_Q8_0, GGML_TYPE_Q4_0,
                                            GGML_TYPE_Q4_1, GGML_TYPE_IQ4_NL, GGML_TYPE_Q5_0, GGML_TYPE_Q5_1 };
    for (size_t i = 0; i < sizeof types / sizeof *types; i++)
        if (strcmp(ggml_type_name(types[i]), name) == 0) {
            *out = types[i];
            return 0;
        }
    return -1;
}

/* Some of the model may lie with a GPU, or with a worker's. */
static bool has_gpu(void)
{
    bool has = false;
    for (size_t i = 0; i < ggml_backend_dev_count(); i++) {
        const enum ggml_backend_dev_type type = ggml_backend_dev_type(ggml_backend_dev_get(i));
        has |= type == GGML_BACKEND_DEVICE_TYPE_GPU || type == GGML_BACKEND_DEVICE_TYPE_IGPU;
    }
    return has;
}

/* Decodes one token with the whole graph and compares libllama's logits with ours; sees on the way that all taps exist. */
static int check_taps_and_head(struct self *s, const char *path, char *why, size_t why_len)
{
    int32_t token = llama_vocab_bos(s->vocab);
    token = token < 0 ? 0 : token;
    const struct spa_batch_token row = { token, 0, 0, SPA_WANT_ALL };
    struct spa_states states;
    s->whole_graph = true;
    const int rc = decode(s, &row, 1, NULL, 0, &states);
    s->whole_graph = false;
    bool all = rc == 0 && s->seen_norm;
    for (uint32_t i = 0; i <= s->n_layers; i++)
        all = all && (s->seen[i / 64] >> (i % 64) & 1);
    if (!all) {
        snprintf(why, why_len, "%s: architecture %s does not name its layers' outputs (embd, l_out-i, result_norm), so nothing can "
                 "be tapped; use another model", path, s->file.arch);
        return -1;
    }
    const float *theirs = llama_get_logits_ith(s->ctx, 0);
    float *ours = malloc((size_t)s->file.n_vocab * sizeof *ours);
    float worst = 0, largest = 0;
    if (ours && theirs) {
        head(s, states.y_fin, 1, ours);
        for (int64_t i = 0; i < s->file.n_vocab; i++) {
            const float gap = fabsf(ours[i] - theirs[i]);
            worst = gap > worst || isnan(gap) ? gap : worst;
            largest = fabsf(theirs[i]) > largest ? fabsf(theirs[i]) : largest;
        }
    }
    free(ours);
    seq_rm(s, 0, 0);
    /* Repacked weights and another summation order move the last bits, a GPU's products some more; a missing scale, cap or bias moves far
     * more than that. */
    const float tolerance = has_gpu() ? 1e-2f : 1e-3f;
    if (!ours || !theirs || !(worst <= tolerance * (largest + 1.0f))) {
        snprintf(why, why_len, "%s: architecture %s computes its logits in a way that spa-cloud does not know (difference %g); use "
                 "another model", path, s->file.arch, (double)worst);
        return -1;
    }
    return 0;
}

/* Whether contexts that are made now may use the BLAS backend. */
static void blas(bool on)
{
    static ggml_backend_reg_t reg;
    if (!reg)
        reg = ggml_backend_reg_by_name("BLAS");
    if (reg && on)
        ggml_backend_register(reg);
    else if (reg && ggml_backend_reg_by_name("BLAS"))
        ggml_backend_unload(reg);
}

static struct llama_context *make_one(struct llama_model *model, struct llama_context_params cp)
{
    spa_rpc_begin();
    struct llama_context *made = llama_init_from_model(model, cp);
    spa_rpc_end();
    return made;
}

static int make_context(struct self *s, const struct spa_llama_config *cfg, struct spa_model_info *info, char *why, size_t why_len)
{
    struct llama_context_params cp = llama_context_default_params();
    if (kv_type(cfg->type_k, &cp.type_k) != 0 || kv_type(cfg->type_v, &cp.type_v) != 0) {
        snprintf(why, why_len, "-ctk %s -ctv %s: not a cache type; use f32, f16, bf16, q8_0, q4_0, q4_1, iq4_nl, q5_0 or q5_1",
                 cfg->type_k, cfg->type_v);
        return -1;
    }
    const uint32_t n_train = (uint32_t)llama_model_n_ctx_train(s->model);
    const uint32_t n_ctx = cfg->n_ctx ? cfg->n_ctx : n_train;
    info->n_slots = cfg->n_slots;
    info->n_learn_seqs = LEARN_SEQS;
    info->n_ctx_slot = n_ctx / cfg->n_slots < n_train ? n_ctx / cfg->n_slots : n_train;
    if (info->n_ctx_slot < 16) {
        snprintf(why, why_len, "-c %u over -np %u slots leaves %u tokens each; raise -c or lower -np", n_ctx, cfg->n_slots, info->n_ctx_slot);
        return -1;
    }
    s->n_slots = cp.n_seq_max = cfg->n_slots;
    cp.n_ctx = info->n_ctx_slot * cp.n_seq_max;
    cp.n_batch = cfg->n_batch > cp.n_seq_max ? cfg->n_batch : cp.n_seq_max;   /* a round may bring a token of every sequence */
    info->n_batch = cp.n_batch;
    info->n_learn_batch = LEARN_BATCH;
    info->n_ubatch = cfg->n_ubatch < cp.n_batch ? cfg->n_ubatch : cp.n_batch;
    narrow(s, cp.n_batch, HEAD_ROWS);
    info->n_learn_cells = 2 * info->n_ctx_slot + LEARN_BATCH;   /* a batch of rows, the one that was cut at its beginning, anchors */
    s->n_rows_max = info->n_batch + info->n_learn_batch;
    cp.n_ubatch = info->n_ubatch;
    cp.kv_unified = false;
    cp.flash_attn_type = cfg->flash_attn ? LLAMA_FLASH_ATTN_TYPE_ENABLED : LLAMA_FLASH_ATTN_TYPE_DISABLED;
    cp.n_threads = cp.n_threads_batch = s->n_threads;
    cp.cb_eval = on_node;
    cp.cb_eval_user_data = s;
    cp.no_perf = true;
    s->ctx = make_one(s->model, cp);
    if (!s->ctx) {
        snprintf(why, why_len, "%s: no context of %u tokens could be made; lower -c, or set -fa on for a quantised -ctv", cfg->path, cp.n_ctx);
        return -1;
    }
    blas(true);
    cp.n_seq_max = LEARN_SEQS;
    cp.n_ctx = info->n_learn_cells;
    cp.n_batch = cp.n_ubatch = LEARN_BATCH;
    cp.kv_unified = true;
    s->learn_ctx = make_one(s->model, cp);
    blas(false);
    if (!s->learn_ctx) {
        snprintf(why, why_len, "%s: no context of %u tokens for training rows could be made; lower -c", cfg->path, cp.n_ctx);
        return -1;
    }
    struct ggml_threadpool_params tp = ggml_threadpool_params_default(s->n_threads);
    tp.poll = 1;   /* some milliseconds, which spans the pieces of one step; then they sleep: devices, or others, may want the core */
    s->pool = ggml_threadpool_new(&tp);
    if (!s->pool) {
        snprintf(why, why_len, "no %d threads could be started; lower -t", s->n_threads);
        return -1;
    }
    llama_attach_threadpool(s->ctx, s->pool, NULL);
    llama_attach_threadpool(s->learn_ctx, s->pool, NULL);
    s->batch = llama_batch_init((int32_t)s->n_rows_max, 0, 1);
    s->wanted_of = malloc(s->n_rows_max * sizeof *s->wanted_of);
    s->row_of = malloc(s->n_rows_max * sizeof *s->row_of);
    s->singles = malloc(s->n_rows_max * sizeof *s->singles);
    s->y_fin = malloc((size_t)s->n_rows_max * s->d * sizeof *s->y_fin);
    s->head_meta = malloc(HEAD_GRAPH_BYTES);
    if (!s->wanted_of || !s->row_of || !s->singles || !s->y_fin || !s->head_meta) {
        snprintf(why, why_len, "out of memory; lower -b");
        return -1;
    }
    return 0;
}

/* Comes with every tensor: a worker has the whole --rpc-timeout for each. */
static bool on_loaded(float share, void *user)
{
    (void)share, (void)user;
    spa_rpc_begin();
    return true;
}

int spa_llama_open(struct spa_model *out, const struct spa_llama_config *cfg, char *why, size_t why_len)
{
    struct self *s = calloc(1, sizeof *s);
    if (!s) {
        snprintf(why, why_len, "out of memory");
        return -1;
    }
    memset(out, 0, sizeof *out);
    out->self = s;
    if (spa_model_file_open(&s->file, cfg->path, why, why_len) != 0)
        goto fail;
    said.log = cfg->log;
    said.verbose = cfg->verbose;
    llama_log_set(on_said, NULL);
    if (cfg->invariant)
        setenv("GGML_CPU_TILED_MM", "0", 1);   /* ggml reads it at the first product */
    llama_backend_init();
    blas(false);
    if (cfg->rpc && spa_rpc_connect(cfg->rpc, cfg->rpc_timeout_ms, cfg->rpc_lost, cfg->rpc_user, why, why_len) != 0)
        goto fail;
    struct llama_model_params mp = llama_model_default_params();
    mp.n_gpu_layers = cfg->n_gpu_layers;
    mp.use_extra_bufts = !cfg->invariant;
    mp.progress_callback = cfg->rpc ? on_loaded : NULL;
    spa_rpc_begin();
    s->model = llama_model_load_from_file(cfg->path, mp);
    spa_rpc_end();
    if (!s->model) {
        snprintf(why, why_len, "%s: libllama %s cannot load this model (architecture %s)", cfg->path, llama_version(), s->file.arch);
        goto fail;
    }
    s->vocab = llama_model_get_vocab(s->model);
    s->d = (uint32_t)llama_model_n_embd(s->model);
    s->n_layers = (uint32_t)llama_model_n_layer(s->model);
    s->recurrent = llama_model_is_recurrent(s->model) || llama_model_is_hybrid(s->model);
    const long cores = sysconf(_SC_NPROCESSORS_ONLN);
    s->n_threads = cfg->n_threads > 0 ? cfg->n_threads : (int)(cores > 0 ? cores : 1);
    if (!llama_model_has_decoder(s->model) || llama_model_has_encoder(s->model) || s->n_layers >= MAX_LAYERS ||
        s->d != s->file.d || s->file.n_vocab != llama_vocab_n_tokens(s->vocab)) {
        snprintf(why, why_len, "%s: architecture %s is not a plain decoder; spa-cloud serves decoder models", cfg->path, s->file.arch);
        goto fail;
    }
    if (make_context(s, cfg, &out->info, why, why_len) != 0 || check_taps_and_head(s, cfg->path, why, why_len) != 0)
        goto fail;

    struct spa_model_info *info = &out->info;
    memcpy(info->name, s->file.name, sizeof info->name);
    memcpy(info->hash, s->file.hash, sizeof info->hash);
    info->d = s->d;
    info->n_layers = s->n_layers;
    info->n_vocab = (int32_t)s->file.n_vocab;
    info->head_type = s->file.head_type;
    info->head_bytes = s->file.head_bytes;
    info->head_len = s->file.head_len;
    memcpy(info->head_hash, s->file.head_hash, sizeof info->head_hash);
    info->logit_scale = s->file.logit_scale;
    info->softcap = s->file.softcap;
    out->decode = decode;
    out->seq_rm = seq_rm;
    out->seq_cp = seq_cp;
    out->narrow = narrow;
    out->save = save;
    out->load = load;
    out->head = head;
    out->clear = clear;
    out->tokenize = tokenize;
    out->piece = piece;
    out->is_end = is_end;
    out->chat = chat;
    return 0;
fail:
    spa_llama_close(out);
    return -1;
}

void spa_llama_close(struct spa_model *m)
{
    struct self *s = m ? m->self : NULL;
    if (!s)
        return;
    spa_rpc_begin();
    if (s->ctx)
        llama_free(s->ctx);
    if (s->learn_ctx)
        llama_free(s->learn_ctx);
    if (s->model)
        llama_model_free(s->model);
    spa_rpc_end();
    if (s->pool)
        ggml_threadpool_free(s->pool);
    clear(s);
    if (s->batch.token)
        llama_batch_free(s->batch);
    spa_model_file_close(&s->file);
    free(s->wanted_of);
    free(s->row_of);
    free(s->singles);
    free(s->y_fin);
    free(s->taps);
    free(s->head_work);
    free(s->head_meta);
    free(s);
    m->self = NULL;
}
