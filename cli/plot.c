/* plot.c - a chart (plot.h). In: numbers. Out: one <svg> element that scales with its column. */
#include "plot.h"

#include "html.h"

#include <math.h>
#include <stdint.h>
#include <string.h>

/* In the picture's own units: 480 wide is a column of a wide page, and on a phone the 15 of a letter is still 11. */
enum { WIDTH = 480, HEIGHT = 300, LEFT = 56, TOP = 34, RULE_ROOM = 18, BOTTOM = 50, LETTER = 15, LINE_GAP = 18, LABEL_CHARS = 60 };
static const double letter_width = 9.4;    /* of a label on average, generously: fonts differ */

struct frame { double x0, x1, y0, y1; };   /* of the plotted area; y0 is its lower border */

static double scaled(enum spa_plot_scale scale, double v)
{
    return scale == SPA_PLOT_LOG ? log(v) : scale == SPA_PLOT_LOGIT ? log(v / (1 - v)) : v;
}

static double place(const struct spa_plot_axis *a, double v, double from, double to)
{
    v = v < a->lo ? a->lo : v > a->hi ? a->hi : v;
    double lo = scaled(a->scale, a->lo), hi = scaled(a->scale, a->hi);
    return from + (scaled(a->scale, v) - lo) / (hi - lo) * (to - from);
}

void spa_plot_axis_fit(struct spa_plot_axis *axis, const double *values, size_t n)
{
    double least = INFINITY, most = -INFINITY;
    for (size_t i = 0; i < n; i++) {
        if (isfinite(values[i]) && values[i] > 0)
            least = fmin(least, values[i]);
        if (isfinite(values[i]))
            most = fmax(most, values[i]);
    }
    if (isfinite(least) && most > 20 * least) {
        axis->scale = SPA_PLOT_LOG;
        axis->lo = least / 1.2;
        axis->hi = most * 1.2;
    } else {
        axis->scale = SPA_PLOT_LINEAR;
        axis->lo = 0;
        axis->hi = most > 0 ? most * 1.05 : 1;
    }
}

/* ---- ticks ---- */

enum { MAX_TICKS = 24 };

static size_t add_tick(const struct spa_plot_axis *a, double v, double *ticks, size_t n)
{
    if (n < MAX_TICKS && v >= a->lo - 1e-9 * fabs(a->lo) && v <= a->hi + 1e-9 * fabs(a->hi))
        ticks[n++] = v;
    return n;
}

static size_t ticks_of(const struct spa_plot_axis *a, double *ticks)
{
    static const double odds[] = { 0.02, 0.1, 0.5, 0.9, 0.98 };
    size_t n = 0;
    if (a->scale == SPA_PLOT_LOGIT) {
        for (size_t i = 0; i < sizeof odds / sizeof odds[0]; i++)
            n = add_tick(a, odds[i], ticks, n);
    } else if (a->scale == SPA_PLOT_LOG) {
        double decades = log10(a->hi / a->lo), every = decades > 6 ? ceil(decades / 6) : 1;
        for (double e = floor(log10(a->lo)); e <= log10(a->hi); e += every) {
            n = add_tick(a, pow(10, e), ticks, n);
            if (decades <= 2.2)
                n = add_tick(a, 2 * pow(10, e), ticks, n);
            if (decades <= 3.2)
                n = add_tick(a, 5 * pow(10, e), ticks, n);
        }
    } else {
        double raw = (a->hi - a->lo) / 5, power = pow(10, floor(log10(raw))), r = raw / power;
        double step = power * (r <= 1 ? 1 : r <= 2 ? 2 : r <= 5 ? 5 : 10);
        for (double v = ceil(a->lo / step - 1e-9) * step; v <= a->hi * (1 + 1e-9) && n < MAX_TICKS; v += step)
            n = add_tick(a, fabs(v) < 1e-9 * step ? 0 : v, ticks, n);
    }
    return n;
}

static void write_number(FILE *out, const struct spa_plot_axis *a, double v)
{
    if (a->percent)
        fprintf(out, "%.3g&#160;%%", 100 * v);
    else
        fprintf(out, "%.7g", v);
}

static void write_axes(FILE *out, const struct spa_plot *p, const struct frame *f)
{
    double ticks[MAX_TICKS];
    size_t n = ticks_of(&p->y, ticks);
    for (size_t i = 0; i < n; i++) {
        double y = place(&p->y, ticks[i], f->y0, f->y1);
        fprintf(out, "<path class=\"grid\" d=\"M%.1f %.1fH%.1f\"/><text x=\"%.1f\" y=\"%.1f\" text-anchor=\"end\">", f->x0, y, f->x1,
                f->x0 - 6, y + LETTER / 3.0);
        write_number(out, &p->y, ticks[i]);
        fputs("</text>\n", out);
    }
    n = ticks_of(&p->x, ticks);
    for (size_t i = 0; i < n; i++) {
        double x = place(&p->x, ticks[i], f->x0, f->x1);
        fprintf(out, "<path class=\"axis\" d=\"M%.1f %.1fv5\"/><text x=\"%.1f\" y=\"%.1f\" text-anchor=\"middle\">", x, f->y0, x,
                f->y0 + 5 + LETTER);
        write_number(out, &p->x, ticks[i]);
        fputs("</text>\n", out);
    }
    fprintf(out, "<path class=\"axis\" d=\"M%.1f %.1fH%.1f\"/>\n<text class=\"name\" x=\"4\" y=\"%d\">", f->x0, f->y0, f->x1, LETTER);
    spa_html_text(out, p->y.title, LABEL_CHARS);
    fprintf(out, "</text>\n<text class=\"name\" x=\"%.1f\" y=\"%d\" text-anchor=\"middle\">", (f->x0 + f->x1) / 2, HEIGHT - 6);
    spa_html_text(out, p->x.title, LABEL_CHARS);
    fputs("</text>\n", out);
}

/* ---- lines ---- */

static void write_dot(FILE *out, unsigned shape, double x, double y)
{
    static const char *const shapes[SPA_PLOT_COLOURS] = { "a4 4 0 1 0 8 0a4 4 0 1 0 -8 0", "v-3.6h7.2v7.2h-7.2z", "l4.8 -8.2 4.8 8.2z", "l4.6 -4.6 4.6 4.6 -4.6 4.6z" };
    static const double left[SPA_PLOT_COLOURS] = { 4, 3.6, 4.8, 4.6 }, down[SPA_PLOT_COLOURS] = { 0, 0, 3.4, 0 };
    fprintf(out, "M%.1f %.1f%s", x - left[shape], y + down[shape], shapes[shape]);
}

static void write_line(FILE *out, const struct spa_plot *p, const struct spa_plot_line *line, const struct frame *f)
{
    bool pen_down = false;
    fprintf(out, "<path class=\"k%u %s%s\" d=\"", line->colour, line->faint ? "faint" : "line", line->dashed ? " dash" : "");
    for (size_t i = 0; i < line->n; i++) {
        bool there = isfinite(line->x[i]) && isfinite(line->y[i]);
        if (there)
            fprintf(out, "%c%.1f %.1f", pen_down ? 'L' : 'M', place(&p->x, line->x[i], f->x0, f->x1), place(&p->y, line->y[i], f->y0, f->y1));
        pen_down = there;
    }
    fputs("\"/>\n", out);
    if (!line->dots)
        return;
    fprintf(out, "<path class=\"k%u dot\" d=\"", line->colour);
    for (size_t i = 0; i < line->n; i++)
        if (isfinite(line->x[i]) && isfinite(line->y[i]))
            write_dot(out, line->colour, place(&p->x, line->x[i], f->x0, f->x1), place(&p->y, line->y[i], f->y0, f->y1));
    fputs("\"/>\n", out);
}

struct label {
    const struct spa_plot_line *line;
    double x, y, at;           /* the line's end; where the words stand */
};

/* Words at the lines' ends, pushed apart where they would meet, from top to bottom and then back from the lower border. */
static void write_labels(FILE *out, const struct spa_plot *p, const struct frame *f)
{
    struct label labels[SPA_PLOT_LINES];
    size_t n = 0;
    for (size_t i = 0; i < p->n_lines; i++) {
        const struct spa_plot_line *line = &p->lines[i];
        size_t last = line->n;
        while (last > 0 && !(isfinite(line->x[last - 1]) && isfinite(line->y[last - 1])))
            last--;
        if (!line->label || last == 0)
            continue;
        struct label new = { line, place(&p->x, line->x[last - 1], f->x0, f->x1), place(&p->y, line->y[last - 1], f->y0, f->y1), 0 };
        size_t at = n++;
        for (; at > 0 && labels[at - 1].y > new.y; at--)
            labels[at] = labels[at - 1];
        labels[at] = new;
    }
    for (size_t i = 0; i < n; i++)
        labels[i].at = i > 0 && labels[i].y < labels[i - 1].at + LINE_GAP ? labels[i - 1].at + LINE_GAP : labels[i].y;
    for (size_t i = n; i-- > 0;) {
        double most = i + 1 < n ? labels[i + 1].at - LINE_GAP : f->y0;
        labels[i].at = labels[i].at > most ? most : labels[i].at;
    }
    for (size_t i = 0; i < n; i++) {
        const struct label *l = &labels[i];
        fprintf(out, "<path class=\"k%u lead\" d=\"M%.1f %.1fL%.1f %.1f\"/><text class=\"k%u label\" x=\"%.1f\" y=\"%.1f\">", l->line->colour,
                l->x + 5, l->y, f->x1 + 12, l->at, l->line->colour, f->x1 + 16, l->at + LETTER / 3.0);
        spa_html_text(out, l->line->label, LABEL_CHARS);
        fputs("</text>\n", out);
    }
}

static void write_rule(FILE *out, const struct spa_plot *p, const struct frame *f)
{
    double x = place(&p->x, p->rule, f->x0, f->x1);
    bool left = x > (f->x0 + f->x1) / 2;
    fprintf(out, "<path class=\"rule\" d=\"M%.1f %.1fV%.1f\"/><text class=\"name\" x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\">", x, f->y0,
            f->y1 - RULE_ROOM + 3, left ? x - 5 : x + 5, f->y1 - 6, left ? "end" : "start");
    spa_html_text(out, p->rule_label, LABEL_CHARS);
    fputs("</text>\n", out);
}

/* Characters, not bytes. */
static size_t letters(const char *text)
{
    size_t n = 0;
    for (; *text; text++)
        n += ((unsigned char)*text & 0xc0) != 0x80;
    return n;
}

void spa_plot_write(FILE *out, const struct spa_plot *p)
{
    size_t longest = 0;
    for (size_t i = 0; i < p->n_lines; i++)
        if (p->lines[i].label && letters(p->lines[i].label) > longest)
            longest = letters(p->lines[i].label);
    const struct frame f = { LEFT, WIDTH - 20 - letter_width * (double)longest, HEIGHT - BOTTOM, isfinite(p->rule) ? TOP + RULE_ROOM : TOP };
    fprintf(out, "<svg viewBox=\"0 0 %d %d\" role=\"img\" aria-labelledby=\"%s-t %s-d\">\n<title id=\"%s-t\">", WIDTH, HEIGHT, p->id, p->id, p->id);
    spa_html_text(out, p->title, SIZE_MAX);
    fprintf(out, "</title>\n<desc id=\"%s-d\">", p->id);
    spa_html_text(out, p->desc, SIZE_MAX);
    fputs("</desc>\n", out);
    write_axes(out, p, &f);
    if (isfinite(p->rule))
        write_rule(out, p, &f);
    for (size_t i = 0; i < p->n_lines; i++)
        write_line(out, p, &p->lines[i], &f);
    write_labels(out, p, &f);
    fputs("</svg>\n", out);
}
