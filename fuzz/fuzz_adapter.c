/* fuzz_adapter.c - any bytes as an adapter folder: its config up to the first zero byte, its tensors behind that. What is taken must have
 * a good shape and all its numbers. */
#include "peft.h"
#include "scratch.h"
#include "store.h"

#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len);

static void must(bool holds)
{
    if (!holds)
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len)
{
    static const char *config, *tensors;
    struct spa_plugin_file f;
    char why[SPA_WHY_MAX] = "";
    if (!config) {
        config = scratch_path("adapter_config.json");
        tensors = scratch_path("adapter_model.safetensors");
    }
    const uint8_t *zero = memchr(bytes, 0, len);
    const size_t n = zero ? (size_t)(zero - bytes) : len;
    scratch_write(config, bytes, n);
    scratch_write(tensors, bytes + n + (zero != NULL), len - n - (zero != NULL));
    if (spa_peft_load(scratch, &f, why, sizeof why) != 0) {
        must(strlen(why) > 12 && strlen(why) < SPA_WHY_MAX - 1 && !f.params);
        return 0;
    }
    must(spa_shape_check(&f.plugin.shape) == SPA_OK && f.params);
    volatile float sum = 0;
    for (size_t i = 0; i < spa_param_count(&f.plugin.shape); i++)
        sum += f.params[i];
    spa_plugin_file_free(&f);
    return 0;
}
