/* html.h - text from outside into a page. */
#ifndef SPA_HTML_H
#define SPA_HTML_H

#include <stddef.h>
#include <stdio.h>

/* Writes text for an element's content or a quoted attribute: & < > " ' escaped; U+FFFD in place of each byte that is no UTF-8 and
 * of each character that no page may hold (controls other than tab and newline). After max_chars characters an ellipsis. */
void spa_html_text(FILE *out, const char *text, size_t max_chars);

#endif
