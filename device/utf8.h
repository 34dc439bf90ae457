/* utf8.h - is it text? */
#ifndef SPA_UTF8_H
#define SPA_UTF8_H

#include <stddef.h>

/* Bytes of the longest beginning of text that is well-formed UTF-8 (no overlong forms, no surrogates); len when all is. */
size_t spa_utf8_good_len(const char *text, size_t len);

/* Text without what neither JSON nor a question may hold, though a model may well say it: U+FFFD for zero and for each byte that is
 * no UTF-8. out: spa_utf8_clean_room(len) bytes, terminated. Returns its length. */
size_t spa_utf8_clean_room(size_t len);
size_t spa_utf8_clean(const char *text, size_t len, char *out);

#endif
