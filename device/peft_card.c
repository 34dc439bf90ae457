/* peft_card.c - in: what a plugin says of itself. out: its model card. */
#define _POSIX_C_SOURCE 200809L
#include "peft_card.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

static void front_matter(FILE *out, const struct spa_plugin *p)
{
    fputs("---\nlibrary_name: spa\npipeline_tag: text-generation\ntags:\n- side-plugin\n- adapter\n", out);
    if (p->base_name[0]) {
        fputs("base_model: '", out);
        for (const char *c = p->base_name; *c; c++)   /* in YAML's single quotes a quote is doubled */
            fputs(*c == '\'' ? "''" : (char[]){ *c, '\0' }, out);
        fputs("'\n", out);
    }
    fputs("---\n\n", out);
}

static void about(FILE *out, const struct spa_plugin *p)
{
    const struct spa_shape *s = &p->shape;
    fprintf(out, "# A side plugin for %s\n\n", p->base_name[0] ? p->base_name : "a base model of its shape");
    fputs("A small network that makes a frozen language model personal (Side Plugin Adaptation, arXiv 2403.07088). It runs on its owner's\n"
          "device; the base model runs elsewhere, unchanged, and sends it the hidden states of the tokens that it is asked for.\n\n", out);
    fprintf(out, "| | |\n| --- | --- |\n| base model | d %" PRIu32 ", %" PRIu32 " layers |\n", s->d, s->n_layers);
    fprintf(out, "| ladder | r %" PRIu32 ", m %" PRIu32 ", %" PRIu32 " rungs, %zu weights |\n", s->r, s->m, s->n_taps, spa_param_count(s));
    fprintf(out, "| taps | %" PRIu32 " numbers each, %s |\n", s->k, s->basis ? "projected by a basis" : "whole");
    fprintf(out, "| state | %s |\n", s->mode == SPA_ADD ? "added to the base model's" : "in place of the base model's");
    fprintf(out, "| context attention | %s |\n", !s->n_ctx_taps ? "no" : s->ctx_mix ? "yes, and tokens look back themselves" : "yes");
    fprintf(out, "| gate | %s |\n\n", p->has_gate ? "yes" : "no");
}

static void training(FILE *out, const struct spa_training *t)
{
    fputs("## Training\n\n", out);
    if (t->steps == 0) {
        fputs("Nothing is known about it.\n\n", out);
        return;
    }
    fprintf(out, "%" PRIu32 " rows with %" PRIu32 " tokens that carry loss, %" PRIu32 " epochs, %" PRIu64 " steps, seed %" PRIu64
            ". Mean loss %.4f nats a token at first, %.4f at last.\n",
            t->rows, t->loss_tokens, t->epochs, t->steps, t->seed, (double)t->first_loss, (double)t->final_loss);
    if (t->eval_exact_match >= 0)
        fprintf(out, "Of held-out rows, %.1f %% were answered exactly.\n", 100 * (double)t->eval_exact_match);
    fputc('\n', out);
}

char *spa_peft_card(const struct spa_plugin *p)
{
    char *text = NULL;
    size_t len = 0;
    FILE *out = open_memstream(&text, &len);
    if (!out)
        return NULL;
    front_matter(out, p);
    about(out, p);
    training(out, &p->training);
    fputs("## Use\n\n"
          "    spa convert THIS_FOLDER plugin.gguf\n"
          "    spa chat --cloud URL --plugin plugin.gguf\n\n"
          "## Before you share it\n\n"
          "What the rows said can be asked out of a plugin: whoever has this folder and the base model knows what it was taught.\n", out);
    const bool failed = ferror(out) != 0;
    if (fclose(out) != 0 || failed) {
        free(text);
        return NULL;
    }
    return text;
}
