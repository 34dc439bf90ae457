/* fuzz_safetensors.c - any bytes into the safetensors reader, and on into the conversion to a plugin. Corpus:
 * the checkpoints in tests/golden. */
#include "convert.h"
#include "safetensors.h"

#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len);

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len)
{
    static struct spa_st_tensor tensors[SPA_ST_MAX_TENSORS];
    struct spa_fault fault = { NULL, 0 };
    struct spa_plugin_file f;
    char text[256];
    volatile uint8_t sum = 0;
    size_t n;
    if (spa_st_read(bytes, len, tensors, SPA_ST_MAX_TENSORS, &n, &fault) == SPA_OK) {
        for (size_t i = 0; i < n; i++)
            for (uint64_t k = 0; k < tensors[i].n_bytes; k++)
                sum = (uint8_t)(sum + bytes[tensors[i].offset + k]);
    } else if (!fault.what) {
        abort();
    }
    spa_st_metadata(bytes, len, "format", text, sizeof text);
    if (spa_convert_from_checkpoint("input", bytes, len, SPA_REPLACE, "", &f, text, sizeof text) == 0)
        spa_plugin_file_free(&f);
    return 0;
}
