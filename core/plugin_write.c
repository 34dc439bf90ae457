/* plugin_write.c - a spa_plugin and its numbers in, a plugin file's bytes out (plugin.h), always the same for the same input.
 *
 * The same code runs twice: without memory it counts, with memory it writes. Order: keys as below; tensors in the layout's
 * order, then the gate, then the basis; so a reader can use the weights in place where their sizes are multiples of 32 bytes. */
#include "basis.h"
#include "plugin.h"
#include "plugin_format.h"

#include <assert.h>
#include <string.h>

struct sink { uint8_t *out; size_t at; };   /* out NULL: only counts */

static void put(struct sink *s, const void *bytes, size_t n)
{
    if (s->out)
        memcpy(s->out + s->at, bytes, n);
    s->at += n;
}

static void put_u32(struct sink *s, uint32_t v) { put(s, &v, sizeof v); }
static void put_u64(struct sink *s, uint64_t v) { put(s, &v, sizeof v); }

static void put_string(struct sink *s, const char *text)
{
    put_u64(s, strlen(text));
    put(s, text, strlen(text));
}

static void pad(struct sink *s)
{
    static const uint8_t zeros[SPA_GGUF_ALIGNMENT];
    put(s, zeros, (SPA_GGUF_ALIGNMENT - s->at % SPA_GGUF_ALIGNMENT) % SPA_GGUF_ALIGNMENT);
}

/* ---- keys; each returns with *n one larger ---- */

static void key(struct sink *s, uint64_t *n, const char *name, enum spa_gguf_type type)
{
    put_string(s, name);
    put_u32(s, type);
    ++*n;
}

static void key_u32(struct sink *s, uint64_t *n, const char *name, uint32_t v)
{
    key(s, n, name, SPA_GGUF_U32);
    put_u32(s, v);
}

static void key_u64(struct sink *s, uint64_t *n, const char *name, uint64_t v)
{
    key(s, n, name, SPA_GGUF_U64);
    put_u64(s, v);
}

static void key_f32(struct sink *s, uint64_t *n, const char *name, float v)
{
    key(s, n, name, SPA_GGUF_F32);
    put(s, &v, sizeof v);
}

static void key_string(struct sink *s, uint64_t *n, const char *name, const char *text)
{
    key(s, n, name, SPA_GGUF_STRING);
    put_string(s, text);
}

static void key_hash(struct sink *s, uint64_t *n, const char *name, const uint8_t hash[SPA_HASH_BYTES])
{
    static const char digits[] = "0123456789abcdef";
    char hex[2 * SPA_HASH_BYTES + 1];
    for (size_t i = 0; i < SPA_HASH_BYTES; i++) {
        hex[2 * i] = digits[hash[i] >> 4];
        hex[2 * i + 1] = digits[hash[i] & 15];
    }
    hex[2 * SPA_HASH_BYTES] = 0;
    key_string(s, n, name, hex);
}

static void key_list(struct sink *s, uint64_t *n, const char *name, const uint32_t *list, uint32_t count)
{
    key(s, n, name, SPA_GGUF_ARRAY);
    put_u32(s, SPA_GGUF_U32);
    put_u64(s, count);
    put(s, list, count * sizeof *list);
}

uint32_t spa_plugin_version(const struct spa_plugin *p)
{
    return p->shape.ctx_mix ? SPA_PLUGIN_MIX : 1;
}

static uint64_t put_keys(struct sink *s, const struct spa_plugin *p)
{
    const struct spa_shape *h = &p->shape;
    const struct spa_training *t = &p->training;
    uint8_t basis = h->basis, mix = h->ctx_mix;
    uint64_t n = 0;
    key_string(s, &n, "general.architecture", "spa");
    key_string(s, &n, "general.type", "adapter");
    key_string(s, &n, "adapter.type", "spa");
    key_u32(s, &n, "spa.version", spa_plugin_version(p));
    key_u32(s, &n, "spa.d", h->d);
    key_u32(s, &n, "spa.n_layers", h->n_layers);
    key_u32(s, &n, "spa.r", h->r);
    key_u32(s, &n, "spa.m", h->m);
    key_u32(s, &n, "spa.k", h->k);
    key_list(s, &n, "spa.taps", h->taps, h->n_taps);
    key(s, &n, "spa.basis", SPA_GGUF_BOOL);
    put(s, &basis, 1);
    if (h->basis)
        key_hash(s, &n, "spa.basis.hash", p->basis_hash);
    key_string(s, &n, "spa.normalise", spa_normalise_words[h->normalise]);
    key_string(s, &n, "spa.mode", spa_mode_words[h->mode]);
    if (h->n_ctx_taps) {
        key_list(s, &n, "spa.context.taps", h->ctx_taps, h->n_ctx_taps);
        key_u32(s, &n, "spa.context.e", h->e);
        key_u32(s, &n, "spa.context.heads", h->n_heads);
        key_list(s, &n, "spa.context.rungs", h->att_rungs, h->n_att);
    }
    if (h->ctx_mix) {
        key(s, &n, "spa.context.mix", SPA_GGUF_BOOL);
        put(s, &mix, 1);
    }
    if (p->base_name[0])
        key_string(s, &n, "spa.base.name", p->base_name);
    if (p->has_base_hash)
        key_hash(s, &n, "spa.base.hash", p->base_hash);
    key_string(s, &n, "spa.tap_dtype", spa_dtype_words[p->tap_dtype]);
    key_string(s, &n, "spa.state_dtype", spa_dtype_words[p->state_dtype]);
    key_f32(s, &n, "spa.gate.threshold", p->gate_threshold);
    key_u32(s, &n, "spa.training.rows", t->rows);
    key_u32(s, &n, "spa.training.loss_tokens", t->loss_tokens);
    key_u32(s, &n, "spa.training.epochs", t->epochs);
    key_u64(s, &n, "spa.training.steps", t->steps);
    key_u64(s, &n, "spa.training.seed", t->seed);
    key_f32(s, &n, "spa.training.first_loss", t->first_loss);
    key_f32(s, &n, "spa.training.final_loss", t->final_loss);
    key_f32(s, &n, "spa.training.eval_exact_match", t->eval_exact_match);
    return n;
}

/* ---- tensors: all heads, then all numbers, through one list ---- */

struct block { const char *name; uint64_t cols, rows; bool is_vector; const float *numbers; enum spa_dtype type; };

/* The form of a matrix with rows of so many numbers. */
static enum spa_dtype type_of(const struct spa_plugin *p, uint64_t cols)
{
    return p->weights == SPA_I8 && cols % SPA_GGUF_Q8_0_BLOCK != 0 ? SPA_F16 : p->weights;
}

static size_t bytes_of(const struct block *b)
{
    const size_t n = (size_t)(b->cols * b->rows), group = b->type == SPA_I8 ? SPA_GGUF_Q8_0_BLOCK : 1;
    return spa_dtype_bytes(b->type, n / group, group);
}

/* Through a small array: the whole tensor's bytes may be more than there is room for elsewhere. */
static void put_numbers(struct sink *s, const struct block *b)
{
    enum { CHUNK = 8 * SPA_GGUF_Q8_0_BLOCK };
    uint8_t bytes[CHUNK * sizeof(float)];
    const size_t n = (size_t)(b->cols * b->rows), group = b->type == SPA_I8 ? SPA_GGUF_Q8_0_BLOCK : 1;
    if (b->type == SPA_F32 || !s->out) {
        put(s, b->numbers, bytes_of(b));
        return;
    }
    for (size_t at = 0, m; at < n; at += m) {
        m = n - at < CHUNK ? n - at : CHUNK;
        spa_dtype_pack(b->type, b->numbers + at, m / group, group, bytes);
        put(s, bytes, spa_dtype_bytes(b->type, m / group, group));
    }
}

static size_t n_blocks(const struct spa_plugin *p, const struct spa_plugin_data *data)
{
    return spa_tensor_count(&p->shape) + p->has_gate + (p->has_gate && p->gate_has_bias) + (data->basis != NULL);
}

/* Tensor i of the file. t holds the name of a weight as long as the block is used. */
static struct block block_at(const struct spa_plugin *p, const struct spa_plugin_data *data, size_t i, struct spa_tensor *t)
{
    const struct spa_shape *h = &p->shape;
    size_t n = spa_tensor_count(h);
    if (i < n) {
        spa_param_tensor(h, i, t);
        return (struct block) { t->name, t->is_vector ? t->rows : t->cols, t->is_vector ? 1 : t->rows, t->is_vector,
                                data->params + t->offset, t->is_vector ? SPA_F32 : type_of(p, t->cols) };
    }
    if (p->has_gate && i == n)
        return (struct block) { "gate.weight", spa_gate_width(p), 2, false, data->gate_w, SPA_F32 };
    if (p->has_gate && p->gate_has_bias && i == n + 1)
        return (struct block) { "gate.bias", 2, 1, true, data->gate_b, SPA_F32 };
    return (struct block) { "basis", 1 + (uint64_t)h->d + (uint64_t)h->k * h->d, h->n_taps, false, data->basis, SPA_F32 };
}

static void put_heads(struct sink *s, const struct spa_plugin *p, const struct spa_plugin_data *data)
{
    struct sink offset = { NULL, 0 };
    struct spa_tensor t;
    for (size_t i = 0; i < n_blocks(p, data); i++) {
        struct block b = block_at(p, data, i, &t);
        put_u64(s, 4 + strlen(b.name));
        put(s, "spa.", 4);
        put(s, b.name, strlen(b.name));
        put_u32(s, b.is_vector ? 1 : 2);
        put_u64(s, b.cols);
        if (!b.is_vector)
            put_u64(s, b.rows);
        put_u32(s, spa_gguf_tensor_types[b.type]);
        put_u64(s, offset.at);
        offset.at += bytes_of(&b);
        pad(&offset);
    }
}

static size_t write_file(struct sink *s, const struct spa_plugin *p, const struct spa_plugin_data *data)
{
    struct spa_tensor t;
    struct sink counting = { NULL, 0 };
    assert(data->params && (!p->has_gate || data->gate_w) && (!p->has_gate || !p->gate_has_bias || data->gate_b));
    assert(p->shape.basis || !data->basis);
    put(s, "GGUF", 4);
    put_u32(s, SPA_GGUF_VERSION);
    put_u64(s, n_blocks(p, data));
    put_u64(s, put_keys(&counting, p));
    put_keys(s, p);
    put_heads(s, p, data);
    pad(s);
    for (size_t i = 0; i < n_blocks(p, data); i++) {
        struct block b = block_at(p, data, i, &t);
        put_numbers(s, &b);
        pad(s);
    }
    return s->at;
}

size_t spa_plugin_write_len(const struct spa_plugin *p, const struct spa_plugin_data *data)
{
    struct sink s = { NULL, 0 };
    return write_file(&s, p, data);
}

enum spa_err spa_plugin_write(const struct spa_plugin *p, const struct spa_plugin_data *data, uint8_t *out, size_t cap,
                              size_t *len)
{
    *len = spa_plugin_write_len(p, data);
    if (cap < *len)
        return SPA_ERR_NOMEM;
    struct sink s = { out, 0 };
    write_file(&s, p, data);
    return SPA_OK;
}
