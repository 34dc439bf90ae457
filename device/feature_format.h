/* feature_format.h - the bytes of a feature file. No files here: blocks of memory in and out.
 *
 *   file   = header, records, footer          all numbers little-endian, every piece a multiple of 8 bytes
 *   header = "SPAFEAT\n" | version u32 | model_len u32 | plugin_len u32 | 0 u32 | basis_len u64 | model | plugin | 0.. | basis | 0.. | sum[32]
 *            model and plugin are WELCOME and the announcement of HELLO as on the wire, less what does not shape features;
 *            basis as in basis.h; sum is the SHA-256 of all before
 *   record = "REC\n" | kind u32 | key[16] | n_tokens u32 | n_ctx u32 | n_loss u32 | refused u32 | limit u32 | 0 u32 | bulk_len u64 |
 *            sum[24] | bulk | 0..
 *            bulk is that of FEATURES; sum begins the SHA-256 of the header's sum and of the record without sum
 *   footer = "END\n" | 0 u32 | n_records u64 | file_len u64 | 0 u64 | sum[32]
 *            sum is the SHA-256 of the header's sum, the records' sums and the footer's first 32 bytes
 *
 * So a flipped byte, a cut anywhere, and a record of another file are found. */
#ifndef SPA_FEATURE_FORMAT_H
#define SPA_FEATURE_FORMAT_H

#include "session.h"

enum { SPA_FEATURE_VERSION = 1, SPA_FEATURE_KEY_BYTES = 16, SPA_FEATURE_SUM_BYTES = 24, SPA_FEATURE_RECORD_HEAD = 80, SPA_FEATURE_FOOTER = 64 };

enum spa_feature_kind {
    SPA_FEATURE_ROW = 1,       /* a training row */
    SPA_FEATURE_GENERAL = 2,   /* a general prompt of this program with the base model's answer */
    SPA_FEATURE_ANCHOR = 3,    /* a general row that the cloud has made: its number */
    SPA_FEATURE_HELD = 4,      /* a row that was held back: never to be trained on by another run */
};

struct spa_feature_key { uint8_t bytes[SPA_FEATURE_KEY_BYTES]; };

/* Of a row, or of a general prompt: its parts, kinds and loss flags. 0, or -1 without memory. */
int  spa_feature_key_row(const struct spa_part *parts, size_t n, struct spa_feature_key *key);
/* Of the cloud's anchor `number` for a model. */
void spa_feature_key_anchor(const uint8_t model_hash[SPA_HASH_BYTES], uint32_t number, struct spa_feature_key *key);

/* What all records of a file share. */
struct spa_feature_base {
    spa_Welcome  model;        /* name, hash, d, n_layers, n_vocab, n_ctx (of the first cloud), head_*, logit_scale, softcap */
    spa_Plugin   plugin;       /* d, n_layers, taps, k, rms, basis, basis_hash, ctx_taps, tap_dtype */
    const float *basis;        /* borrowed; NULL without, or when its owner has only the hash: then the file does not hold it */
};

struct spa_feature_record {
    enum spa_feature_kind  kind;
    struct spa_feature_key key;
    spa_Features head;         /* n_tokens, n_ctx, n_loss; row is 0 */
    uint32_t refused;          /* 0, or the spa_Code with which the cloud refused it: then n_* are 0 and the bulk is its sentence */
    uint32_t limit;            /* the cloud's n_ctx at that time */
    uint32_t bulk_len;
    uint64_t at;               /* of the bulk in its file */
};

/* What does not shape features becomes zero: two bases whose fields are the same then serve each other. */
void spa_feature_base_from(const spa_Welcome *model, const spa_Plugin *plugin, const float *basis, struct spa_feature_base *out);

/* The header's bytes (the caller's to free), or NULL without memory. sum: its last 32 bytes, which records need. */
uint8_t *spa_feature_header_make(const struct spa_feature_base *base, size_t *len, uint8_t sum[SPA_HASH_BYTES]);
/* A record's head, without its bulk; and how many zeros follow the bulk. */
void   spa_feature_record_make(const struct spa_feature_record *r, const uint8_t *bulk, const uint8_t header_sum[SPA_HASH_BYTES],
                               uint8_t head[SPA_FEATURE_RECORD_HEAD]);
size_t spa_feature_padding(uint64_t len);

/* ---- reading: trusts nothing ---- */

enum spa_feature_verdict {
    SPA_FEATURE_WHOLE,         /* header, records and footer are as they were written */
    SPA_FEATURE_CUT,           /* the header is good and so are the records, but the end is missing */
    SPA_FEATURE_DAMAGED,       /* the header is good; some byte behind it is not what was written */
    SPA_FEATURE_NO_HEADER,     /* begins like a feature file, but its header is cut or damaged */
    SPA_FEATURE_VERSION_OTHER,
    SPA_FEATURE_FOREIGN,       /* not a feature file */
};

struct spa_feature_scan {
    enum spa_feature_verdict verdict;
    struct spa_feature_base base;          /* with a good header, and so for what follows; basis points into the block */
    struct spa_session wire;               /* how records are unpacked; never fed */
    uint8_t  header_sum[SPA_HASH_BYTES];
    size_t   header_len;
    uint64_t good_len;                     /* header and the good records at its beginning */
    uint64_t n;                            /* of these records */
};

/* Looks at every byte. For each good record `take` (may be NULL) is called; what it returns other than 0 ends the scan and is
 * returned; -1 also when there is no memory. The block must be 4-byte aligned. seen, when not NULL, is told now and then up to where the block was read. */
int spa_feature_scan(const uint8_t *block, size_t len, struct spa_feature_scan *out,
                     int (*take)(void *user, const struct spa_feature_record *r), void (*seen)(void *user, size_t up_to), void *user);

/* The digest that becomes a footer. add in the order of the records; sum is a record head's. NULL: no memory. */
struct spa_feature_digest;
struct spa_feature_digest *spa_feature_digest_new(const uint8_t header_sum[SPA_HASH_BYTES]);
void spa_feature_digest_add(struct spa_feature_digest *d, const uint8_t head[SPA_FEATURE_RECORD_HEAD]);
/* file_len: the footer included. Frees d. */
void spa_feature_digest_end(struct spa_feature_digest *d, uint64_t n_records, uint64_t file_len, uint8_t footer[SPA_FEATURE_FOOTER]);
void spa_feature_digest_free(struct spa_feature_digest *d);   /* takes NULL */

#endif
