/* fuzz_files.c - any bytes as what else programs read from a disk or a command line. Byte 0 chooses which (its two low bits) and whether
 * the sums of those that have one are put right (bit 2), so that what stands behind them is tried:
 *
 *   0  a file of API keys, and the rest of its last line as an Authorization header
 *   1  a checkpoint of a training
 *   2  a generic basis
 *   3  a command line, an argument a line: options of every kind, and every positional one as a URL and an address */
#include "checkpoint.h"
#include "generic.h"
#include "keys.h"
#include "listen.h"
#include "options.h"
#include "peer.h"
#include "scratch.h"

#include <math.h>
#include <string.h>

enum { N_PARAMS = 6, D = 4, LAYERS = 2, ARGS = 64 };

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len);

static void must(bool holds)
{
    if (!holds)
        abort();
}

static void is_sentence(const char *why)
{
    must(strlen(why) > 12 && strlen(why) < SPA_WHY_MAX - 1);
}

static const char *file(void)
{
    static const char *path;
    if (!path)
        path = scratch_path("file");
    return path;
}

static void try_keys(const uint8_t *bytes, size_t len)
{
    struct spa_keys k;
    char why[SPA_WHY_MAX] = "";
    const uint8_t *line = memrchr(bytes, '\n', len);
    const size_t at = line ? (size_t)(line - bytes) + 1 : 0;
    scratch_write(file(), bytes, len);
    if (spa_keys_read(&k, file(), why, sizeof why) != 0) {
        is_sentence(why);
        return;
    }
    must(k.n > 0 && !spa_keys_allow(&k, "", 0));
    spa_keys_allow(&k, (const char *)bytes + at, len - at);
    spa_keys_free(&k);
}

static void try_checkpoint(uint8_t *bytes, size_t len, bool right)
{
    float params[N_PARAMS] = { 0 }, moments[2 * N_PARAMS] = { 0 };
    struct spa_checkpoint c = { .n_params = N_PARAMS, .n_moments = 2 * N_PARAMS, .params = params, .moments = moments }, again = c;
    char why[SPA_WHY_MAX] = "";
    if (right && len >= SPA_SHA256_BYTES)
        spa_sha256(bytes, len - SPA_SHA256_BYTES, bytes + len - SPA_SHA256_BYTES);
    scratch_write(file(), bytes, len);
    const int rc = spa_checkpoint_load(file(), &c, why, sizeof why);
    must(rc == 1 || rc == -1);
    if (rc == -1) {
        is_sentence(why);
        return;
    }
    must(spa_checkpoint_save(file(), &c, why, sizeof why) == 0 && spa_checkpoint_load(file(), &again, why, sizeof why) == 1 && again.step == c.step);
}

static void try_basis(uint8_t *bytes, size_t len, bool right)
{
    const struct spa_model_info info = { .d = D, .n_layers = LAYERS };
    struct spa_generic *g;
    char why[SPA_WHY_MAX] = "";
    if (right && len >= 32)
        spa_generic_seal(bytes, len);
    scratch_write(file(), bytes, len);
    const int rc = spa_generic_open(&g, file(), &info, why, sizeof why);
    must(rc == 0 || rc == -1);
    if (rc == -1) {
        is_sentence(why);
        return;
    }
    struct spa_shape s = { .d = D, .n_layers = LAYERS, .r = 1, .m = 1, .n_taps = 2, .taps = { 0, LAYERS }, .k = spa_generic_k(g), .basis = true,
                           .normalise = SPA_NORM_RMS };
    float *basis = spa_generic_basis(g, &s);
    must(basis != NULL);
    for (size_t i = 0; i < spa_basis_floats(&s); i++)
        must(isfinite(basis[i]));
    s.k++;
    must(!spa_generic_basis(g, &s));
    spa_generic_why_not(g, &s, why, sizeof why);
    is_sentence(why);
    free(basis);
    spa_generic_close(g);
}

static void try_words(const uint8_t *bytes, size_t len)
{
    static FILE *nowhere;
    bool flag = false;
    const char *string = NULL;
    struct spa_opt_list list = { .n = 0 };
    int32_t number = 5, choice = 0;
    uint64_t seed = 0;
    float share = 0;
    const struct spa_option options[] = {
        { "flag", "f", NULL, "a flag", SPA_OPT_FLAG, &flag, 0, 0 },       { "string", NULL, "TEXT", "a text", SPA_OPT_STRING, &string, 0, 0 },
        { "list", "l", "TEXT", "texts", SPA_OPT_LIST, &list, 0, 0 },      { "number", "n", "N", "a number", SPA_OPT_INT, &number, -5, 1 << 20 },
        { "seed", NULL, "N", "a large one", SPA_OPT_U64, &seed, 0, 0 },   { "share", "sh", "X", "a part", SPA_OPT_FLOAT, &share, 0, 1 },
        { "choice", NULL, "on|off|auto", "one", SPA_OPT_CHOICE, &choice, 0, 0 },
    };
    const struct spa_usage usage = { "spa fuzz", "WHAT...", "Tries.", options, sizeof options / sizeof *options, 0, ARGS };
    char *text = malloc(len + 1), *argv[ARGS + 2] = { "fuzz" }, why[SPA_WHY_MAX];
    int argc = 1, n = 0;
    memcpy(text, bytes, len);
    text[len] = 0;
    for (char *line = text, *next; line && argc < ARGS; line = next) {
        next = strchr(line, '\n');
        if (next)
            *next++ = 0;
        argv[argc++] = line;
    }
    if (!nowhere)
        nowhere = fopen("/dev/null", "w");
    FILE *const out = stdout, *const err = stderr;
    stdout = stderr = nowhere;
    const int rc = spa_options_parse(&usage, argc, argv, &n);
    stdout = out;
    stderr = err;
    must(rc == SPA_OPTIONS_GO || rc == 0 || rc == SPA_EXIT_USAGE);
    must(number >= -5 && number <= 1 << 20 && share >= 0 && share <= 1 && choice >= 0 && choice < 3 && list.n <= SPA_OPT_LIST_MAX);
    for (int i = 0; rc == SPA_OPTIONS_GO && i < n; i++) {
        struct spa_peer p;
        why[0] = 0;
        if (spa_peer_parse(argv[i], &p, why, sizeof why) == 0)
            must(p.host[0] && p.port && p.path[0] == '/' && !strpbrk(p.host_header, " \r\n") && !strpbrk(p.path, " \r\n"));
        else
            is_sentence(why);
        spa_listen_is_loopback(argv[i]);
    }
    free(text);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len)
{
    if (len < 1)
        return 0;
    uint8_t *own = malloc(len);   /* exactly so long, and ours to write */
    memcpy(own, bytes + 1, len - 1);
    switch (bytes[0] & 3) {
    case 0:  try_keys(own, len - 1); break;
    case 1:  try_checkpoint(own, len - 1, bytes[0] & 4); break;
    case 2:  try_basis(own, len - 1, bytes[0] & 4); break;
    default: try_words(own, len - 1); break;
    }
    free(own);
    return 0;
}
