/* probe.c - calls what spa calls of libllama whose form has changed between its versions. */
#include <ggml-cpu.h>
#include <gguf.h>
#include <llama.h>

int main(void)
{
    struct llama_context_params cp = llama_context_default_params();
    cp.kv_unified = true;
    cp.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
    cp.cb_eval = NULL;
    return llama_version() == NULL || llama_model_meta_val_str(NULL, "", NULL, 0) > 0 || llama_memory_can_shift(NULL);
}
