/* utf8.c - well-formed UTF-8 as RFC 3629 has it (utf8.h). */
#include "utf8.h"

#include <stdint.h>
#include <string.h>

/* Length of the well-formed character at s, 0 when there is none. */
static size_t character_len(const uint8_t *s, size_t len)
{
    if (s[0] < 0x80)
        return 1;
    size_t n = s[0] >= 0xf0 ? 4 : s[0] >= 0xe0 ? 3 : 2;
    if (s[0] < 0xc2 || s[0] > 0xf4 || len < n)
        return 0;
    /* The second byte's range rules out overlong forms, surrogates and what lies beyond U+10FFFF. */
    uint8_t lo = s[0] == 0xe0 ? 0xa0 : s[0] == 0xf0 ? 0x90 : 0x80, hi = s[0] == 0xed ? 0x9f : s[0] == 0xf4 ? 0x8f : 0xbf;
    if (s[1] < lo || s[1] > hi)
        return 0;
    for (size_t i = 2; i < n; i++)
        if ((s[i] & 0xc0) != 0x80)
            return 0;
    return n;
}

size_t spa_utf8_good_len(const char *text, size_t len)
{
    const uint8_t *s = (const uint8_t *)text;
    size_t at = 0, n;
    while (at < len && (n = character_len(s + at, len - at)) > 0)
        at += n;
    return at;
}

size_t spa_utf8_clean_room(size_t len) { return 3 * len + 1; }

size_t spa_utf8_clean(const char *text, size_t len, char *out)
{
    size_t n = 0;
    for (size_t at = 0; at < len;) {
        size_t good = spa_utf8_good_len(text + at, len - at);
        const char *zero = good ? memchr(text + at, 0, good) : NULL;
        if (zero)
            good = (size_t)(zero - (text + at));
        if (good)
            memcpy(out + n, text + at, good);
        n += good;
        at += good;
        if (at < len) {
            memcpy(out + n, "\xef\xbf\xbd", 3);
            n += 3;
            at++;
        }
    }
    out[n] = 0;
    return n;
}
