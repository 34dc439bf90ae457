/* report.h - a look at a training run: what spa train saw, as one HTML page that needs nothing else (no script, no outside
 * reference), and the gate's trade as a table for the terminal. Bounded: the structure is of fixed size and holds no memory of its own. */
#ifndef SPA_REPORT_H
#define SPA_REPORT_H

#include "learn.h"

#include <stdio.h>

enum {
    SPA_REPORT_POINTS   = 2000,    /* of the loss curve; even */
    SPA_REPORT_EPOCHS   = 400,     /* of the eval curve; even */
    SPA_REPORT_EXAMPLES = 40,      /* shown at most; the page says of how many */
    SPA_REPORT_ROWS     = 24,      /* of each table of numbers; more are dropped */
};

struct spa_report_point { uint64_t step; uint32_t epoch; float loss, lr; };
struct spa_report_epoch { uint64_t step; uint32_t epoch; float held_loss, held_exact; };

enum {   /* flags of an example */
    SPA_REPORT_BASE_EXACT = 1,
    SPA_REPORT_EXACT      = 2,
    SPA_REPORT_HELD_OUT   = 4,
};

struct spa_report_example {
    const char *question;
    const char *expected;          /* NULL: a general prompt. Nothing is right or wrong then, only the same or changed */
    const char *base, *answer;     /* before and after; NULL: not asked */
    unsigned    flags;
};

/* What was kept of a sequence: every stride-th item from the first one on; and the last. */
struct spa_report_thinning { uint64_t seen, stride; size_t n; };

struct spa_report {
    /* Set by the caller after spa_report_init. Pointers are borrowed until spa_report_write; NULL and 0: left out. */
    const char *plugin, *base_model;           /* the file written, of whose path the name is shown; the model's name */
    uint64_t rows, held_rows, loss_tokens, parameters, seed;
    uint32_t epochs;
    double   base_held_loss;                   /* nats a token; NaN: not known, like all that follow */
    double   held_loss;                        /* of the finished plugin */
    double   base_exact, exact;                /* shares of the held-out rows that were answered exactly, through the cloud */
    const struct spa_gate_trade *trade;        /* [n_trade], thresholds rising */
    size_t   n_trade, chosen;
    bool     trade_held_out;                   /* its rows were held out of training */
    const struct spa_report_example *examples; /* [n_examples]; those that matter most first */
    size_t   n_examples;

    /* Kept by the functions below. */
    struct spa_report_thinning thin_points, thin_evals;
    struct spa_report_point points[SPA_REPORT_POINTS + 1];     /* room for the last one */
    struct spa_report_epoch evals[SPA_REPORT_EPOCHS + 1];
    struct spa_report_point last_point;
    struct spa_report_epoch last_eval;
    struct { char name[40]; double seconds; } phases[SPA_REPORT_ROWS];
    struct { char name[40], text[80]; } numbers[SPA_REPORT_ROWS];
    size_t   n_phases, n_numbers;
};

void spa_report_init(struct spa_report *r);

/* One training step, in order. lr as the optimizer used it; loss in nats a token, NaN leaves a gap. */
void spa_report_step(struct spa_report *r, uint64_t step, uint32_t epoch, float loss, float lr);
/* After an epoch (0: before the first): the held-out rows' loss, and the share of them that is exact or NaN. Stands at the last
 * step told. */
void spa_report_epoch(struct spa_report *r, uint32_t epoch, float held_loss, float held_exact);
/* Seconds of a phase; a name told before is added to. */
void spa_report_phase(struct spa_report *r, const char *name, double seconds);
/* A line of the table of numbers: bytes on the wire, memory. */
void spa_report_number(struct spa_report *r, const char *name, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* Writes the page whole or not at all, mode 0600: it shows the user's own rows. 0, or -1 with a sentence; what was there is kept
 * then. Whatever is missing in r is left out of the page. */
int spa_report_write(const struct spa_report *r, const char *path, char *why, size_t why_len);

/* The trade as a table of at most 76 columns, trade[chosen] marked. */
void spa_report_print_trade(FILE *out, const struct spa_gate_trade *trade, size_t n, size_t chosen);

#endif
