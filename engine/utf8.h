/* One character of UTF-8, as the tokenizer and the text gate need it: what is here, what is broken, what may still
 * become whole. */
#pragma once

#include <stddef.h>
#include <stdint.h>

/* Look at the first character of the n >= 1 bytes at s. Returns its length 1..4 and sets *ret (when not NULL) to the
 * code point; 0 when all n bytes are the beginning of a character that is not finished; -k when the first k bytes
 * cannot be part of any character (the maximal invalid part, as Unicode recommends replacing it). */
static inline int utf8_scan(const char *s, size_t n, uint32_t *ret)
{
    const uint8_t *p = (const uint8_t *)s;
    uint8_t lo = 0x80, hi = 0xbf;
    uint32_t cp;
    int more;

    if (p[0] < 0x80) {
        if (ret)
            *ret = p[0];
        return 1;
    }
    if (p[0] < 0xc2 || p[0] > 0xf4)
        return -1;
    more = p[0] < 0xe0 ? 1 : p[0] < 0xf0 ? 2 : 3;
    cp = p[0] & (0x3f >> more);
    /* The second byte alone decides overlong forms, surrogates and what lies past U+10FFFF. */
    switch (p[0]) {
    case 0xe0: lo = 0xa0; break;
    case 0xed: hi = 0x9f; break;
    case 0xf0: lo = 0x90; break;
    case 0xf4: hi = 0x8f; break;
    }
    for (int i = 1; i <= more; i++, lo = 0x80, hi = 0xbf) {
        if ((size_t)i == n)
            return 0;
        if (p[i] < lo || p[i] > hi)
            return -i;
        cp = cp << 6 | (p[i] & 0x3f);
    }
    if (ret)
        *ret = cp;
    return more + 1;
}
