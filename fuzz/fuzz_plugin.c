/* fuzz_plugin.c - any bytes into the plugin file's reader. What it accepts must have a good shape, come again when written, and
 * give its weights by copy as by pointer. Start from a corpus of real plugin files: `spa convert` makes the first. */
#include "plugin.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len);

static void must(bool holds)
{
    if (!holds)
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len)
{
    struct spa_plugin p, again;
    struct spa_plugin_data data, again_data;
    struct spa_fault fault = { NULL, 0 };
    uint8_t *block = malloc(len + 1);   /* libFuzzer's own block need not be aligned */
    memcpy(block, bytes, len);
    if (spa_plugin_read(block, len, &p, &data, &fault) != SPA_OK) {
        must(fault.what != NULL);
        free(block);
        return 0;
    }
    must(spa_shape_check(&p.shape) == SPA_OK);
    size_t n = spa_param_count(&p.shape) * sizeof(float), out_len;
    float *params = malloc(n);
    must(spa_plugin_params(block, len, &p, params) == SPA_OK);
    must(!data.params || memcmp(data.params, params, n) == 0);
    data.params = params;
    p.weights = SPA_F32;   /* numbers of a foreign Q8_0 block may be beyond what ours can say */
    size_t cap = spa_plugin_write_len(&p, &data);
    uint8_t *out = malloc(cap);
    must(spa_plugin_write(&p, &data, out, cap, &out_len) == SPA_OK && out_len == cap);
    must(spa_plugin_read(out, cap, &again, &again_data, &fault) == SPA_OK);
    must(memcmp(again.base_name, p.base_name, sizeof p.base_name) == 0 && again.has_gate == p.has_gate);
    free(out);
    free(params);
    free(block);
    return 0;
}
