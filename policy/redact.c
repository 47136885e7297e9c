/* Hides what was found before a text goes to a cloud, and shows it again in what comes back, whatever the pieces in which
 * it comes. A placeholder holds no ']' but its last byte, so what may still become one is a short tail. */
#include "policy/privacy.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

struct value { enum pii type; char *text; size_t len; char name[48]; size_t name_len; };

struct redaction {
    char nonce[2 * REDACTION_NONCE_BYTES + 1];
    struct value *values;
    size_t n, cap;
    unsigned counts[PII_COUNT];
};

int redaction_new(struct redaction **ret, const uint8_t nonce[REDACTION_NONCE_BYTES])
{
    struct redaction *r = calloc(1, sizeof(*r));

    if (!r)
        return -ENOMEM;
    for (size_t i = 0; i < REDACTION_NONCE_BYTES; i++)
        sprintf(r->nonce + 2 * i, "%02x", nonce[i]);
    *ret = r;
    return 0;
}

void redaction_free(struct redaction *r)
{
    if (!r)
        return;
    for (size_t i = 0; i < r->n; i++) {
        explicit_bzero(r->values[i].text, r->values[i].len);
        free(r->values[i].text);
    }
    free(r->values);
    free(r);
}

size_t redaction_count(const struct redaction *r, enum pii t)
{
    return t == PII_COUNT ? r->n : r->counts[t];
}

/* The value's entry, made when it is new. */
static int find_value(struct redaction *r, enum pii type, const char *text, size_t len, const struct value **ret)
{
    struct value *v;

    for (size_t i = 0; i < r->n; i++) {
        v = &r->values[i];
        if (v->type == type && v->len == len && memcmp(v->text, text, len) == 0) {
            *ret = v;
            return 0;
        }
    }
    if (r->n == r->cap) {
        size_t cap = MAX(16, 2 * r->cap);
        struct value *values = reallocarray(r->values, cap, sizeof(*values));

        if (!values)
            return -ENOMEM;
        r->values = values;
        r->cap = cap;
    }
    v = &r->values[r->n];
    *v = (struct value){ .type = type, .text = malloc(len + 1), .len = len };
    if (!v->text)
        return -ENOMEM;
    memcpy(v->text, text, len);
    v->text[len] = '\0';
    v->name_len = (size_t)snprintf(v->name, sizeof(v->name), "[%s_%u_%s]", pii_name(type), ++r->counts[type], r->nonce);
    r->n++;
    *ret = v;
    return 0;
}

int redaction_hide(struct redaction *r, const char *text, size_t len, const struct pii_span *spans, size_t n_spans,
                   struct buf *out)
{
    size_t at = 0;

    for (size_t i = 0; i < n_spans; i++) {
        const struct value *v;
        int e = find_value(r, spans[i].type, text + spans[i].start, spans[i].len, &v);

        if (e == 0)
            e = buf_append(out, text + at, spans[i].start - at);
        if (e == 0)
            e = buf_append(out, v->name, v->name_len);
        if (e < 0)
            return e;
        at = spans[i].start + spans[i].len;
    }
    return buf_append(out, text + at, len - at);
}

/* ---- showing again ----------------------------------------------------------------------------------------------- */

void restorer_init(struct restorer *s, const struct redaction *r, bool json)
{
    *s = (struct restorer){ .r = r, .json = json };
}

/* The value whose placeholder the n bytes are, or NULL. *ret_begins: they may become one. */
static const struct value *value_named(const struct redaction *r, const char *s, size_t n, bool *ret_begins)
{
    *ret_begins = false;
    for (size_t i = 0; i < r->n; i++) {
        const struct value *v = &r->values[i];

        if (n <= v->name_len && memcmp(v->name, s, n) == 0) {
            if (n == v->name_len)
                return v;
            *ret_begins = true;
        }
    }
    return NULL;
}

static int put_value(const struct restorer *s, const struct value *v, struct buf *out)
{
    if (!s->json)
        return buf_append(out, v->text, v->len);
    for (size_t i = 0; i < v->len; i++) {
        unsigned char c = (unsigned char)v->text[i];
        int r = c < 0x20 ? buf_printf(out, "\\u%04x", c)
              : c == '"' || c == '\\' ? buf_printf(out, "\\%c", c) : buf_append(out, &c, 1);

        if (r < 0)
            return r;
    }
    return 0;
}

int restorer_push(struct restorer *s, const char *text, size_t len, struct buf *out)
{
    int r = 0;

    for (size_t i = 0; i < len && r == 0;) {
        const struct value *v;
        bool begins;

        if (!s->n_held) {                  /* up to the next bracket nothing can be meant */
            const char *bracket = memchr(text + i, '[', len - i);
            size_t n = bracket ? (size_t)(bracket - (text + i)) : len - i;

            r = buf_append(out, text + i, n);
            i += n;
            if (!bracket)
                break;
        } else if (text[i] == '[') {       /* no placeholder holds one */
            r = restorer_flush(s, out);
        }
        if (r < 0)
            return r;
        s->held[s->n_held++] = text[i++];
        v = value_named(s->r, s->held, s->n_held, &begins);
        if (v) {
            s->n_held = 0;
            r = put_value(s, v, out);
        } else if (!begins) {
            r = restorer_flush(s, out);
        }
    }
    return r;
}

int restorer_flush(struct restorer *s, struct buf *out)
{
    size_t n = s->n_held;

    s->n_held = 0;
    return buf_append(out, s->held, n);
}
