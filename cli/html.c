/* html.c - escaping (html.h). In: any bytes. Out: characters that mean themselves in HTML and in XML. */
#include "html.h"

#include "utf8.h"

#include <stdbool.h>
#include <string.h>

static const char replacement[] = "\xef\xbf\xbd";   /* U+FFFD */

/* Bytes of the well-formed character at s, 0 when there is none. */
static size_t character(const char *s, size_t len)
{
    for (size_t n = 1; n <= 4 && n <= len; n++)
        if (spa_utf8_good_len(s, n) == n)
            return n;
    return 0;
}

/* Controls (the second range: C1) and the two last of the first plane. */
static bool forbidden(const char *s, size_t n)
{
    const unsigned char *c = (const unsigned char *)s;
    if (n == 1)
        return (c[0] < 0x20 && c[0] != '\t' && c[0] != '\n') || c[0] == 0x7f;
    return (n == 2 && c[0] == 0xc2 && c[1] < 0xa0) || (n == 3 && c[0] == 0xef && c[1] == 0xbf && c[2] >= 0xbe);
}

static void put(FILE *out, const char *s, size_t n)
{
    switch (*s) {
    case '&':  fputs("&amp;", out);  break;
    case '<':  fputs("&lt;", out);   break;
    case '>':  fputs("&gt;", out);   break;
    case '"':  fputs("&quot;", out); break;
    case '\'': fputs("&#39;", out);  break;
    default:   fwrite(s, 1, n, out);
    }
}

void spa_html_text(FILE *out, const char *text, size_t max_chars)
{
    size_t len = strlen(text), chars = 0;
    for (size_t at = 0; at < len; chars++) {
        if (chars == max_chars) {
            fputs("\xe2\x80\xa6", out);
            return;
        }
        size_t n = character(text + at, len - at);
        if (n == 0 || forbidden(text + at, n))
            fputs(replacement, out);
        else
            put(out, text + at, n);
        at += n ? n : 1;
    }
}
