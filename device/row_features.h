/* row_features.h - what the frozen base model makes of training rows: asked from the cloud once, held packed as they came, unpacked
 * row by row as often as training likes. Nothing of it is on the wire while epochs run. */
#ifndef SPA_ROW_FEATURES_H
#define SPA_ROW_FEATURES_H

#include "link.h"
#include "rows.h"

struct spa_feature_row {
    spa_Features head;         /* n_tokens, n_ctx, n_loss */
    uint8_t     *bulk;         /* as on the wire */
    uint32_t     bulk_len;
};

struct spa_features {
    struct spa_shape shape;    /* of the plugin announced on the link: d, taps, k, mode, context taps are right; r, m, e are not */
    struct spa_feature_row *rows;
    size_t   n;
    uint64_t n_loss;           /* of all rows */
    uint64_t n_tokens;
    uint32_t max_ctx, max_loss;/* of one row */
    uint64_t bytes;            /* held */
    struct spa_session *wire;  /* a still copy: how rows are unpacked. Never fed */
};

struct spa_features_progress {
    void (*done)(void *user, uint64_t done, uint64_t of);   /* NULL: nobody looks */
    void *user;
};

/* Has the cloud fit the connection's basis on the states of a share of the rows (enough for some 3,000 loss tokens), and
 * fetches it: basis.h's bytes, the caller's to free. For a link whose plugin announced a basis without a hash. 0, or -1 with a
 * sentence that names the row or the peer. */
int spa_features_fit(struct spa_link *l, const struct spa_rows *rows, uint8_t **basis, size_t *basis_len,
                     uint8_t hash[SPA_HASH_BYTES], struct spa_features_progress progress, char *why, size_t why_len);

/* The cloud's generic basis, for a link whose plugin announced that it wants it: as spa_features_fit, without any row. */
int spa_features_generic(struct spa_link *l, uint8_t **basis, size_t *basis_len, uint8_t hash[SPA_HASH_BYTES], char *why, size_t why_len);

/* Asks for every row, as many at a time as the cloud takes. Targets, positions and numbers are checked here. 0, or -1 with a
 * sentence. */
int  spa_features_ask(struct spa_features *f, struct spa_link *l, const struct spa_rows *rows,
                      struct spa_features_progress progress, char *why, size_t why_len);
/* The same for n of the cloud's anchors, spread evenly over its list; all when it has fewer, and none (n 0 in *f) when it has none. */
int  spa_features_ask_anchors(struct spa_features *f, struct spa_link *l, size_t n, struct spa_features_progress progress, char *why,
                              size_t why_len);
void spa_features_free(struct spa_features *f);

/* Row i, unpacked: pos and target [n_loss], x_ctx [n_ctx, n_ctx_taps*k], x [n_loss, n_taps*k], y_fin [n_loss, d]. */
void spa_features_row(const struct spa_features *f, size_t i, uint32_t *pos, int32_t *target, float *x_ctx, float *x,
                      float *y_fin);

#endif
