/* plugin_scan.c - the walk over a GGUF header that trusts nothing (plugin_scan.h): every length is compared with what is left of
 * the block before it is used, and nothing is kept but positions. */
#include "plugin_scan.h"

#define RULE(name, type) { name, type, "the key " name " is missing", "the key " name " has a wrong type or value" }
const struct key_rule spa_plugin_rules[N_KEYS] = {
    [K_ALIGNMENT]      = RULE("general.alignment", SPA_GGUF_U32),
    [K_GENERAL_TYPE]   = { "general.type", SPA_GGUF_STRING, "the key general.type is missing: a base model?",
                           "the key general.type is not \"adapter\": a base model?" },
    [K_ADAPTER_TYPE]   = { "adapter.type", SPA_GGUF_STRING, "the key adapter.type is missing",
                           "the key adapter.type is not \"spa\": an adapter of another kind" },
    [K_VERSION]        = RULE("spa.version", SPA_GGUF_U32),
    [K_D]              = RULE("spa.d", SPA_GGUF_U32),
    [K_N_LAYERS]       = RULE("spa.n_layers", SPA_GGUF_U32),
    [K_R]              = RULE("spa.r", SPA_GGUF_U32),
    [K_M]              = RULE("spa.m", SPA_GGUF_U32),
    [K_K]              = RULE("spa.k", SPA_GGUF_U32),
    [K_TAPS]           = RULE("spa.taps", SPA_GGUF_ARRAY),
    [K_BASIS]          = RULE("spa.basis", SPA_GGUF_BOOL),
    [K_BASIS_HASH]     = RULE("spa.basis.hash", SPA_GGUF_STRING),
    [K_NORMALISE]      = RULE("spa.normalise", SPA_GGUF_STRING),
    [K_MODE]           = RULE("spa.mode", SPA_GGUF_STRING),
    [K_CTX_TAPS]       = RULE("spa.context.taps", SPA_GGUF_ARRAY),
    [K_CTX_E]          = RULE("spa.context.e", SPA_GGUF_U32),
    [K_CTX_HEADS]      = RULE("spa.context.heads", SPA_GGUF_U32),
    [K_CTX_RUNGS]      = RULE("spa.context.rungs", SPA_GGUF_ARRAY),
    [K_CTX_MIX]        = RULE("spa.context.mix", SPA_GGUF_BOOL),
    [K_BASE_NAME]      = RULE("spa.base.name", SPA_GGUF_STRING),
    [K_BASE_HASH]      = RULE("spa.base.hash", SPA_GGUF_STRING),
    [K_TAP_DTYPE]      = RULE("spa.tap_dtype", SPA_GGUF_STRING),
    [K_STATE_DTYPE]    = RULE("spa.state_dtype", SPA_GGUF_STRING),
    [K_GATE_THRESHOLD] = RULE("spa.gate.threshold", SPA_GGUF_F32),
    [K_ROWS]           = RULE("spa.training.rows", SPA_GGUF_U32),
    [K_LOSS_TOKENS]    = RULE("spa.training.loss_tokens", SPA_GGUF_U32),
    [K_EPOCHS]         = RULE("spa.training.epochs", SPA_GGUF_U32),
    [K_STEPS]          = RULE("spa.training.steps", SPA_GGUF_U64),
    [K_SEED]           = RULE("spa.training.seed", SPA_GGUF_U64),
    [K_FIRST_LOSS]     = RULE("spa.training.first_loss", SPA_GGUF_F32),
    [K_FINAL_LOSS]     = RULE("spa.training.final_loss", SPA_GGUF_F32),
    [K_EXACT_MATCH]    = RULE("spa.training.eval_exact_match", SPA_GGUF_F32),
};

enum { N_DTYPES = sizeof spa_gguf_tensor_types / sizeof spa_gguf_tensor_types[0] };

/* ---- bytes; false: the block ends before ---- */

static bool take(struct reader *r, size_t n, void *out)
{
    if (n > r->len - r->at)
        return false;
    memcpy(out, r->block + r->at, n);
    r->at += n;
    return true;
}

static bool skip(struct reader *r, uint64_t n)
{
    if (n > r->len - r->at)
        return false;
    r->at += (size_t)n;
    return true;
}

bool spa_plugin_take_text(struct reader *r, struct text *t)
{
    uint64_t n;
    if (!take(r, sizeof n, &n) || n > r->len - r->at)
        return false;
    *t = (struct text) { r->block + r->at, (size_t)n };
    r->at += (size_t)n;
    return true;
}

static bool same_text(struct text a, struct text b)
{
    return a.len == b.len && memcmp(a.at, b.at, a.len) == 0;
}

/* Others' libraries refuse names in no encoding. */
static bool is_ascii(struct text t)
{
    for (size_t i = 0; i < t.len; i++)
        if (t.at[i] < 0x20 || t.at[i] > 0x7e)
            return false;
    return t.len > 0;
}

/* ---- one key's value, one tensor's head ---- */

static const char ends_early[] = "the file ends inside its header";

static enum spa_err take_value(struct reader *r, struct value *v, struct spa_fault *fault)
{
    static const uint8_t sizes[SPA_GGUF_N_TYPES] = { 1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8 };
    size_t start = r->at;
    struct text t;
    *v = (struct value) { .elem = SPA_GGUF_N_TYPES, .count = 1 };
    if (!take(r, sizeof v->type, &v->type))
        return fail(fault, SPA_ERR_FORMAT, ends_early, start);
    if (v->type == SPA_GGUF_ARRAY) {
        if (!take(r, sizeof v->elem, &v->elem) || !take(r, sizeof v->count, &v->count))
            return fail(fault, SPA_ERR_FORMAT, ends_early, start);
        if (v->count > SPA_GGUF_MAX_ARRAY)
            return fail(fault, SPA_ERR_LIMIT, "an array with too many elements", start);
    }
    uint32_t type = v->type == SPA_GGUF_ARRAY ? v->elem : v->type;
    if (type >= SPA_GGUF_N_TYPES || type == SPA_GGUF_ARRAY)
        return fail(fault, SPA_ERR_FORMAT, "a value of a type that GGUF does not have, or an array of arrays", start);
    v->at = r->at;
    if (type != SPA_GGUF_STRING) {
        if (!skip(r, v->count * sizes[type]))
            return fail(fault, SPA_ERR_FORMAT, ends_early, start);
        return SPA_OK;
    }
    for (uint64_t i = 0; i < v->count; i++) {
        if (!spa_plugin_take_text(r, &t))
            return fail(fault, SPA_ERR_FORMAT, ends_early, start);
        if (t.len > SPA_GGUF_MAX_STRING)
            return fail(fault, SPA_ERR_LIMIT, "a string that is too long", start);
    }
    return SPA_OK;
}

bool spa_plugin_take_head(struct reader *r, struct head *h)
{
    *h = (struct head) { .dims = { 1, 1, 1, 1 } };
    if (!spa_plugin_take_text(r, &h->name) || !take(r, sizeof h->n_dims, &h->n_dims) || h->n_dims > SPA_GGUF_MAX_DIMS ||
        !take(r, h->n_dims * sizeof h->dims[0], h->dims) || !take(r, sizeof h->type, &h->type) || !take(r, sizeof h->offset, &h->offset))
        return false;
    for (int i = 0; i < N_DTYPES; i++)
        if (spa_gguf_tensor_types[i] == h->type)
            h->dtype = (enum spa_dtype)i;
    return true;
}

static bool type_is_known(const struct head *h) { return spa_gguf_tensor_types[h->dtype] == h->type; }

/* Bytes of a tensor whose type is known, in *bytes; false: more than room, none at all, or rows that are no whole blocks. */
static bool bytes_of(const struct head *h, uint64_t room, uint64_t *bytes)
{
    const bool blocks = h->dtype == SPA_I8;
    if (h->dims[0] == 0 || h->dims[0] > room || (blocks && h->dims[0] % SPA_GGUF_Q8_0_BLOCK != 0))
        return false;
    *bytes = blocks ? spa_dtype_bytes(SPA_I8, (size_t)h->dims[0] / SPA_GGUF_Q8_0_BLOCK, SPA_GGUF_Q8_0_BLOCK)
                    : spa_dtype_bytes(h->dtype, (size_t)h->dims[0], 1);
    for (int k = 1; k < SPA_GGUF_MAX_DIMS; k++) {
        if (h->dims[k] == 0 || h->dims[k] > room / *bytes)
            return false;
        *bytes *= h->dims[k];
    }
    return *bytes <= room;
}

/* ---- the walk over the whole header ---- */

static bool key_came_before(struct reader r, uint64_t n, struct text key)
{
    struct spa_fault ignored;
    struct value v;
    struct text t;
    for (uint64_t i = 0; i < n; i++) {
        if (!spa_plugin_take_text(&r, &t) || same_text(t, key) || take_value(&r, &v, &ignored) != SPA_OK)
            return true;
    }
    return false;
}

static bool tensor_came_before(struct reader r, uint64_t n, struct text name)
{
    struct head h;
    for (uint64_t i = 0; i < n; i++)
        if (!spa_plugin_take_head(&r, &h) || same_text(h.name, name))
            return true;
    return false;
}

static enum spa_err scan_keys(struct file *f, uint64_t n_keys)
{
    struct reader first = f->r;
    for (int k = 0; k < N_KEYS; k++)
        f->values[k].type = SPA_GGUF_N_TYPES;
    for (uint64_t i = 0; i < n_keys; i++) {
        size_t start = f->r.at;
        struct text key;
        struct value v;
        if (!spa_plugin_take_text(&f->r, &key))
            return fail(f->fault, SPA_ERR_FORMAT, ends_early, start);
        if (key.len > SPA_GGUF_MAX_NAME)
            return fail(f->fault, SPA_ERR_LIMIT, "a key with a name that is too long", start);
        if (!is_ascii(key))
            return fail(f->fault, SPA_ERR_FORMAT, "a key with a name that is no printable ASCII", start);
        enum spa_err e = take_value(&f->r, &v, f->fault);
        if (e != SPA_OK)
            return e;
        if (key_came_before(first, i, key))
            return fail(f->fault, SPA_ERR_FORMAT, "a key comes twice", start);
        for (int k = 0; k < N_KEYS; k++)
            if (text_is(key, spa_plugin_rules[k].name))
                f->values[k] = v;
    }
    return SPA_OK;
}

static enum spa_err take_alignment(struct file *f, uint32_t *alignment)
{
    const struct value *v = &f->values[K_ALIGNMENT];
    *alignment = SPA_GGUF_ALIGNMENT;
    if (v->type == SPA_GGUF_N_TYPES)
        return SPA_OK;
    if (v->type == SPA_GGUF_U32)
        memcpy(alignment, f->r.block + v->at, sizeof *alignment);
    uint32_t a = *alignment;
    if (v->type != SPA_GGUF_U32 || a < 8 || a > SPA_GGUF_MAX_ALIGN || (a & (a - 1)) != 0)
        return fail(f->fault, SPA_ERR_FORMAT, spa_plugin_rules[K_ALIGNMENT].wrong, v->at);
    return SPA_OK;
}

/* Heads must come in the order of their data, as every GGUF library writes them: so overlap shows in one comparison. */
static enum spa_err scan_tensors(struct file *f, uint32_t alignment)
{
    struct reader r = f->r;
    struct head h;
    f->tensors_at = f->r.at;
    for (uint64_t i = 0; i < f->n_tensors; i++) {
        size_t start = f->r.at;
        if (!spa_plugin_take_head(&f->r, &h))
            return fail(f->fault, SPA_ERR_FORMAT, "the file ends inside a tensor's head, or it has too many dimensions", start);
        if (h.name.len > SPA_GGUF_MAX_NAME)
            return fail(f->fault, SPA_ERR_LIMIT, "a tensor with a name that is too long", start);
        if (!is_ascii(h.name))
            return fail(f->fault, SPA_ERR_FORMAT, "a tensor with a name that is no printable ASCII", start);
        if (tensor_came_before(r, i, h.name))
            return fail(f->fault, SPA_ERR_FORMAT, "a tensor comes twice", start);
        if (!type_is_known(&h))
            return fail(f->fault, SPA_ERR_FORMAT, "a tensor that is not F32, F16 or Q8_0", start);
    }
    f->data_at = f->r.at + (alignment - f->r.at % alignment) % alignment;
    if (f->data_at > f->r.len)
        return fail(f->fault, SPA_ERR_FORMAT, "the file ends before its tensors' data", f->r.len);
    uint64_t room = f->r.len - f->data_at, end = 0;
    for (uint64_t i = 0; i < f->n_tensors; i++) {
        size_t start = r.at;
        spa_plugin_take_head(&r, &h);
        uint64_t bytes;
        if (!bytes_of(&h, room, &bytes))
            return fail(f->fault, SPA_ERR_FORMAT, "tensor data runs past the end of the file, or a row of Q8_0 is no whole number of blocks", start);
        if (h.offset % alignment != 0)
            return fail(f->fault, SPA_ERR_FORMAT, "a tensor's offset is not aligned", start);
        if (h.offset < end)
            return fail(f->fault, SPA_ERR_FORMAT, "tensors overlap, or their data is not in the order of their heads", start);
        if (h.offset > room || bytes > room - h.offset)
            return fail(f->fault, SPA_ERR_FORMAT, "tensor data runs past the end of the file", start);
        end = h.offset + bytes;
    }
    if (room != end + (alignment - end % alignment) % alignment)
        return fail(f->fault, SPA_ERR_FORMAT, "the file does not end where its last tensor's padding ends", f->data_at + end);
    return SPA_OK;
}

enum spa_err spa_plugin_scan(struct file *f, const uint8_t *block, size_t len, struct spa_fault *fault)
{
    uint8_t magic[4];
    uint32_t version, alignment;
    uint64_t n_keys;
    f->r = (struct reader) { block, len, 0 };
    f->fault = fault;
    if (!take(&f->r, sizeof magic, magic) || memcmp(magic, "GGUF", 4) != 0)
        return fail(fault, SPA_ERR_FORMAT, "this is no GGUF file", 0);
    if (!take(&f->r, sizeof version, &version))
        return fail(fault, SPA_ERR_FORMAT, ends_early, f->r.at);
    if (version != SPA_GGUF_VERSION)
        return fail(fault, SPA_ERR_VERSION, "a GGUF version other than 3", 4);
    if (!take(&f->r, sizeof f->n_tensors, &f->n_tensors) || !take(&f->r, sizeof n_keys, &n_keys))
        return fail(fault, SPA_ERR_FORMAT, ends_early, f->r.at);
    if (f->n_tensors > SPA_GGUF_MAX_TENSORS || n_keys > SPA_GGUF_MAX_KEYS)
        return fail(fault, SPA_ERR_LIMIT, "too many tensors or keys", 8);
    enum spa_err e = scan_keys(f, n_keys);
    if (e == SPA_OK)
        e = take_alignment(f, &alignment);
    return e == SPA_OK ? scan_tensors(f, alignment) : e;
}
