/* model_check.c - in: a GGUF. out: one line of JSON that says how far cloud/model_llama.c is from libllama itself on that file.
 *
 *   model_check MODEL.gguf      {"logits": 1e-6, "largest": 12.5, "loss": 1e-6, "taps": 1e-4, "continued": 1e-4, "cuts": true}
 *
 * logits: largest difference between the logits of our head, on states to which nothing was added, and libllama's own, over tokens one by
 * one and a prompt in one piece; largest: the largest logit there is. loss: largest difference in nats between the loss that training takes
 * of a token and that of libllama's logits. taps: the farthest state of training rows, several of different
 * lengths at once, from that of the same token as an answer, as a share of its length. continued: the same of rows that go on from
 * a beginning which one sequence has decoded for all. cuts: whether the
 * model's memory can go back.
 * Differences are for the caller to judge (tests/e2e/test_models.py). */
#include "lm_head.h"
#include "model_llama.h"

#include <llama.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PROMPT = 24, STEPS = 8, ALL = PROMPT + STEPS, N_CTX_SLOT = 256, SLOTS = 2, UBATCH = 32, ROWS = 3 };
static const uint32_t row_len[ROWS] = { 5, 17, 11 };

static void quiet(enum ggml_log_level level, const char *text, void *user)
{
    (void)level, (void)text, (void)user;
}

static _Noreturn void stop(const char *why)
{
    fprintf(stderr, "model_check: %s\n", why);
    exit(1);
}

static int32_t token_at(const struct spa_model *m, uint32_t i) { return (int32_t)((i * 7919 + 11) % (uint32_t)m->info.n_vocab); }

/* [ALL, n_vocab], as libllama computes them. */
static float *their_logits(const char *path, const struct spa_model *m)
{
    const size_t v = (size_t)m->info.n_vocab;
    float *out = malloc(ALL * v * sizeof *out);
    struct llama_model *model = llama_model_load_from_file(path, llama_model_default_params());
    struct llama_context_params cp = llama_context_default_params();
    cp.n_ctx = N_CTX_SLOT;
    cp.n_batch = cp.n_ubatch = UBATCH;
    cp.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
    struct llama_context *ctx = model ? llama_init_from_model(model, cp) : NULL;
    struct llama_batch batch = llama_batch_init(PROMPT, 0, 1);
    if (!out || !ctx)
        stop("libllama cannot open the model");
    for (uint32_t at = 0, n; at < ALL; at += n) {
        n = at == 0 ? PROMPT : 1;
        batch.n_tokens = (int32_t)n;
        for (uint32_t i = 0; i < n; i++) {
            batch.token[i] = token_at(m, at + i);
            batch.pos[i] = (llama_pos)(at + i);
            batch.n_seq_id[i] = 1;
            batch.seq_id[i][0] = 0;
            batch.logits[i] = 1;
        }
        if (llama_decode(ctx, batch) != 0)
            stop("libllama cannot decode");
        for (uint32_t i = 0; i < n; i++)
            memcpy(out + (at + i) * v, llama_get_logits_ith(ctx, (int32_t)i), v * sizeof *out);
    }
    llama_batch_free(batch);
    llama_free(ctx);
    llama_model_free(model);
    return out;
}

static struct spa_states decode(const struct spa_model *m, const struct spa_batch_token *rows, uint32_t n, const uint32_t *layers)
{
    struct spa_states s;
    if (m->decode(m->self, rows, n, layers, layers ? m->info.n_layers + 1 : 0, &s) != 0)
        stop("the model cannot decode");
    return s;
}

/* Of the losses of n states, each with the next token as its target, as training computes them. */
static double loss_gap(const struct spa_model *m, struct spa_lm_head *h, const float *states, uint32_t n, uint32_t at, const float *theirs)
{
    const size_t v = (size_t)m->info.n_vocab;
    int32_t target[PROMPT];
    float loss[PROMPT];
    double gap = 0;
    for (uint32_t i = 0; i < n; i++)
        target[i] = token_at(m, at + i + 1);
    if (spa_lm_head_loss(h, states, target, n, loss, NULL, NULL) != 0)
        stop(h->why);
    for (uint32_t i = 0; i < n; i++) {
        const float *l = theirs + (at + i) * v;
        double max = -INFINITY, sum = 0;
        for (size_t j = 0; j < v; j++)
            max = fmax(max, (double)l[j]);
        for (size_t j = 0; j < v; j++)
            sum += exp((double)l[j] - max);
        gap = fmax(gap, fabs(max + log(sum) - (double)l[target[i]] - (double)loss[i]));
    }
    return gap;
}

static double logits_gap(const struct spa_model *m, const float *theirs, double *largest, double *loss)
{
    const size_t v = (size_t)m->info.n_vocab;
    float *ours = malloc(PROMPT * v * sizeof *ours);
    struct spa_batch_token rows[PROMPT];
    double gap = 0;
    struct spa_lm_head h;
    char why[512];
    if (spa_lm_head_view(&h, m->info.d, (uint32_t)m->info.n_vocab, m->info.head_type, m->info.head_bytes, m->info.head_len, why, sizeof why) != 0)
        stop(why);
    h.scale = m->info.logit_scale;
    h.softcap = m->info.softcap;
    for (uint32_t at = 0, n; at < ALL; at += n) {
        n = at == 0 ? PROMPT : 1;
        for (uint32_t i = 0; i < n; i++)
            rows[i] = (struct spa_batch_token){ token_at(m, at + i), at + i, 0, SPA_WANT_ALL };
        const struct spa_states s = decode(m, rows, n, NULL);
        m->head(m->self, s.y_fin, n, ours);
        *loss = fmax(*loss, loss_gap(m, &h, s.y_fin, n, at, theirs));
        for (size_t i = 0; i < n * v; i++) {
            const double a = (double)ours[i], b = (double)theirs[at * v + i];
            gap = fmax(gap, isfinite(a) && isfinite(b) ? fabs(a - b) : INFINITY);
            *largest = fmax(*largest, fabs(b));
        }
    }
    free(ours);
    spa_lm_head_release(&h);
    m->seq_rm(m->self, 0, 0);
    return gap;
}

/* Of y from x, as a share of x's length. */
static double distance(const float *x, const float *y, uint32_t d)
{
    double square = 0, gap = 0;
    for (uint32_t c = 0; c < d; c++) {
        square += (double)x[c] * (double)x[c];
        gap += ((double)x[c] - (double)y[c]) * ((double)x[c] - (double)y[c]);
    }
    return sqrt(gap / (square + 1e-12));
}

/* Rows of different lengths as training reads them, against each of them as an answer, token for token and layer for layer. */
static double taps_gap(const struct spa_model *m)
{
    const uint32_t d = m->info.d, n_layers = m->info.n_layers + 1;
    uint32_t layers[1024], n = 0;
    struct spa_batch_token rows[ROWS * PROMPT];
    double worst = 0;
    for (uint32_t l = 0; l < n_layers; l++)
        layers[l] = l;
    for (uint32_t r = 0; r < ROWS; r++)
        for (uint32_t i = 0; i < row_len[r]; i++)
            rows[n++] = (struct spa_batch_token){ token_at(m, 100 * r + i), i, m->info.n_slots + r, SPA_WANT_ALL };
    const struct spa_states learn = decode(m, rows, n, layers);
    float *taps = malloc((size_t)n_layers * n * d * sizeof *taps);
    if (!taps)
        stop("out of memory");
    memcpy(taps, learn.taps, (size_t)n_layers * n * d * sizeof *taps);
    for (uint32_t r = 0, at = 0; r < ROWS; at += row_len[r++]) {
        for (uint32_t i = 0; i < row_len[r]; i++)
            rows[at + i].seq = 0;
        const struct spa_states s = decode(m, rows + at, row_len[r], layers);
        for (uint32_t l = 0; l < n_layers; l++) {
            for (uint32_t i = 0; i < row_len[r]; i++) {
                const float *x = s.taps + ((size_t)l * row_len[r] + i) * d, *y = taps + ((size_t)l * n + at + i) * d;
                worst = fmax(worst, distance(x, y, d));
            }
        }
        m->seq_rm(m->self, 0, 0);
        m->seq_rm(m->self, m->info.n_slots + r, 0);
    }
    free(taps);
    return worst;
}

/* One sequence decodes LEAD tokens; ROWS others go on from it, each with tokens of its own, all in one call. Against each of them as an answer. */
static double continued_gap(const struct spa_model *m)
{
    enum { LEAD = 9, OWN = 6, ALL_OF_ONE = LEAD + OWN };
    const uint32_t d = m->info.d, last = m->info.n_layers, first = m->info.n_slots;
    struct spa_batch_token rows[ROWS * ALL_OF_ONE];
    double worst = 0;
    uint32_t n = 0;
    for (uint32_t i = 0; i < LEAD; i++)
        rows[i] = (struct spa_batch_token){ token_at(m, i), i, first, SPA_WANT_NONE };
    rows[LEAD - 1].want = SPA_WANT_ALL;
    (void)decode(m, rows, LEAD, NULL);
    for (uint32_t r = 0; r < ROWS; r++) {
        m->seq_cp(m->self, first, first + 1 + r, LEAD);
        for (uint32_t i = 0; i < OWN; i++)
            rows[n++] = (struct spa_batch_token){ token_at(m, 1000 * (r + 1) + i), LEAD + i, first + 1 + r, SPA_WANT_ALL };
    }
    m->seq_rm(m->self, first, 0);   /* the others keep it */
    const struct spa_states together = decode(m, rows, n, &last);
    float *kept = malloc((size_t)n * d * sizeof *kept);
    if (!kept)
        stop("out of memory");
    memcpy(kept, together.taps, (size_t)n * d * sizeof *kept);
    for (uint32_t r = 0; r < ROWS; r++) {
        for (uint32_t i = 0; i < ALL_OF_ONE; i++)
            rows[i] = (struct spa_batch_token){ i < LEAD ? token_at(m, i) : token_at(m, 1000 * (r + 1) + i - LEAD), i, 0, SPA_WANT_ALL };
        const struct spa_states s = decode(m, rows, ALL_OF_ONE, &last);
        for (uint32_t i = 0; i < OWN; i++) {
            const float *x = s.taps + (size_t)(LEAD + i) * d, *y = kept + (size_t)(r * OWN + i) * d;
            worst = fmax(worst, distance(x, y, d));
        }
        m->seq_rm(m->self, 0, 0);
        m->seq_rm(m->self, first + 1 + r, 0);
    }
    free(kept);
    return worst;
}

static bool can_cut(const struct spa_model *m)
{
    struct spa_batch_token rows[8];
    for (uint32_t i = 0; i < 8; i++)
        rows[i] = (struct spa_batch_token){ token_at(m, i), i, 0, SPA_WANT_NONE };
    rows[7].want = SPA_WANT_ALL;
    (void)decode(m, rows, 8, NULL);
    const bool cuts = m->seq_rm(m->self, 0, 5);
    m->seq_rm(m->self, 0, 0);
    return cuts;
}

int main(int argc, char **argv)
{
    if (argc != 2)
        stop("which model? model_check MODEL.gguf");
    struct spa_model m;
    char why[512];
    const struct spa_llama_config cfg = { .path = argv[1], .n_ctx = SLOTS * N_CTX_SLOT, .n_slots = SLOTS, .n_batch = 128, .n_ubatch = UBATCH,
                                          .type_k = "f16", .type_v = "f16", .flash_attn = true };
    llama_log_set(quiet, NULL);
    if (spa_llama_open(&m, &cfg, why, sizeof why) != 0)
        stop(why);
    double largest = 0, loss = 0;
    float *theirs = their_logits(argv[1], &m);
    const double logits = logits_gap(&m, theirs, &largest, &loss), taps = taps_gap(&m), continued = continued_gap(&m);
    printf("{\"logits\": %g, \"largest\": %g, \"loss\": %g, \"taps\": %g, \"continued\": %g, \"cuts\": %s}\n", logits, largest, loss, taps, continued, can_cut(&m) ? "true" : "false");
    free(theirs);
    spa_llama_close(&m);
    return 0;
}
