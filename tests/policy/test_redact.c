/* Redaction: nothing found is left, and whatever comes back is whole again, wherever the stream was cut. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "policy/privacy.h"

static const uint8_t nonce[REDACTION_NONCE_BYTES] = { 0x3f, 0x9a, 0x2c, 0x41, 0xd0, 0x7b };

static char *hide(struct redaction *r, const char *text)
{
    struct detector *d;
    struct pii_spans spans = { 0 };
    struct buf out;

    buf_init(&out, 1 << 20);
    cr_assert(detector_new(&d, &(struct detector_config){ .types = (1u << PII_COUNT) - 1 }, NULL) == 0);
    cr_assert(detector_scan(d, text, strlen(text), &spans) == 0);
    cr_assert(redaction_hide(r, text, strlen(text), spans.at, spans.len, &out) == 0);
    pii_spans_done(&spans);
    detector_free(d);
    return buf_take(&out);
}

Test(redact, typed_and_the_same_for_the_same)
{
    cleanup(redaction_freep) struct redaction *r = NULL;
    char *s;

    cr_assert(redaction_new(&r, nonce) == 0);
    s = hide(r, "a@b.io wrote to c@d.io, then a@b.io paid with 4111 1111 1111 1111");
    cr_assert_str_eq(s, "[EMAIL_1_3f9a2c41d07b] wrote to [EMAIL_2_3f9a2c41d07b], then [EMAIL_1_3f9a2c41d07b] paid with "
                        "[CARD_1_3f9a2c41d07b]");
    cr_assert(redaction_count(r, PII_EMAIL) == 2 && redaction_count(r, PII_CARD) == 1 && redaction_count(r, PII_COUNT) == 3);
    free(s);
    s = hide(r, "again c@d.io");
    cr_assert_str_eq(s, "again [EMAIL_2_3f9a2c41d07b]");
    free(s);
}

/* Restore `text` cut after random bytes. */
static char *restore(const struct redaction *r, const char *text, bool json)
{
    struct restorer s;
    struct buf out;
    size_t len = strlen(text);

    buf_init(&out, 1 << 20);
    restorer_init(&s, r, json);
    for (size_t at = 0, n; at < len; at += n) {
        n = MIN((size_t)(rand() % 7), len - at);
        cr_assert(restorer_push(&s, text + at, n, &out) == 0);
    }
    cr_assert(restorer_flush(&s, &out) == 0);
    return buf_take(&out);
}

/* Text made of placeholders, halves of placeholders and brackets; what it must become is built beside it. */
Test(redact, any_split_restores_exactly)
{
    static const char *const values[] = { "jo@example.org", "4111 1111 1111 1111", "+49 30 901820", "DE89370400440532013000" };
    static const char *const names[] = { "[EMAIL_1_3f9a2c41d07b]", "[CARD_1_3f9a2c41d07b]", "[PHONE_1_3f9a2c41d07b]",
                                         "[IBAN_1_3f9a2c41d07b]" };
    static const char *const noise[] = { "[", "]", "[EMAIL_", "[EMAIL_1_3f9a2c41d07", "[EMAIL_2_3f9a2c41d07b]", "[[", " a ", "é",
                                         "[CARD_1_000000000000]", "[email_1_3f9a2c41d07b]" };
    cleanup(redaction_freep) struct redaction *r = NULL;
    int n = getenv("TERN_SPLITS") ? atoi(getenv("TERN_SPLITS")) : 20000;
    char *hidden;

    srand(7);
    cr_assert(redaction_new(&r, nonce) == 0);
    hidden = hide(r, "jo@example.org, 4111 1111 1111 1111, +49 30 901820, DE89370400440532013000");
    cr_assert(redaction_count(r, PII_COUNT) == ARRAY_SIZE(values), "%s", hidden);
    free(hidden);
    for (int i = 0; i < n; i++) {
        char given[512] = "", want[512] = "", *got;

        for (int k = 0; k < 8; k++) {
            size_t v = (size_t)rand() % (ARRAY_SIZE(values) + ARRAY_SIZE(noise));
            bool known = v < ARRAY_SIZE(values);

            strcat(given, known ? names[v] : noise[v - ARRAY_SIZE(values)]);
            strcat(want, known ? values[v] : noise[v - ARRAY_SIZE(values)]);
        }
        got = restore(r, given, false);
        cr_assert(strcmp(got, want) == 0, "'%s' became '%s', not '%s'", given, got, want);
        free(got);
    }
}

/* Inside a tool's arguments a value is written as JSON strings hold it. */
Test(redact, values_are_escaped_inside_json)
{
    cleanup(redaction_freep) struct redaction *r = NULL;
    char *hidden, *got;
    json_t *j;

    cr_assert(redaction_new(&r, nonce) == 0);
    hidden = hide(r, "password=a\\\\bcdef\tnext, DB_PASSWORD=x\\y/zz9");
    cr_assert(redaction_count(r, PII_KEY) == 2, "%s", hidden);
    free(hidden);
    got = restore(r, "{\"secret\": \"[KEY_2_3f9a2c41d07b]\"}", true);
    j = json_loads(got, 0, NULL);
    cr_assert_str_eq(json_string_value(json_object_get(j, "secret")), "x\\y/zz9");
    json_decref(j);
    free(got);
}
