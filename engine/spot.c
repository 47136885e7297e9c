/* Where in a terminal a thread stands, and what a byte does to that: strings of any characters, strings that match a
 * pattern, numbers, and texts that are written as they are. */
#include <errno.h>
#include <string.h>

#include "engine/grammar.h"

/* ---- strings of any characters ---- */

/* Where in a string; those from STRING_MORE_1 on are inside a character, which was counted at its first byte. */
enum string_at { STRING_BEGIN, STRING_INSIDE, STRING_MORE_1, STRING_MORE_2, STRING_MORE_3, STRING_E0, STRING_ED,
    STRING_F0,
                 STRING_F4, STRING_ESCAPE, STRING_HEX_4, STRING_HEX_3, STRING_HEX_2, STRING_HEX_1, STRING_ZERO_3,
                 STRING_ZERO_2, STRING_ZERO_1, STRING_SURROGATE, STRING_DEAD };

static int hex_value(uint8_t c)
{
    return c >= '0' && c <= '9' ? c - '0' : (c | 32) >= 'a' && (c | 32) <= 'f' ? (c | 32) - 'a' + 10 : -1;
}

/* The first byte of a character; quotes are the caller's. */
static enum string_at string_first(uint8_t c)
{
    if (c < 0x20)
        return STRING_DEAD;
    if (c < 0x80)
        return c == '\\' ? STRING_ESCAPE : STRING_INSIDE;
    if (c < 0xc2 || c > 0xf4)
        return STRING_DEAD;
    switch (c) {
    case 0xe0: return STRING_E0;
    case 0xed: return STRING_ED;
    case 0xf0: return STRING_F0;
    case 0xf4: return STRING_F4;
    }
    return c < 0xe0 ? STRING_MORE_1 : c < 0xf0 ? STRING_MORE_2 : STRING_MORE_3;
}

/* A later byte of one. \u0000 and surrogates are left out: few readers take the one, and pairs need no escape. */
static enum string_at string_later(enum string_at at, uint8_t c)
{
    static const struct { uint8_t lo, hi, next; } bytes[] = {
        [STRING_MORE_1] = { 0x80, 0xbf, STRING_INSIDE }, [STRING_MORE_2] = { 0x80, 0xbf, STRING_MORE_1 },
        [STRING_MORE_3] = { 0x80, 0xbf, STRING_MORE_2 }, [STRING_E0] = { 0xa0, 0xbf, STRING_MORE_1 },
        [STRING_ED] = { 0x80, 0x9f, STRING_MORE_1 }, [STRING_F0] = { 0x90, 0xbf, STRING_MORE_2 },
        [STRING_F4] = { 0x80, 0x8f, STRING_MORE_2 },
    };
    int hex = hex_value(c);

    if (at < STRING_ESCAPE)
        return c >= bytes[at].lo && c <= bytes[at].hi ? (enum string_at)bytes[at].next : STRING_DEAD;
    if (at == STRING_ESCAPE)
        return c == 'u' ? STRING_HEX_4 : c && strchr("\"\\/bfnrt", c) ? STRING_INSIDE : STRING_DEAD;
    if (hex < 0)
        return STRING_DEAD;
    switch (at) {
    case STRING_HEX_4: return hex == 0 ? STRING_ZERO_3 : hex == 13 ? STRING_SURROGATE : STRING_HEX_3;
    case STRING_HEX_3: return STRING_HEX_2;
    case STRING_HEX_2: return STRING_HEX_1;
    case STRING_ZERO_3: return hex ? STRING_HEX_2 : STRING_ZERO_2;
    case STRING_ZERO_2: return hex ? STRING_HEX_1 : STRING_ZERO_1;
    case STRING_ZERO_1: return hex ? STRING_INSIDE : STRING_DEAD;
    case STRING_SURROGATE: return hex < 8 ? STRING_HEX_2 : STRING_DEAD;
    default: return STRING_INSIDE;
    }
}

/* Bytes to the end of the character it is in. */
static unsigned string_missing(uint32_t at)
{
    static const uint8_t missing[] = {
        [STRING_MORE_1] = 1, [STRING_MORE_2] = 2, [STRING_MORE_3] = 3, [STRING_E0] = 2, [STRING_ED] = 2,
        [STRING_F0] = 3,
        [STRING_F4] = 3, [STRING_ESCAPE] = 1, [STRING_HEX_4] = 4, [STRING_HEX_3] = 3, [STRING_HEX_2] = 2,
        [STRING_HEX_1] = 1, [STRING_ZERO_3] = 3, [STRING_ZERO_2] = 2, [STRING_ZERO_1] = 1, [STRING_SURROGATE] = 3,
        [STRING_DEAD] = 0,
    };

    return missing[at];
}

/* ---- strings with a pattern ---- */

static enum outcome string_step(const struct node *n, struct spot *s, uint8_t byte)
{
    enum string_at at = (enum string_at)s->at;

    if (at == STRING_BEGIN) {
        s->at = STRING_INSIDE;
        return byte == '"' ? GOES_ON : REFUSED;
    }
    if (at == STRING_INSIDE && byte == '"')
        return s->state >= n->string.min ? IS_OVER : REFUSED;
    if (at == STRING_INSIDE && n->string.max != UINT32_MAX && s->state >= n->string.max)
        return REFUSED;
    /* Counted as far as it matters, so that strings without bounds are alike. */
    if (at == STRING_INSIDE && (n->string.max != UINT32_MAX || s->state < n->string.min))
        s->state++;
    s->at = at == STRING_INSIDE ? string_first(byte) : string_later(at, byte);
    return s->at == STRING_DEAD ? REFUSED : GOES_ON;
}

enum pattern_at { PATTERN_BEGIN, PATTERN_INSIDE, PATTERN_ESCAPE };
static const char escaped[] = "\"\\/bfnrt", meant[] = "\"\\/\b\f\n\r\t";

static enum outcome pattern_read(const struct pattern *p, struct spot *s, uint8_t byte)
{
    uint16_t next;

    if (s->at == PATTERN_BEGIN) {
        s->at = PATTERN_INSIDE;
        return byte == '"' ? GOES_ON : REFUSED;
    }
    if (s->at == PATTERN_INSIDE && byte == '"')
        return p->distance[s->state] == 0 ? IS_OVER : REFUSED;
    if (s->at == PATTERN_INSIDE && byte == '\\') {
        s->at = PATTERN_ESCAPE;
        for (size_t i = 0; i < sizeof(meant) - 1; i++)
            if (pattern_step(p, (uint16_t)s->state, (uint8_t)meant[i]) != PATTERN_DEAD)
                return GOES_ON;
        return REFUSED;
    }
    if (s->at == PATTERN_ESCAPE) {
        const char *e = byte ? strchr(escaped, byte) : NULL;
        if (!e)
            return REFUSED;
        byte = (uint8_t)meant[e - escaped];
    } else if (byte < 0x20) {
        return REFUSED;
    }
    next = pattern_step(p, (uint16_t)s->state, byte);
    s->at = PATTERN_INSIDE;
    s->state = next;
    return next == PATTERN_DEAD ? REFUSED : GOES_ON;
}

/* Bytes to the string's end. Behind a backslash the cheapest of what it may stand for. */
static uint32_t pattern_price(const struct pattern *p, const struct spot *s)
{
    uint32_t best = GRAMMAR_NEVER;

    if (s->at != PATTERN_ESCAPE)
        return p->distance[s->state] + (s->at == PATTERN_BEGIN ? 2u : 1u);
    for (size_t i = 0; i < sizeof(meant) - 1; i++) {
        uint16_t next = pattern_step(p, (uint16_t)s->state, (uint8_t)meant[i]);
        if (next != PATTERN_DEAD)
            best = MIN(best, p->distance[next] + 2u);
    }
    return best;
}

/* ---- texts ---- */

struct spot text_spot(uint32_t lo, uint32_t hi, uint32_t at)
{
    return (struct spot){ ANY_TEXT, at, lo | (uint64_t)hi << 32 };
}

/* The first of lo..hi whose byte at `at` is no less than c; one that ends there comes first. */
static uint32_t text_bound(const struct grammar *g, uint32_t lo, uint32_t hi, uint32_t at, int c)
{
    while (lo < hi) {
        uint32_t middle = lo + (hi - lo) / 2;
        const struct text *t = &g->texts[middle];
        if (t->len == at || (uint8_t)t->s[at] < c)
            lo = middle + 1;
        else
            hi = middle;
    }
    return lo;
}

static enum outcome text_step(const struct grammar *g, struct spot *s, uint8_t byte)
{
    uint32_t lo = (uint32_t)s->state, hi = (uint32_t)(s->state >> 32);

    lo = text_bound(g, lo, hi, s->at, byte);
    hi = text_bound(g, lo, hi, s->at, byte + 1);
    if (lo == hi)
        return REFUSED;
    *s = text_spot(lo, hi, s->at + 1);
    return hi - lo == 1 && g->texts[lo].len == s->at ? IS_OVER : GOES_ON;
}

/* ---- all of them ---- */

enum outcome spot_step(const struct grammar *g, struct spot *s, uint8_t byte)
{
    const struct node *n = &g->nodes[s->node];
    struct number_state number;

    switch (n->kind) {
    case NODE_TEXT:
        return text_step(g, s, byte);
    case NODE_STRING:
        return string_step(n, s, byte);
    case NODE_PATTERN:
        return pattern_read(n->pattern, s, byte);
    default:
        number = (struct number_state){ s->state, s->at };
        if (!number_step(n->number, &number, byte))
            return REFUSED;
        s->state = number.value;
        s->at = number.at;
        return GOES_ON;
    }
}

uint32_t spot_price(const struct grammar *g, const struct spot *s)
{
    const struct node *n = &g->nodes[s->node];

    switch (n->kind) {
    case NODE_TEXT:
        return texts_price(g, (uint32_t)s->state, (uint32_t)(s->state >> 32), s->at);
    case NODE_STRING:
        return (s->at == STRING_BEGIN ? 2 : 1 + string_missing(s->at)) +
               (s->state < n->string.min ? n->string.min - (uint32_t)s->state : 0);
    case NODE_PATTERN:
        return pattern_price(n->pattern, s);
    default:
        return number_missing(n->number, (struct number_state){ s->state, s->at });
    }
}

bool spot_may_end(const struct grammar *g, const struct spot *s)
{
    const struct node *n = &g->nodes[s->node];

    if (n->kind == NODE_TEXT)
        return g->texts[(uint32_t)s->state].len == s->at;
    return n->kind == NODE_NUMBER && number_missing(n->number, (struct number_state){ s->state, s->at }) == 0;
}

static void add_bytes(uint64_t set[4], const char *bytes)
{
    for (; *bytes; bytes++)
        set[(uint8_t)*bytes / 64] |= 1ull << (uint8_t)*bytes % 64;
}

void spot_bytes(const struct grammar *g, const struct spot *s, uint64_t set[4])
{
    const struct node *n = &g->nodes[s->node];
    uint32_t lo = (uint32_t)s->state, hi = (uint32_t)(s->state >> 32);

    if (n->kind == NODE_NUMBER)
        add_bytes(set, "-.0123456789,}]");
    else if ((n->kind == NODE_STRING || n->kind == NODE_PATTERN) && s->at == 0)
        add_bytes(set, "\"");
    else if (n->kind != NODE_TEXT || hi - lo > 16)
        memset(set, 0xff, 4 * sizeof(*set));
    else
        for (; lo < hi; lo++)
            add_bytes(set, g->texts[lo].len == s->at ? ",}]" : (char[]){ g->texts[lo].s[s->at], 0 });
}

bool spot_in_string(const struct grammar *g, const struct spot *s, uint32_t *ret_room, uint32_t *ret_need)
{
    const struct node *n = &g->nodes[s->node];

    if (n->kind != NODE_STRING || s->at != STRING_INSIDE)
        return false;
    *ret_room = n->string.max == UINT32_MAX ? UINT32_MAX : n->string.max - (uint32_t)s->state;
    *ret_need = s->state < n->string.min ? n->string.min - (uint32_t)s->state : 0;
    return true;
}

int spot_scan_string(const char *s, size_t len)
{
    enum string_at at = STRING_INSIDE;
    int n = 0;

    for (size_t i = 0; i < len; i++) {
        if (at == STRING_INSIDE && s[i] == '"')
            return -1;
        n += at == STRING_INSIDE;
        at = at == STRING_INSIDE ? string_first((uint8_t)s[i]) : string_later(at, (uint8_t)s[i]);
        if (at == STRING_DEAD)
            return -1;
    }
    return n;
}
