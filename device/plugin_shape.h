/* plugin_shape.h - the shape of a new plugin from what the command line says about taps, basis, context, rank. */
#ifndef SPA_PLUGIN_SHAPE_H
#define SPA_PLUGIN_SHAPE_H

#include "ladder.h"

struct spa_shape_wishes {
    const char *taps;      /* "auto", "all", "N" evenly spread, "i,j,k" layer numbers */
    const char *basis;     /* "none", "task" or "task:K", "generic" or "generic:K" */
    const char *context;   /* "none", "all" (taps), "i,j" layer numbers */
    uint32_t rank, inner, context_width;   /* r; m and e, 0: as r */
    enum spa_mode mode;
    bool context_mix;      /* with a context: its tokens look back themselves */
    bool paper;            /* m = d and no normalisation */
};

/* 0, or -1 with one sentence that names the option. */
int spa_shape_from_wishes(const struct spa_shape_wishes *w, uint32_t d, uint32_t n_layers, struct spa_shape *out, char *why,
                          size_t why_len);

/* Does the basis that is wished for come from the cloud as it is? */
bool spa_shape_wants_generic(const struct spa_shape_wishes *w);

#endif
