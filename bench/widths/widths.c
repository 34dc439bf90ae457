/* widths.c - in: a GGUF. out: a table: how wide a batch may be, for each of some quantisations made from that file, before a token's
 * bits change (cloud/invariant.h), as spa-cloud runs by default and with --invariant, on a short and on a long cache.
 *
 *   ninja -C build spa-widths && build/spa-widths MODEL.gguf [FOLDER]
 *
 * Files are made in FOLDER (/tmp) by libllama itself, also from weights that are quantised already: what a number is does not matter
 * here, only which product it goes through. They are removed. */
#include "invariant.h"
#include "model_llama.h"

#include <ggml.h>
#include <llama.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

enum { DEPTH = 300, N_CTX_SLOT = 512, SLOTS = 8 };

static const struct {
    const char *name;
    enum llama_ftype ftype;
} types[] = {
    { "Q4_0", LLAMA_FTYPE_MOSTLY_Q4_0 }, { "Q4_1", LLAMA_FTYPE_MOSTLY_Q4_1 }, { "Q4_K", LLAMA_FTYPE_MOSTLY_Q4_K_M },
    { "Q8_0", LLAMA_FTYPE_MOSTLY_Q8_0 }, { "F16", LLAMA_FTYPE_MOSTLY_F16 },
};

static void quiet(enum ggml_log_level level, const char *text, void *user)
{
    (void)level, (void)text, (void)user;
}

/* One model, one way of running it: two cells of the table. In a process of its own: ggml reads its settings once. */
static void cells(const char *path, bool invariant)
{
    fflush(stdout);
    const pid_t child = fork();
    if (child > 0) {
        int status;
        waitpid(child, &status, 0);
        return;
    }
    struct spa_model m;
    char why[512];
    const struct spa_llama_config cfg = { .path = path, .n_ctx = SLOTS * N_CTX_SLOT, .n_slots = SLOTS, .n_batch = 512, .n_ubatch = SPA_INVARIANT_WIDEST,
                                          .type_k = "f16", .type_v = invariant ? "bf16" : "f16", .flash_attn = true, .invariant = invariant };
    if (spa_llama_open(&m, &cfg, why, sizeof why) != 0) {
        printf(" %s | |", why);
        exit(1);
    }
    for (uint32_t depth = 0; depth <= DEPTH; depth += DEPTH) {
        struct spa_invariant v;
        if (spa_invariant_check(&m, depth, &v) == 0)
            printf(" %u, %u, %u |", v.rows, v.company, v.head);
        else
            printf(" failed |");
    }
    spa_llama_close(&m);
    exit(0);
}

int main(int argc, char **argv)
{
    if (argc < 2) {
        fprintf(stderr, "spa-widths: say which model: spa-widths MODEL.gguf [FOLDER]\n");
        return 2;
    }
    llama_log_set(quiet, NULL);
    printf("| type | default, from nothing | default, after %d tokens | --invariant, from nothing | --invariant, after %d tokens |\n", DEPTH, DEPTH);
    printf("| --- | --- | --- | --- | --- |\n");
    int rc = 0;
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        char path[4096];
        snprintf(path, sizeof path, "%s/spa-widths-%ld-%s.gguf", argc > 2 ? argv[2] : "/tmp", (long)getpid(), types[i].name);
        fflush(stdout);
        /* In a process of its own as well, so that ggml has read no settings when the model is opened. */
        const pid_t child = fork();
        if (child == 0) {
            struct llama_model_quantize_params q = llama_model_quantize_default_params();
            q.ftype = types[i].ftype;
            q.allow_requantize = true;
            exit(llama_model_quantize(argv[1], path, &q) == 0 ? 0 : 1);
        }
        int status = 1;
        if (child < 0 || waitpid(child, &status, 0) < 0 || status != 0) {
            fprintf(stderr, "spa-widths: %s could not be made from %s\n", path, argv[1]);
            rc = 1;
        } else {
            printf("| %s |", types[i].name);
            cells(path, false);
            cells(path, true);
            printf("\n");
        }
        unlink(path);
    }
    return rc;
}
