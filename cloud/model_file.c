/* model_file.c - in: a path. out: the model's identity and its LM head, mapped. Leaves everything else to libllama. */
#include "model_file.h"

#include <errno.h>
#include <fcntl.h>
#include <ggml.h>
#include <gguf.h>
#include <inttypes.h>
#include <openssl/evp.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { TENSOR_SAMPLE_BYTES = 4096, ALIGNMENT = 64 };

static float key_f32(const struct gguf_context *g, const char *arch, const char *suffix, float absent)
{
    char key[128];
    snprintf(key, sizeof key, "%s.%s", arch, suffix);
    const int64_t id = gguf_find_key(g, key);
    return id >= 0 && gguf_get_kv_type(g, id) == GGUF_TYPE_FLOAT32 ? gguf_get_val_f32(g, id) : absent;
}

static void key_str(const struct gguf_context *g, const char *key, char *out, size_t cap)
{
    const int64_t id = gguf_find_key(g, key);
    if (id >= 0 && gguf_get_kv_type(g, id) == GGUF_TYPE_STRING)
        snprintf(out, cap, "%s", gguf_get_val_str(g, id));
}

static int identity(struct spa_model_file *f, const struct gguf_context *g)
{
    EVP_MD_CTX *md = EVP_MD_CTX_new();
    if (!md)
        return -1;
    const size_t data = gguf_get_data_offset(g);
    int ok = EVP_DigestInit_ex(md, EVP_sha256(), NULL) && EVP_DigestUpdate(md, f->map, data < f->len ? data : f->len);
    for (int64_t i = 0; ok && i < gguf_get_n_tensors(g); i++) {
        const size_t at = data + gguf_get_tensor_offset(g, i);
        size_t n = gguf_get_tensor_size(g, i);
        n = n < TENSOR_SAMPLE_BYTES ? n : TENSOR_SAMPLE_BYTES;
        if (at <= f->len && n <= f->len - at)
            ok = EVP_DigestUpdate(md, f->map + at, n);
    }
    unsigned n = 0;
    ok = ok && EVP_DigestFinal_ex(md, f->hash, &n);
    EVP_MD_CTX_free(md);
    return ok ? 0 : -1;
}

/* Logits with a bias, in F32: rows and bias in one piece, as devices fetch them. 0, or -1: another form than that, no memory. */
static int join_bias(struct spa_model_file *f, const struct gguf_context *g, const struct ggml_tensor *bias)
{
    const size_t at = gguf_get_data_offset(g) + gguf_get_tensor_offset(g, gguf_find_tensor(g, bias->name));
    const size_t n = (size_t)f->n_vocab * sizeof(float);
    if (bias->type != GGML_TYPE_F32 || ggml_nelements(bias) != f->n_vocab || at % sizeof(float) != 0 || at > f->len || n > f->len - at)
        return -1;
    f->head_copy = aligned_alloc(ALIGNMENT, (f->head_len + n + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT);
    if (!f->head_copy)
        return -1;
    memcpy(f->head_copy, f->head_bytes, f->head_len);
    memcpy(f->head_copy + f->head_len, f->map + at, n);
    f->head_bytes = f->head_copy;
    f->head_len += n;
    f->head_bias = (const float *)(const void *)(f->map + at);
    return 0;
}

static int find_head(struct spa_model_file *f, const struct gguf_context *g, struct ggml_context *meta, const char *path,
                     char *why, size_t why_len)
{
    const char *names[] = { "output.weight", "token_embd.weight" };
    for (size_t i = 0; i < 2; i++) {
        const int64_t id = gguf_find_tensor(g, names[i]);
        const struct ggml_tensor *t = id >= 0 ? ggml_get_tensor(meta, names[i]) : NULL;
        if (!t)
            continue;
        const size_t at = gguf_get_data_offset(g) + gguf_get_tensor_offset(g, id);
        f->head_len = gguf_get_tensor_size(g, id);
        if (at > f->len || f->head_len > f->len - at)
            break;
        f->head_type = (uint32_t)t->type;
        f->head_bytes = f->map + at;
        f->d = (uint32_t)t->ne[0];
        f->n_vocab = t->ne[1];
        const struct ggml_tensor *bias = ggml_get_tensor(meta, "output.bias");
        if (bias && join_bias(f, g, bias) != 0) {
            snprintf(why, why_len, "%s: the bias of its logits is not F32 of %" PRId64 " numbers, or there is no memory for it; use another model",
                     path, f->n_vocab);
            return -1;
        }
        unsigned n = 0;
        return EVP_Digest(f->head_bytes, f->head_len, f->head_hash, &n, EVP_sha256(), NULL) ? 0 : -1;
    }
    snprintf(why, why_len, "%s: the file is cut short or has no output tensor; fetch the model again", path);
    return -1;
}

int spa_model_file_open(struct spa_model_file *f, const char *path, char *why, size_t why_len)
{
    memset(f, 0, sizeof *f);
    const int fd = open(path, O_RDONLY | O_CLOEXEC);
    struct stat st;
    if (fd < 0 || fstat(fd, &st) != 0) {
        snprintf(why, why_len, "%s: cannot open the model: %s", path, strerror(errno));
        if (fd >= 0)
            close(fd);
        return -1;
    }
    void *map = S_ISREG(st.st_mode) && st.st_size > 0 ? mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_SHARED, fd, 0) : MAP_FAILED;
    close(fd);
    if (map == MAP_FAILED || memcmp(map, "GGUF", (size_t)st.st_size < 4 ? (size_t)st.st_size : 4) != 0) {
        snprintf(why, why_len, "%s: not a GGUF file; -m wants a model in GGUF form", path);
        if (map != MAP_FAILED)
            munmap(map, (size_t)st.st_size);
        return -1;
    }
    f->map = map;
    f->len = (size_t)st.st_size;

    struct ggml_context *meta = NULL;
    struct gguf_context *g = gguf_init_from_file(path, (struct gguf_init_params){ .no_alloc = true, .ctx = &meta });
    int rc = -1;
    if (!g) {
        snprintf(why, why_len, "%s: the GGUF file is damaged; fetch the model again", path);
    } else {
        const char *slash = strrchr(path, '/');
        snprintf(f->name, sizeof f->name, "%s", slash ? slash + 1 : path);
        key_str(g, "general.name", f->name, sizeof f->name);
        key_str(g, "general.architecture", f->arch, sizeof f->arch);
        const bool capped = strcmp(f->arch, "gemma2") == 0 || strcmp(f->arch, "gemma3n") == 0;   /* with or without the key */
        f->softcap = key_f32(g, f->arch, "final_logit_softcapping", capped ? 30.0f : 0.0f);
        f->logit_scale = key_f32(g, f->arch, "logit_scale", 1.0f);
        /* The same key means "divide" in these. A wrong guess for another one is caught by the start-up check of the head. */
        if (strncmp(f->arch, "granite", 7) == 0 || strcmp(f->arch, "minicpm") == 0)
            f->logit_scale = 1.0f / f->logit_scale;
        if (identity(f, g) != 0)
            snprintf(why, why_len, "%s: cannot be hashed", path);
        else
            rc = find_head(f, g, meta, path, why, why_len);
    }
    gguf_free(g);
    ggml_free(meta);
    if (rc != 0)
        spa_model_file_close(f);
    return rc;
}

void spa_model_file_close(struct spa_model_file *f)
{
    if (f && f->map)
        munmap((void *)(uintptr_t)f->map, f->len);
    if (f) {
        free(f->head_copy);
        memset(f, 0, sizeof *f);
    }
}
