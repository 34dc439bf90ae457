/* plugin_file.c - loads and saves plugins (plugin_file.h): the store's bytes through core's reader and writer, and for whatever is
 * wrong one sentence for the user. */
#include "plugin_file.h"
#include "basis.h"
#include "store.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const size_t max_file_bytes = (size_t)2 << 30;

enum spa_file_kind spa_file_kind(const uint8_t *b, size_t len)
{
    if (len >= 4 && memcmp(b, "GGUF", 4) == 0)
        return SPA_FILE_GGUF;
    /* torch.save: a zip with a pickle in it, or, in older versions and as pickle.dump has it, a bare one of protocol 2 to 5 */
    if ((len >= 4 && memcmp(b, "PK\003\004", 4) == 0) || (len >= 2 && b[0] == 0x80 && b[1] >= 2 && b[1] <= 5))
        return SPA_FILE_PICKLE;
    return len >= 9 && b[8] == '{' ? SPA_FILE_SAFETENSORS : SPA_FILE_UNKNOWN;
}

static const char *remedy(enum spa_err e)
{
    switch (e) {
    case SPA_ERR_VERSION: return "upgrade spa, or write the file with an older one";
    case SPA_ERR_LIMIT:   return "it exceeds what a plugin may hold: is it a base model?";
    case SPA_ERR_RANGE:   return "its training went wrong or the file is damaged: train or fetch it again";
    default:              return "the file is damaged, incomplete or of another kind: fetch or train it again";
    }
}

static int complain(const char *name, const uint8_t *bytes, size_t len, enum spa_err e, const struct spa_fault *fault, char *why,
                    size_t why_len)
{
    enum spa_file_kind kind = spa_file_kind(bytes, len);
    if (kind == SPA_FILE_PICKLE)
        snprintf(why, why_len, "'%s' is no plugin file but a Python pickle; 'spa convert' says how to make one of it", name);
    else if (kind == SPA_FILE_SAFETENSORS)
        snprintf(why, why_len, "'%s' is no plugin file but a safetensors checkpoint; 'spa convert' makes one of it", name);
    else
        snprintf(why, why_len, "'%s' is no plugin that can be used: %s (at byte %" PRIu64 " of %zu); %s", name, fault->what,
                 fault->at, len, remedy(e));
    return -1;
}

/* A copy of n floats in *out; nothing to do without numbers. */
static int copy(const float *from, size_t n, float **out)
{
    if (!from)
        return 0;
    *out = malloc(n * sizeof **out);
    if (!*out)
        return -1;
    memcpy(*out, from, n * sizeof **out);
    return 0;
}

static int take_numbers(const uint8_t *bytes, size_t len, const struct spa_plugin_data *data, struct spa_plugin_file *f)
{
    const struct spa_shape *s = &f->plugin.shape;
    if (copy(data->params, spa_param_count(s), &f->params) != 0 || copy(data->gate_w, 2 * spa_gate_width(&f->plugin), &f->gate_w) != 0 ||
        copy(data->gate_b, 2, &f->gate_b) != 0 || copy(data->basis, spa_basis_floats(s), &f->basis) != 0)
        return -1;
    if (f->params)
        return 0;
    f->params = malloc(spa_param_count(s) * sizeof *f->params);
    return f->params && spa_plugin_params(bytes, len, &f->plugin, f->params) == SPA_OK ? 0 : -1;
}

int spa_plugin_file_parse(const char *name, const uint8_t *bytes, size_t len, struct spa_plugin_file *f, char *why, size_t why_len)
{
    struct spa_plugin_data data;
    struct spa_fault fault = { "", 0 };
    memset(f, 0, sizeof *f);
    enum spa_err e = spa_plugin_read(bytes, len, &f->plugin, &data, &fault);
    if (e != SPA_OK) {
        memset(f, 0, sizeof *f);
        return complain(name, bytes, len, e, &fault, why, why_len);
    }
    if (data.basis) {
        uint8_t hash[SPA_HASH_BYTES];
        spa_sha256(data.basis, spa_basis_floats(&f->plugin.shape) * sizeof(float), hash);
        if (memcmp(hash, f->plugin.basis_hash, sizeof hash) != 0) {
            memset(f, 0, sizeof *f);
            snprintf(why, why_len, "'%s' is no plugin that can be used: its basis does not have the hash that spa.basis.hash names; %s",
                     name, remedy(SPA_ERR_FORMAT));
            return -1;
        }
    }
    if (take_numbers(bytes, len, &data, f) != 0) {
        spa_plugin_file_free(f);
        snprintf(why, why_len, "there is no memory for the plugin '%s'; close other programs", name);
        return -1;
    }
    return 0;
}

int spa_plugin_file_load(const char *path, struct spa_plugin_file *f, char *why, size_t why_len)
{
    uint8_t *bytes;
    size_t len;
    memset(f, 0, sizeof *f);
    if (spa_store_read(path, max_file_bytes, &bytes, &len, why, why_len) != 0)
        return -1;
    int rc = spa_plugin_file_parse(path, bytes, len, f, why, why_len);
    free(bytes);
    return rc;
}

int spa_plugin_file_save(const char *path, const struct spa_plugin_file *f, char *why, size_t why_len)
{
    const struct spa_plugin_data data = { f->params, f->gate_w, f->gate_b, f->basis };
    size_t len = spa_plugin_write_len(&f->plugin, &data);
    uint8_t *bytes = malloc(len);
    if (!bytes) {
        snprintf(why, why_len, "there is no memory for the %zu bytes of '%s'; close other programs", len, path);
        return -1;
    }
    spa_plugin_write(&f->plugin, &data, bytes, len, &len);   /* the length is the one it asked for */
    /* What could not be read again, such as weights that have become NaN, must not replace a file that can. */
    struct spa_plugin p;
    struct spa_plugin_data read_back;
    struct spa_fault fault;
    int rc = -1;
    if (spa_plugin_read(bytes, len, &p, &read_back, &fault) != SPA_OK)
        snprintf(why, why_len, "'%s' was not written, because it could not be read again: %s; train again with a smaller "
                 "learning rate", path, fault.what);
    else
        rc = spa_store_replace(path, bytes, len, true, why, why_len);
    free(bytes);
    return rc;
}

void spa_plugin_file_free(struct spa_plugin_file *f)
{
    if (!f)
        return;
    free(f->params);
    free(f->gate_w);
    free(f->gate_b);
    free(f->basis);
    memset(f, 0, sizeof *f);
}
