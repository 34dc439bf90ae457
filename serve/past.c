/* past.c - ended answers (past.h). In: questions and their answers. Out: the request that a longer conversation goes on from. */
#include "past.h"
#include "secret.h"

#include <stdlib.h>
#include <string.h>

void spa_past_keep(struct spa_past *p, const struct spa_question *q, uint32_t request, const char *text, size_t text_len)
{
    size_t oldest = 0;
    if (!q->chat || text_len == 0)
        return;
    for (size_t i = 1; i < SPA_PAST_KEPT; i++)
        if (p->kept[i].when < p->kept[oldest].when)
            oldest = i;
    spa_secret_free(p->kept[oldest].bytes, p->kept[oldest].len);
    memset(&p->kept[oldest], 0, sizeof p->kept[oldest]);
    const struct spa_part answer = { .kind = SPA_PART_ASSISTANT, .bytes = (const uint8_t *)text, .len = (uint32_t)text_len };
    const size_t said = spa_parts_len(q->parts, q->n_said), more = spa_parts_len(&answer, 1);
    uint8_t *bytes = malloc(said + more);
    if (!bytes)
        return;
    spa_parts_write(q->parts, q->n_said, bytes);
    spa_parts_write(&answer, 1, bytes + said);
    p->kept[oldest].request = request;
    p->kept[oldest].bytes = bytes;
    p->kept[oldest].len = said + more;
    p->kept[oldest].when = ++p->endings;
}

uint32_t spa_past_find(const struct spa_past *p, const struct spa_question *q)
{
    const size_t len = spa_parts_len(q->parts, q->n_said);
    uint8_t *bytes = q->chat && q->n_said > 2 ? malloc(len) : NULL;
    uint32_t best = 0;
    size_t best_len = 0;
    if (!bytes)
        return 0;
    spa_parts_write(q->parts, q->n_said, bytes);
    for (size_t i = 0; i < SPA_PAST_KEPT; i++)
        if (p->kept[i].request && p->kept[i].len < len && p->kept[i].len > best_len && memcmp(p->kept[i].bytes, bytes, p->kept[i].len) == 0) {
            best = p->kept[i].request;
            best_len = p->kept[i].len;
        }
    spa_secret_free(bytes, len);
    return best;
}

void spa_past_forget(struct spa_past *p)
{
    for (size_t i = 0; i < SPA_PAST_KEPT; i++)
        spa_secret_free(p->kept[i].bytes, p->kept[i].len);
    memset(p->kept, 0, sizeof p->kept);
}
