/* reader_check.c - in: plugin files or checkpoints, good and damaged. out: a line of JSON for each: what our readers make of it.
 *
 *   reader_check gguf FILE...          {"ok": true, "ggml": "same", "tensors": {"spa.W.0": "SHA-256 of its numbers as F32", ...}}
 *   reader_check safetensors FILE...   {"ok": true, "tensors": {"a": ["F32", [2, 3], "SHA-256 of its bytes"], ...}}
 *   reader_check adapter BASE FILE...  {"ok": false} when libllama's adapter loader refuses the file, as it should
 *   otherwise                          {"ok": false, "why": "..."}
 *
 * ggml: whether ggml's gguf.h reads the same numbers and keys of a file that ours accepts, or what differs. tests/e2e/test_readers.py asks the
 * Python packages as well. */
#define _POSIX_C_SOURCE 200809L
#include "plugin_file.h"
#include "safetensors.h"
#include "store.h"

#include <ggml.h>
#include <gguf.h>
#include <llama.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { FILE_MAX = 1 << 26 };

static void quiet(enum ggml_log_level level, const char *text, void *user)
{
    (void)level, (void)text, (void)user;
}

/* What is wrong, as JSON's letters allow it. */
static void print_refusal(const char *why)
{
    printf("{\"ok\": false, \"why\": \"");
    for (const char *c = why; *c; c++)
        putchar(*c == '"' || *c == '\\' || (unsigned char)*c < 0x20 || (unsigned char)*c > 0x7e ? '?' : *c);
    printf("\"}\n");
}

static void print_hash(const void *bytes, size_t n)
{
    uint8_t hash[SPA_SHA256_BYTES];
    char hex[SPA_SHA256_HEX];
    spa_sha256(bytes, n, hash);
    spa_sha256_hex(hash, hex);
    printf("\"%s\"", hex);
}

/* ---- plugin files ---- */

struct tensor { char name[80]; size_t n; const float *numbers; };

static size_t list_tensors(const struct spa_plugin_file *f, struct tensor *out)
{
    const struct spa_shape *s = &f->plugin.shape;
    size_t n = spa_tensor_count(s);
    for (size_t i = 0; i < n; i++) {
        struct spa_tensor t;
        spa_param_tensor(s, i, &t);
        snprintf(out[i].name, sizeof out[i].name, "spa.%s", t.name);
        out[i].n = (size_t)t.rows * t.cols;
        out[i].numbers = f->params + t.offset;
    }
    if (f->gate_w)
        out[n++] = (struct tensor){ "spa.gate.weight", 2 * spa_gate_width(&f->plugin), f->gate_w };
    if (f->gate_b)
        out[n++] = (struct tensor){ "spa.gate.bias", 2, f->gate_b };
    if (f->basis)
        out[n++] = (struct tensor){ "spa.basis", (size_t)s->n_taps * (1 + (size_t)s->d + (size_t)s->k * s->d), f->basis };
    return n;
}

static bool same_count(const struct gguf_context *g, const char *key, uint32_t ours)
{
    const int64_t id = gguf_find_key(g, key);
    return id >= 0 && gguf_get_kv_type(g, id) == GGUF_TYPE_UINT32 && gguf_get_val_u32(g, id) == ours;
}

/* What ggml says of a file that ours accepts. */
static const char *ask_ggml(const char *path, const struct spa_plugin_file *f, const struct tensor *tensors, size_t n)
{
    struct ggml_context *meta = NULL;
    struct gguf_context *g = gguf_init_from_file(path, (struct gguf_init_params){ .no_alloc = false, .ctx = &meta });
    const char *said = g ? "same" : "refused";
    const struct spa_shape *s = &f->plugin.shape;
    if (g && !(same_count(g, "spa.d", s->d) && same_count(g, "spa.n_layers", s->n_layers) && same_count(g, "spa.r", s->r) &&
               same_count(g, "spa.m", s->m) && same_count(g, "spa.k", s->k)))
        said = "other keys";
    for (size_t i = 0; g && i < n && strcmp(said, "same") == 0; i++) {
        const struct ggml_tensor *t = ggml_get_tensor(meta, tensors[i].name);
        float *theirs = malloc(tensors[i].n * sizeof *theirs);
        if (!t || (size_t)ggml_nelements(t) != tensors[i].n)
            said = "another shape";
        else if (t->type == GGML_TYPE_F32)
            memcpy(theirs, t->data, tensors[i].n * sizeof *theirs);
        else
            ggml_get_type_traits(t->type)->to_float(t->data, theirs, (int64_t)tensors[i].n);
        if (strcmp(said, "same") == 0 && memcmp(theirs, tensors[i].numbers, tensors[i].n * sizeof *theirs) != 0)
            said = "other numbers";
        free(theirs);
    }
    gguf_free(g);
    ggml_free(meta);
    return said;
}

static void check_gguf(const char *path)
{
    static struct tensor tensors[SPA_ST_MAX_TENSORS];
    struct spa_plugin_file f;
    char why[SPA_WHY_MAX];
    if (spa_plugin_file_load(path, &f, why, sizeof why) != 0) {
        print_refusal(why);
        return;
    }
    const size_t n = list_tensors(&f, tensors);
    printf("{\"ok\": true, \"ggml\": \"%s\", \"tensors\": {", ask_ggml(path, &f, tensors, n));
    for (size_t i = 0; i < n; i++) {
        printf("%s\"%s\": ", i ? ", " : "", tensors[i].name);
        print_hash(tensors[i].numbers, tensors[i].n * sizeof(float));
    }
    printf("}}\n");
    spa_plugin_file_free(&f);
}

/* ---- checkpoints ---- */

static void check_safetensors(const char *path)
{
    static struct spa_st_tensor tensors[SPA_ST_MAX_TENSORS];
    static const char *const dtypes[] = { "F32", "F16", "BF16", "I32", "I64", "other" };
    struct spa_fault fault = { "", 0 };
    char why[SPA_WHY_MAX];
    uint8_t *bytes;
    size_t len, n;
    if (spa_store_read(path, FILE_MAX, &bytes, &len, why, sizeof why) != 0) {
        print_refusal(why);
        return;
    }
    if (spa_st_read(bytes, len, tensors, SPA_ST_MAX_TENSORS, &n, &fault) != SPA_OK) {
        print_refusal(fault.what);
        free(bytes);
        return;
    }
    printf("{\"ok\": true, \"tensors\": {");
    for (size_t i = 0; i < n; i++) {
        printf("%s\"", i ? ", " : "");
        for (const char *c = tensors[i].name; *c; c++)   /* names may have any letter */
            if (*c == '"' || *c == '\\' || (unsigned char)*c < 0x20)
                printf("\\u%04x", (unsigned)(unsigned char)*c);
            else
                putchar(*c);
        printf("\": [\"%s\", [", dtypes[tensors[i].dtype]);
        for (uint32_t k = 0; k < tensors[i].n_dims; k++)
            printf("%s%llu", k ? ", " : "", (unsigned long long)tensors[i].dims[k]);
        printf("], ");
        print_hash(bytes + tensors[i].offset, (size_t)tensors[i].n_bytes);
        printf("]");
    }
    printf("}}\n");
    free(bytes);
}

/* ---- libllama's own adapters ---- */

static void check_adapters(const char *base, char *const *paths, int n)
{
    struct llama_model *model = llama_model_load_from_file(base, llama_model_default_params());
    for (int i = 0; model && i < n; i++) {
        struct llama_adapter_lora *adapter = llama_adapter_lora_init(model, paths[i]);
        printf("{\"ok\": %s}\n", adapter ? "true" : "false");
    }
    llama_model_free(model);
}

int main(int argc, char **argv)
{
    llama_log_set(quiet, NULL);
    ggml_log_set(quiet, NULL);
    if (argc > 3 && strcmp(argv[1], "adapter") == 0) {
        check_adapters(argv[2], argv + 3, argc - 3);
        return 0;
    }
    const bool gguf = argc > 1 && strcmp(argv[1], "gguf") == 0;
    if (argc < 3 || (!gguf && strcmp(argv[1], "safetensors") != 0)) {
        fprintf(stderr, "reader_check: say which files: reader_check gguf|safetensors FILE...\n");
        return 2;
    }
    for (int i = 2; i < argc; i++)
        (gguf ? check_gguf : check_safetensors)(argv[i]);
    return 0;
}
