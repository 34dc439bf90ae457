/* feature_format.c - the bytes of a feature file (feature_format.h). In: a block, or records. Out: records, or bytes. */
#define _POSIX_C_SOURCE 200809L
#include "feature_format.h"

#include "basis.h"
#include "store.h"

#include <openssl/evp.h>
#include <pb_decode.h>
#include <pb_encode.h>

#include <stdlib.h>
#include <string.h>

enum { PREFIX = 32, SEEN_EVERY = 4 << 20 };

/* Where things stand in a record's head and in the footer. */
enum { AT_KIND = 4, AT_KEY = 8, AT_N_TOKENS = 24, AT_N_CTX = 28, AT_N_LOSS = 32, AT_REFUSED = 36, AT_LIMIT = 40, AT_ZERO = 44,
       AT_BULK_LEN = 48, AT_SUM = 56 };
enum { AT_N_RECORDS = 8, AT_FILE_LEN = 16, AT_FOOTER_SUM = 32 };

static const uint8_t header_magic[8] = "SPAFEAT\n", record_magic[4] = "REC\n", footer_magic[4] = "END\n";

/* This code is little-endian, as plugin files and the wire's bulks are. */
static uint32_t get32(const uint8_t *at) { uint32_t v; memcpy(&v, at, sizeof v); return v; }
static uint64_t get64(const uint8_t *at) { uint64_t v; memcpy(&v, at, sizeof v); return v; }
static void put32(uint8_t *at, uint32_t v) { memcpy(at, &v, sizeof v); }
static void put64(uint8_t *at, uint64_t v) { memcpy(at, &v, sizeof v); }

size_t spa_feature_padding(uint64_t len) { return (size_t)(-len & 7); }

/* ---- keys ---- */

static void first_bytes(const void *bytes, size_t len, struct spa_feature_key *key)
{
    uint8_t hash[SPA_SHA256_BYTES];
    spa_sha256(bytes, len, hash);
    memcpy(key->bytes, hash, sizeof key->bytes);
}

int spa_feature_key_row(const struct spa_part *parts, size_t n, struct spa_feature_key *key)
{
    size_t len = spa_parts_len(parts, n);
    uint8_t *bytes = malloc(len + 1);
    if (!bytes)
        return -1;
    spa_parts_write(parts, n, bytes);
    first_bytes(bytes, len, key);
    free(bytes);
    return 0;
}

void spa_feature_key_anchor(const uint8_t model_hash[SPA_HASH_BYTES], uint32_t number, struct spa_feature_key *key)
{
    uint8_t bytes[SPA_HASH_BYTES + 4];
    memcpy(bytes, model_hash, SPA_HASH_BYTES);
    put32(bytes + SPA_HASH_BYTES, number);
    first_bytes(bytes, sizeof bytes, key);
}

/* ---- the header ---- */

void spa_feature_base_from(const spa_Welcome *model, const spa_Plugin *plugin, const float *basis, struct spa_feature_base *out)
{
    *out = (struct spa_feature_base){
        .model = { .model_hash = { .size = model->model_hash.size }, .d = model->d, .n_layers = model->n_layers, .n_vocab = model->n_vocab,
                   .n_ctx = model->n_ctx, .head_type = model->head_type, .head_bytes = model->head_bytes,
                   .head_hash = { .size = model->head_hash.size }, .n_anchors = model->n_anchors, .logit_scale = model->logit_scale, .softcap = model->softcap },
        .plugin = { .d = plugin->d, .n_layers = plugin->n_layers, .taps_count = plugin->taps_count, .k = plugin->k, .rms = plugin->rms,
                    .basis = plugin->basis, .basis_hash = { .size = plugin->basis_hash.size }, .ctx_taps_count = plugin->ctx_taps_count,
                    .tap_dtype = plugin->tap_dtype, .generic = plugin->generic },
        .basis = basis,
    };
    memcpy(out->model.model, model->model, strnlen(model->model, sizeof model->model - 1));
    memcpy(out->model.model_hash.bytes, model->model_hash.bytes, model->model_hash.size);
    memcpy(out->model.head_hash.bytes, model->head_hash.bytes, model->head_hash.size);
    memcpy(out->plugin.basis_hash.bytes, plugin->basis_hash.bytes, plugin->basis_hash.size);
    memcpy(out->plugin.taps, plugin->taps, plugin->taps_count * sizeof *plugin->taps);
    memcpy(out->plugin.ctx_taps, plugin->ctx_taps, plugin->ctx_taps_count * sizeof *plugin->ctx_taps);
}

uint8_t *spa_feature_header_make(const struct spa_feature_base *base, size_t *len, uint8_t sum[SPA_HASH_BYTES])
{
    struct spa_shape shape;
    uint8_t model[spa_Welcome_size], plugin[spa_Plugin_size];
    pb_ostream_t model_out = pb_ostream_from_buffer(model, sizeof model), plugin_out = pb_ostream_from_buffer(plugin, sizeof plugin);
    if (!pb_encode(&model_out, spa_Welcome_fields, &base->model) || !pb_encode(&plugin_out, spa_Plugin_fields, &base->plugin) ||
        spa_wire_shape_from_plugin(&base->plugin, &shape) != SPA_OK)
        return NULL;   /* the sizes are those of the largest, and a plugin on the link has a shape: does not happen */
    const size_t heads = model_out.bytes_written + plugin_out.bytes_written, basis_len = base->basis ? spa_basis_floats(&shape) * sizeof(float) : 0;
    const size_t at_basis = PREFIX + heads + spa_feature_padding(heads), at_sum = at_basis + basis_len + spa_feature_padding(basis_len);
    uint8_t *out = calloc(1, at_sum + SPA_HASH_BYTES);
    if (!out)
        return NULL;
    memcpy(out, header_magic, sizeof header_magic);
    put32(out + 8, SPA_FEATURE_VERSION);
    put32(out + 12, (uint32_t)model_out.bytes_written);
    put32(out + 16, (uint32_t)plugin_out.bytes_written);
    put64(out + 24, basis_len);
    memcpy(out + PREFIX, model, model_out.bytes_written);
    memcpy(out + PREFIX + model_out.bytes_written, plugin, plugin_out.bytes_written);
    if (basis_len)
        memcpy(out + at_basis, base->basis, basis_len);
    spa_sha256(out, at_sum, out + at_sum);
    memcpy(sum, out + at_sum, SPA_HASH_BYTES);
    *len = at_sum + SPA_HASH_BYTES;
    return out;
}

static bool hash_or_none(pb_size_t size) { return size == 0 || size == SPA_HASH_BYTES; }

/* A header that was not written by us must not lead anybody astray: what WELCOME and HELLO are checked for, once more. */
static bool possible(const spa_Welcome *m, const spa_Plugin *p, struct spa_shape *shape)
{
    return m->d != 0 && m->d == p->d && m->n_layers == p->n_layers && m->n_vocab > 0 && m->n_vocab <= INT32_MAX &&
           m->model_hash.size == SPA_HASH_BYTES && hash_or_none(m->head_hash.size) && m->logit_scale - m->logit_scale == 0 &&
           m->softcap - m->softcap == 0 && p->tap_dtype <= _spa_Dtype_MAX && spa_wire_shape_from_plugin(p, shape) == SPA_OK &&
           p->basis_hash.size == (shape->basis ? SPA_HASH_BYTES : 0);
}

static enum spa_feature_verdict read_header(const uint8_t *block, size_t len, struct spa_feature_scan *s)
{
    if (len < sizeof header_magic || memcmp(block, header_magic, sizeof header_magic) != 0)
        return SPA_FEATURE_FOREIGN;
    if (len < PREFIX)
        return SPA_FEATURE_NO_HEADER;
    if (get32(block + 8) != SPA_FEATURE_VERSION)
        return SPA_FEATURE_VERSION_OTHER;
    const uint32_t model_len = get32(block + 12), plugin_len = get32(block + 16);
    const uint64_t basis_len = get64(block + 24);
    if (model_len > spa_Welcome_size || plugin_len > spa_Plugin_size || basis_len > len)
        return SPA_FEATURE_NO_HEADER;
    const size_t heads = (size_t)model_len + plugin_len, at_basis = PREFIX + heads + spa_feature_padding(heads);
    const size_t at_sum = at_basis + (size_t)basis_len + spa_feature_padding(basis_len);
    if (at_sum > len || len - at_sum < SPA_HASH_BYTES)
        return SPA_FEATURE_NO_HEADER;
    spa_sha256(block, at_sum, s->header_sum);
    if (memcmp(s->header_sum, block + at_sum, SPA_HASH_BYTES) != 0)
        return SPA_FEATURE_NO_HEADER;

    struct spa_feature_base *b = &s->base;
    pb_istream_t model_in = pb_istream_from_buffer(block + PREFIX, model_len);
    pb_istream_t plugin_in = pb_istream_from_buffer(block + PREFIX + model_len, plugin_len);
    uint8_t hash[SPA_HASH_BYTES];
    if (!pb_decode(&model_in, spa_Welcome_fields, &b->model) || !pb_decode(&plugin_in, spa_Plugin_fields, &b->plugin) ||
        !possible(&b->model, &b->plugin, &s->wire.shape) || (basis_len && basis_len != spa_basis_floats(&s->wire.shape) * sizeof(float)))
        return SPA_FEATURE_NO_HEADER;
    if (basis_len) {
        b->basis = (const float *)(const void *)(block + at_basis);   /* at_basis is a multiple of 8 */
        spa_sha256(b->basis, (size_t)basis_len, hash);
        if (memcmp(hash, b->plugin.basis_hash.bytes, sizeof hash) != 0 || spa_basis_check(&s->wire.shape, b->basis) != SPA_OK)
            return SPA_FEATURE_NO_HEADER;
    }
    s->wire.welcome = b->model;
    s->wire.welcome.n_ctx = INT32_MAX;   /* rows of a cloud with a longer context may have been added */
    s->wire.tap_dtype = (enum spa_dtype)b->plugin.tap_dtype;
    s->header_len = at_sum + SPA_HASH_BYTES;
    return SPA_FEATURE_WHOLE;
}

/* ---- records ---- */

static void record_sum(const uint8_t head[SPA_FEATURE_RECORD_HEAD], const uint8_t *bulk, uint64_t bulk_len, const uint8_t *header_sum,
                       uint8_t sum[SPA_FEATURE_SUM_BYTES])
{
    static const uint8_t zeros[8];
    uint8_t hash[SPA_SHA256_BYTES];
    EVP_MD_CTX *digest = EVP_MD_CTX_new();
    if (!digest || !EVP_DigestInit_ex(digest, EVP_sha256(), NULL) || !EVP_DigestUpdate(digest, header_sum, SPA_HASH_BYTES) ||
        !EVP_DigestUpdate(digest, head, AT_SUM) || !EVP_DigestUpdate(digest, bulk, (size_t)bulk_len) ||
        !EVP_DigestUpdate(digest, zeros, spa_feature_padding(bulk_len)) || !EVP_DigestFinal_ex(digest, hash, NULL))
        abort();   /* as in spa_sha256: a sum must never be wrong in silence */
    EVP_MD_CTX_free(digest);
    memcpy(sum, hash, SPA_FEATURE_SUM_BYTES);
}

void spa_feature_record_make(const struct spa_feature_record *r, const uint8_t *bulk, const uint8_t header_sum[SPA_HASH_BYTES],
                             uint8_t head[SPA_FEATURE_RECORD_HEAD])
{
    memcpy(head, record_magic, sizeof record_magic);
    put32(head + AT_KIND, r->kind);
    memcpy(head + AT_KEY, r->key.bytes, sizeof r->key.bytes);
    put32(head + AT_N_TOKENS, r->head.n_tokens);
    put32(head + AT_N_CTX, r->head.n_ctx);
    put32(head + AT_N_LOSS, r->head.n_loss);
    put32(head + AT_REFUSED, r->refused);
    put32(head + AT_LIMIT, r->limit);
    put32(head + AT_ZERO, 0);
    put64(head + AT_BULK_LEN, r->bulk_len);
    record_sum(head, bulk, r->bulk_len, header_sum, head + AT_SUM);
}

/* One record at `at`: SPA_FEATURE_WHOLE with *r, CUT when the block ends in it, DAMAGED. */
static enum spa_feature_verdict read_record(const uint8_t *block, size_t len, size_t at, const struct spa_feature_scan *s,
                                            struct spa_feature_record *r)
{
    const uint8_t *head = block + at, *bulk = head + SPA_FEATURE_RECORD_HEAD;
    uint8_t sum[SPA_FEATURE_SUM_BYTES];
    const char *what;
    if (len - at < SPA_FEATURE_RECORD_HEAD)
        return SPA_FEATURE_CUT;
    const uint64_t room = len - at - SPA_FEATURE_RECORD_HEAD, bulk_len = get64(head + AT_BULK_LEN);
    if (memcmp(head, record_magic, sizeof record_magic) != 0)
        return SPA_FEATURE_DAMAGED;
    if (bulk_len > room || spa_feature_padding(bulk_len) > room - bulk_len)
        return SPA_FEATURE_CUT;
    record_sum(head, bulk, bulk_len, s->header_sum, sum);
    for (size_t i = 0; i < spa_feature_padding(bulk_len); i++)
        if (bulk[bulk_len + i] != 0)
            return SPA_FEATURE_DAMAGED;
    if (memcmp(sum, head + AT_SUM, sizeof sum) != 0 || bulk_len > UINT32_MAX)
        return SPA_FEATURE_DAMAGED;
    *r = (struct spa_feature_record){
        .kind = (enum spa_feature_kind)get32(head + AT_KIND), .refused = get32(head + AT_REFUSED), .limit = get32(head + AT_LIMIT),
        .head = { .n_tokens = get32(head + AT_N_TOKENS), .n_ctx = get32(head + AT_N_CTX), .n_loss = get32(head + AT_N_LOSS) },
        .bulk_len = (uint32_t)bulk_len, .at = at + SPA_FEATURE_RECORD_HEAD,
    };
    memcpy(r->key.bytes, head + AT_KEY, sizeof r->key.bytes);
    const bool none = r->head.n_tokens == 0 && r->head.n_ctx == 0 && r->head.n_loss == 0;
    if (r->refused ? !none : spa_features_check(&s->wire, &r->head, bulk, (size_t)bulk_len, &what) != SPA_OK)
        return SPA_FEATURE_DAMAGED;
    return SPA_FEATURE_WHOLE;
}

/* ---- the footer ---- */

struct spa_feature_digest { EVP_MD_CTX *ctx; };

struct spa_feature_digest *spa_feature_digest_new(const uint8_t header_sum[SPA_HASH_BYTES])
{
    struct spa_feature_digest *d = malloc(sizeof *d);
    EVP_MD_CTX *ctx = EVP_MD_CTX_new();
    if (d && ctx && EVP_DigestInit_ex(ctx, EVP_sha256(), NULL) && EVP_DigestUpdate(ctx, header_sum, SPA_HASH_BYTES)) {
        d->ctx = ctx;
        return d;
    }
    EVP_MD_CTX_free(ctx);
    free(d);
    return NULL;
}

void spa_feature_digest_add(struct spa_feature_digest *d, const uint8_t head[SPA_FEATURE_RECORD_HEAD])
{
    if (!EVP_DigestUpdate(d->ctx, head + AT_SUM, SPA_FEATURE_SUM_BYTES))
        abort();
}

void spa_feature_digest_end(struct spa_feature_digest *d, uint64_t n_records, uint64_t file_len, uint8_t footer[SPA_FEATURE_FOOTER])
{
    memset(footer, 0, SPA_FEATURE_FOOTER);
    memcpy(footer, footer_magic, sizeof footer_magic);
    put64(footer + AT_N_RECORDS, n_records);
    put64(footer + AT_FILE_LEN, file_len);
    if (!EVP_DigestUpdate(d->ctx, footer, AT_FOOTER_SUM) || !EVP_DigestFinal_ex(d->ctx, footer + AT_FOOTER_SUM, NULL))
        abort();
    spa_feature_digest_free(d);
}

void spa_feature_digest_free(struct spa_feature_digest *d)
{
    if (d)
        EVP_MD_CTX_free(d->ctx);
    free(d);
}

/* ---- the whole ---- */

/* What stands behind the last record: the footer that belongs to it, or its absence. */
static enum spa_feature_verdict read_footer(const uint8_t *block, size_t len, const struct spa_feature_scan *s, struct spa_feature_digest *d)
{
    uint8_t footer[SPA_FEATURE_FOOTER];
    const size_t left = len - (size_t)s->good_len;
    spa_feature_digest_end(d, s->n, s->good_len + SPA_FEATURE_FOOTER, footer);
    if (left < sizeof footer)
        return memcmp(block + s->good_len, footer, left) == 0 ? SPA_FEATURE_CUT : SPA_FEATURE_DAMAGED;
    return left == sizeof footer && memcmp(block + s->good_len, footer, left) == 0 ? SPA_FEATURE_WHOLE : SPA_FEATURE_DAMAGED;
}

int spa_feature_scan(const uint8_t *block, size_t len, struct spa_feature_scan *out,
                     int (*take)(void *user, const struct spa_feature_record *r), void (*seen)(void *user, size_t up_to), void *user)
{
    memset(out, 0, sizeof *out);
    out->verdict = read_header(block, len, out);
    if (out->verdict != SPA_FEATURE_WHOLE)
        return 0;
    struct spa_feature_digest *digest = spa_feature_digest_new(out->header_sum);
    size_t at = out->header_len, seen_at = 0;
    struct spa_feature_record r;
    int rc = 0;
    if (!digest)
        return -1;
    out->good_len = at;
    while (rc == 0) {
        const bool footer = len - at >= sizeof footer_magic ? memcmp(block + at, footer_magic, sizeof footer_magic) == 0 : true;
        out->verdict = footer ? read_footer(block, len, out, digest) : read_record(block, len, at, out, &r);
        if (footer)
            digest = NULL;
        if (footer || out->verdict != SPA_FEATURE_WHOLE)
            break;
        spa_feature_digest_add(digest, block + at);
        at = (size_t)r.at + r.bulk_len + spa_feature_padding(r.bulk_len);
        out->good_len = at;
        out->n++;
        rc = take ? take(user, &r) : 0;
        if (seen && at - seen_at >= SEEN_EVERY)
            seen(user, seen_at = at);
    }
    spa_feature_digest_free(digest);
    return rc;
}
