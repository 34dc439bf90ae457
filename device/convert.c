/* convert.c - plugin file to the authors' checkpoint and back (convert.h). In: one. Out: the other, or a sentence why not. */
#define _POSIX_C_SOURCE 200809L
#include "convert.h"
#include "peft.h"
#include "safetensors.h"
#include "store.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

static const size_t max_file_bytes = (size_t)2 << 30;
static const char gate_name[] = "opt.weight";

/* The authors' name of a tensor of our layout ("W.3"), for a shape without context attention. */
static void author_name(const char *ours, char out[SPA_ST_NAME_MAX])
{
    const char *part = strchr("WUV", ours[0]) ? "weight" : "bias";
    if (ours[1] == '_') {
        snprintf(out, SPA_ST_NAME_MAX, "ladder_side.output_adapter.%s", part);
        return;
    }
    unsigned long rung = strtoul(ours + 2, NULL, 10);
    if (strchr("Wb", ours[0]) && rung == 0)
        snprintf(out, SPA_ST_NAME_MAX, "ladder_side.input_adapter.%s", part);
    else if (strchr("Wb", ours[0]))
        snprintf(out, SPA_ST_NAME_MAX, "ladder_side.down_adapters.%lu.%s", rung - 1, part);
    else
        snprintf(out, SPA_ST_NAME_MAX, "ladder_side.side_adapters.%lu.adapter_%s.%s", rung - 1,
                 strchr("Uc", ours[0]) ? "h_to_r" : "r_to_h", part);
}

/* ---- checkpoint to plugin ---- */

struct checkpoint {
    const char *name;
    const uint8_t *bytes;
    struct spa_st_tensor *tensors;
    size_t n;
    char *why;
    size_t why_len;
};

static const struct spa_st_tensor *find(const struct checkpoint *c, const char *name) { return spa_st_find(c->tensors, c->n, name); }

static int complain(const struct checkpoint *c, const char *what)
{
    snprintf(c->why, c->why_len, "'%s' is no checkpoint of a side plugin: %s", c->name, what);
    return -1;
}

/* Both dimensions of a matrix; 0 and 0 when it is not there or no matrix of a size that a plugin may have. */
static void dims_of(const struct checkpoint *c, const char *name, uint32_t *rows, uint32_t *cols)
{
    const struct spa_st_tensor *t = find(c, name);
    bool fits = t && t->n_dims == 2 && t->dims[0] <= SPA_MAX_WIDTH && t->dims[1] <= SPA_MAX_WIDTH;
    *rows = fits ? (uint32_t)t->dims[0] : 0;
    *cols = fits ? (uint32_t)t->dims[1] : 0;
}

static int take_shape(const struct checkpoint *c, struct spa_shape *s)
{
    char name[SPA_ST_NAME_MAX];
    uint32_t unused;
    dims_of(c, "ladder_side.input_adapter.weight", &s->r, &s->d);
    dims_of(c, "ladder_side.side_adapters.0.adapter_h_to_r.weight", &s->m, &unused);
    if (s->r == 0 || s->m == 0)
        return complain(c, "it lacks the matrices ladder_side.input_adapter.weight and "
                           "ladder_side.side_adapters.0.adapter_h_to_r.weight");
    do
        snprintf(name, sizeof name, "ladder_side.down_adapters.%" PRIu32 ".weight", s->n_layers);
    while (find(c, name) && ++s->n_layers < SPA_MAX_TAPS);
    if (s->n_layers >= SPA_MAX_TAPS)
        return complain(c, "it has more layers than a plugin may tap");
    s->k = s->d;
    s->n_taps = s->n_layers + 1;
    for (uint32_t i = 0; i < s->n_taps; i++)
        s->taps[i] = i;
    if (spa_shape_check(s) != SPA_OK)
        return complain(c, "its shape exceeds what a plugin may have");
    return 0;
}

/* cols 0: a vector. */
static int take_numbers(const struct checkpoint *c, const char *name, uint32_t rows, uint32_t cols, float *out)
{
    const struct spa_st_tensor *t = find(c, name);
    char what[2 * SPA_ST_NAME_MAX];
    if (!t) {
        snprintf(what, sizeof what, "it lacks %s", name);
        return complain(c, what);
    }
    if (!spa_st_numbers(c->bytes, t, rows, cols, out)) {
        snprintf(what, sizeof what, "%s is not F32, F16 or BF16 of %" PRIu32 " x %" PRIu32, name, rows, cols ? cols : 1);
        return complain(c, what);
    }
    return 0;
}

static int take_ladder(const struct checkpoint *c, const struct spa_shape *s, float *params)
{
    char name[SPA_ST_NAME_MAX];
    size_t n = spa_tensor_count(s), n_theirs = 0;
    for (size_t i = 0; i < n; i++) {
        struct spa_tensor t;
        spa_param_tensor(s, i, &t);
        author_name(t.name, name);
        if (take_numbers(c, name, t.rows, t.is_vector ? 0 : t.cols, params + t.offset) != 0)
            return -1;
    }
    for (size_t i = 0; i < c->n; i++)
        n_theirs += strncmp(c->tensors[i].name, "ladder_side.", 12) == 0;
    return n_theirs == n ? 0 : complain(c, "under ladder_side it holds tensors that are no part of the ladder");
}

static int take_all(const struct checkpoint *c, struct spa_plugin_file *out)
{
    struct spa_plugin *p = &out->plugin;
    if (take_shape(c, &p->shape) != 0)
        return -1;
    p->has_gate = find(c, gate_name) != NULL;
    p->gate_threshold = 0.5f;
    out->params = malloc(spa_param_count(&p->shape) * sizeof(float));
    out->gate_w = p->has_gate ? malloc(2 * (size_t)p->shape.d * sizeof(float)) : NULL;
    if (!out->params || (p->has_gate && !out->gate_w))
        return complain(c, "there is no memory for its weights");
    if (p->has_gate && take_numbers(c, gate_name, 2, p->shape.d, out->gate_w) != 0)
        return -1;
    return take_ladder(c, &p->shape, out->params);
}

int spa_convert_from_checkpoint(const char *name, const uint8_t *bytes, size_t len, enum spa_mode mode, const char *base_name,
                                struct spa_plugin_file *out, char *why, size_t why_len)
{
    struct spa_fault fault = { "", 0 };
    struct checkpoint c = { name, bytes, NULL, 0, why, why_len };
    memset(out, 0, sizeof *out);
    c.tensors = malloc(SPA_ST_MAX_TENSORS * sizeof *c.tensors);
    int rc = -1;
    if (!c.tensors)
        complain(&c, "there is no memory for the list of its tensors");
    else if (spa_st_read(bytes, len, c.tensors, SPA_ST_MAX_TENSORS, &c.n, &fault) != SPA_OK)
        snprintf(why, why_len, "'%s' is no safetensors file that can be used: %s (at byte %" PRIu64 " of %zu); fetch or make it again",
                 name, fault.what, fault.at, len);
    else
        rc = take_all(&c, out);
    free(c.tensors);
    if (rc != 0) {
        spa_plugin_file_free(out);
        return -1;
    }
    /* Raw taps of real models have values beyond F16, and parity with the authors' code wants every bit. */
    out->plugin.tap_dtype = out->plugin.state_dtype = SPA_F32;
    out->plugin.shape.mode = mode;
    snprintf(out->plugin.base_name, sizeof out->plugin.base_name, "%s", base_name);
    return 0;
}

/* ---- plugin to checkpoint ---- */

/* What the plugin has that the authors' form cannot say, or NULL. */
static const char *beyond_their_form(const struct spa_plugin_file *f)
{
    const struct spa_plugin *p = &f->plugin;
    const struct spa_shape *s = &p->shape;
    if (s->n_ctx_taps)
        return "it has context attention";
    if (s->basis)
        return "its taps are projected by a basis";
    if (s->normalise != SPA_NORM_NONE)
        return "its taps are normalised";
    if (s->n_taps != s->n_layers + 1 || s->n_layers == 0)
        return "it taps only some of the layers";
    if (s->m != s->d)
        return "the inner width m of its rungs is not d";
    if (p->has_gate && p->gate_has_bias && (f->gate_b[0] != 0 || f->gate_b[1] != 0))
        return "its gate has a bias";
    if (p->has_gate && p->gate_taps)
        return "its gate reads the taps";
    if (p->has_gate && p->gate_threshold != 0.5f)
        return "its gate's threshold is not 0.5";
    return NULL;
}

struct item { struct spa_st_tensor tensor; const float *numbers; };

static int by_name(const void *a, const void *b)
{
    return strcmp(((const struct item *)a)->tensor.name, ((const struct item *)b)->tensor.name);
}

/* All tensors in the order of their names, as PyTorch's writer has them. Returns how many. */
static size_t list_items(const struct spa_plugin_file *f, struct item *items)
{
    const struct spa_shape *s = &f->plugin.shape;
    size_t n = spa_tensor_count(s);
    memset(items, 0, (n + 1) * sizeof *items);
    for (size_t i = 0; i < n; i++) {
        struct spa_tensor t;
        spa_param_tensor(s, i, &t);
        author_name(t.name, items[i].tensor.name);
        items[i].tensor.n_dims = t.is_vector ? 1 : 2;
        items[i].tensor.dims[0] = t.rows;
        items[i].tensor.dims[1] = t.cols;
        items[i].numbers = f->params + t.offset;
    }
    if (f->plugin.has_gate) {
        strcpy(items[n].tensor.name, gate_name);
        items[n].tensor.n_dims = 2;
        items[n].tensor.dims[0] = 2;
        items[n].tensor.dims[1] = s->d;
        items[n++].numbers = f->gate_w;
    }
    qsort(items, n, sizeof *items, by_name);
    return n;
}

int spa_convert_to_checkpoint(const char *name, const struct spa_plugin_file *f, uint8_t **bytes, size_t *len, char *why,
                              size_t why_len)
{
    const char *beyond = beyond_their_form(f);
    if (beyond) {
        snprintf(why, why_len, "'%s' cannot be written as the authors' checkpoint: %s", name, beyond);
        return -1;
    }
    size_t room = spa_tensor_count(&f->plugin.shape) + 1;
    struct item *items = malloc(room * sizeof *items);
    struct spa_st_tensor *tensors = malloc(room * sizeof *tensors);
    const float **numbers = malloc(room * sizeof *numbers);
    *bytes = NULL;
    if (items && tensors && numbers) {
        size_t n = list_items(f, items);
        for (size_t i = 0; i < n; i++) {
            tensors[i] = items[i].tensor;
            numbers[i] = items[i].numbers;
        }
        spa_st_write(tensors, numbers, n, NULL, 0, len);
        *bytes = malloc(*len);
        if (*bytes)
            spa_st_write(tensors, numbers, n, *bytes, *len, len);
    }
    free(items);
    free(tensors);
    free(numbers);
    if (!*bytes)
        snprintf(why, why_len, "there is no memory to convert '%s'; close other programs", name);
    return *bytes ? 0 : -1;
}

/* ---- files ---- */

/* The name without its folder's extension: where the Python line's result may go. */
static int stem_len(const char *path)
{
    const char *slash = strrchr(path, '/'), *dot = strrchr(path, '.');
    return (int)(dot && dot > (slash ? slash + 1 : path) ? (size_t)(dot - path) : strlen(path));
}

static void explain_pickle(const char *path, char *why, size_t why_len)
{
    snprintf(why, why_len, "'%s' is a Python pickle, that is a program, and is never run here; where you trust it, this makes a "
             "safetensors file of it: python3 -c 'import sys, torch, safetensors.torch as s; s.save_file({k: v.clone().contiguous() "
             "for k, v in torch.load(sys.argv[1], map_location=\"cpu\", weights_only=True).items()}, sys.argv[2])' "
             "'%s' '%.*s.safetensors'", path, path, stem_len(path), path);
}

/* What IN is, read whatever it is. */
static int load(const char *in, const struct spa_convert_wishes *w, enum spa_form *from, struct spa_plugin_file *plugin, char *why,
                size_t why_len)
{
    struct stat st;
    uint8_t *bytes;
    size_t len;
    int rc = -1;
    *from = SPA_FORM_FOLDER;
    if (stat(in, &st) == 0 && S_ISDIR(st.st_mode))
        return spa_peft_load(in, plugin, why, why_len);
    if (spa_store_read(in, max_file_bytes, &bytes, &len, why, why_len) != 0)
        return -1;
    switch (spa_file_kind(bytes, len)) {
    case SPA_FILE_GGUF:
        *from = SPA_FORM_PLUGIN;
        rc = spa_plugin_file_parse(in, bytes, len, plugin, why, why_len);
        break;
    case SPA_FILE_SAFETENSORS:
        *from = SPA_FORM_CHECKPOINT;
        rc = spa_convert_from_checkpoint(in, bytes, len, w->mode, w->base_name, plugin, why, why_len);
        break;
    case SPA_FILE_PICKLE:
        explain_pickle(in, why, why_len);
        break;
    case SPA_FILE_UNKNOWN:
        snprintf(why, why_len, "'%s' is neither a plugin file (GGUF) nor a safetensors checkpoint; check that it is the right file", in);
        break;
    }
    free(bytes);
    return rc;
}

static bool ends_with(const char *path, const char *end)
{
    const size_t n = strlen(path), m = strlen(end);
    return n >= m && strcmp(path + n - m, end) == 0;
}

/* What OUT's name asks for, where nobody has said it. */
static enum spa_form form_of(const char *out, enum spa_form from)
{
    struct stat st;
    if (ends_with(out, "/") || (stat(out, &st) == 0 && S_ISDIR(st.st_mode)))
        return SPA_FORM_FOLDER;
    if (ends_with(out, ".safetensors"))
        return SPA_FORM_CHECKPOINT;
    return from == SPA_FORM_PLUGIN && !ends_with(out, ".gguf") ? SPA_FORM_CHECKPOINT : SPA_FORM_PLUGIN;
}

static int save(const char *out, enum spa_form to, const struct spa_plugin_file *plugin, char *why, size_t why_len)
{
    static const float f16_max = 65504;
    uint8_t *theirs;
    size_t their_len;
    for (size_t i = 0; plugin->plugin.weights != SPA_F32 && i < spa_param_count(&plugin->plugin.shape); i++) {
        if (plugin->params[i] <= f16_max && plugin->params[i] >= -f16_max)
            continue;
        snprintf(why, why_len, "'%s' was not written: a weight of %g is beyond what F16 can say; choose --type f32", out, (double)plugin->params[i]);
        return -1;
    }
    if (to == SPA_FORM_FOLDER)
        return spa_peft_save(out, plugin, why, why_len);
    if (to == SPA_FORM_PLUGIN)
        return spa_plugin_file_save(out, plugin, why, why_len);
    if (spa_convert_to_checkpoint(out, plugin, &theirs, &their_len, why, why_len) != 0)
        return -1;
    int rc = spa_store_replace(out, theirs, their_len, true, why, why_len);
    free(theirs);
    return rc;
}

int spa_convert_file(const char *in, const char *out, const struct spa_convert_wishes *w, struct spa_convert_done *done,
                     struct spa_plugin_file *plugin, char *why, size_t why_len)
{
    memset(plugin, 0, sizeof *plugin);
    if (load(in, w, &done->from, plugin, why, why_len) != 0)
        return -1;
    done->to = w->to == SPA_FORM_BY_NAME ? form_of(out, done->from) : w->to;
    if (w->weights >= 0)
        plugin->plugin.weights = (enum spa_dtype)w->weights;
    if (save(out, done->to, plugin, why, why_len) == 0)
        return 0;
    spa_plugin_file_free(plugin);
    return -1;
}
