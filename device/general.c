/* general.c - in: a talk with the base model. out: rows of general prompts and its own answers (general.h). */
#define _POSIX_C_SOURCE 200809L
#include "general.h"
#include "score.h"
#include "utf8.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int spa_general_make(struct spa_general *g, struct spa_talk *base, size_t n, char *why, size_t why_len)
{
    n = n < spa_general_prompts_n ? n : spa_general_prompts_n;
    *g = (struct spa_general){ .parts = calloc(2 * n, sizeof *g->parts), .answers = calloc(n, sizeof *g->answers), .n_asked = n };
    g->rows.rows = calloc(n, sizeof *g->rows.rows);
    if (!g->parts || !g->answers || !g->rows.rows) {
        spa_general_free(g);
        snprintf(why, why_len, "out of memory for the general prompts");
        return -1;
    }
    for (size_t i = 0; i < n; i++) {
        const char *prompt = spa_general_prompts[i];
        struct spa_part *p = g->parts + 2 * i;
        p[0] = (struct spa_part){ .kind = SPA_PART_USER, .bytes = (const uint8_t *)prompt, .len = (uint32_t)strlen(prompt) };
        p[1] = (struct spa_part){ .kind = SPA_PART_ASSISTANT, .loss = true, .bytes = (const uint8_t *)"?", .len = 1 };
        g->rows.rows[i] = (struct spa_example){ .parts = p, .n_parts = 2, .file = "general prompts", .line = (uint32_t)(i + 1) };
    }
    g->rows.n = n;
    struct spa_score score;
    if (spa_score_rows(base, &g->rows, spa_GateMode_GATE_NEVER, SPA_GENERAL_ANSWER, &score, g->answers, NULL, NULL, why, why_len) != 0) {
        spa_general_free(g);
        return -1;
    }
    size_t kept = 0;
    for (size_t i = 0; i < n; i++) {
        const char *answer = g->answers[i];
        /* An answer that is cut in mid-character is no text; one of a model that speaks bytes may never be. */
        if (!answer || answer[strspn(answer, " \t\r\n")] == '\0' || spa_utf8_good_len(answer, strlen(answer)) < strlen(answer))
            continue;
        g->parts[2 * i + 1].bytes = (const uint8_t *)answer;
        g->parts[2 * i + 1].len = (uint32_t)strlen(answer);
        g->rows.rows[kept++] = g->rows.rows[i];
    }
    g->rows.n = kept;
    return 0;
}

void spa_general_free(struct spa_general *g)
{
    for (size_t i = 0; g->answers && i < g->n_asked; i++)
        free(g->answers[i]);
    free(g->answers);
    free(g->parts);
    free(g->rows.rows);
    *g = (struct spa_general){ 0 };
}
