/* plot.h - a line chart as inline SVG. No script; colours come from the page: classes k0 to k3 set --k, and the page's style says
 * how .grid, .axis, .line, .faint, .dash, .dot, .rule and text look. Lines carry their names at their right ends, and differ in the shape of
 * their dots too, so that nobody has to tell colours apart. */
#ifndef SPA_PLOT_H
#define SPA_PLOT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>

enum spa_plot_scale {
    SPA_PLOT_LINEAR,
    SPA_PLOT_LOG,      /* values above 0 */
    SPA_PLOT_LOGIT,    /* values in (0, 1), both ends drawn out */
};

struct spa_plot_axis {
    const char *title;         /* with the unit */
    enum spa_plot_scale scale;
    double lo, hi;             /* lo < hi */
    bool percent;              /* numbers are shares, ticks show percent */
};

enum { SPA_PLOT_COLOURS = 4, SPA_PLOT_LINES = 6 };

struct spa_plot_line {
    const char *label;         /* at the line's end; NULL: none. A few words */
    const double *x, *y;       /* [n]; NaN: a gap. Values outside an axis are drawn at its border */
    size_t n;
    unsigned colour;           /* below SPA_PLOT_COLOURS */
    bool dots, faint, dashed;
};

struct spa_plot {
    const char *id;            /* unlike any other in the page; letters */
    const char *title, *desc;  /* desc: what the picture says, for those who do not see it */
    struct spa_plot_axis x, y;
    struct spa_plot_line lines[SPA_PLOT_LINES];
    size_t n_lines;
    double rule;               /* an upright line here; NaN: none */
    const char *rule_label;
};

/* lo and hi for all numbers above 0 among n (else of all): log when the largest is more than 20 times the smallest, else linear
 * from 0. An axis without numbers goes from 0 to 1. */
void spa_plot_axis_fit(struct spa_plot_axis *axis, const double *values, size_t n);

void spa_plot_write(FILE *out, const struct spa_plot *plot);

#endif
