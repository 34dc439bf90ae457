/* make.c - in: a model, anchors or a text. out: anchors' files, the bytes of a generic basis (make.h). */
#include "make.h"
#include "generic.h"
#include "pca.h"
#include "turn.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    WINDOW = 256,             /* tokens of a text file that are decoded together */
    STATES_MAX = 32768,       /* of a text file: more of it is left out, evenly */
};
static const size_t moments_max = (size_t)1 << 30;   /* bytes of sums in memory: with more layers the texts are decoded again */

/* ---- anchors ---- */

struct seats {
    bool taken[64];
    uint32_t n, cells, cells_max;
};

static int32_t take_seat(void *user, uint32_t cells)
{
    struct seats *s = user;
    for (uint32_t i = 0; i < s->n && s->cells + cells <= s->cells_max; i++)
        if (!s->taken[i]) {
            s->taken[i] = true;
            s->cells += cells;
            return (int32_t)i;
        }
    return -1;
}

static void give_seat(void *user, uint32_t seq, uint32_t cells)
{
    struct seats *s = user;
    s->taken[seq] = false;
    s->cells -= cells;
}

/* One round of what the engine does for anchors. */
static void anchors_round(struct spa_anchors *a, const struct spa_model *m, struct spa_batch_token *batch, int32_t *layer_at, uint32_t *layers)
{
    struct spa_states states;
    uint32_t n_layers = 0;
    for (uint32_t l = 0; l <= m->info.n_layers; l++)
        layer_at[l] = -1;
    const uint32_t n = spa_anchors_collect(a, batch, m->info.n_learn_batch, layer_at);
    for (uint32_t l = 0; l <= m->info.n_layers; l++)
        if (layer_at[l] >= 0) {
            layer_at[l] = (int32_t)n_layers;
            layers[n_layers++] = l;
        }
    if (n && m->decode(m->self, batch, n, layers, n_layers, &states) == 0)
        spa_anchors_deliver(a, &states, 0, layer_at);
    else if (n)
        spa_anchors_decode_failed(a);
    spa_anchors_speak(a);
    spa_anchors_file_step(a);
}

int spa_make_anchors(struct spa_anchors *a, const struct spa_model *m, const uint32_t *layers, uint32_t n_layers,
                     struct spa_make_progress progress, char *why, size_t why_len)
{
    static const uint32_t none[1];
    struct seats seats = { .n = m->info.n_learn_seqs < 64 ? m->info.n_learn_seqs : 64, .cells_max = m->info.n_learn_cells };
    const size_t places = m->info.n_layers + (size_t)1;
    struct spa_batch_token *batch = malloc(m->info.n_learn_batch * sizeof *batch);
    int32_t *layer_at = malloc(places * sizeof *layer_at);
    uint32_t *asked = malloc(places * sizeof *asked);
    struct spa_anchor_set *set = spa_anchor_set_get(a, n_layers ? layers : none, n_layers);
    bool failed = !batch || !layer_at || !asked || !set;
    uint32_t done = 0, told = 0;
    spa_anchors_sit(a, (struct spa_anchors_seats){ take_seat, give_seat, &seats });
    while (!failed && (done < spa_anchors_n(a) || spa_anchors_busy(a))) {
        struct spa_anchor anchor;
        done = 0;
        for (uint32_t i = 0; i < spa_anchors_n(a); i++) {
            const enum spa_anchor_status status = spa_anchor_get(set, i, &anchor);
            done += status == SPA_ANCHOR_HERE;
            failed |= status == SPA_ANCHOR_FAILED;
        }
        if (progress.done && done != told)
            progress.done(progress.user, done, spa_anchors_n(a));
        told = done;
        if (!failed)
            anchors_round(a, m, batch, layer_at, asked);
    }
    spa_anchor_set_put(set);
    free(batch);
    free(layer_at);
    free(asked);
    if (failed)
        snprintf(why, why_len, "the model could not decode an anchor, or there is no memory for its states");
    return failed ? -1 : 0;
}

/* ---- the generic basis ---- */

struct making {
    const struct spa_model *m;
    uint32_t first, n;             /* layers whose sums are taken now */
    struct spa_moments *moments;   /* [n] */
    uint32_t *layers;              /* [n] */
    struct spa_batch_token *batch; /* [n_learn_batch] */
    float *normal;                 /* [n_learn_batch, d] */
};

static bool add_text(struct making *k, const struct spa_make_text *t)
{
    const struct spa_model *m = k->m;
    const uint32_t seq = m->info.n_slots, d = m->info.d;
    bool ok = true;
    for (uint32_t at = 0; ok && at < t->n; at += m->info.n_learn_batch) {
        const uint32_t n = t->n - at < m->info.n_learn_batch ? t->n - at : m->info.n_learn_batch;
        struct spa_states s;
        for (uint32_t i = 0; i < n; i++)
            k->batch[i] = (struct spa_batch_token){ t->tokens[at + i], at + i, seq, SPA_WANT_ALL };
        ok = m->decode(m->self, k->batch, n, k->layers, k->n, &s) == 0;
        for (uint32_t l = 0; ok && l < k->n; l++) {
            for (uint32_t i = 0; i < n; i++)
                spa_normalise(d, s.taps + ((size_t)l * s.n_wanted + i) * d, k->normal + (size_t)i * d);
            ok = spa_moments_add(&k->moments[l], k->normal, n);
        }
    }
    m->seq_rm(m->self, seq, 0);
    return ok;
}

/* The sums of some layers, and their directions into the file. */
static bool some_layers(struct making *k, const struct spa_make_text *texts, size_t n_texts, uint32_t dirs, uint8_t *bytes,
                        struct spa_make_progress progress)
{
    const struct spa_model_info *info = &k->m->info;
    uint32_t made = 0;
    bool ok = true;
    for (uint32_t l = 0; l < k->n; l++)
        k->layers[l] = k->first + l;
    while (made < k->n && spa_moments_init(&k->moments[made], info->d))
        made++;
    ok = made == k->n;
    for (size_t i = 0; ok && i < n_texts; i++)
        ok = add_text(k, &texts[i]);
    for (uint32_t l = 0; ok && l < k->n; l++) {
        const struct spa_generic_layer at = spa_generic_layer(bytes, info, dirs, k->first + l);
        ok = spa_moments_directions(&k->moments[l], dirs, at.mean, at.p, at.variances) == SPA_OK;
        if (progress.done)
            progress.done(progress.user, k->first + l + 1, info->n_layers + 1);
    }
    for (uint32_t l = 0; l < made; l++)
        spa_moments_free(&k->moments[l]);
    return ok;
}

int spa_make_generic(const struct spa_model *m, const struct spa_make_text *texts, size_t n_texts, uint32_t dirs,
                     struct spa_make_progress progress, uint8_t **bytes, size_t *len, char *why, size_t why_len)
{
    const struct spa_model_info *info = &m->info;
    const size_t one = (size_t)info->d * info->d * sizeof(double);
    const uint32_t all = info->n_layers + 1, together = moments_max / one < 1 ? 1 : moments_max / one < all ? (uint32_t)(moments_max / one) : all;
    uint64_t n_states = 0;
    for (size_t i = 0; i < n_texts; i++)
        n_states += texts[i].n;
    dirs = dirs < info->d ? dirs : info->d;
    if (n_states < dirs) {
        snprintf(why, why_len, "%llu tokens are too few to fit %u directions on; give more text, or a smaller --k", (unsigned long long)n_states, dirs);
        return -1;
    }
    struct making k = { .m = m, .moments = calloc(together, sizeof *k.moments), .layers = malloc(together * sizeof *k.layers),
                        .batch = malloc(info->n_learn_batch * sizeof *k.batch), .normal = malloc((size_t)info->n_learn_batch * info->d * sizeof *k.normal) };
    *bytes = spa_generic_bytes(info, dirs, n_states, len);
    bool ok = k.moments && k.layers && k.batch && k.normal && *bytes;
    for (k.first = 0; ok && k.first < all; k.first += k.n) {
        k.n = all - k.first < together ? all - k.first : together;
        ok = some_layers(&k, texts, n_texts, dirs, *bytes, progress);
    }
    free(k.moments);
    free(k.layers);
    free(k.batch);
    free(k.normal);
    if (!ok) {
        snprintf(why, why_len, "no basis could be made: out of memory, or the model's states are not finite");
        free(*bytes);
        *bytes = NULL;
        return -1;
    }
    spa_generic_seal(*bytes, *len);
    return 0;
}

int spa_make_generic_of_anchors(struct spa_anchors *a, const struct spa_model *m, uint32_t k, struct spa_make_progress progress,
                                uint8_t **bytes, size_t *len, char *why, size_t why_len)
{
    static const uint32_t none[1];
    if (spa_make_anchors(a, m, NULL, 0, progress, why, why_len) != 0)
        return -1;
    const uint32_t n = spa_anchors_n(a);
    struct spa_anchor_set *answers = spa_anchor_set_get(a, none, 0);
    struct spa_make_text *texts = calloc(n + (size_t)1, sizeof *texts);
    int rc = -1;
    if (!answers || !texts) {
        snprintf(why, why_len, "out of memory");
    } else {
        for (uint32_t i = 0; i < n; i++) {
            struct spa_anchor anchor = { 0 };
            (void)spa_anchor_get(answers, i, &anchor);   /* all are here */
            texts[i] = (struct spa_make_text){ anchor.tokens, anchor.n_tokens };
        }
        rc = spa_make_generic(m, texts, n, k, progress, bytes, len, why, why_len);
    }
    spa_anchor_set_put(answers);
    free(texts);
    return rc;
}

int spa_make_generic_of_text(const struct spa_model *m, const char *text, size_t text_len, uint32_t k, struct spa_make_progress progress,
                             uint8_t **bytes, size_t *len, char *why, size_t why_len)
{
    const uint32_t window = m->info.n_ctx_slot < WINDOW ? m->info.n_ctx_slot : WINDOW;
    uint32_t n = 0;
    int32_t *tokens = spa_tokens_of(m, text, text_len, true, false, &n);
    const size_t whole = n / window + (n % window > 0), most = STATES_MAX / window, used = whole < most ? whole : most;
    struct spa_make_text *texts = tokens ? calloc(used + 1, sizeof *texts) : NULL;
    int rc = -1;
    if (!texts) {
        snprintf(why, why_len, "the text is too long to be tokenized, or there is no memory");
    } else {
        for (size_t i = 0; i < used; i++) {
            const uint32_t at = (uint32_t)(i * whole / used) * window;
            texts[i] = (struct spa_make_text){ tokens + at, n - at < window ? n - at : window };
        }
        rc = spa_make_generic(m, texts, used, k, progress, bytes, len, why, why_len);
    }
    free(texts);
    free(tokens);
    return rc;
}
