/* Detectors: what must be found and what must not, the public test set with a bound for each type, and that no text is
 * dear to read. */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include "base/clock.h"
#include "policy/privacy.h"

static struct detector *detector_of(unsigned types)
{
    struct detector *d;

    cr_assert(detector_new(&d, &(struct detector_config){ .types = types }, NULL) == 0);
    return d;
}

#define ALL ((1u << PII_COUNT) - 1)

Test(detect, names_and_sets)
{
    unsigned set = 5;
    enum pii t;

    for (unsigned i = 0; i < PII_COUNT; i++)
        cr_assert(pii_from_string(&t, pii_name(i)) == 0 && t == i);
    cr_assert(pii_from_string(&t, "mail") == -EINVAL);
    cr_assert(pii_set_from_string(&set, "nothing") == -EINVAL && set == 5);
    cr_assert(pii_set_from_string(&set, "email, Card") == 0 && set == (1u << PII_EMAIL | 1u << PII_CARD));
    cr_assert(pii_set_from_string(&set, "all") == 0 && set == ALL);
    cr_assert(pii_set_from_string(&set, "none") == 0 && set == 0);
}

/* «…» marks what must be found, of the type given; a text without marks must give nothing. */
static const struct { enum pii type; const char *text; } cases[] = {
    { PII_EMAIL, "write to «john.doe+x@mail.example.co.uk»." }, { PII_EMAIL, "(«a@b.io»), thanks" },
    { PII_EMAIL, "«jürgen@müller.de» und" }, { PII_EMAIL, "at @home and me@localhost and @user, a @ b.com" },
    { PII_IBAN, "«DE89 3704 0044 0532 0130 00» please" }, { PII_IBAN, "iban:«gb82west12345698765432»" },
    { PII_IBAN, "DE88 3704 0044 0532 0130 00" }, { PII_IBAN, "XX82WEST12345698765432" },
    { PII_IBAN, "GB82WEST123456987654321" },
    { PII_CARD, "«4111 1111 1111 1111»" }, { PII_CARD, "my «5500-0000-0000-0004», ok" }, { PII_CARD, "«378282246310005»" },
    { PII_CARD, "4111 1111 1111 1112" }, { PII_CARD, "order 1234567890123456" }, { PII_CARD, "0.4111111111111111" },
    { PII_SSN, "it is «123-45-6789»" }, { PII_SSN, "ssn «123456789»" }, { PII_SSN, "000-12-3456, 666-12-3456" },
    { PII_SSN, "part 123456789" }, { PII_SSN, "123-00-6789 or 123-45-0000" }, { PII_SSN, "1-123-45-6789" },
    { PII_PHONE, "call «+49 30 901820»" }, { PII_PHONE, "«(212) 555-0187» works" }, { PII_PHONE, "or «212.555.0187»?" },
    { PII_PHONE, "«020 7946 0958» in London" }, { PII_PHONE, "my phone: «5550187»" },
    { PII_PHONE, "on 2024-01-15 at 10:30:00" }, { PII_PHONE, "1.000.000 EUR" }, { PII_PHONE, "born 12/24/1987" },
    { PII_PHONE, "pi is 3.14159265" }, { PII_PHONE, "in 1999-2003, 100 200 300 people" }, { PII_PHONE, "order 123456789" },
    { PII_IP, "from «192.168.0.1», dropped" }, { PII_IP, "«2001:db8::8a2e:370:7334» is up" }, { PII_IP, "ping «fe80::1»" },
    { PII_IP, "version 1.2.3.4" }, { PII_IP, "256.1.1.1 or 1.2.3.4.5" }, { PII_IP, "at 12:34:56" }, { PII_IP, "std::dec" },
    { PII_URL, "see «https://example.org/a?b=c». Then" }, { PII_URL, "«www.example.com/x»" }, { PII_URL, "http://" },
    { PII_KEY, "use «sk-proj-abcdefghijklmnopqrstuv0123»" }, { PII_KEY, "«AKIAIOSFODNN7EXAMPLE»!" },
    { PII_KEY, "x=«ghp_0123456789abcdefghijABCDEFGHIJ0123»" }, { PII_KEY, "password: «hunter2!»" },
    { PII_KEY, "Authorization: Bearer «abcdefgh12345»" }, { PII_KEY, "DB_PASSWORD=«correct-horse»" },
    { PII_KEY, "my password is «s3cret-thing»." },
    { PII_KEY, "«eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl»" },
    { PII_KEY, "the password is forgotten" }, { PII_KEY, "risk-averse-people-are-sometimes-wrong" },
    { PII_KEY, "secretary: nobody" }, { PII_KEY, "AKIA" },
    { PII_PEM, "«-----BEGIN RSA PRIVATE KEY-----\nMIIB\n-----END RSA PRIVATE KEY-----» end" },
    { PII_PEM, "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----" },
    { PII_ENTROPY, "t «Zk3vQ9xL0pWm7Rt2Yb8Nc5Hs»" }, { PII_ENTROPY, "«9f86d081884c7d659a2feaa0c55ad015» sum" },
    { PII_ENTROPY, "thisIsAVeryLongCamelCaseIdentifierName" }, { PII_ENTROPY, "/usr/share/doc/some-package/README" },
    { PII_ENTROPY, "donaudampfschifffahrtsgesellschaftskapitaen" },
};

#define OPEN "«"
#define CLOSE "»"

Test(detect, found_and_not_found)
{
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        struct detector *d = detector_of(1u << cases[i].type);
        const char *open = strstr(cases[i].text, OPEN), *close = strstr(cases[i].text, CLOSE);
        struct pii_spans spans = { 0 };
        char text[256] = "";
        size_t start = 0, len = 0;

        if (open) {
            start = (size_t)(open - cases[i].text);
            len = (size_t)(close - open) - strlen(OPEN);
            snprintf(text, sizeof(text), "%.*s%.*s%s", (int)start, cases[i].text, (int)len, open + strlen(OPEN),
                     close + strlen(CLOSE));
        } else {
            snprintf(text, sizeof(text), "%s", cases[i].text);
        }
        cr_assert(detector_scan(d, text, strlen(text), &spans) == 0);
        if (!open)
            cr_assert(spans.len == 0, "%s in '%s': found '%.*s'", pii_name(cases[i].type), text, (int)spans.at[0].len,
                      text + spans.at[0].start);
        else
            cr_assert(spans.len == 1 && spans.at[0].start == start && spans.at[0].len == len, "%s in '%s': %zu, '%.*s'",
                      pii_name(cases[i].type), text, spans.len, spans.len ? (int)spans.at[0].len : 0,
                      spans.len ? text + spans.at[0].start : "");
        pii_spans_done(&spans);
        detector_free(d);
    }
}

Test(detect, one_type_a_byte_in_order)
{
    static const char text[] = "4111 1111 1111 1111, a@b.io, https://x.org/?mail=c@d.org and +49 30 901820";
    static const enum pii want[] = { PII_CARD, PII_EMAIL, PII_EMAIL, PII_PHONE };
    struct detector *d = detector_of(ALL);
    struct pii_spans spans = { 0 };

    cr_assert(detector_scan(d, text, strlen(text), &spans) == 0);
    cr_assert_eq(spans.len, ARRAY_SIZE(want));
    for (size_t i = 0; i < spans.len; i++) {
        cr_assert(spans.at[i].type == want[i], "%zu is %s", i, pii_name(spans.at[i].type));
        cr_assert(i == 0 || spans.at[i].start >= spans.at[i - 1].start + spans.at[i - 1].len);
    }
    pii_spans_done(&spans);
    detector_free(d);
}

Test(detect, configured_words_and_patterns)
{
    static const char *const terms[] = { "Project Heron", "a+b\\E" }, *const patterns[] = { "EMP-[0-9]{5}" };
    static const char *const broken[] = { "fine", "(oops" }, *const slow[] = { "(a+)+$" };
    static const char text[] = "project heron and a+b\\E: EMP-12345, subproject heronry";
    struct detector_config c = { .terms = terms, .n_terms = 2, .patterns = patterns, .n_patterns = 1 };
    struct pii_spans spans = { 0 };
    struct detector *d = NULL;
    struct err err = { "" };

    cr_assert(detector_new(&d, &c, NULL) == 0 && detector_scan(d, text, strlen(text), &spans) == 0);
    cr_assert(spans.len == 3 && spans.at[0].type == PII_TERM && spans.at[1].type == PII_TERM && spans.at[2].type == PII_CUSTOM);
    pii_spans_done(&spans);
    detector_free(d);

    c = (struct detector_config){ .patterns = broken, .n_patterns = 2 };
    cr_assert(detector_new(&d, &c, &err) == -EINVAL && strstr(err.msg, "(oops") && strstr(err.msg, "byte 5"), "%s", err.msg);

    /* An expression that would take for ever gives up, and is not taken for "nothing found". */
    c = (struct detector_config){ .patterns = slow, .n_patterns = 1 };
    cr_assert(detector_new(&d, &c, NULL) == 0);
    cr_assert(detector_scan(d, "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaab", 41, &spans) == -EINVAL && spans.len == 0);
    detector_free(d);
}

/* As the configuration has it, and through all strings of a request. */
Test(detect, of_a_policy_in_json)
{
    cleanup(detector_freep) struct detector *d = NULL;
    struct policy_config c;
    json_t *j = json_pack("[{s:s}, {s:{s:s}}, {s:[s]}]", "role", "user", "f", "x", "see EMP-12345", "a", "ask acme ltd");
    unsigned types = 99;

    policy_config_default(&c);
    cr_assert(detector_of_policy(&d, &c, NULL) == 0 && d && detector_scan_json(d, j, &types) == 0 && types == 0);
    detector_free(TAKE(d));
    strcpy(c.terms, " Heron, ACME Ltd ,,");
    strcpy(c.pattern, "EMP-[0-9]{5}");
    cr_assert(detector_of_policy(&d, &c, NULL) == 0 && detector_scan_json(d, j, &types) == 0);
    cr_assert_eq(types, 1u << PII_TERM | 1u << PII_CUSTOM);
    json_object_set_new(json_array_get(j, 1), "mail a@b.io", json_null());
    cr_assert(detector_scan_json(d, j, &types) == 0 && types & 1u << PII_EMAIL);
    detector_free(TAKE(d));
    c.detect = 0;
    cr_assert(detector_of_policy(&d, &c, NULL) == 0 && !d);
    json_decref(j);
}

/* 256 KiB of what each expression likes best to begin with: read in the time of any other text, or given up. */
Test(detect, hostile_texts_are_cheap)
{
    static const char *const seeds[] = { "a@a.", "=", "=a", "eyJ.", "eyJ-", "1 ", "12 ", "1;1234567;", "aa11",
        "-----BEGIN PRIVATE KEY-----", "http://", "::1 ", ":1", "1.1.1.1 ", "password=", " is is", "sk-", "Aa1Bb2Cc3",
        "www.a.", "[", "\xff\xfe", "+1", "(((1" };
    size_t len = 256 << 10;
    char *text = malloc(len);
    struct detector *d = detector_of(ALL);

    for (size_t i = 0; i < ARRAY_SIZE(seeds); i++) {
        struct pii_spans spans = { 0 };
        uint64_t start = clock_usec(), spent;
        int r;

        for (size_t k = 0, n = strlen(seeds[i]); k < len; k++)
            text[k] = seeds[i][k % n];
        r = detector_scan(d, text, len, &spans);
        spent = clock_usec() - start;
        cr_assert(r == 0 || r == -EINVAL);
        cr_assert(spent < 2000000, "'%s': %lu us", seeds[i], (unsigned long)spent);
        pii_spans_done(&spans);
    }
    detector_free(d);
    free(text);
}

/* Offsets of the data set are characters. */
static size_t byte_of(const char *text, size_t chars)
{
    const char *p = text;

    for (; *p && chars; chars--)
        for (p++; ((uint8_t)*p & 0xc0) == 0x80; p++)
            ;
    return (size_t)(p - text);
}

/* Microsoft's presidio-research set (MIT). The bounds are regular expressions' and checksums' own figures there, or more.
 * A finding counts when it covers four fifths of the marked text; any other of the type is a false one. */
Test(detect, presidio_research)
{
    static const struct { const char *theirs; enum pii type; double recall, precision; } kinds[] = {
        { "EMAIL_ADDRESS", PII_EMAIL, .97, .97 }, { "IBAN_CODE", PII_IBAN, .95, .97 }, { "CREDIT_CARD", PII_CARD, .99, .97 },
        { "US_SSN", PII_SSN, .87, .97 }, { "PHONE_NUMBER", PII_PHONE, .90, .95 }, { "IP_ADDRESS", PII_IP, .97, .97 },
        { "DOMAIN_NAME", PII_URL, .97, .97 },
    };
    unsigned marked[PII_COUNT] = { 0 }, hit[PII_COUNT] = { 0 }, found[PII_COUNT] = { 0 }, right[PII_COUNT] = { 0 };
    const char *shared = getenv("TERN_SHARED");
    char path[512];
    json_t *set, *item, *span;
    struct detector *d = detector_of(ALL);
    size_t i, k, bytes = 0;
    uint64_t usec = 0;

    snprintf(path, sizeof(path), "%s/data/pii/synth_dataset_v2.json", shared ? shared : ".");
    set = json_load_file(path, 0, NULL);
    if (!set)
        cr_skip_test("no %s", path);
    json_array_foreach(set, i, item) {
        const char *text = json_string_value(json_object_get(item, "full_text"));
        struct pii_spans spans = { 0 };
        uint64_t start = clock_usec();

        cr_assert(detector_scan(d, text, strlen(text), &spans) == 0);
        usec += clock_usec() - start;
        bytes += strlen(text);
        for (size_t s = 0; s < spans.len; s++)
            found[spans.at[s].type]++;
        json_array_foreach(json_object_get(item, "spans"), k, span) {
            const char *theirs = json_string_value(json_object_get(span, "entity_type"));
            size_t from = byte_of(text, (size_t)json_integer_value(json_object_get(span, "start_position")));
            size_t to = byte_of(text, (size_t)json_integer_value(json_object_get(span, "end_position")));

            for (size_t t = 0; t < ARRAY_SIZE(kinds); t++) {
                if (strcmp(kinds[t].theirs, theirs))
                    continue;
                marked[kinds[t].type]++;
                for (size_t s = 0; s < spans.len; s++) {
                    size_t a = MAX(from, spans.at[s].start), b = MIN(to, spans.at[s].start + spans.at[s].len);

                    if (spans.at[s].type == kinds[t].type && b > a && 5 * (b - a) >= 4 * (to - from)) {
                        hit[kinds[t].type]++;
                        right[kinds[t].type]++;
                        break;
                    }
                }
            }
        }
        pii_spans_done(&spans);
    }
    for (size_t t = 0; t < ARRAY_SIZE(kinds); t++) {
        enum pii p = kinds[t].type;
        double recall = (double)hit[p] / marked[p], precision = (double)right[p] / found[p];

        printf("%-6s recall %.3f (%u of %u), precision %.3f\n", pii_name(p), recall, hit[p], marked[p], precision);
        cr_assert(recall >= kinds[t].recall && precision >= kinds[t].precision, "%s", pii_name(p));
    }
    printf("%.3f ms a KB\n", (double)usec / ((double)bytes / 1.024));
    json_decref(set);
    detector_free(d);
}
