/* row_forms.h - one row of a training file, in any of the forms that rows.h names, as parts for the wire.
 *
 * In: a row as JSON. Out: parts whose bytes lie in that JSON (or in *owned), or one sentence that names file, line and field. */
#ifndef SPA_ROW_FORMS_H
#define SPA_ROW_FORMS_H

#include "wire.h"

#include <jansson.h>
#include <stddef.h>

/* Where we are, for sentences. */
struct spa_row_place { const char *path; uint32_t line; char *why; size_t why_len; };

/* Says "PATH line N: ..."; -1, for returning. */
int spa_row_refuse(const struct spa_row_place *at, const char *format, ...);
const char *spa_row_type_name(const json_t *v);   /* "an array" */

/* parts [SPA_PARTS_MAX]: *n of them, the last one carries loss. *owned: free() it after the parts have been used (may be NULL).
 * 0, or -1 with a sentence. */
int spa_row_parts(const struct spa_row_place *at, const json_t *row, struct spa_part *parts, size_t *n, char **owned);

#endif
