/* model_llama.h - opens a GGUF as a spa_model on libllama. */
#ifndef SPA_MODEL_LLAMA_H
#define SPA_MODEL_LLAMA_H

#include "log.h"
#include "model.h"

struct spa_llama_config {
    const char *path;
    uint32_t n_ctx;          /* -c: tokens of all slots together; 0: what the model was trained with */
    uint32_t n_slots;        /* -np */
    uint32_t n_batch;        /* -b */
    uint32_t n_ubatch;       /* -ub */
    int32_t  n_threads;      /* -t; <= 0: the machine's cores */
    int32_t  n_gpu_layers;   /* -ngl */
    const char *type_k, *type_v;   /* -ctk, -ctv: f32 f16 bf16 q8_0 q4_0 q4_1 iq4_nl q5_0 q5_1 */
    bool     flash_attn;     /* -fa */
    const char *rpc;         /* workers that the layers are put on, checked (rpc.h); NULL: none */
    uint32_t rpc_timeout_ms;
    void   (*rpc_lost)(void *user, const char *why);
    void    *rpc_user;
    bool     invariant;      /* only paths of ggml whose bits do not depend on a batch's width, where there is a choice (invariant.c) */
    spa_log_fn *log;         /* for libllama's errors; NULL: nobody */
    bool     verbose;        /* and all else that libllama says */
};

/* 0, or -1 with one sentence: no such file, no decoder, an architecture whose states cannot be tapped, an LM head that does
 * not reproduce the model's own logits ... */
int  spa_llama_open(struct spa_model *out, const struct spa_llama_config *cfg, char *why, size_t why_len);
void spa_llama_close(struct spa_model *m);

#endif
