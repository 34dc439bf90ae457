/* model_file.h - the GGUF file of the base model: its identity and its LM head's bytes, mapped read-only. */
#ifndef SPA_MODEL_FILE_H
#define SPA_MODEL_FILE_H

#include <stddef.h>
#include <stdint.h>

struct spa_model_file {
    const uint8_t *map;
    size_t   len;
    char     name[128];         /* general.name, or the file's name */
    char     arch[64];
    uint8_t  hash[32];          /* SHA-256 of everything before the tensor data, then of each tensor's first 4 KiB in file order:
                                   another fine-tune, quantisation or tokenizer gives another hash, and a 40 GB file takes no minutes */
    uint32_t head_type;         /* output.weight, or token_embd.weight when tied */
    const uint8_t *head_bytes;  /* the rows; behind them output.bias as n_vocab F32, where the model has one: then a copy of ours */
    size_t   head_len;          /* of both */
    const float *head_bias;     /* [n_vocab] or NULL */
    uint8_t *head_copy;
    uint32_t d;                 /* columns of the head */
    int64_t  n_vocab;           /* rows */
    uint8_t  head_hash[32];     /* SHA-256 of head_bytes */
    float    logit_scale;       /* factor on the logits, 1 when the file names none */
    float    softcap;           /* 0: none */
};

/* 0, or -1 with one sentence. */
int  spa_model_file_open(struct spa_model_file *f, const char *path, char *why, size_t why_len);
void spa_model_file_close(struct spa_model_file *f);

#endif
