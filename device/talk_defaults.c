/* talk_defaults.c - out: what is asked for when nobody says otherwise (talk.h). Apart from talk.c, since it needs no link: who reads a
 * question, and a fuzzer of that, has it without sockets. */
#include "talk.h"

void spa_talk_defaults(spa_Generate *g)
{
    *g = (spa_Generate)spa_Generate_init_zero;
    g->n_predict = -1;
    g->temp = 0.8f;
    g->top_k = 40;
    g->top_p = 0.95f;
    g->min_p = 0.05f;
    g->repeat_penalty = 1.0f;
    g->repeat_last_n = 64;
    g->run_ahead = SPA_ASKED_MAX - 1;
}
