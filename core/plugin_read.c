/* plugin_read.c - a plugin file's bytes in, a checked spa_plugin and pointers to its numbers out (plugin.h).
 *
 * The header has been walked and checked by plugin_scan.c. Here the keys that we know are taken (take_shape and the like) and
 * the tensors that the shape asks for are found by name (take_weights). */
#include "basis.h"
#include "plugin_scan.h"

#include <assert.h>
#include <math.h>
#include <string.h>

/* A tensor that is not there is named without its rung's number: a fault's text is static. */
#define LACKS(family) { family, "the tensor spa." family " is missing or has another shape than the keys say" }
static const struct { const char *family, *lacks; } families[] = {
    LACKS("W.i"), LACKS("b.i"), LACKS("U.i"), LACKS("c.i"), LACKS("V.i"), LACKS("e.i"), LACKS("W_out"), LACKS("b_out"),
    LACKS("ctx.W"), LACKS("ctx.b"), LACKS("ctx.mix.Wq"), LACKS("ctx.mix.bq"), LACKS("ctx.mix.Wk"), LACKS("ctx.mix.bk"),
    LACKS("ctx.mix.Wv"), LACKS("ctx.mix.bv"), LACKS("att.i.Wq"), LACKS("att.i.bq"), LACKS("att.i.Wk"), LACKS("att.i.bk"),
    LACKS("att.i.Wv"), LACKS("att.i.bv"),
};

/* ---- the keys that we know ---- */

static bool has(const struct file *f, enum key k)
{
    return f->values[k].type != SPA_GGUF_N_TYPES;
}

static enum spa_err wrong(const struct file *f, enum key k)
{
    return fail(f->fault, SPA_ERR_FORMAT, spa_plugin_rules[k].wrong, f->values[k].at);
}

/* SPA_OK when the key is there with its type. */
static enum spa_err need(const struct file *f, enum key k)
{
    if (!has(f, k))
        return fail(f->fault, SPA_ERR_FORMAT, spa_plugin_rules[k].missing, 24);
    return f->values[k].type == spa_plugin_rules[k].type ? SPA_OK : wrong(f, k);
}

/* A number of the key's own type and size. */
static enum spa_err take_number(const struct file *f, enum key k, size_t size, void *out)
{
    enum spa_err e = need(f, k);
    if (e == SPA_OK)
        memcpy(out, f->r.block + f->values[k].at, size);
    return e;
}

static enum spa_err take_string(const struct file *f, enum key k, struct text *t)
{
    enum spa_err e = need(f, k);
    if (e == SPA_OK) {
        struct reader r = f->r;
        r.at = f->values[k].at;
        spa_plugin_take_text(&r, t);   /* the scan has been here */
    }
    return e;
}

static enum spa_err take_word(const struct file *f, enum key k, const char *const *words, int n, int *index)
{
    struct text t;
    enum spa_err e = take_string(f, k, &t);
    if (e != SPA_OK)
        return e;
    for (*index = 0; *index < n; ++*index)
        if (text_is(t, words[*index]))
            return SPA_OK;
    return wrong(f, k);
}

static enum spa_err take_list(const struct file *f, enum key k, uint32_t cap, uint32_t *list, uint32_t *n)
{
    const struct value *v = &f->values[k];
    enum spa_err e = need(f, k);
    if (e != SPA_OK)
        return e;
    if (v->elem != SPA_GGUF_U32)
        return wrong(f, k);
    if (v->count > cap)
        return fail(f->fault, SPA_ERR_LIMIT, spa_plugin_rules[k].wrong, v->at);
    *n = (uint32_t)v->count;
    memcpy(list, f->r.block + v->at, *n * sizeof *list);
    return SPA_OK;
}

static int hex_digit(uint8_t c)
{
    return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

static enum spa_err take_hash(const struct file *f, enum key k, uint8_t out[SPA_HASH_BYTES])
{
    struct text t;
    enum spa_err e = take_string(f, k, &t);
    if (e != SPA_OK)
        return e;
    if (t.len != 2 * SPA_HASH_BYTES)
        return wrong(f, k);
    for (size_t i = 0; i < SPA_HASH_BYTES; i++) {
        int high = hex_digit(t.at[2 * i]), low = hex_digit(t.at[2 * i + 1]);
        if (high < 0 || low < 0)
            return wrong(f, k);
        out[i] = (uint8_t)(high << 4 | low);
    }
    return SPA_OK;
}

/* Bytes of the UTF-8 character at p, 0 when it is none or a control character: names are printed on terminals. */
static size_t printable_utf8(const uint8_t *p, size_t len)
{
    if (p[0] < 0x80)
        return p[0] >= 0x20 && p[0] != 0x7f;
    size_t n = p[0] >= 0xf0 ? 4 : p[0] >= 0xe0 ? 3 : 2;
    if (p[0] < 0xc2 || p[0] > 0xf4 || n > len)
        return 0;
    uint32_t code = p[0] & (0x7fu >> n);
    for (size_t i = 1; i < n; i++) {
        if ((p[i] & 0xc0) != 0x80)
            return 0;
        code = code << 6 | (p[i] & 0x3fu);
    }
    static const uint32_t smallest[] = { 0, 0, 0xa0, 0x800, 0x10000 };   /* 0x80..0x9f are control characters too */
    bool surrogate = code >= 0xd800 && code <= 0xdfff;
    return code >= smallest[n] && code <= 0x10ffff && !surrogate ? n : 0;
}

static enum spa_err take_name(const struct file *f, enum key k, char out[SPA_NAME_MAX])
{
    struct text t;
    enum spa_err e = take_string(f, k, &t);
    if (e != SPA_OK)
        return e;
    if (t.len >= SPA_NAME_MAX)
        return fail(f->fault, SPA_ERR_LIMIT, spa_plugin_rules[k].wrong, f->values[k].at);
    for (size_t i = 0, n; i < t.len; i += n) {
        n = printable_utf8(t.at + i, t.len - i);
        if (n == 0)
            return wrong(f, k);
    }
    memcpy(out, t.at, t.len);
    return SPA_OK;
}

static enum spa_err take_kind(const struct file *f)
{
    static const char *const general[] = { "adapter" }, *const adapter[] = { "spa" };
    uint32_t version;
    int unused;
    enum spa_err e = take_word(f, K_GENERAL_TYPE, general, 1, &unused);
    if (e == SPA_OK)
        e = take_word(f, K_ADAPTER_TYPE, adapter, 1, &unused);
    if (e == SPA_OK)
        e = take_number(f, K_VERSION, sizeof version, &version);
    if (e != SPA_OK)
        return e;
    if (version == 0)
        return wrong(f, K_VERSION);
    if (version > SPA_PLUGIN_VERSION)
        return fail(f->fault, SPA_ERR_VERSION, "spa.version is newer than this program", f->values[K_VERSION].at);
    return SPA_OK;
}

static enum spa_err take_mix(const struct file *f, uint8_t *mix)
{
    uint32_t version;
    enum spa_err e = take_number(f, K_VERSION, sizeof version, &version);
    if (e == SPA_OK && version < SPA_PLUGIN_MIX)
        return fail(f->fault, SPA_ERR_FORMAT, "the key spa.context.mix is there, but spa.version is older than it", f->values[K_CTX_MIX].at);
    if (e == SPA_OK)
        e = take_number(f, K_CTX_MIX, sizeof *mix, mix);
    return e == SPA_OK && *mix > 1 ? wrong(f, K_CTX_MIX) : e;
}

static enum spa_err take_context(const struct file *f, struct spa_shape *s)
{
    uint8_t mix = 0;
    enum spa_err e = has(f, K_CTX_MIX) ? take_mix(f, &mix) : SPA_OK;
    s->ctx_mix = mix;
    if (e != SPA_OK || (!mix && !has(f, K_CTX_TAPS) && !has(f, K_CTX_E) && !has(f, K_CTX_HEADS) && !has(f, K_CTX_RUNGS)))
        return e;
    e = take_list(f, K_CTX_TAPS, SPA_MAX_TAPS, s->ctx_taps, &s->n_ctx_taps);
    if (e == SPA_OK)
        e = take_list(f, K_CTX_RUNGS, SPA_MAX_ATT, s->att_rungs, &s->n_att);
    if (e == SPA_OK)
        e = take_number(f, K_CTX_E, sizeof s->e, &s->e);
    return e == SPA_OK ? take_number(f, K_CTX_HEADS, sizeof s->n_heads, &s->n_heads) : e;
}

static enum spa_err take_shape(const struct file *f, struct spa_shape *s)
{
    const struct { enum key key; uint32_t *to; } numbers[] = {
        { K_D, &s->d }, { K_N_LAYERS, &s->n_layers }, { K_R, &s->r }, { K_M, &s->m }, { K_K, &s->k },
    };
    enum spa_err e = SPA_OK;
    for (size_t i = 0; e == SPA_OK && i < sizeof numbers / sizeof numbers[0]; i++)
        e = take_number(f, numbers[i].key, sizeof(uint32_t), numbers[i].to);
    if (e == SPA_OK)
        e = take_list(f, K_TAPS, SPA_MAX_TAPS, s->taps, &s->n_taps);
    uint8_t basis = 0;
    if (e == SPA_OK)
        e = take_number(f, K_BASIS, 1, &basis);
    if (e == SPA_OK && basis > 1)
        e = wrong(f, K_BASIS);
    s->basis = basis == 1;
    int normalise = 0, mode = 0;
    if (e == SPA_OK)
        e = take_word(f, K_NORMALISE, spa_normalise_words, 2, &normalise);
    if (e == SPA_OK)
        e = take_word(f, K_MODE, spa_mode_words, 2, &mode);
    s->normalise = (enum spa_normalise)normalise;
    s->mode = (enum spa_mode)mode;
    if (e == SPA_OK)
        e = take_context(f, s);
    if (e != SPA_OK)
        return e;
    e = spa_shape_check(s);
    return e == SPA_OK ? e : fail(f->fault, e, "the shape's numbers contradict each other or exceed the limits", 24);
}

static enum spa_err take_names(const struct file *f, struct spa_plugin *p)
{
    enum spa_err e = has(f, K_BASE_NAME) ? take_name(f, K_BASE_NAME, p->base_name) : SPA_OK;
    p->has_base_hash = has(f, K_BASE_HASH);
    if (e == SPA_OK && p->has_base_hash)
        e = take_hash(f, K_BASE_HASH, p->base_hash);
    if (e == SPA_OK && p->shape.basis)
        e = take_hash(f, K_BASIS_HASH, p->basis_hash);
    int tap = 0, state = 0;
    if (e == SPA_OK)
        e = take_word(f, K_TAP_DTYPE, spa_dtype_words, 3, &tap);
    if (e == SPA_OK)
        e = take_word(f, K_STATE_DTYPE, spa_dtype_words, 3, &state);
    p->tap_dtype = (enum spa_dtype)tap;
    p->state_dtype = (enum spa_dtype)state;
    p->gate_threshold = 0.5f;
    if (e == SPA_OK && has(f, K_GATE_THRESHOLD))
        e = take_number(f, K_GATE_THRESHOLD, sizeof(float), &p->gate_threshold);
    if (e == SPA_OK && !(p->gate_threshold > 0 && p->gate_threshold < 1))
        return wrong(f, K_GATE_THRESHOLD);
    return e;
}

static enum spa_err take_training(const struct file *f, struct spa_training *t)
{
    const struct { enum key key; size_t size; void *to; } numbers[] = {
        { K_ROWS, 4, &t->rows }, { K_LOSS_TOKENS, 4, &t->loss_tokens }, { K_EPOCHS, 4, &t->epochs },
        { K_STEPS, 8, &t->steps }, { K_SEED, 8, &t->seed },
        { K_FIRST_LOSS, 4, &t->first_loss }, { K_FINAL_LOSS, 4, &t->final_loss }, { K_EXACT_MATCH, 4, &t->eval_exact_match },
    };
    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++) {
        enum spa_err e = has(f, numbers[i].key) ? take_number(f, numbers[i].key, numbers[i].size, numbers[i].to) : SPA_OK;
        if (e != SPA_OK)
            return e;
    }
    if (!isfinite(t->first_loss) || !isfinite(t->final_loss) || !isfinite(t->eval_exact_match))
        return fail(f->fault, SPA_ERR_RANGE, "a number of spa.training is not finite", 24);
    return SPA_OK;
}

/* ---- the tensors that the shape asks for ---- */

/* Walks on from the last find, since files have the layout's order more often than not. */
struct finder { const struct file *f; struct reader r; uint64_t index; };

static struct finder finder_of(const struct file *f)
{
    struct finder w = { f, f->r, f->n_tensors };   /* the first find starts over at the first head */
    return w;
}

static bool find(struct finder *w, const char *name, struct head *h)
{
    for (uint64_t tries = 0; tries < w->f->n_tensors; tries++) {
        if (w->index == w->f->n_tensors) {
            w->index = 0;
            w->r.at = w->f->tensors_at;
        }
        spa_plugin_take_head(&w->r, h);
        w->index++;
        if (h->name.len > 4 && memcmp(h->name.at, "spa.", 4) == 0 &&
            text_is((struct text) { h->name.at + 4, h->name.len - 4 }, name))
            return true;
    }
    return false;
}

static const uint8_t *bytes_of(const struct file *f, const struct head *h) { return f->r.block + f->data_at + (size_t)h->offset; }

/* Of a tensor that is F32. */
static const float *numbers_of(const struct file *f, const struct head *h) { return (const float *)(const void *)bytes_of(f, h); }

/* n numbers from number `at` on; both whole blocks where there are blocks. */
static enum spa_err unpack(const struct file *f, const struct head *h, size_t at, size_t n, float *out)
{
    const size_t group = h->dtype == SPA_I8 ? SPA_GGUF_Q8_0_BLOCK : 1;
    return spa_dtype_unpack(h->dtype, bytes_of(f, h) + spa_dtype_bytes(h->dtype, at / group, group), n / group, group, out);
}

static bool all_finite(const struct file *f, const struct head *h, size_t n)
{
    enum { CHUNK = 8 * SPA_GGUF_Q8_0_BLOCK };
    float some[CHUNK];
    for (size_t at = 0; at < n; at += CHUNK)
        if (unpack(f, h, at, n - at < CHUNK ? n - at : CHUNK, some) != SPA_OK)
            return false;
    return true;
}

/* GGUF counts dimensions from the one that runs fastest: a [rows, cols] matrix has dims {cols, rows}. */
static enum spa_err check_tensor(const struct file *f, const struct head *h, uint64_t rows, uint64_t cols, bool any_type, const char *lacks)
{
    uint64_t at = (uint64_t)(h->name.at - f->r.block);
    if (!any_type && h->dtype != SPA_F32)
        return fail(f->fault, SPA_ERR_FORMAT, "a vector, the gate or the basis is not F32", at);
    if (h->dims[0] != cols || h->dims[1] != rows || h->dims[2] != 1 || h->dims[3] != 1)
        return fail(f->fault, SPA_ERR_SHAPE, lacks, at);
    if (!all_finite(f, h, (size_t)(rows * cols)))
        return fail(f->fault, SPA_ERR_RANGE, "a weight is NaN or infinite", f->data_at + h->offset);
    return SPA_OK;
}

static const char *lacks_of(const char *name)
{
    char family[sizeof ((struct spa_tensor *)0)->name];
    size_t n = 0;
    for (const char *c = name; *c; c++) {
        bool digit = *c >= '0' && *c <= '9', after_digit = c > name && c[-1] >= '0' && c[-1] <= '9';
        if (!digit)
            family[n++] = *c;
        else if (!after_digit)
            family[n++] = 'i';
    }
    family[n] = 0;
    for (size_t i = 0; i < sizeof families / sizeof families[0]; i++)
        if (strcmp(families[i].family, family) == 0)
            return families[i].lacks;
    return "a tensor of the ladder is missing or has another shape than the keys say";
}

static enum spa_err find_weight(struct finder *w, const struct spa_tensor *t, struct head *h)
{
    const char *lacks = lacks_of(t->name);
    if (!find(w, t->name, h))
        return fail(w->f->fault, SPA_ERR_FORMAT, lacks, w->f->tensors_at);
    return check_tensor(w->f, h, t->is_vector ? 1 : t->rows, t->is_vector ? t->rows : t->cols, !t->is_vector, lacks);
}

static enum spa_err take_weights(const struct file *f, struct spa_plugin *p, const float **params)
{
    const struct spa_shape *s = &p->shape;
    struct finder w = finder_of(f);
    size_t n = spa_tensor_count(s);
    bool in_order = true;
    for (size_t i = 0; i < n; i++) {
        struct spa_tensor t;
        struct head h;
        spa_param_tensor(s, i, &t);
        enum spa_err e = find_weight(&w, &t, &h);
        if (e != SPA_OK)
            return e;
        if (i == 0)
            *params = numbers_of(f, &h);
        in_order = in_order && h.dtype == SPA_F32 && numbers_of(f, &h) == *params + t.offset;
        p->weights = h.dtype > p->weights ? h.dtype : p->weights;
    }
    if (!in_order)
        *params = NULL;
    return SPA_OK;
}

static enum spa_err take_gate(const struct file *f, struct spa_plugin *p, struct spa_plugin_data *data)
{
    struct finder w = finder_of(f);
    struct head h;
    enum spa_err e = SPA_OK;
    p->has_gate = find(&w, "gate.weight", &h);
    if (p->has_gate) {
        p->gate_taps = h.dims[0] != p->shape.d;
        e = check_tensor(f, &h, 2, spa_gate_width(p), false, "the tensor spa.gate.weight is neither [2, d] nor [2, d + n_taps*k]");
        data->gate_w = numbers_of(f, &h);
    }
    if (e == SPA_OK && find(&w, "gate.bias", &h)) {
        if (!p->has_gate)
            return fail(f->fault, SPA_ERR_FORMAT, "the tensor spa.gate.bias is there without spa.gate.weight", f->tensors_at);
        p->gate_has_bias = true;
        e = check_tensor(f, &h, 1, 2, false, "the tensor spa.gate.bias is not [2]");
        data->gate_b = numbers_of(f, &h);
    }
    return e;
}

static enum spa_err take_basis(const struct file *f, const struct spa_shape *s, const float **basis)
{
    struct finder w = finder_of(f);
    struct head h;
    if (!find(&w, "basis", &h))
        return SPA_OK;   /* the cloud may have it under its hash */
    if (!s->basis)
        return fail(f->fault, SPA_ERR_FORMAT, "the tensor spa.basis is there, but the key spa.basis says false", f->tensors_at);
    uint64_t per_tap = 1 + (uint64_t)s->d + (uint64_t)s->k * s->d;
    enum spa_err e = check_tensor(f, &h, s->n_taps, per_tap, false, "the tensor spa.basis is not [n_taps, 1 + d + k*d]");
    if (e != SPA_OK)
        return e;
    *basis = numbers_of(f, &h);
    e = spa_basis_check(s, *basis);
    return e == SPA_OK ? e : fail(f->fault, e, "a scale of spa.basis is not positive", f->data_at + h.offset);
}

enum spa_err spa_plugin_read(const uint8_t *block, size_t len, struct spa_plugin *p, struct spa_plugin_data *data,
                             struct spa_fault *fault)
{
    struct file f;
    assert((uintptr_t)block % sizeof(float) == 0);
    memset(p, 0, sizeof *p);
    *data = (struct spa_plugin_data) { NULL, NULL, NULL, NULL };
    enum spa_err e = spa_plugin_scan(&f, block, len, fault);
    if (e == SPA_OK)
        e = take_kind(&f);
    if (e == SPA_OK)
        e = take_shape(&f, &p->shape);
    if (e == SPA_OK)
        e = take_names(&f, p);
    if (e == SPA_OK)
        e = take_training(&f, &p->training);
    if (e == SPA_OK)
        e = take_weights(&f, p, &data->params);
    if (e == SPA_OK)
        e = take_gate(&f, p, data);
    return e == SPA_OK ? take_basis(&f, &p->shape, &data->basis) : e;
}

enum spa_err spa_plugin_params(const uint8_t *block, size_t len, const struct spa_plugin *p, float *params)
{
    struct file f;
    struct spa_fault fault;
    enum spa_err e = spa_plugin_scan(&f, block, len, &fault);
    if (e != SPA_OK)
        return e;
    struct finder w = finder_of(&f);
    size_t n = spa_tensor_count(&p->shape);
    for (size_t i = 0; i < n; i++) {
        struct spa_tensor t;
        struct head h;
        spa_param_tensor(&p->shape, i, &t);
        e = find_weight(&w, &t, &h);
        if (e != SPA_OK)
            return e;
        e = unpack(&f, &h, 0, (size_t)t.rows * t.cols, params + t.offset);
        if (e != SPA_OK)
            return e;
    }
    return SPA_OK;
}
