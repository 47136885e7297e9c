/* Privacy: what a text gives away, found by form and checksum, and how it is hidden from a cloud and shown again.
 *
 * Detection can only raise a label, never lower one, and cannot carry "private never leaves" alone: names and addresses
 * have no form. A detector that fails is an answer of its own: unknown is private. */
#pragma once

#include <stdbool.h>
#include "base/buf.h"
#include "base/err.h"
#include "policy/policy.h"

/* ---- detect.c ---------------------------------------------------------------------------------------------------- */
enum pii {
    PII_PEM,          /* a private key between its BEGIN and END lines */
    PII_KEY,          /* an API key or token by its issuer's prefix, a JWT, "password: …" */
    PII_EMAIL,
    PII_URL,          /* http, https and ftp addresses, and www. */
    PII_IBAN,         /* the country's length and ISO 7064 mod 97 */
    PII_CARD,         /* an issuer's prefix and length, and Luhn */
    PII_IP,           /* version 4, four numbers up to 255, or version 6 */
    PII_SSN,          /* 123-45-6789 in the ranges that are given out, taxpayer numbers too; undivided when named */
    PII_PHONE,        /* E.164, a divided national number, or seven digits and more that are said to be one */
    PII_ENTROPY,      /* a long random-looking word: most of 24 characters and more are secrets or digests */
    PII_TERM,         /* of the configured list */
    PII_CUSTOM,       /* matched by a configured regular expression */
    PII_COUNT
};
const char *pii_name(enum pii t);                        /* "EMAIL", … */
int pii_from_string(enum pii *ret, const char *s);       /* case-insensitive; 0 or -EINVAL */
int pii_set_from_string(unsigned *ret, const char *s);   /* "email, card" -> bits 1u << t; "none", "all"; 0 or -EINVAL */

struct pii_span { enum pii type; size_t start, len; };   /* bytes of the text */
struct pii_spans { struct pii_span *at; size_t len, cap; };
void pii_spans_done(struct pii_spans *s);

struct detector_config {
    unsigned types;                    /* set of enum pii to look for */
    const char *const *terms;          /* words that give something away: whole words, in any case (ASCII) */
    size_t n_terms;
    const char *const *patterns;       /* PCRE2 regular expressions */
    size_t n_patterns;
};
struct detector;
/* Compile; strings are copied. 0, -ENOMEM, or -EINVAL with *err naming the pattern and the offset in it. */
int detector_new(struct detector **ret, const struct detector_config *c, struct err *err);
/* The detector that a policy asks for: its types, terms and pattern. As detector_new(); *ret NULL: it asks for none. */
int detector_of_policy(struct detector **ret, const struct policy_config *c, struct err *err);
void detector_free(struct detector *d);
static inline void detector_freep(struct detector **d) { detector_free(*d); }
/* The types found in all strings of a JSON value (messages, tools), member names included, as a set of enum pii. As
 * detector_scan(). */
int detector_scan_json(struct detector *d, const json_t *value, unsigned *ret_types);
/* Append what the len bytes of text (any bytes) give away, in order, not overlapping: the type listed first in enum pii
 * wins. 0, -ENOMEM, or -EINVAL: a regular expression gave up, so that the text must be taken as private. One thread at
 * a time. */
int detector_scan(struct detector *d, const char *text, size_t len, struct pii_spans *out);

/* ---- redact.c ---------------------------------------------------------------------------------------------------- */
/* What one request's placeholders stand for. A placeholder is "[EMAIL_1_3f9a2c41d07b]": the type, a number, and the
 * request's nonce, which nobody who wrote the text could know. The same value has the same placeholder throughout. */
struct redaction;
#define REDACTION_NONCE_BYTES 6
/* The nonce is the caller's, from a random source: policy has none. 0 or -ENOMEM. */
int redaction_new(struct redaction **ret, const uint8_t nonce[REDACTION_NONCE_BYTES]);
void redaction_free(struct redaction *r);
static inline void redaction_freep(struct redaction **r) { redaction_free(*r); }
/* Append text with its spans (in order, of detector_scan()) replaced. 0, -ENOMEM, -EMSGSIZE of out. */
int redaction_hide(struct redaction *r, const char *text, size_t len, const struct pii_span *spans, size_t n_spans,
                   struct buf *out);
size_t redaction_count(const struct redaction *r, enum pii t);       /* different values hidden; PII_COUNT: of all types */

/* Puts the values back into a stream of text, cut anywhere. */
struct restorer {
    const struct redaction *r;
    bool json;                   /* the text is JSON: values are escaped as strings hold them */
    char held[64];               /* the beginning of what may become a placeholder */
    size_t n_held;
};
void restorer_init(struct restorer *s, const struct redaction *r, bool json);
/* Append what can be shown. 0, -ENOMEM, -EMSGSIZE. */
int restorer_push(struct restorer *s, const char *text, size_t len, struct buf *out);
int restorer_flush(struct restorer *s, struct buf *out);       /* the end: what was held is no placeholder */
