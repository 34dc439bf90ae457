/* row_features.h - what the frozen base model makes of training rows: asked from the cloud once, kept packed as they came in a
 * feature file, unpacked row by row as often as training likes. Only what the file lacks is asked for. */
#ifndef SPA_ROW_FEATURES_H
#define SPA_ROW_FEATURES_H

#include "feature_file.h"
#include "link.h"
#include "rows.h"

struct spa_feature_row {
    spa_Features head;         /* n_tokens, n_ctx, n_loss */
    uint8_t     *bulk;         /* as on the wire; read only when mapped */
    uint32_t     bulk_len;
};

struct spa_features {
    struct spa_shape shape;    /* d, taps, k, context taps are right; mode, r, m, e are not */
    struct spa_feature_row *rows;
    size_t   n;
    uint64_t n_loss;           /* of all rows */
    uint64_t n_tokens;
    uint32_t max_ctx, max_loss;/* of one row */
    uint64_t bytes;            /* held */
    bool     mapped;           /* bulks belong to a feature file, which must stay; otherwise each is malloc'd */
    struct spa_session *wire;  /* a still copy: how rows are unpacked. Never fed */
};

/* Besides 0 and -1: the cloud is gone, or about to be. What has come is in the file; with a new link it goes on from there. */
enum { SPA_FEATURES_LOST = -2 };

struct spa_features_progress {
    void (*done)(void *user, uint64_t done, uint64_t of);   /* NULL: nobody looks */
    void *user;
};

/* Has the cloud fit the connection's basis on the states of a share of the rows (enough for some 3,000 loss tokens), and
 * fetches it: basis.h's bytes, the caller's to free. For a link whose plugin announced a basis without a hash. Rows that the cloud
 * refuses are passed over. 0, -1 or SPA_FEATURES_LOST with a sentence. */
int spa_features_fit(struct spa_link *l, const struct spa_rows *rows, uint8_t **basis, size_t *basis_len,
                     uint8_t hash[SPA_HASH_BYTES], struct spa_features_progress progress, char *why, size_t why_len);

/* For a link whose plugin announced a generic basis: fetches the cloud's. As above. */
int spa_features_generic(struct spa_link *l, uint8_t **basis, size_t *basis_len, uint8_t hash[SPA_HASH_BYTES], char *why, size_t why_len);

/* The keys of rows, malloc'd: NULL without memory. */
struct spa_feature_key *spa_features_keys(const struct spa_rows *rows);

/* Asks for the rows that the file lacks (by kind and key; a row that was refused for its length is asked again when this cloud takes
 * longer ones), as many at a time as the cloud takes, and puts the answers into it. Rows that the cloud refuses are put there as
 * such. Targets, positions and numbers are checked here. keys [rows->n]. Progress counts all rows. 0, -1 or SPA_FEATURES_LOST. */
int spa_features_ask(struct spa_feature_file *file, struct spa_link *l, enum spa_feature_kind kind, const struct spa_rows *rows,
                     const struct spa_feature_key *keys, struct spa_features_progress progress, char *why, size_t why_len);

/* Asks for anchors, rows that the cloud has made of general text: n of its n_anchors (welcome), evenly over all: the i-th is number
 * spa_features_anchor. keys [n] (spa_feature_key_anchor of these numbers), n no more than n_anchors. Otherwise as spa_features_ask. */
size_t spa_features_anchor(uint32_t n_anchors, size_t n, size_t i);
int spa_features_ask_anchors(struct spa_feature_file *file, struct spa_link *l, const struct spa_feature_key *keys, size_t n,
                             struct spa_features_progress progress, char *why, size_t why_len);

/* Is there an answer to every row in the file, be it a refusal? */
bool spa_features_all_there(const struct spa_feature_file *file, enum spa_feature_kind kind, const struct spa_feature_key *keys, size_t n);

/* Rows without features, and where the first of each sort stood. */
struct spa_left_out {
    uint32_t rows, of, too_long, refused;
    uint32_t limit;                                    /* tokens that the cloud takes */
    const char *long_file, *refused_file;              /* the rows' */
    uint32_t long_line, refused_line;
    char     sentence[200];                            /* why the first was refused, in the cloud's words */
};
/* "left out: 3 of 1000 rows: ..."; an empty string when none was. */
void spa_left_out_say(const struct spa_left_out *left, char *out, size_t out_len);

/* After spa_feature_file_finish: *f is what the file holds of these keys, in their order. left NULL: keys that are missing or refused are
 * passed over. Otherwise rows [n of keys] loses those too (so that rows and f go together), they are counted in left, and it is an
 * error when none is left. */
int  spa_features_bind(struct spa_features *f, const struct spa_feature_file *file, enum spa_feature_kind kind,
                       const struct spa_feature_key *keys, size_t n, struct spa_rows *rows, struct spa_left_out *left, char *why,
                       size_t why_len);
void spa_features_free(struct spa_features *f);

/* Row i, unpacked: pos and target [n_loss], x_ctx [n_ctx, n_ctx_taps*k], x [n_loss, n_taps*k], y_fin [n_loss, d]. */
void spa_features_row(const struct spa_features *f, size_t i, uint32_t *pos, int32_t *target, float *x_ctx, float *x,
                      float *y_fin);

#endif
