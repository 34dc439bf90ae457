/* fuzz_rows.c - any bytes as a file of training rows. What is accepted must have parts of well-formed text of which the last carries
 * loss, and be the same again. Corpus: fuzz/corpus/rows. */
#include "rows.h"
#include "utf8.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len);

static void must(bool holds)
{
    if (!holds)
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len)
{
    struct spa_rows rows, again, held;
    char why[256] = "";
    if (spa_rows_parse("input", (const char *)bytes, len, &rows, why, sizeof why) != 0) {
        must(strncmp(why, "input", 5) == 0 && rows.n == 0);
        return 0;
    }
    must(rows.n > 0 && spa_rows_parse("input", (const char *)bytes, len, &again, why, sizeof why) == 0 && again.n == rows.n);
    for (size_t i = 0; i < rows.n; i++) {
        const struct spa_example *e = &rows.rows[i];
        must(e->n_parts > 0 && e->n_parts <= SPA_PARTS_MAX && e->parts[e->n_parts - 1].loss && again.rows[i].n_parts == e->n_parts);
        for (size_t k = 0; k < e->n_parts; k++) {
            const struct spa_part *p = &e->parts[k];
            must(spa_utf8_good_len((const char *)p->bytes, p->len) == p->len && memchr(p->bytes, 0, p->len) == NULL);
            must(!p->loss || p->kind == SPA_PART_ASSISTANT || p->kind == SPA_PART_TEXT);
        }
    }
    if (rows.n > 1 && spa_rows_hold_back(&rows, 0.3f, 7, &held, why, sizeof why) == 0)
        spa_rows_free(&held);
    spa_rows_free(&again);
    spa_rows_free(&rows);
    return 0;
}
