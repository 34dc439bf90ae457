/* peft.c - plugin to adapter folder and back (peft.h). In: one. Out: the other, or a sentence why not. */
#define _POSIX_C_SOURCE 200809L
#include "peft.h"
#include "basis.h"
#include "peft_card.h"
#include "plugin_format.h"
#include "safetensors.h"
#include "store.h"

#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static const char config_name[] = "adapter_config.json", model_name[] = "adapter_model.safetensors", card_name[] = "README.md";
enum { PATH_ROOM = PATH_MAX + sizeof model_name };   /* a folder, a slash and the longest of these */
static const size_t max_config_bytes = 1 << 20, max_model_bytes = (size_t)2 << 30;

/* ---- tensors: the same list for both ways ---- */

enum { ROOM_BESIDE_LADDER = 3 };   /* gate.weight, gate.bias, basis */

struct item {
    char     name[SPA_ST_NAME_MAX];
    uint32_t rows, cols;           /* cols 0: a vector */
    float   *numbers;
};

static struct item item_of(const char *name, uint32_t rows, uint32_t cols, float *numbers)
{
    struct item i = { .rows = rows, .cols = cols, .numbers = numbers };
    snprintf(i.name, sizeof i.name, "spa.%s", name);
    return i;
}

/* What the plugin holds; of gate and basis, what there are numbers for. Returns how many. */
static size_t list_items(const struct spa_plugin_file *f, struct item *items)
{
    const struct spa_shape *s = &f->plugin.shape;
    size_t n = spa_tensor_count(s);
    for (size_t i = 0; i < n; i++) {
        struct spa_tensor t;
        spa_param_tensor(s, i, &t);
        items[i] = item_of(t.name, t.rows, t.is_vector ? 0 : t.cols, f->params + t.offset);
    }
    if (f->gate_w)
        items[n++] = item_of("gate.weight", 2, (uint32_t)spa_gate_width(&f->plugin), f->gate_w);
    if (f->gate_b)
        items[n++] = item_of("gate.bias", 2, 0, f->gate_b);
    if (f->basis)
        items[n++] = item_of("basis", s->n_taps, (uint32_t)(spa_basis_floats(s) / s->n_taps), f->basis);
    return n;
}

static struct item *items_for(const struct spa_shape *s) { return calloc(spa_tensor_count(s) + ROOM_BESIDE_LADDER, sizeof(struct item)); }

/* ---- out ---- */

static json_t *list_of(const uint32_t *list, uint32_t n)
{
    json_t *array = json_array();
    for (uint32_t i = 0; i < n; i++)
        json_array_append_new(array, json_integer(list[i]));
    return array;
}

static json_t *hex_of(const uint8_t *hash)
{
    char hex[SPA_SHA256_HEX];
    spa_sha256_hex(hash, hex);
    return json_string(hex);
}

static json_t *config_of(const struct spa_plugin *p)
{
    const struct spa_shape *s = &p->shape;
    const struct spa_training *t = &p->training;
    json_t *training = json_pack("{s:I, s:I, s:I, s:f, s:f, s:f}", "rows", (json_int_t)t->rows, "loss_tokens", (json_int_t)t->loss_tokens,
                                 "epochs", (json_int_t)t->epochs, "first_loss", (double)t->first_loss, "final_loss", (double)t->final_loss,
                                 "eval_exact_match", (double)t->eval_exact_match);
    char steps[24], seed[24];   /* as text: JSON's readers lose digits of large numbers */
    snprintf(steps, sizeof steps, "%" PRIu64, t->steps);
    snprintf(seed, sizeof seed, "%" PRIu64, t->seed);
    json_object_set_new(training, "steps", json_string(steps));
    json_object_set_new(training, "seed", json_string(seed));
    json_t *c = json_pack("{s:s, s:s, s:s, s:b, s:i, s:I, s:I, s:I, s:I, s:I, s:o, s:b, s:s, s:s, s:s, s:s, s:f, s:o}",
                          "peft_type", "SPA", "task_type", "CAUSAL_LM", "base_model_name_or_path", p->base_name, "inference_mode", 1,
                          "version", (int)spa_plugin_version(p), "d", (json_int_t)s->d, "n_layers", (json_int_t)s->n_layers, "r", (json_int_t)s->r,
                          "m", (json_int_t)s->m, "k", (json_int_t)s->k, "taps", list_of(s->taps, s->n_taps), "basis", s->basis,
                          "normalise", spa_normalise_words[s->normalise], "mode", spa_mode_words[s->mode],
                          "tap_dtype", spa_dtype_words[p->tap_dtype], "state_dtype", spa_dtype_words[p->state_dtype],
                          "gate.threshold", (double)p->gate_threshold, "training", training);
    if (c && s->basis)
        json_object_set_new(c, "basis.hash", hex_of(p->basis_hash));
    if (c && p->has_base_hash)
        json_object_set_new(c, "base.hash", hex_of(p->base_hash));
    if (c && s->n_ctx_taps)
        json_object_set_new(c, "context", json_pack("{s:o, s:I, s:I, s:o}", "taps", list_of(s->ctx_taps, s->n_ctx_taps), "e", (json_int_t)s->e,
                                                    "heads", (json_int_t)s->n_heads, "rungs", list_of(s->att_rungs, s->n_att)));
    if (c && s->ctx_mix)
        json_object_set_new(json_object_get(c, "context"), "mix", json_true());
    return c;
}

static uint8_t *model_of(const struct spa_plugin_file *f, size_t *len)
{
    const size_t room = spa_tensor_count(&f->plugin.shape) + ROOM_BESIDE_LADDER;
    struct item *items = items_for(&f->plugin.shape);
    struct spa_st_tensor *tensors = calloc(room, sizeof *tensors);
    const float **numbers = calloc(room, sizeof *numbers);
    uint8_t *bytes = NULL;
    if (items && tensors && numbers) {
        const size_t n = list_items(f, items);
        for (size_t i = 0; i < n; i++) {
            const bool is_ladder = i < spa_tensor_count(&f->plugin.shape);
            memcpy(tensors[i].name, items[i].name, sizeof tensors[i].name);
            tensors[i].dtype = is_ladder && items[i].cols && f->plugin.weights == SPA_F16 ? SPA_ST_F16 : SPA_ST_F32;
            tensors[i].n_dims = items[i].cols ? 2 : 1;
            tensors[i].dims[0] = items[i].rows;
            tensors[i].dims[1] = items[i].cols;
            numbers[i] = items[i].numbers;
        }
        spa_st_write(tensors, numbers, n, NULL, 0, len);
        bytes = malloc(*len);
        if (bytes)
            spa_st_write(tensors, numbers, n, bytes, *len, len);
    }
    free(items);
    free(tensors);
    free(numbers);
    return bytes;
}

/* The three files into a folder that is ours alone. */
static int write_files(const char *folder, const struct spa_plugin_file *f, char *why, size_t why_len)
{
    char path[PATH_ROOM];
    size_t len = 0;
    uint8_t *model = model_of(f, &len);
    json_t *config = config_of(&f->plugin);
    char *text = config ? json_dumps(config, JSON_INDENT(2) | JSON_PRESERVE_ORDER) : NULL, *card = spa_peft_card(&f->plugin);
    int rc = -1;
    if (!model || !text || !card) {
        snprintf(why, why_len, "there is no memory to write '%s'; close other programs", folder);
    } else {
        snprintf(path, sizeof path, "%s/%s", folder, model_name);
        rc = spa_store_replace(path, model, len, true, why, why_len);
        snprintf(path, sizeof path, "%s/%s", folder, config_name);
        if (rc == 0)
            rc = spa_store_replace(path, text, strlen(text), true, why, why_len);
        snprintf(path, sizeof path, "%s/%s", folder, card_name);
        if (rc == 0)
            rc = spa_store_replace(path, card, strlen(card), true, why, why_len);
    }
    free(model);
    free(text);
    free(card);
    json_decref(config);
    return rc;
}

static void remove_files(const char *folder)
{
    static const char *const names[] = { config_name, model_name, card_name };
    char path[PATH_ROOM];
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        snprintf(path, sizeof path, "%s/%s", folder, names[i]);
        unlink(path);
    }
    rmdir(folder);
}

int spa_peft_save(const char *folder, const struct spa_plugin_file *f, char *why, size_t why_len)
{
    char target[PATH_MAX - 64], whole[PATH_MAX];   /* ours has a number at its end */
    size_t n = strlen(folder);
    while (n > 1 && folder[n - 1] == '/')
        n--;
    if (n >= sizeof target) {
        snprintf(why, why_len, "'%.100s...' is too long a name for a folder", folder);
        return -1;
    }
    memcpy(target, folder, n);
    target[n] = '\0';
    if (f->plugin.weights == SPA_I8) {
        snprintf(why, why_len, "'%s' cannot hold Q8_0 weights, which safetensors does not have; choose --type f16 or f32", target);
        return -1;
    }
    snprintf(whole, sizeof whole, "%s.new-%ld", target, (long)getpid());
    if (mkdir(whole, 0700) != 0)
        return spa_store_complain(why, why_len, "make the folder", whole, errno);
    int rc = write_files(whole, f, why, why_len);
    if (rc == 0 && rename(whole, target) != 0) {
        if (errno == EEXIST || errno == ENOTEMPTY || errno == ENOTDIR)
            snprintf(why, why_len, "'%s' exists already and is no empty folder; remove it or choose another name", target);
        else
            spa_store_complain(why, why_len, "rename to", target, errno);
        rc = -1;
    }
    if (rc != 0)
        remove_files(whole);
    else
        spa_store_sync_folder(target);
    return rc;
}

/* ---- in ---- */

struct config {
    const json_t *root;
    const char *folder;
    char *why;
    size_t why_len;
};

static int complain(const struct config *c, const char *what)
{
    snprintf(c->why, c->why_len, "'%s' is no folder of a side plugin: %s", c->folder, what);
    return -1;
}

static int wrong(const struct config *c, const char *key)
{
    char what[128];
    snprintf(what, sizeof what, "in %s the field %s is missing or wrong", config_name, key);
    return complain(c, what);
}

static int take_count(const struct config *c, const json_t *from, const char *key, uint32_t *out)
{
    const json_t *v = json_object_get(from, key);
    const json_int_t n = json_integer_value(v);
    if (!json_is_integer(v) || n < 0 || n > (json_int_t)UINT32_MAX)
        return wrong(c, key);
    *out = (uint32_t)n;
    return 0;
}

static int take_list(const struct config *c, const json_t *from, const char *key, uint32_t *list, uint32_t cap, uint32_t *n)
{
    const json_t *array = json_object_get(from, key);
    if (!json_is_array(array) || json_array_size(array) > cap)
        return wrong(c, key);
    *n = (uint32_t)json_array_size(array);
    for (uint32_t i = 0; i < *n; i++) {
        const json_int_t v = json_integer_value(json_array_get(array, i));
        if (!json_is_integer(json_array_get(array, i)) || v < 0 || v > (json_int_t)UINT32_MAX)
            return wrong(c, key);
        list[i] = (uint32_t)v;
    }
    return 0;
}

static int take_word(const struct config *c, const char *key, const char *const *words, int n, int *out)
{
    const char *word = json_string_value(json_object_get(c->root, key));
    for (*out = 0; word && *out < n; ++*out)
        if (strcmp(word, words[*out]) == 0)
            return 0;
    return wrong(c, key);
}

static int take_hash(const struct config *c, const char *key, uint8_t out[SPA_HASH_BYTES])
{
    const char *hex = json_string_value(json_object_get(c->root, key));
    if (!hex || strlen(hex) != 2 * SPA_HASH_BYTES || strspn(hex, "0123456789abcdef") != 2 * SPA_HASH_BYTES)
        return wrong(c, key);
    for (size_t i = 0; i < SPA_HASH_BYTES; i++) {
        const char pair[3] = { hex[2 * i], hex[2 * i + 1], '\0' };
        out[i] = (uint8_t)strtoul(pair, NULL, 16);
    }
    return 0;
}

static int take_shape(const struct config *c, struct spa_shape *s)
{
    const json_t *basis = json_object_get(c->root, "basis"), *context = json_object_get(c->root, "context");
    int normalise = 0, mode = 0;
    if (take_count(c, c->root, "d", &s->d) != 0 || take_count(c, c->root, "n_layers", &s->n_layers) != 0 ||
        take_count(c, c->root, "r", &s->r) != 0 || take_count(c, c->root, "m", &s->m) != 0 || take_count(c, c->root, "k", &s->k) != 0 ||
        take_list(c, c->root, "taps", s->taps, SPA_MAX_TAPS, &s->n_taps) != 0 || take_word(c, "normalise", spa_normalise_words, 2, &normalise) != 0 ||
        take_word(c, "mode", spa_mode_words, 2, &mode) != 0)
        return -1;
    if (!json_is_boolean(basis))
        return wrong(c, "basis");
    s->basis = json_is_true(basis);
    s->normalise = (enum spa_normalise)normalise;
    s->mode = (enum spa_mode)mode;
    const json_t *mix = json_object_get(context, "mix");
    if (mix && !json_is_boolean(mix))
        return wrong(c, "mix");
    s->ctx_mix = json_is_true(mix);
    if (context && (take_list(c, context, "taps", s->ctx_taps, SPA_MAX_TAPS, &s->n_ctx_taps) != 0 || take_count(c, context, "e", &s->e) != 0 ||
                    take_count(c, context, "heads", &s->n_heads) != 0 ||
                    take_list(c, context, "rungs", s->att_rungs, SPA_MAX_ATT, &s->n_att) != 0))
        return -1;
    return spa_shape_check(s) == SPA_OK ? 0 : complain(c, "the numbers of its shape contradict each other or exceed what a plugin may have");
}

/* All of it may be missing: then nothing is known. */
static void take_training(const json_t *from, struct spa_training *t)
{
    const char *steps = json_string_value(json_object_get(from, "steps")), *seed = json_string_value(json_object_get(from, "seed"));
    t->rows = (uint32_t)json_integer_value(json_object_get(from, "rows"));
    t->loss_tokens = (uint32_t)json_integer_value(json_object_get(from, "loss_tokens"));
    t->epochs = (uint32_t)json_integer_value(json_object_get(from, "epochs"));
    t->steps = steps ? strtoull(steps, NULL, 10) : 0;
    t->seed = seed ? strtoull(seed, NULL, 10) : 0;
    t->first_loss = (float)json_number_value(json_object_get(from, "first_loss"));
    t->final_loss = (float)json_number_value(json_object_get(from, "final_loss"));
    t->eval_exact_match = (float)json_number_value(json_object_get(from, "eval_exact_match"));
}

static int take_config(const struct config *c, struct spa_plugin *p)
{
    const char *type = json_string_value(json_object_get(c->root, "peft_type"));
    const json_t *threshold = json_object_get(c->root, "gate.threshold");
    char what[128];
    uint32_t version;
    int tap = 0, state = 0;
    if (!type || strcmp(type, "SPA") != 0) {
        snprintf(what, sizeof what, "its peft_type is %.40s, another kind of adapter", type ? type : "not said");
        return complain(c, what);
    }
    if (take_count(c, c->root, "version", &version) != 0)
        return -1;
    if (version < 1 || version > SPA_PLUGIN_VERSION)
        return complain(c, "its version is another one; upgrade spa, or write the folder with an older one");
    if (version < SPA_PLUGIN_MIX && json_object_get(json_object_get(c->root, "context"), "mix"))
        return complain(c, "context.mix is there, but its version is older than that; write the folder again");
    if (take_shape(c, &p->shape) != 0 || take_word(c, "tap_dtype", spa_dtype_words, 3, &tap) != 0 ||
        take_word(c, "state_dtype", spa_dtype_words, 3, &state) != 0 || (p->shape.basis && take_hash(c, "basis.hash", p->basis_hash) != 0))
        return -1;
    p->has_base_hash = json_object_get(c->root, "base.hash") != NULL;
    if (p->has_base_hash && take_hash(c, "base.hash", p->base_hash) != 0)
        return -1;
    const char *base = json_string_value(json_object_get(c->root, "base_model_name_or_path"));
    if (base && strlen(base) >= sizeof p->base_name)
        return wrong(c, "base_model_name_or_path");
    snprintf(p->base_name, sizeof p->base_name, "%s", base ? base : "");
    p->tap_dtype = (enum spa_dtype)tap;
    p->state_dtype = (enum spa_dtype)state;
    p->gate_threshold = threshold ? (float)json_number_value(threshold) : 0.5f;
    take_training(json_object_get(c->root, "training"), &p->training);
    return 0;
}

/* Room for what the tensors and the shape say that there is. */
static int make_room(const struct config *c, const struct spa_st_tensor *tensors, size_t n, struct spa_plugin_file *f)
{
    struct spa_plugin *p = &f->plugin;
    const struct spa_st_tensor *gate = spa_st_find(tensors, n, "spa.gate.weight");
    p->has_gate = gate != NULL;
    p->gate_taps = gate && gate->n_dims == 2 && gate->dims[1] != p->shape.d;
    p->gate_has_bias = spa_st_find(tensors, n, "spa.gate.bias") != NULL;
    if (p->gate_has_bias && !gate)
        return complain(c, "the tensor spa.gate.bias is there without spa.gate.weight");
    const bool basis = p->shape.basis && spa_st_find(tensors, n, "spa.basis") != NULL;
    f->params = malloc(spa_param_count(&p->shape) * sizeof(float));
    f->gate_w = gate ? malloc(2 * spa_gate_width(p) * sizeof(float)) : NULL;
    f->gate_b = p->gate_has_bias ? malloc(2 * sizeof(float)) : NULL;
    f->basis = basis ? malloc(spa_basis_floats(&p->shape) * sizeof(float)) : NULL;
    const bool all = f->params && (f->gate_w || !gate) && (f->gate_b || !p->gate_has_bias) && (f->basis || !basis);
    return all ? 0 : complain(c, "there is no memory for its weights");
}

static int take_tensors(const struct config *c, const uint8_t *block, const struct spa_st_tensor *tensors, size_t n, struct spa_plugin_file *f)
{
    char what[2 * SPA_ST_NAME_MAX];
    if (make_room(c, tensors, n, f) != 0)
        return -1;
    struct item *items = items_for(&f->plugin.shape);
    if (!items)
        return complain(c, "there is no memory for the list of its tensors");
    const size_t n_items = list_items(f, items);
    int rc = 0;
    for (size_t i = 0; i < n_items && rc == 0; i++) {
        const struct spa_st_tensor *t = spa_st_find(tensors, n, items[i].name);
        if (t && spa_st_numbers(block, t, items[i].rows, items[i].cols, items[i].numbers))
            continue;
        snprintf(what, sizeof what, "the tensor %s is missing or not F32, F16 or BF16 of %" PRIu32 " x %" PRIu32, items[i].name, items[i].rows,
                 items[i].cols ? items[i].cols : 1);
        rc = complain(c, what);
    }
    free(items);
    if (rc == 0 && f->basis) {
        uint8_t hash[SPA_HASH_BYTES];
        spa_sha256(f->basis, spa_basis_floats(&f->plugin.shape) * sizeof(float), hash);
        if (memcmp(hash, f->plugin.basis_hash, sizeof hash) != 0)
            rc = complain(c, "its basis does not have the hash that basis.hash names");
    }
    return rc;
}

static int load_model(const struct config *c, const char *path, struct spa_plugin_file *f)
{
    uint8_t *block;
    size_t len, n;
    struct spa_fault fault = { "", 0 };
    if (spa_store_read(path, max_model_bytes, &block, &len, c->why, c->why_len) != 0)
        return -1;
    struct spa_st_tensor *tensors = malloc(SPA_ST_MAX_TENSORS * sizeof *tensors);
    int rc = -1;
    if (!tensors)
        complain(c, "there is no memory for the list of its tensors");
    else if (spa_st_read(block, len, tensors, SPA_ST_MAX_TENSORS, &n, &fault) != SPA_OK)
        snprintf(c->why, c->why_len, "'%s' is no safetensors file that can be used: %s (at byte %" PRIu64 " of %zu); fetch or make it again",
                 path, fault.what, fault.at, len);
    else
        rc = take_tensors(c, block, tensors, n, f);
    free(tensors);
    free(block);
    return rc;
}

int spa_peft_load(const char *folder, struct spa_plugin_file *f, char *why, size_t why_len)
{
    char path[PATH_ROOM];
    uint8_t *text;
    size_t len;
    json_error_t error;
    memset(f, 0, sizeof *f);
    snprintf(path, sizeof path, "%s/%s", folder, config_name);
    if (spa_store_read(path, max_config_bytes, &text, &len, why, why_len) != 0)
        return -1;
    json_t *root = json_loadb((const char *)text, len, JSON_REJECT_DUPLICATES, &error);
    free(text);
    const struct config c = { root, folder, why, why_len };
    int rc = -1;
    snprintf(path, sizeof path, "%s/%s", folder, model_name);
    if (!json_is_object(root))
        snprintf(why, why_len, "'%s/%s' is no JSON object (line %d: %.200s)", folder, config_name, error.line, error.text);
    else if (take_config(&c, &f->plugin) == 0)
        rc = load_model(&c, path, f);
    json_decref(root);
    if (rc != 0)
        spa_plugin_file_free(f);
    return rc;
}
