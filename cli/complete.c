/* complete.c - `spa complete`: continues raw text, without the model's chat template. */
#include "answer.h"
#include "commands.h"

#include <string.h>

int spa_cmd_complete(int argc, char **argv)
{
    struct spa_answer_options o;
    struct spa_option rows[SPA_ANSWER_OPTIONS];
    spa_answer_options_init(&o, "spa complete", rows);
    const struct spa_usage usage = { "spa complete", "-p TEXT", "Continues raw text, without the model's chat template.", rows,
                                     SPA_ANSWER_OPTIONS, 0, 0 };
    int rc = spa_answer_parse(&o, &usage, argc, argv);
    if (rc != SPA_OPTIONS_GO)
        return rc;
    if (!o.prompt || !*o.prompt) {
        spa_answer_complain(o.command, "the text to continue is missing: -p TEXT");
        return SPA_EXIT_USAGE;
    }
    struct spa_answer a;
    rc = spa_answer_open(&a, &o);
    if (rc == 0) {
        spa_answer_catch_interrupt();
        const struct spa_part part = { .kind = SPA_PART_TEXT, .bytes = (const uint8_t *)o.prompt, .len = (uint32_t)strlen(o.prompt) };
        rc = spa_answer_once(&a, &part, 1, true);
    }
    spa_answer_close(&a);
    return rc;
}
