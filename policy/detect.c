/* Runs the table of pii.c, the configured words and the configured expressions over a text.
 *
 * What a hostile text could cost is bounded: steps of a match, candidates and findings of a text. Whoever exceeds them
 * is taken as private unread. */
#define PCRE2_CODE_UNIT_WIDTH 8
#include "policy/detect.h"

#include <ctype.h>
#include <errno.h>
#include <pcre2.h>
#include <string.h>
#include <strings.h>

#define MATCH_LIMIT 200000          /* steps of one match; the built-in expressions need some hundred */
#define MAX_CANDIDATES 20000        /* of one text */
#define MAX_SPANS 2000
#define SHORTEST_RUN 16

static const char *const names[PII_COUNT] = {
    [PII_PEM] = "PEM", [PII_KEY] = "KEY", [PII_EMAIL] = "EMAIL", [PII_URL] = "URL", [PII_IBAN] = "IBAN",
    [PII_CARD] = "CARD", [PII_IP] = "IP", [PII_SSN] = "SSN", [PII_PHONE] = "PHONE", [PII_ENTROPY] = "ENTROPY",
    [PII_TERM] = "TERM", [PII_CUSTOM] = "CUSTOM",
};

const char *pii_name(enum pii t)
{
    return (unsigned)t < PII_COUNT ? names[t] : "UNKNOWN";
}

static int pii_from_span(enum pii *ret, const char *s, size_t len)
{
    for (unsigned t = 0; t < PII_COUNT; t++)
        if (strlen(names[t]) == len && strncasecmp(names[t], s, len) == 0) {
            *ret = (enum pii)t;
            return 0;
        }
    return -EINVAL;
}

int pii_from_string(enum pii *ret, const char *s)
{
    return pii_from_span(ret, s, strlen(s));
}

int pii_set_from_string(unsigned *ret, const char *s)
{
    unsigned set = 0;

    s += strspn(s, " \t");
    if (strcasecmp(s, "none") == 0 || strcasecmp(s, "all") == 0) {
        *ret = strcasecmp(s, "all") == 0 ? (1u << PII_COUNT) - 1 : 0;
        return 0;
    }
    while (*s) {
        size_t len = strcspn(s, ", \t");
        enum pii t;

        if (pii_from_span(&t, s, len) < 0)
            return -EINVAL;
        set |= 1u << t;
        s += len;
        s += strspn(s, ", \t");
    }
    *ret = set;
    return 0;
}

void pii_spans_done(struct pii_spans *s)
{
    free(s->at);
    *s = (struct pii_spans){ 0 };
}

/* row.pattern is not looked at again. */
struct rule { struct pii_row row; pcre2_code *code; };

struct detector {
    struct rule *rules;
    size_t n_rules;
    pcre2_match_data *match;
    pcre2_match_context *limits;
};

void detector_free(struct detector *d)
{
    if (!d)
        return;
    for (size_t i = 0; i < d->n_rules; i++)
        pcre2_code_free(d->rules[i].code);
    pcre2_match_data_free(d->match);
    pcre2_match_context_free(d->limits);
    free(d->rules);
    free(d);
}

static int add_rule(struct detector *d, const struct pii_row *row, struct err *err)
{
    struct rule *r = &d->rules[d->n_rules];
    PCRE2_SIZE at;
    int code;

    *r = (struct rule){ .row = *row };
    r->code = pcre2_compile((PCRE2_SPTR)row->pattern, PCRE2_ZERO_TERMINATED, PCRE2_NEVER_UTF, &code, &at, NULL);
    if (!r->code) {
        PCRE2_UCHAR why[128] = "";

        if (code == PCRE2_ERROR_NOMEMORY)
            return -ENOMEM;
        pcre2_get_error_message(code, why, sizeof(why));
        return err_set(err, -EINVAL, "pattern \"%.64s\": %s at byte %zu", row->pattern, (const char *)why, (size_t)at);
    }
    d->n_rules++;
    return 0;
}

/* A whole word, taken literally: what is no letter is written as its number. */
static int add_term(struct detector *d, const char *term, struct err *err)
{
    cleanup(buf_done) struct buf b;
    int r;

    buf_init(&b, 1 << 16);
    r = buf_puts(&b, "(?i)(?<![\\w\\x80-\\xff])");
    for (const char *p = term; *p && r == 0; p++)
        r = buf_printf(&b, isalnum((uint8_t)*p) && isascii(*p) ? "%c" : "\\x%02x", (uint8_t)*p);
    if (r == 0)
        r = buf_puts(&b, "(?![\\w\\x80-\\xff])");
    return r < 0 ? r : add_rule(d, &(struct pii_row){ PII_TERM, (const char *)b.data, NULL, false }, err);
}

static int add_rules(struct detector *d, const struct detector_config *c, struct err *err)
{
    int r = 0;

    for (size_t i = 0; i < n_pii_rows && r == 0; i++)
        if (c->types & 1u << pii_rows[i].type)
            r = add_rule(d, &pii_rows[i], err);
    for (size_t i = 0; i < c->n_terms && r == 0; i++)
        r = add_term(d, c->terms[i], err);
    for (size_t i = 0; i < c->n_patterns && r == 0; i++)
        r = add_rule(d, &(struct pii_row){ PII_CUSTOM, c->patterns[i], NULL, false }, err);
    return r;
}

int detector_new(struct detector **ret, const struct detector_config *c, struct err *err)
{
    struct detector *d = calloc(1, sizeof(*d));
    int r = -ENOMEM;

    if (!d)
        return -ENOMEM;
    d->rules = calloc(n_pii_rows + c->n_terms + c->n_patterns, sizeof(*d->rules));
    d->match = pcre2_match_data_create(4, NULL);
    d->limits = pcre2_match_context_create(NULL);
    if (d->rules && d->match && d->limits) {
        pcre2_set_match_limit(d->limits, MATCH_LIMIT);
        r = add_rules(d, c, err);
    }
    if (r < 0) {
        detector_free(d);
        return r;
    }
    *ret = d;
    return 0;
}

int detector_of_policy(struct detector **ret, const struct policy_config *c, struct err *err)
{
    const char *terms[sizeof(c->terms) / 2], *pattern = c->pattern;
    char words[sizeof(c->terms)], *rest = words;
    struct detector_config config = { .types = c->detect, .terms = terms, .patterns = &pattern };

    if (!c->detect) {
        *ret = NULL;
        return 0;
    }
    strcpy(words, c->terms);
    for (char *word; c->detect & 1u << PII_TERM && (word = strsep(&rest, ","));) {
        word += strspn(word, " \t");
        for (size_t n = strlen(word); n && strchr(" \t", word[n - 1]);)
            word[--n] = '\0';
        if (*word)
            terms[config.n_terms++] = word;
    }
    config.n_patterns = c->detect & 1u << PII_CUSTOM && *pattern;
    return detector_new(ret, &config, err);
}

/* ---- a scan ------------------------------------------------------------------------------------------------------ */

/* One text being scanned. */
struct scan {
    struct detector *d;
    const char *text;
    size_t len, n_candidates, first;          /* first: of this text's spans in out */
    uint8_t *taken;                           /* (len + 7) / 8 bits: bytes that are in a span */
    struct pii_spans *out;
};

static int add_span(struct scan *s, enum pii type, const struct candidate *c)
{
    struct pii_spans *out = s->out;

    if (out->len - s->first >= MAX_SPANS)
        return -EINVAL;
    for (size_t i = c->start; i < c->end; i++)
        if (s->taken[i / 8] & 1u << i % 8)
            return 0;
    if (out->len == out->cap) {
        size_t cap = MAX(16, 2 * out->cap);
        struct pii_span *at = reallocarray(out->at, cap, sizeof(*at));

        if (!at)
            return -ENOMEM;
        out->at = at;
        out->cap = cap;
    }
    for (size_t i = c->start; i < c->end; i++)
        s->taken[i / 8] |= (uint8_t)(1u << i % 8);
    out->at[out->len++] = (struct pii_span){ type, c->start, c->end - c->start };
    return 0;
}

/* Try the rule in the text's bytes from..end; its check sees what stands around them too. */
static int scan_part(struct scan *s, const struct rule *rule, size_t from, size_t end)
{
    while (from < end) {
        struct candidate c = { .text = s->text, .len = s->len };
        const PCRE2_SIZE *span;
        int r = pcre2_match(rule->code, (PCRE2_SPTR)s->text, end, from, 0, s->d->match, s->d->limits);

        if (r == PCRE2_ERROR_NOMATCH)
            return 0;
        if (r < 0)
            return r == PCRE2_ERROR_NOMEMORY ? -ENOMEM : -EINVAL;
        if (++s->n_candidates > MAX_CANDIDATES)
            return -EINVAL;
        span = pcre2_get_ovector_pointer(s->d->match);
        c.start = span[0];
        c.end = MAX(span[1], span[0]);
        from = c.start + 1;
        if (c.end > c.start && (!rule->row.check || rule->row.check(&c)) && c.end > c.start) {
            r = add_span(s, rule->row.type, &c);
            if (r < 0)
                return r;
            from = MAX(from, c.end);
        }
    }
    return 0;
}

static bool in_run(char c)
{
    return (isascii(c) && isalnum((uint8_t)c)) || c == '_' || c == '+' || c == '/' || c == '.' || c == '-';
}

static int scan_runs(struct scan *s, const struct rule *rule)
{
    for (size_t i = 0, end; i + SHORTEST_RUN <= s->len; i = end + 1) {
        int r;

        end = i + SHORTEST_RUN - 1;                            /* from behind: what is no run is passed in long steps */
        while (end > i && in_run(s->text[end]))
            end--;
        if (end > i || !in_run(s->text[i]))
            continue;
        for (end = i + SHORTEST_RUN; end < s->len && in_run(s->text[end]); end++)
            ;
        r = scan_part(s, rule, i, end);
        if (r < 0)
            return r;
    }
    return 0;
}

static int by_place(const void *a, const void *b)
{
    size_t x = ((const struct pii_span *)a)->start, y = ((const struct pii_span *)b)->start;

    return (x > y) - (x < y);
}

int detector_scan(struct detector *d, const char *text, size_t len, struct pii_spans *out)
{
    cleanup(freep) uint8_t *taken = calloc(len / 8 + 1, 1);
    struct scan s = { .d = d, .text = text, .len = len, .first = out->len, .taken = taken, .out = out };
    int r = taken ? 0 : -ENOMEM;

    for (size_t i = 0; i < d->n_rules && r == 0; i++)
        r = d->rules[i].row.long_words ? scan_runs(&s, &d->rules[i]) : scan_part(&s, &d->rules[i], 0, len);
    if (r < 0) {
        out->len = s.first;
        return r;
    }
    if (out->len > s.first)
        qsort(out->at + s.first, out->len - s.first, sizeof(*out->at), by_place);
    return 0;
}

static int scan_string(struct detector *d, const char *s, size_t len, unsigned *types)
{
    struct pii_spans spans = { 0 };
    int r = detector_scan(d, s, len, &spans);

    for (size_t i = 0; i < spans.len; i++)
        *types |= 1u << spans.at[i].type;
    pii_spans_done(&spans);
    return r;
}

/* As deep as jansson parses, at most. */
static int scan_value(struct detector *d, const json_t *value, unsigned *types)
{
    const json_t *child;
    const char *name;
    size_t i;
    int r = 0;

    if (json_is_string(value))
        return scan_string(d, json_string_value(value), json_string_length(value), types);
    json_array_foreach(value, i, child)
        if ((r = scan_value(d, child, types)) < 0)
            return r;
    json_object_foreach((json_t *)value, name, child)
        if ((r = scan_string(d, name, strlen(name), types)) < 0 || (r = scan_value(d, child, types)) < 0)
            return r;
    return r;
}

int detector_scan_json(struct detector *d, const json_t *value, unsigned *ret_types)
{
    unsigned types = 0;
    int r = scan_value(d, value, &types);

    if (r == 0)
        *ret_types = types;
    return r;
}
