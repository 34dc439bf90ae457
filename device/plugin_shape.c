/* plugin_shape.c - from words to a shape (plugin_shape.h). The defaults are the recipe that measured best: nine taps or so from
 * the embedding to the last layer, a basis of 64, rank 32, context from all taps, attention in the middle and at the end. */
#include "plugin_shape.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { BASIS_K = 64, HEADS = 4 };
static const double auto_spans = 7.5;   /* N / 7.5 layers between taps: 0 4 8 ... 28 30 of 30 */

/* "3" or "0,4,8": ascending layer numbers into out. Returns how many, or -1. */
static int read_layers(const char *list, uint32_t n_layers, uint32_t out[SPA_MAX_TAPS])
{
    int n = 0;
    for (const char *c = list;;) {
        char *end;
        if (*c < '0' || *c > '9')
            return -1;
        unsigned long layer = strtoul(c, &end, 10);
        if (layer > n_layers || n == SPA_MAX_TAPS || (n > 0 && layer <= out[n - 1]))
            return -1;
        out[n++] = (uint32_t)layer;
        if (*end == '\0' || (*end == ',' && end[1] == '\0'))
            return n;
        if (*end != ',')
            return -1;
        c = end + 1;
    }
}

static void spread(struct spa_shape *s, uint32_t n)
{
    s->n_taps = n;
    for (uint32_t i = 0; i < n; i++)
        s->taps[i] = n == 1 ? s->n_layers : (uint32_t)lround((double)i * s->n_layers / (n - 1));
}

static int choose_taps(struct spa_shape *s, const char *taps, char *why, size_t why_len)
{
    if (strcmp(taps, "all") == 0 && s->n_layers < SPA_MAX_TAPS) {
        spread(s, s->n_layers + 1);
        return 0;
    }
    if (strcmp(taps, "auto") == 0) {
        uint32_t step = (uint32_t)lround(s->n_layers / auto_spans);
        step = step < 1 ? 1 : step;
        for (uint32_t layer = 0; layer < s->n_layers; layer += step)
            s->taps[s->n_taps++] = layer;
        s->taps[s->n_taps++] = s->n_layers;
        return 0;
    }
    char *end;
    unsigned long count = strtoul(taps, &end, 10);
    if (*taps >= '0' && *taps <= '9' && *end == '\0') {
        if (count >= 1 && count <= s->n_layers + 1 && count <= SPA_MAX_TAPS) {
            spread(s, (uint32_t)count);
            return 0;
        }
        snprintf(why, why_len, "--taps %s: the model has layers 0 to %u, so 1 to %u taps", taps, s->n_layers, s->n_layers + 1);
        return -1;
    }
    int n = read_layers(taps, s->n_layers, s->taps);
    if (n > 0) {
        s->n_taps = (uint32_t)n;
        return 0;
    }
    snprintf(why, why_len, "--taps %s: say auto, all, a number of taps, or ascending layers from 0 to %u as in 0,8,16", taps,
             s->n_layers);
    return -1;
}

static int choose_basis(struct spa_shape *s, const char *basis, char *why, size_t why_len)
{
    if (strcmp(basis, "none") == 0) {
        s->k = s->d;
        return 0;
    }
    s->basis = true;
    s->k = s->d < BASIS_K ? s->d : BASIS_K;
    if (strcmp(basis, "task") == 0 || strcmp(basis, "generic") == 0)
        return 0;
    char *end = NULL;
    const size_t word = strncmp(basis, "task:", 5) == 0 ? 5 : strncmp(basis, "generic:", 8) == 0 ? 8 : 0;
    unsigned long k = word ? strtoul(basis + word, &end, 10) : 0;
    if (end && *end == '\0' && k >= 1 && k <= s->d) {
        s->k = (uint32_t)k;
        return 0;
    }
    snprintf(why, why_len, "--basis %s: say none, task, task:K or generic:K with K from 1 to %u", basis, s->d);
    return -1;
}

static bool is_tap(const struct spa_shape *s, uint32_t layer)
{
    for (uint32_t i = 0; i < s->n_taps; i++)
        if (s->taps[i] == layer)
            return true;
    return false;
}

static int choose_context(struct spa_shape *s, const struct spa_shape_wishes *w, char *why, size_t why_len)
{
    const char *context = w->context;
    const bool mix = w->context_mix;
    if (strcmp(context, "none") == 0) {
        if (mix)
            snprintf(why, why_len, "--context-mix on: there is no context to look back on; say --context all, or leave it out");
        else if (w->context_width)
            snprintf(why, why_len, "--context-width %u: there is no context to keep; say --context all, or leave it out", w->context_width);
        return mix || w->context_width ? -1 : 0;
    }
    if (strcmp(context, "all") == 0) {
        s->n_ctx_taps = s->n_taps;
        memcpy(s->ctx_taps, s->taps, sizeof s->ctx_taps);
    } else {
        int n = read_layers(context, s->n_layers, s->ctx_taps);
        for (int i = 0; i < n; i++)
            if (!is_tap(s, s->ctx_taps[i])) {
                snprintf(why, why_len, "--context %s: layer %u is not one of the taps", context, s->ctx_taps[i]);
                return -1;
            }
        if (n < 1) {
            snprintf(why, why_len, "--context %s: say none, all, or ascending layers as in 0,16", context);
            return -1;
        }
        s->n_ctx_taps = (uint32_t)n;
    }
    s->ctx_mix = mix;
    s->e = w->context_width ? w->context_width : s->r;
    s->n_heads = s->r % HEADS == 0 && s->e % HEADS == 0 ? HEADS : 1;
    if (s->n_taps > 2)
        s->att_rungs[s->n_att++] = s->n_taps / 2;
    s->att_rungs[s->n_att++] = s->n_taps - 1;
    return 0;
}

bool spa_shape_wants_generic(const struct spa_shape_wishes *w)
{
    return strncmp(w->basis, "generic", 7) == 0;
}

int spa_shape_from_wishes(const struct spa_shape_wishes *w, uint32_t d, uint32_t n_layers, struct spa_shape *out, char *why,
                          size_t why_len)
{
    *out = (struct spa_shape){ .d = d, .n_layers = n_layers, .r = w->rank, .m = w->paper ? d : w->inner ? w->inner : w->rank,
                               .normalise = w->paper ? SPA_NORM_NONE : SPA_NORM_RMS, .mode = w->mode };
    if (choose_taps(out, w->taps, why, why_len) != 0 || choose_basis(out, w->basis, why, why_len) != 0 ||
        choose_context(out, w, why, why_len) != 0)
        return -1;
    if (spa_shape_check(out) != SPA_OK) {
        snprintf(why, why_len, "a plugin of this shape is not possible: d %u, %u taps of %u, rank %u, inner %u, context width %u", d, out->n_taps,
                 out->k, out->r, out->m, out->e);
        return -1;
    }
    return 0;
}
