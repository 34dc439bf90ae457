/* fuzz_features.c - any bytes as a feature file. What is taken as whole comes again: the records that were found, written anew under the
 * same header, give the same bytes. Sums are checked first, so most inputs end there: the first byte chooses whether they are put
 * right before, and then the content behind them is what is tried. Drafts of answers are read from it, too. */
#include "drafts.h"
#include "feature_format.h"
#include "scratch.h"
#include "store.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len);

static void must(bool holds)
{
    if (!holds)
        abort();
}

struct found {
    uint8_t *out;
    size_t len, cap, n;
    const uint8_t *block;
    const uint8_t *header_sum;
    struct spa_feature_digest *digest;
};

static void put(struct found *f, const void *bytes, size_t len)
{
    must(len <= f->cap - f->len);
    memcpy(f->out + f->len, bytes, len);
    f->len += len;
}

static int take(void *user, const struct spa_feature_record *r)
{
    static const uint8_t zeros[8];
    struct found *f = user;
    uint8_t head[SPA_FEATURE_RECORD_HEAD];
    must(r->refused ? r->head.n_loss == 0 : r->bulk_len > 0 || r->head.n_loss == 0);
    f->n++;
    if (!f->out)
        return 0;
    spa_feature_record_make(r, f->block + r->at, f->header_sum, head);
    spa_feature_digest_add(f->digest, head);
    put(f, head, sizeof head);
    put(f, f->block + r->at, r->bulk_len);
    put(f, zeros, spa_feature_padding(r->bulk_len));
    return 0;
}

/* A header's length by its own account, as far as the block has it. */
static size_t header_end(const uint8_t *block, size_t len)
{
    uint32_t model, plugin;
    uint64_t basis;
    if (len < 32)
        return 0;
    memcpy(&model, block + 12, 4);
    memcpy(&plugin, block + 16, 4);
    memcpy(&basis, block + 24, 8);
    if (model > len || plugin > len || basis > len)
        return 0;
    const size_t heads = (size_t)model + plugin, at = 32 + heads + spa_feature_padding(heads) + (size_t)basis + spa_feature_padding(basis);
    return at <= len && len - at >= SPA_HASH_BYTES ? at : 0;
}

/* Sums become right, record after record, as far as lengths lead. */
static void put_right(uint8_t *block, size_t len)
{
    const size_t end = header_end(block, len);
    if (!end)
        return;
    spa_sha256(block, end, block + end);
    for (size_t at = end + SPA_HASH_BYTES; len - at >= SPA_FEATURE_RECORD_HEAD;) {
        struct spa_feature_record r = { 0 };
        uint64_t bulk_len;
        uint32_t v[6];
        memcpy(&bulk_len, block + at + 48, 8);
        if (memcmp(block + at, "REC\n", 4) != 0 || bulk_len > len - at - SPA_FEATURE_RECORD_HEAD)
            return;
        memcpy(v, block + at + 24, sizeof v);
        memcpy(&r.kind, block + at + 4, 4);
        memcpy(&r.key, block + at + 8, sizeof r.key);
        r.head = (spa_Features){ .n_tokens = v[0], .n_ctx = v[1], .n_loss = v[2] };
        r.refused = v[3];
        r.limit = v[4];
        r.bulk_len = (uint32_t)bulk_len;
        spa_feature_record_make(&r, block + at + SPA_FEATURE_RECORD_HEAD, block + end, block + at);
        const size_t next = at + SPA_FEATURE_RECORD_HEAD + (size_t)bulk_len + spa_feature_padding(bulk_len);
        if (next > len)
            return;
        at = next;
    }
}

/* As a chat reads it that looks for drafts, with the plugin that the file was made for, where it says one. */
static void look_up(const uint8_t *block, size_t len, const spa_Plugin *made_for)
{
    static const char *path;
    const int32_t said[] = { 0, 3 };
    int32_t out[48];
    if (!path)
        path = scratch_path("features");
    struct spa_drafts *d = spa_drafts_new(256);
    must(d != NULL);
    scratch_write(path, block, len);
    struct spa_plugin p = { .tap_dtype = (enum spa_dtype)made_for->tap_dtype };
    const bool known = spa_wire_shape_from_plugin(made_for, &p.shape) == SPA_OK;
    memcpy(p.basis_hash, made_for->basis_hash.bytes, SPA_HASH_BYTES);
    spa_drafts_add_features(d, path, known ? &p : NULL);
    float *x = known ? calloc((size_t)p.shape.n_taps * p.shape.k, sizeof *x) : NULL;
    const struct spa_drafts_near near = x ? spa_drafts_near(d, &p.shape, x) : (struct spa_drafts_near){ 0 };
    must(spa_drafts_look(d, &near, said, 2, out, 48) <= 48 && spa_drafts_look(d, &near, said, 0, out, 48) <= 48);
    free(x);
    spa_drafts_free(d);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len)
{
    struct spa_feature_scan s;
    if (len < 1)
        return 0;
    struct found f = { 0 };
    uint8_t *block = malloc(len);   /* libFuzzer's own block need not be aligned, nor is it ours to write */
    memcpy(block, bytes + 1, len - 1);
    if (bytes[0] & 1)
        put_right(block, len - 1);
    must(spa_feature_scan(block, len - 1, &s, take, NULL, &f) == 0 && s.n == f.n && s.good_len <= len - 1);
    if (s.verdict <= SPA_FEATURE_DAMAGED) {
        struct found again = { .out = malloc(len + SPA_FEATURE_FOOTER), .cap = len + SPA_FEATURE_FOOTER, .block = block, .header_sum = s.header_sum,
                               .digest = spa_feature_digest_new(s.header_sum) };
        struct spa_feature_scan second;
        uint8_t footer[SPA_FEATURE_FOOTER];
        put(&again, block, s.header_len);
        must(spa_feature_scan(block, (size_t)s.good_len, &second, take, NULL, &again) == 0 && second.n == s.n);
        must(again.len == s.good_len && memcmp(again.out, block, again.len) == 0);
        spa_feature_digest_end(again.digest, again.n, again.len + sizeof footer, footer);
        put(&again, footer, sizeof footer);
        must(spa_feature_scan(again.out, again.len, &second, NULL, NULL, NULL) == 0 && second.verdict == SPA_FEATURE_WHOLE && second.n == s.n);
        must(s.verdict != SPA_FEATURE_WHOLE || (again.len == len - 1 && memcmp(again.out, block, again.len) == 0));
        free(again.out);
        look_up(block, len - 1, &s.base.plugin);
    }
    free(block);
    return 0;
}
