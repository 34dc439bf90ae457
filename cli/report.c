/* report.c - the page about a training run (report.h). In: what the run told. Out: HTML, built in memory and stored at once.
 *
 * The page's policy forbids everything but inline style, so that text from rows could do nothing even if it got through as
 * markup. Sections: facts, results, curves, gate, examples, numbers. */
#define _POSIX_C_SOURCE 200809L

#include "report.h"

#include "html.h"
#include "plot.h"
#include "store.h"

#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

enum { TEXT_CHARS = 1200, NAME_CHARS = 300 };

/* ---- collecting ---- */

void spa_report_init(struct spa_report *r)
{
    memset(r, 0, sizeof *r);
    r->thin_points.stride = r->thin_evals.stride = 1;
    r->base_held_loss = r->held_loss = r->base_exact = r->exact = NAN;
}

/* Is the next item kept, and where? With cap items kept, every second one goes; cap is even, so the next kept one then follows
 * in step. */
static bool keep(struct spa_report_thinning *t, char *items, size_t size, size_t cap, size_t *at)
{
    bool kept = t->seen % t->stride == 0;
    if (kept && t->n == cap) {
        for (size_t i = 1; i < cap / 2; i++)
            memcpy(items + i * size, items + 2 * i * size, size);
        t->n = cap / 2;
        t->stride *= 2;
    }
    t->seen++;
    if (kept)
        *at = t->n++;
    return kept;
}

void spa_report_step(struct spa_report *r, uint64_t step, uint32_t epoch, float loss, float lr)
{
    size_t at;
    r->last_point = (struct spa_report_point){ step, epoch, loss, lr };
    if (keep(&r->thin_points, (char *)r->points, sizeof r->points[0], SPA_REPORT_POINTS, &at))
        r->points[at] = r->last_point;
}

void spa_report_epoch(struct spa_report *r, uint32_t epoch, float held_loss, float held_exact)
{
    size_t at;
    r->last_eval = (struct spa_report_epoch){ r->last_point.step, epoch, held_loss, held_exact };
    if (keep(&r->thin_evals, (char *)r->evals, sizeof r->evals[0], SPA_REPORT_EPOCHS, &at))
        r->evals[at] = r->last_eval;
}

void spa_report_phase(struct spa_report *r, const char *name, double seconds)
{
    size_t i = 0;
    while (i < r->n_phases && strncmp(r->phases[i].name, name, sizeof r->phases[i].name - 1) != 0)
        i++;
    if (i == SPA_REPORT_ROWS)
        return;
    if (i == r->n_phases) {
        snprintf(r->phases[i].name, sizeof r->phases[i].name, "%s", name);
        r->phases[r->n_phases++].seconds = 0;
    }
    r->phases[i].seconds += seconds;
}

void spa_report_number(struct spa_report *r, const char *name, const char *format, ...)
{
    if (r->n_numbers == SPA_REPORT_ROWS)
        return;
    size_t i = r->n_numbers++;
    va_list args;
    va_start(args, format);
    snprintf(r->numbers[i].name, sizeof r->numbers[i].name, "%s", name);
    vsnprintf(r->numbers[i].text, sizeof r->numbers[i].text, format, args);
    va_end(args);
}

/* ---- the page's frame ---- */

/* Colours: Okabe and Ito's, which people with any colour vision tell apart, darkened or lightened until text in them has a
 * contrast of 4.5 at least with the page. */
static const char *const style[] = {
    ":root{color-scheme:light dark;--page:#fff;--ink:#1d2329;--soft:#59636e;--edge:#d5dae0;--card:#f5f7f9;--mark:#fff3c9;"
    "--blue:#0065a3;--orange:#a84400;--green:#00734f;--pink:#9a3f78}\n"
    "@media (prefers-color-scheme:dark){:root{--page:#14181c;--ink:#e6e9ec;--soft:#a3adb7;--edge:#39424b;--card:#1d2328;--mark:#3d3411;"
    "--blue:#6cbcf0;--orange:#f0a235;--green:#3ecb9c;--pink:#e39cc5}}\n",
    "*{box-sizing:border-box}\n"
    "body{margin:0 auto;padding:1.5rem 1rem 3rem;max-width:66rem;background:var(--page);color:var(--ink);"
    "font:1rem/1.5 system-ui,-apple-system,'Segoe UI',Roboto,'DejaVu Sans',sans-serif;overflow-wrap:anywhere}\n"
    "h1{font-size:1.6rem;line-height:1.25;margin:0 0 .5rem}h2{font-size:1.2rem;margin:2.2rem 0 .6rem}h3{font-size:1rem;margin:0 0 .5rem}\n"
    "p{margin:.4rem 0}.soft,figcaption{color:var(--soft)}small,.soft,figcaption{font-size:.88rem}\n",
    ".facts{display:flex;flex-wrap:wrap;gap:.2rem 1.4rem;margin:0}.facts div{display:flex;gap:.4rem}.facts dt{color:var(--soft)}"
    ".facts dd,.answers dd{margin:0}\n"
    ".tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,14rem),1fr));gap:.75rem;padding:0;margin:1.2rem 0 0;list-style:none}\n"
    ".tiles li,article{background:var(--card);border:1px solid var(--edge);border-radius:.6rem;padding:.8rem 1rem}\n"
    ".tiles b{display:block;font-size:1.6rem;line-height:1.3}.tiles .was{color:var(--soft);font-size:1.1rem;font-weight:400}\n",
    ".charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,26rem),1fr));gap:1.2rem;align-items:start}figure{margin:0;min-width:0}\n"
    "svg{display:block;width:100%;height:auto}svg text{font-size:15px;fill:var(--soft)}svg .name{fill:var(--ink)}\n"
    "svg .label{fill:var(--k);font-weight:600;font-size:14px}\n"
    ".k0{--k:var(--blue)}.k1{--k:var(--orange)}.k2{--k:var(--green)}.k3{--k:var(--pink)}\n"
    ".grid,.axis,.line,.faint,.lead,.rule{fill:none;stroke:var(--edge);stroke-width:1}.axis{stroke:var(--soft)}\n"
    ".line{stroke:var(--k);stroke-width:2.5;stroke-linejoin:round}.faint{stroke:var(--k);opacity:.35}.dash{stroke-dasharray:7 5}\n"
    ".dot{fill:var(--k)}.lead{stroke:var(--k);opacity:.5}.rule{stroke:var(--ink);stroke-width:1.5;stroke-dasharray:2 3}\n",
    ".scroll{overflow-x:auto}table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}\n"
    "caption{text-align:left;color:var(--soft);font-size:.88rem;padding-bottom:.4rem}\n"
    "th,td{padding:.3rem .6rem;text-align:right;border-bottom:1px solid var(--edge);white-space:nowrap}thead th{white-space:normal;vertical-align:bottom;"
    "overflow-wrap:normal}\n"
    ".scroll th,.scroll td{padding:.25rem .4rem;font-size:.88rem}th{font-weight:600}tbody th{font-weight:400}table.names th:first-child{text-align:left}tr.chosen>*{background:var(--mark);font-weight:700}\n"
    ".bar{width:40%;min-width:5rem}.bar i{display:block;height:.7rem;background:var(--blue);border-radius:.2rem}\n",
    ".examples{display:grid;gap:.8rem}.answers{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,16rem),1fr));gap:.5rem 1.2rem;margin:0}\n"
    ".answers dt{color:var(--soft);font-size:.88rem}.answers dd,h3{white-space:pre-wrap;unicode-bidi:isolate}\n"
    ".yes{color:var(--green);font-weight:600}.no{color:var(--orange);font-weight:600}\n"
    "@media (max-width:34rem){body{padding:1rem .8rem 2rem}.scroll th,.scroll td{padding:.25rem .15rem;font-size:.75rem}"
    ".tiles{grid-template-columns:1fr 1fr}.tiles b{font-size:1.25rem}.tiles .was{font-size:.9rem}}\n"
    "@media print{article,figure,table{break-inside:avoid}}\n",
};

static void text(FILE *out, const char *s) { spa_html_text(out, s, NAME_CHARS); }

static void fact(FILE *out, const char *name, uint64_t value)
{
    if (value > 0)
        fprintf(out, "<div><dt>%s</dt><dd>%llu</dd></div>\n", name, (unsigned long long)value);
}

static void write_head(FILE *out, const struct spa_report *r)
{
    const char *slash = r->plugin ? strrchr(r->plugin, '/') : NULL, *title = slash ? slash + 1 : r->plugin;
    fputs("<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n"
          "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\"/>\n"
          "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n<title>", out);
    text(out, title ? title : "Training");
    fputs(" \xe2\x80\x93 training report</title>\n<style>\n", out);
    for (size_t i = 0; i < sizeof style / sizeof style[0]; i++)
        fputs(style[i], out);
    fputs("</style>\n</head>\n<body>\n<header>\n<h1>", out);
    text(out, title ? title : "Training report");
    fputs("</h1>\n<dl class=\"facts\">\n", out);
    if (r->base_model) {
        fputs("<div><dt>plugin for</dt><dd>", out);
        text(out, r->base_model);
        fputs("</dd></div>\n", out);
    }
    fact(out, "rows", r->rows);
    fact(out, "held out", r->held_rows);
    fact(out, "tokens with loss", r->loss_tokens);
    fact(out, "epochs", r->epochs);
    fact(out, "parameters", r->parameters);
    fprintf(out, "<div><dt>seed</dt><dd>%llu</dd></div>\n</dl>\n", (unsigned long long)r->seed);
    fputs("<p class=\"soft\">This page shows rows that the plugin was trained on or asked about. Treat it as you treat them.</p>\n</header>\n<main>\n", out);
}

/* ---- results at a glance ---- */

static void tile(FILE *out, const char *what, double before, double after, bool percent)
{
    if (!isfinite(after))
        return;
    fputs("<li><b>", out);
    if (isfinite(before))
        fprintf(out, percent ? "<span class=\"was\">%.1f&#160;%% \xe2\x86\x92</span> " : "<span class=\"was\">%.3g \xe2\x86\x92</span> ",
                percent ? 100 * before : before);
    fprintf(out, percent ? "%.1f&#160;%%" : "%.3g", percent ? 100 * after : after);
    fprintf(out, "</b>%s</li>\n", what);
}

static void write_tiles(FILE *out, const struct spa_report *r)
{
    const struct spa_gate_trade *t = r->n_trade > 0 ? &r->trade[r->chosen] : NULL;
    if (!isfinite(r->exact) && !isfinite(r->held_loss) && !t)
        return;
    fputs("<ul class=\"tiles\">\n", out);
    tile(out, "held-out answers exactly right", r->base_exact, r->exact, true);
    tile(out, "held-out loss, nats a token", r->base_held_loss, r->held_loss, false);
    if (t) {
        tile(out, "of your tokens ask the plugin", NAN, t->fires, true);
        tile(out, "of general tokens changed", NAN, t->general_changed, true);
    }
    fputs("</ul>\n", out);
}

/* ---- curves ---- */

/* Columns of the curves, for plot.h. */
struct columns {
    double step[SPA_REPORT_POINTS + 1], loss[SPA_REPORT_POINTS + 1], smooth[SPA_REPORT_POINTS + 1], lr[SPA_REPORT_POINTS + 1];
    double eval_step[SPA_REPORT_EPOCHS + 1], held_loss[SPA_REPORT_EPOCHS + 1], held_exact[SPA_REPORT_EPOCHS + 1];
    double all[SPA_REPORT_POINTS + SPA_REPORT_EPOCHS + 3];     /* losses of every kind, for the axis */
    size_t n, n_evals, n_all;
};

/* Each point's mean with its neighbours, so that a curve of many noisy steps can be read. */
static void smoothen(struct columns *c)
{
    enum { SMOOTH_FROM = 40, WINDOWS = 30 };
    size_t reach = c->n < SMOOTH_FROM ? 0 : c->n / WINDOWS / 2 + 1;
    for (size_t i = 0; i < c->n; i++) {
        size_t near = i < reach ? i : reach, n = 0;
        near = c->n - 1 - i < near ? c->n - 1 - i : near;      /* as far to both sides: the ends keep their own values */
        double sum = 0;
        for (size_t j = i - near; j <= i + near; j++)
            if (isfinite(c->loss[j])) {
                sum += c->loss[j];
                n++;
            }
        c->smooth[i] = n ? sum / (double)n : NAN;
    }
}

static void columns_fill(struct columns *c, const struct spa_report *r)
{
    c->n = c->n_evals = c->n_all = 0;
    for (size_t i = 0; i <= r->thin_points.n && r->thin_points.n > 0; i++) {
        const struct spa_report_point *p = i < r->thin_points.n ? &r->points[i] : &r->last_point;
        if (i == r->thin_points.n && p->step == r->points[i - 1].step)
            break;
        c->step[c->n] = (double)p->step;
        c->loss[c->n] = c->all[c->n_all++] = (double)p->loss;
        c->lr[c->n++] = (double)p->lr;
    }
    for (size_t i = 0; i <= r->thin_evals.n && r->thin_evals.n > 0; i++) {
        const struct spa_report_epoch *e = i < r->thin_evals.n ? &r->evals[i] : &r->last_eval;
        if (i == r->thin_evals.n && e->epoch == r->evals[i - 1].epoch)
            break;
        c->eval_step[c->n_evals] = (double)e->step;
        c->held_exact[c->n_evals] = (double)e->held_exact;
        c->held_loss[c->n_evals++] = c->all[c->n_all++] = (double)e->held_loss;
    }
    c->all[c->n_all++] = r->base_held_loss;
    smoothen(c);
}

static bool any_finite(const double *x, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (isfinite(x[i]))
            return true;
    return false;
}

static double last_finite(const double *x, size_t n)
{
    while (n > 1 && !isfinite(x[n - 1]))
        n--;
    return n ? x[n - 1] : NAN;
}

static void figure(FILE *out, const struct spa_plot *plot)
{
    fputs("<figure>\n", out);
    spa_plot_write(out, plot);
    fputs("</figure>\n", out);
}

static void write_curves(FILE *out, const struct spa_report *r, const struct columns *c)
{
    char step_title[40] = "step";
    if (r->epochs > 0)
        snprintf(step_title, sizeof step_title, "step (%u epochs)", r->epochs);
    const struct spa_plot_axis steps = {
        .title = step_title, .lo = fmin(c->n ? c->step[0] : 0, c->n_evals ? c->eval_step[0] : INFINITY), .hi = fmax((double)r->last_point.step, 1),
    };
    const double span[2] = { steps.lo, steps.hi };
    const double base_loss[2] = { r->base_held_loss, r->base_held_loss }, base_exact[2] = { r->base_exact, r->base_exact };
    char desc[400], train_label[40], held_label[40], base_label[40];
    struct spa_plot p = { .id = "loss", .title = "Loss", .desc = desc, .x = steps, .rule = NAN };
    if (c->n == 0 && !any_finite(c->held_loss, c->n_evals))
        return;
    if (!(p.x.lo < p.x.hi))
        p.x.lo = p.x.hi - 1;

    const double first = c->n ? c->loss[0] : NAN, last = last_finite(c->smooth, c->n), held = last_finite(c->held_loss, c->n_evals);
    spa_plot_axis_fit(&p.y, c->all, c->n_all);
    p.y.title = p.y.scale == SPA_PLOT_LOG ? "loss, nats a token (log scale)" : "loss, nats a token";
    snprintf(train_label, sizeof train_label, "training %.2g", last);
    snprintf(held_label, sizeof held_label, "held-out %.2g", held);
    snprintf(base_label, sizeof base_label, "base %.2g", r->base_held_loss);
    int used = snprintf(desc, sizeof desc, "Training loss goes from %.3g to %.3g in %llu steps.", first, last, (unsigned long long)r->last_point.step);
    if (isfinite(held))
        used += snprintf(desc + used, sizeof desc - (size_t)used, " Held-out loss ends at %.3g.", held);
    if (isfinite(r->base_held_loss))
        snprintf(desc + used, sizeof desc - (size_t)used, " The base model's held-out loss is %.3g.", r->base_held_loss);
    p.lines[p.n_lines++] = (struct spa_plot_line){ .x = c->step, .y = c->loss, .n = c->n, .colour = 0, .faint = true };
    p.lines[p.n_lines++] = (struct spa_plot_line){ .label = train_label, .x = c->step, .y = c->smooth, .n = c->n, .colour = 0 };
    if (isfinite(held))
        p.lines[p.n_lines++] = (struct spa_plot_line){ .label = held_label, .x = c->eval_step, .y = c->held_loss, .n = c->n_evals, .colour = 1,
                                                        .dots = c->n_evals <= 40 };
    if (isfinite(r->base_held_loss))
        p.lines[p.n_lines++] = (struct spa_plot_line){ .label = base_label, .x = span, .y = base_loss, .n = 2, .colour = 3, .dashed = true };
    fputs("<section>\n<h2>Curves</h2>\n<div class=\"charts\">\n", out);
    figure(out, &p);

    if (c->n_evals > 1 && any_finite(c->held_exact, c->n_evals)) {   /* one point is no curve; the tiles have it */
        char exact_label[40];
        struct spa_plot e = { .id = "exact", .title = "Held-out rows exactly right", .desc = desc, .x = p.x, .rule = NAN,
                              .y = { .title = "held-out rows exactly right", .lo = 0, .hi = 1, .percent = true } };
        snprintf(desc, sizeof desc, "The share of held-out rows that are exactly right goes from %.3g %% to %.3g %%.", 100 * c->held_exact[0],
                 100 * last_finite(c->held_exact, c->n_evals));
        snprintf(exact_label, sizeof exact_label, "plugin %.3g %%", 100 * last_finite(c->held_exact, c->n_evals));
        snprintf(base_label, sizeof base_label, "base %.3g %%", 100 * r->base_exact);
        e.lines[e.n_lines++] = (struct spa_plot_line){ .label = exact_label, .x = c->eval_step, .y = c->held_exact, .n = c->n_evals, .colour = 1,
                                                        .dots = c->n_evals <= 40 };
        if (isfinite(r->base_exact))
            e.lines[e.n_lines++] = (struct spa_plot_line){ .label = base_label, .x = span, .y = base_exact, .n = 2, .colour = 3, .dashed = true };
        figure(out, &e);
    }
    if (any_finite(c->lr, c->n)) {
        struct spa_plot l = { .id = "rate", .title = "Learning rate", .desc = "The learning rate of each step.", .x = p.x, .y = { .title = "learning rate", .hi = 0 },
                              .rule = NAN, .n_lines = 1, .lines = { { .x = c->step, .y = c->lr, .n = c->n, .colour = 2 } } };
        for (size_t i = 0; i < c->n; i++)
            l.y.hi = fmax(l.y.hi, 1.05 * c->lr[i]);
        l.y.hi = l.y.hi > 0 ? l.y.hi : 1;
        figure(out, &l);
    }
    fputs("</div>\n</section>\n", out);
}

/* ---- the gate ---- */

static void share_cell(FILE *out, double share)
{
    if (isfinite(share))
        fprintf(out, "<td>%.1f&#160;%%</td>", 100 * share);
    else
        fputs("<td>\xe2\x80\x93</td>", out);
}

/* columns: room for plot.h's arrays. */
static void write_trade(FILE *out, const struct spa_report *r, double columns[5][SPA_REPORT_POINTS])
{
    const size_t n = r->n_trade < SPA_REPORT_POINTS ? r->n_trade : SPA_REPORT_POINTS;
    if (n == 0)
        return;
    const char *rows = r->trade_held_out ? "held-out rows" : "rows";
    const struct spa_gate_trade *chosen = &r->trade[r->chosen];
    char desc[300], rule[40];
    for (size_t i = 0; i < n; i++) {
        const struct spa_gate_trade *t = &r->trade[i];
        const double values[5] = { (double)t->threshold, t->exact, t->fires, t->general_fires, t->general_changed };
        for (size_t j = 0; j < 5; j++)
            columns[j][i] = values[j];
    }
    struct spa_plot p = {
        .id = "gate", .title = "What the gate's threshold costs and brings", .desc = desc, .rule = (double)chosen->threshold, .rule_label = rule,
        .x = { .title = "the gate's threshold", .scale = SPA_PLOT_LOGIT, .lo = columns[0][0], .hi = columns[0][n - 1] },
        .y = { .title = "share of rows or tokens", .lo = 0, .hi = 1, .percent = true },
    };
    if (!(p.x.lo < p.x.hi)) {
        p.x.lo = fmax(p.x.lo - 0.1, 0.001);
        p.x.hi = fmin(p.x.hi + 0.1, 0.999);
    }
    static const char *const names[5] = { NULL, "exact", "asked: yours", "asked: general", "changed" };
    for (unsigned j = 1; j < 5; j++)
        if (any_finite(columns[j], n))
            p.lines[p.n_lines++] = (struct spa_plot_line){ .label = names[j], .x = columns[0], .y = columns[j], .n = n, .colour = j - 1, .dots = true };
    snprintf(rule, sizeof rule, "%.2f chosen", (double)chosen->threshold);
    snprintf(desc, sizeof desc, "At the chosen threshold of %.2f, %.1f %% of the %s are exact and the plugin is asked on %.1f %% of their tokens. "
             "The table beside the picture has all numbers.", (double)chosen->threshold, 100 * chosen->exact, rows, 100 * chosen->fires);
    fputs("<section>\n<h2>The gate</h2>\n<p class=\"soft\">The gate decides for each token whether the plugin is asked. A low threshold asks often; "
          "a high one leaves more to the base model.</p>\n<div class=\"charts\">\n", out);
    figure(out, &p);
    fprintf(out, "<div class=\"scroll\" role=\"region\" aria-label=\"Thresholds\" tabindex=\"0\"><table>\n<caption>By threshold (\xe2\x96\xb8: chosen): your %s, and tokens "
            "of general answers</caption>\n<thead><tr><th scope=\"col\">threshold</th><th scope=\"col\">rows exact</th><th scope=\"col\">asked: yours</th>"
            "<th scope=\"col\">asked: general</th><th scope=\"col\">changed: general</th><th scope=\"col\">answers untouched</th></tr></thead>\n<tbody>\n", rows);
    for (size_t i = 0; i < n; i++) {
        const struct spa_gate_trade *t = &r->trade[i];
        fprintf(out, "<tr%s><th scope=\"row\">%s%.2f</th>", i == r->chosen ? " class=\"chosen\"" : "",
                i == r->chosen ? "<span aria-label=\"chosen\" role=\"img\">\xe2\x96\xb8</span>&#160;" : "", (double)t->threshold);
        const double cells[5] = { t->exact, t->fires, t->general_fires, t->general_changed, t->general_same };
        for (size_t j = 0; j < 5; j++)
            share_cell(out, cells[j]);
        fputs("</tr>\n", out);
    }
    fputs("</tbody></table></div>\n</div>\n</section>\n", out);
}

/* ---- examples ---- */

static void answer(FILE *out, const char *name, const char *said, const char *verdict, bool good)
{
    fprintf(out, "<div><dt>%s", name);
    if (said && verdict)
        fprintf(out, " <span class=\"%s\">%s %s</span>", good ? "yes" : "no", good ? "\xe2\x9c\x93" : "\xe2\x9c\x97", verdict);
    fputs("</dt><dd dir=\"auto\">", out);
    if (!said)
        fputs("<span class=\"soft\">not asked</span>", out);
    else if (!*said)
        fputs("<span class=\"soft\">nothing</span>", out);
    else
        spa_html_text(out, said, TEXT_CHARS);
    fputs("</dd></div>\n", out);
}

static void write_examples(FILE *out, const struct spa_report *r)
{
    const size_t n = r->n_examples < SPA_REPORT_EXAMPLES ? r->n_examples : SPA_REPORT_EXAMPLES;
    if (n == 0)
        return;
    fputs("<section>\n<h2>Before and after</h2>\n", out);
    if (n < r->n_examples)
        fprintf(out, "<p class=\"soft\">The first %zu of %zu.</p>\n", n, r->n_examples);
    fputs("<div class=\"examples\">\n", out);
    for (size_t i = 0; i < n; i++) {
        const struct spa_report_example *e = &r->examples[i];
        const bool same = e->base && e->answer && strcmp(e->base, e->answer) == 0;
        fputs("<article>\n<h3 dir=\"auto\">", out);
        spa_html_text(out, e->question ? e->question : "", TEXT_CHARS);
        fputs("</h3>\n<dl class=\"answers\">\n", out);
        if (e->expected) {
            answer(out, e->flags & SPA_REPORT_HELD_OUT ? "expected (held out)" : "expected (trained on)", e->expected, NULL, true);
            answer(out, "base model", e->base, e->flags & SPA_REPORT_BASE_EXACT ? "exact" : "differs", e->flags & SPA_REPORT_BASE_EXACT);
            answer(out, "with plugin", e->answer, e->flags & SPA_REPORT_EXACT ? "exact" : "differs", e->flags & SPA_REPORT_EXACT);
        } else {
            answer(out, "base model (general prompt)", e->base, NULL, true);
            answer(out, "with plugin", e->answer, e->base ? same ? "the same" : "changed" : NULL, same);
        }
        fputs("</dl>\n</article>\n", out);
    }
    fputs("</div>\n</section>\n", out);
}

/* ---- numbers ---- */

static void write_numbers(FILE *out, const struct spa_report *r)
{
    double longest = 0, sum = 0;
    if (r->n_phases == 0 && r->n_numbers == 0)
        return;
    for (size_t i = 0; i < r->n_phases; i++) {
        longest = fmax(longest, r->phases[i].seconds);
        sum += r->phases[i].seconds;
    }
    fputs("<section>\n<h2>What it took</h2>\n<div class=\"charts\">\n", out);
    if (r->n_phases > 0) {
        fputs("<table class=\"names\">\n<caption>Seconds by phase</caption>\n<thead><tr><th scope=\"col\">phase</th><th scope=\"col\">seconds</th>"
              "<td class=\"bar\"></td></tr></thead>\n<tbody>\n", out);
        for (size_t i = 0; i < r->n_phases; i++) {
            fputs("<tr><th scope=\"row\">", out);
            text(out, r->phases[i].name);
            fprintf(out, "</th><td>%.1f</td><td class=\"bar\"><i style=\"width:%.1f%%\"></i></td></tr>\n", r->phases[i].seconds,
                    longest > 0 ? 100 * r->phases[i].seconds / longest : 0);
        }
        fprintf(out, "<tr><th scope=\"row\">together</th><td>%.1f</td><td></td></tr>\n</tbody></table>\n", sum);
    }
    if (r->n_numbers > 0) {
        fputs("<table class=\"names\">\n<caption>Other numbers</caption>\n<thead><tr><th scope=\"col\">what</th><th scope=\"col\">how much</th></tr></thead>\n<tbody>\n", out);
        for (size_t i = 0; i < r->n_numbers; i++) {
            fputs("<tr><th scope=\"row\">", out);
            text(out, r->numbers[i].name);
            fputs("</th><td>", out);
            text(out, r->numbers[i].text);
            fputs("</td></tr>\n", out);
        }
        fputs("</tbody></table>\n", out);
    }
    fputs("</div>\n</section>\n", out);
}

/* ---- the whole ---- */

int spa_report_write(const struct spa_report *r, const char *path, char *why, size_t why_len)
{
    struct room { struct columns curves; double trade[5][SPA_REPORT_POINTS]; } *room = malloc(sizeof *room);
    char *page = NULL;
    size_t len = 0;
    FILE *out = open_memstream(&page, &len);
    bool ok = room && out;
    if (ok) {
        columns_fill(&room->curves, r);
        write_head(out, r);
        write_tiles(out, r);
        write_curves(out, r, &room->curves);
        write_trade(out, r, room->trade);
        write_examples(out, r);
        write_numbers(out, r);
        fputs("</main>\n</body>\n</html>\n", out);
        ok = !ferror(out);
    }
    if (out && fclose(out) != 0)
        ok = false;
    int rc = -1;
    if (ok)
        rc = spa_store_replace(path, page, len, true, why, why_len);
    else
        snprintf(why, why_len, "out of memory for the report '%s'; the plugin is not affected", path);
    free(page);
    free(room);
    return rc;
}

/* ---- for the terminal ---- */

static void share_column(FILE *out, int width, double share)
{
    if (isfinite(share))
        fprintf(out, "%*.1f %%", width - 2, 100 * share);
    else
        fprintf(out, "%*s", width, "-");
}

void spa_report_print_trade(FILE *out, const struct spa_gate_trade *trade, size_t n, size_t chosen)
{
    static const char *const heads[2][6] = { { "gate", "rows", "yours", "general", "general", "general" },
                                             { "threshold", "exact", "asked", "asked", "changed", "untouched" } };
    for (size_t i = 0; i < 2; i++)
        fprintf(out, "%9s%10s%9s%11s%11s%13s\n", heads[i][0], heads[i][1], heads[i][2], heads[i][3], heads[i][4], heads[i][5]);
    for (size_t i = 0; i < n; i++) {
        fprintf(out, "%c %7.2f", i == chosen ? '>' : ' ', (double)trade[i].threshold);
        share_column(out, 10, trade[i].exact);
        share_column(out, 9, trade[i].fires);
        share_column(out, 11, trade[i].general_fires);
        share_column(out, 11, trade[i].general_changed);
        share_column(out, 13, trade[i].general_same);
        fprintf(out, "%s\n", i == chosen ? "  chosen" : "");
    }
}
