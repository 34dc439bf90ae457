/* utf8.h - is it text? */
#ifndef SPA_UTF8_H
#define SPA_UTF8_H

#include <stddef.h>

/* Bytes of the longest beginning of text that is well-formed UTF-8 (no overlong forms, no surrogates); len when all is. */
size_t spa_utf8_good_len(const char *text, size_t len);

#endif
