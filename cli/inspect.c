/* inspect.c - `spa inspect`: what is in a plugin file, for people or as one JSON object. */
#include "basis.h"
#include "commands.h"
#include "options.h"
#include "plugin_file.h"
#include "plugin_format.h"
#include "store.h"
#include "wire.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>

struct facts {
    const char *path;
    const struct spa_plugin_file *file;
    long long file_bytes;
    size_t parameters, down, up, context;   /* bytes of one token on the wire, without message heads */
    char base_hash[SPA_SHA256_HEX], basis_hash[SPA_SHA256_HEX];
};

static void print_list(const char *label, const uint32_t *list, uint32_t n)
{
    printf("%-16s", label);
    for (uint32_t i = 0; i < n; i++)
        printf("%s%" PRIu32, i ? "," : "", list[i]);
    putchar('\n');
}

static void print_text(const struct facts *f)
{
    const struct spa_plugin *p = &f->file->plugin;
    const struct spa_shape *s = &p->shape;
    const struct spa_training *t = &p->training;
    printf("%-16s%s (%lld bytes)\n", "plugin", f->path, f->file_bytes);
    printf("%-16s%s\n", "base model", p->base_name[0] ? p->base_name : "not named");
    printf("%-16s%s\n", "base hash", p->has_base_hash ? f->base_hash : "unknown: fits any base of this shape");
    printf("%-16sd %" PRIu32 ", %" PRIu32 " layers\n", "base shape", s->d, s->n_layers);
    printf("%-16sr %" PRIu32 ", m %" PRIu32 ", %" PRIu32 " rungs, %s\n", "ladder", s->r, s->m, s->n_taps,
           s->mode == SPA_ADD ? "added to the base's state" : "in place of the base's state");
    print_list("taps", s->taps, s->n_taps);
    printf("%-16s%" PRIu32 " numbers, %s, %s\n", "tap", s->k, s->basis ? "projected by a basis" : "raw",
           s->normalise == SPA_NORM_RMS ? "RMS-normalised" : "not normalised");
    if (s->basis)
        printf("%-16s%s (%s)\n", "basis hash", f->basis_hash, f->file->basis ? "in the file" : "not in the file");
    if (s->n_ctx_taps) {
        printf("%-16se %" PRIu32 ", %" PRIu32 " heads%s\n", "context", s->e, s->n_heads, s->ctx_mix ? ", tokens look back themselves" : "");
        print_list("context taps", s->ctx_taps, s->n_ctx_taps);
        print_list("context rungs", s->att_rungs, s->n_att);
    } else {
        printf("%-16snone: each token by itself\n", "context");
    }
    if (p->has_gate)
        printf("%-16sclassifier of y_fin%s%s, threshold %g\n", "gate", p->gate_taps ? " and the taps" : "", p->gate_has_bias ? ", with bias" : "",
               p->gate_threshold);
    else
        printf("%-16snone\n", "gate");
    printf("%-16s%zu, matrices in %s\n", "parameters", f->parameters, spa_weights_words[p->weights]);
    printf("%-16staps %s, states %s\n", "on the wire", spa_dtype_words[p->tap_dtype], spa_dtype_words[p->state_dtype]);
    printf("%-16s%zu bytes down, %zu up\n", "a gated token", f->down, f->up);
    printf("%-16s%zu bytes down\n", "a prompt token", f->context);
    if (t->steps == 0) {
        printf("%-16snothing known\n", "training");
        return;
    }
    printf("%-16s%" PRIu32 " rows, %" PRIu32 " loss tokens, %" PRIu32 " epochs, %" PRIu64 " steps, seed %" PRIu64 "\n", "training",
           t->rows, t->loss_tokens, t->epochs, t->steps, t->seed);
    printf("%-16s%.4f at first, %.4f at last\n", "loss", t->first_loss, t->final_loss);
    if (t->eval_exact_match >= 0)
        printf("%-16s%.1f %% of held-out rows\n", "exact match", 100 * (double)t->eval_exact_match);
}

static json_t *json_list(const uint32_t *list, uint32_t n)
{
    json_t *array = json_array();
    for (uint32_t i = 0; i < n; i++)
        json_array_append_new(array, json_integer(list[i]));
    return array;
}

static json_t *json_text_or_null(bool there, const char *text)
{
    return there ? json_string(text) : json_null();
}

/* JSON's whole numbers end at 2^63 - 1 here: a larger seed is a string. */
static json_t *json_seed(uint64_t seed)
{
    return seed <= INT64_MAX ? json_integer((json_int_t)seed) : json_sprintf("%" PRIu64, seed);
}

static int print_json(const struct facts *f)
{
    const struct spa_plugin *p = &f->file->plugin;
    const struct spa_shape *s = &p->shape;
    const struct spa_training *t = &p->training;
    json_t *context = json_null(), *gate = json_null(), *training = json_null();
    if (s->n_ctx_taps)
        context = json_pack("{s:o, s:i, s:i, s:o, s:b}", "taps", json_list(s->ctx_taps, s->n_ctx_taps), "e", (int)s->e, "heads",
                            (int)s->n_heads, "rungs", json_list(s->att_rungs, s->n_att), "mix", s->ctx_mix);
    if (p->has_gate)
        gate = json_pack("{s:b, s:b, s:f}", "taps", p->gate_taps, "bias", p->gate_has_bias, "threshold", (double)p->gate_threshold);
    if (t->steps)
        training = json_pack("{s:I, s:I, s:I, s:I, s:o, s:f, s:f, s:o}", "rows", (json_int_t)t->rows, "loss_tokens",
                             (json_int_t)t->loss_tokens, "epochs", (json_int_t)t->epochs, "steps", (json_int_t)t->steps, "seed",
                             json_seed(t->seed), "first_loss", (double)t->first_loss, "final_loss", (double)t->final_loss,
                             "eval_exact_match", t->eval_exact_match >= 0 ? json_real((double)t->eval_exact_match) : json_null());
    json_t *root = json_pack("{s:s, s:I, s:i, s:o, s:o, s:i, s:i, s:i, s:i, s:o, s:i, s:b, s:o, s:b, s:s, s:s, s:o, s:o, s:I, s:s, "
                             "s:s, s:s, s:I, s:I, s:I, s:o}",
        "file", f->path, "bytes", (json_int_t)f->file_bytes, "version", (int)spa_plugin_version(p),
        "base_name", json_text_or_null(p->base_name[0] != 0, p->base_name),
        "base_hash", json_text_or_null(p->has_base_hash, f->base_hash),
        "d", (int)s->d, "n_layers", (int)s->n_layers, "r", (int)s->r, "m", (int)s->m, "taps", json_list(s->taps, s->n_taps),
        "k", (int)s->k, "basis", s->basis, "basis_hash", json_text_or_null(s->basis, f->basis_hash),
        "basis_in_file", f->file->basis != NULL, "normalise", spa_normalise_words[s->normalise], "mode", spa_mode_words[s->mode],
        "context", context, "gate", gate, "parameters", (json_int_t)f->parameters, "tap_dtype", spa_dtype_words[p->tap_dtype],
        "state_dtype", spa_dtype_words[p->state_dtype], "weights", spa_weights_words[p->weights], "bytes_down_per_gated", (json_int_t)f->down,
        "bytes_up_per_gated", (json_int_t)f->up, "bytes_down_per_prompt_token", (json_int_t)f->context, "training", training);
    int rc = root ? json_dumpf(root, stdout, JSON_INDENT(2)) : -1;   /* a path that is no UTF-8 has no JSON */
    if (rc == 0)
        putchar('\n');
    else
        fprintf(stderr, "spa inspect: '%s' cannot be said in JSON; rename the file to a name in UTF-8\n", f->path);
    json_decref(root);
    return rc == 0 ? 0 : 1;
}

int spa_cmd_inspect(int argc, char **argv)
{
    bool json = false;
    const struct spa_option options[] = {
        { "json", NULL, NULL, "print one JSON object", SPA_OPT_FLAG, &json, 0, 0 },
    };
    const struct spa_usage usage = {
        "spa inspect", "FILE", "Says what is in a plugin file: its shape, base model, gate, training, and bytes per token.",
        options, sizeof options / sizeof options[0], 1, 1,
    };
    int n_positional, rc = spa_options_parse(&usage, argc, argv, &n_positional);
    if (rc != SPA_OPTIONS_GO)
        return rc;
    char why[SPA_WHY_MAX];
    struct spa_plugin_file file;
    if (spa_plugin_file_load(argv[0], &file, why, sizeof why) != 0) {
        fprintf(stderr, "spa inspect: %s\n", why);
        return 1;
    }
    const struct spa_plugin *p = &file.plugin;
    struct stat st;
    struct facts f = {
        .path = argv[0], .file = &file, .file_bytes = stat(argv[0], &st) == 0 ? (long long)st.st_size : 0,
        .parameters = spa_param_count(&p->shape) + (p->has_gate ? 2 * spa_gate_width(p) + (p->gate_has_bias ? 2 : 0) : 0),
        .down = spa_wire_row_bytes(&p->shape, p->tap_dtype), .up = spa_wire_state_bytes(&p->shape, p->state_dtype),
        .context = p->shape.n_ctx_taps ? spa_wire_ctx_row_bytes(&p->shape, p->tap_dtype) : 0,
    };
    spa_sha256_hex(p->base_hash, f.base_hash);
    spa_sha256_hex(p->basis_hash, f.basis_hash);
    if (json)
        rc = print_json(&f);
    else
        print_text(&f);
    spa_plugin_file_free(&file);
    return json ? rc : 0;
}
