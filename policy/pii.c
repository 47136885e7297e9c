/* What has a form: a table of regular expressions that find candidates, each with a check of what a regular expression
 * cannot tell (checksums, lengths, what stands around it). detect.c runs it.
 *
 * The expressions see bytes, so that broken UTF-8 hides nothing; a byte of 0x80 and above counts as a letter. They are
 * linear in practice: bounded repeats, no nesting of repeats; most begin with a rare byte or with a digit, which is
 * what makes them quick. Sources: ISO 13616 and ISO 7064 (IBAN), ISO/IEC 7812 (cards), the Social Security
 * Administration's ranges, ITU-T E.164, the issuers' documentation of their tokens' prefixes. */
#include "policy/detect.h"

#include <arpa/inet.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

#define CONTEXT_BYTES 48            /* before a number, where words tell what it is */

static bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

static bool is_upper(char c)
{
    return c >= 'A' && c <= 'Z';
}

static bool is_word(char c)
{
    return is_digit(c) || is_upper(c) || (c >= 'a' && c <= 'z') || c == '_' || (uint8_t)c >= 0x80;
}

/* The digits in the candidate, at most max of them; returns how many there are. */
static size_t digits_of(const struct candidate *c, char *digits, size_t max)
{
    size_t n = 0;

    for (size_t i = c->start; i < c->end; i++)
        if (is_digit(c->text[i])) {
            if (n < max)
                digits[n] = c->text[i];
            n++;
        }
    return n;
}

/* Does one of the words (separated by '|', lower case; "wor*" is the beginning of one) stand in the text's bytes
 * from..to? */
static bool says(const struct candidate *c, size_t from, size_t to, const char *words)
{
    char near[2 * CONTEXT_BYTES + 1];
    size_t n = 0;

    for (size_t i = from; i < to && n < sizeof(near) - 1; i++)
        near[n++] = is_upper(c->text[i]) ? (char)(c->text[i] | 0x20) : c->text[i] ? c->text[i] : ' ';
    near[n] = '\0';
    while (*words) {
        size_t len = strcspn(words, "|*");
        bool whole = words[len] != '*';
        char word[24];

        snprintf(word, sizeof(word), "%.*s", (int)len, words);
        for (const char *at = near; (at = strstr(at, word)); at++)
            if ((at == near || !is_word(at[-1])) && !(whole && is_word(at[len])))
                return true;
        words += len + !whole;
        words += *words == '|';
    }
    return false;
}

static bool said_within(const struct candidate *c, size_t bytes, const char *words)
{
    return says(c, c->start > bytes ? c->start - bytes : 0, c->start, words);
}

static bool said_before(const struct candidate *c, const char *words)
{
    return said_within(c, CONTEXT_BYTES, words);
}

/* The expression finds '@' and the domain; the part before it is what can stand there. */
static bool check_email(struct candidate *c)
{
    size_t at = c->start;

    while (c->start > 0 && at - c->start < 64 &&
           (is_word(c->text[c->start - 1]) || strchr(".+%-'!#$&*/=?^`{|}~", c->text[c->start - 1])) &&
           c->text[c->start - 1])
        c->start--;
    while (c->start < at && !is_word(c->text[c->start]))      /* punctuation in front belongs to the sentence */
        c->start++;
    return c->start < at && c->text[at - 1] != '.';
}

static bool check_url(struct candidate *c)
{
    while (c->end > c->start && strchr(".,;:!?)'\"", c->text[c->end - 1]))
        c->end--;
    return c->end - c->start > 8;
}

/* Lengths of the registry, ISO 13616. */
static const char iban_lengths[] =
    "AD24AE23AL28AT20AZ28BA20BE16BG22BH22BI27BR29BY28CH21CR22CY28CZ24DE22DJ27DK18DO28EE20EG29ES24FI18FK18FO18FR27GB22"
    "GE22GI23GL18GR27GT28HN28HR21HU28IE22IL23IQ23IS26IT27JO30KW30KZ20LB28LC32LI21LT20LU20LV21LY25MC27MD24ME22MK19MN20MR27"
    "MT31MU30NI28NL18NO15OM23PK24PL28PS29PT25QA29RO24RS22RU33SA24SC31SD18SE24SI19SK24SM27SO23ST25SV28TL23TN24TR26UA29VA22"
    "VG24XK20YE30";

static bool check_iban(struct candidate *c)
{
    char s[34];
    size_t n = 0, want = 0, i = c->start -= 2;                /* the country stands before what was matched */
    unsigned rest = 0;

    for (const char *p = iban_lengths; *p; p += 4)
        if (strncasecmp(p, c->text + c->start, 2) == 0)
            want = (size_t)(p[2] - '0') * 10 + (size_t)(p[3] - '0');
    for (; i < c->end && n < want; i++)
        if (is_digit(c->text[i]) || is_upper(c->text[i] & ~0x20))
            s[n++] = is_digit(c->text[i]) ? c->text[i] : c->text[i] & ~0x20;
    if (!want || n < want || (i < c->len && is_word(c->text[i])))
        return false;
    c->end = i;
    for (size_t k = 0; k < n; k++) {
        char ch = s[(k + 4) % n];
        rest = is_digit(ch) ? rest * 10 + (unsigned)(ch - '0') : rest * 100 + (unsigned)(ch - 'A' + 10);
        rest %= 97;
    }
    return rest == 1;
}

/* First digits and lengths of the issuers; Luhn's sum over all digits. */
static bool check_card(struct candidate *c)
{
    static const struct { unsigned from, to; size_t min, max; } issuers[] = {      /* the first four digits */
        { 4000, 4999, 13, 19 }, { 5100, 5599, 16, 16 }, { 2221, 2720, 16, 16 }, { 3400, 3499, 15, 15 },
        { 3700, 3799, 15, 15 }, { 6011, 6011, 16, 19 }, { 6440, 6599, 16, 19 }, { 3500, 3599, 16, 19 },
        { 2131, 2131, 15, 15 }, { 1800, 1800, 15, 15 }, { 3000, 3059, 14, 19 }, { 3600, 3699, 14, 19 },
        { 3800, 3999, 14, 19 }, { 6200, 6299, 16, 19 }, { 5000, 5099, 12, 19 }, { 5600, 5899, 12, 19 },
        { 6000, 6999, 12, 19 }, { 2200, 2204, 16, 19 },
    };
    char d[19];
    size_t n = digits_of(c, d, sizeof(d));
    unsigned first, sum = 0;
    bool known = false;

    if (n < 12 || n > 19)
        return false;
    first = (unsigned)((d[0] - '0') * 1000 + (d[1] - '0') * 100 + (d[2] - '0') * 10 + d[3] - '0');
    for (size_t i = 0; i < ARRAY_SIZE(issuers); i++)
        known |= first >= issuers[i].from && first <= issuers[i].to && n >= issuers[i].min && n <= issuers[i].max;
    for (size_t i = 0; i < n; i++) {
        unsigned v = (unsigned)(d[n - 1 - i] - '0') << (i & 1);
        sum += v > 9 ? v - 9 : v;
    }
    return sum % 10 == 0 && (known || said_before(c, "card*|visa|mastercard|maestro|cc"));
}

static bool is_address(const struct candidate *c, int family)
{
    char s[INET6_ADDRSTRLEN];
    unsigned char address[sizeof(struct in6_addr)];

    if (c->end - c->start >= sizeof(s))
        return false;
    memcpy(s, c->text + c->start, c->end - c->start);
    s[c->end - c->start] = '\0';
    return inet_pton(family, s, address) == 1;
}

static bool check_ip4(struct candidate *c)
{
    return is_address(c, AF_INET) && !said_before(c, "version*|release*|ver");
}

static bool is_hex(char c)
{
    return is_digit(c) || ((c | 0x20) >= 'a' && (c | 0x20) <= 'f');
}

/* Found by its first colon that something follows; what stands around it is the candidate. A time has two numbers or
 * three, which is no address; "::" alone, and C++'s scopes, are none that matter. */
static bool check_ip6(struct candidate *c)
{
    size_t min = c->start > 4 ? c->start - 4 : 0, max = MIN(c->len, c->start + INET6_ADDRSTRLEN);

    while (c->start > min && is_hex(c->text[c->start - 1]))
        c->start--;
    while (c->end < max && (is_hex(c->text[c->end]) || c->text[c->end] == ':' || c->text[c->end] == '.'))
        c->end++;
    if ((c->start && is_word(c->text[c->start - 1])) || (c->end < c->len && is_word(c->text[c->end])))
        return false;
    while (c->end > c->start + 3 && strchr(":.", c->text[c->end - 1]) && c->text[c->end - 2] != ':')
        c->end--;                                             /* the sentence's */
    return c->end - c->start > 3 && is_address(c, AF_INET6);
}

/* How many of the bytes before i are blanks, quotes, ':' and '=', at most eight. */
static size_t skip_back(const char *text, size_t i)
{
    size_t n = 0;

    while (n < 8 && n < i && text[i - n - 1] && strchr(" \t\r\n\"':=", text[i - n - 1]))
        n++;
    return n;
}

/* The length of the word of the list that ends at i, or 0. Words are lower case. */
static size_t word_before(const char *text, size_t i, const char *const words[], size_t n)
{
    for (size_t w = 0; w < n; w++) {
        size_t len = strlen(words[w]);

        if (i >= len && strncasecmp(text + i - len, words[w], len) == 0 &&
            (i == len || text[i - len - 1] == '_' || !is_word(text[i - len - 1])))
            return len;
    }
    return 0;
}

/* Bytes up to a blank, a quote, a comma or a semicolon. */
static size_t word_after(const char *s, size_t max)
{
    size_t n = 0;

    while (n < max && !strchr(" \t\r\n\"',;", s[n]))
        n++;
    return n;
}

/* "password: …", "API_KEY=…", "the token is …": the word that stands before says what follows. What follows "is" has
 * a digit or a sign in it, which a plain word has not. The expression finds the first six bytes. */
static bool check_assigned(struct candidate *c)
{
    static const char *const secrets[] = { "password", "passwd", "passphrase", "passcode", "pwd", "secret", "apikey",
        "api_key", "api-key", "api key", "access_key", "access key", "auth_token", "private key", "token", "authorization" };
    static const char *const between[] = { "is", "bearer", "basic" };
    size_t i = c->start - skip_back(c->text, c->start), max = MIN(c->len, c->start + 8192), len;
    bool is = false, sign = false;

    while ((len = word_before(c->text, i, between, ARRAY_SIZE(between)))) {
        is |= len == 2;
        i -= len;
        i -= skip_back(c->text, i);
    }
    if (!word_before(c->text, i, secrets, ARRAY_SIZE(secrets)))
        return false;
    c->end = c->start + word_after(c->text + c->start, max - c->start);
    if (word_before(c->text, c->end, between, ARRAY_SIZE(between)) == c->end - c->start && c->end + 1 < max) {
        c->start = c->end + 1;                                /* that was the scheme */
        c->end = c->start + word_after(c->text + c->start, max - c->start);
    }
    while (c->end > c->start && strchr(".)?", c->text[c->end - 1]))
        c->end--;
    for (size_t k = c->start; k < c->end; k++)
        sign |= !is_word(c->text[k]) || is_digit(c->text[k]);
    return c->end - c->start >= 6 && (sign || !is);
}

/* To the line that ends it, or as much as a key may be long. */
static bool check_pem(struct candidate *c)
{
    static const char mark[] = "-----END ";
    size_t left = MIN(c->len - c->end, 16384);
    const char *end = memmem(c->text + c->end, left, mark, strlen(mark));
    const char *close = end ? memmem(end + strlen(mark), (size_t)(c->text + c->len - end) - strlen(mark), "-----", 5)
                            : NULL;

    c->end = close && close - end < 64 ? (size_t)(close - c->text) + 5 : c->end + left;
    return true;
}

/* Three, two and four digits; undivided only when the text says what they are. Area 000 and 666, group 00 and serial
 * 0000 are never given out; 9xx is a taxpayer's number. */
static bool check_ssn(struct candidate *c)
{
    char d[9];
    bool divided = c->end - c->start == 11;

    if (digits_of(c, d, sizeof(d)) != 9 || memcmp(d, "000", 3) == 0 || memcmp(d, "666", 3) == 0 ||
        memcmp(d + 3, "00", 2) == 0 || memcmp(d + 5, "0000", 4) == 0)
        return false;
    return (divided && c->text[c->start + 3] == '-' && !said_before(c, "driver*|licen*")) ||
           said_before(c, "ssn|social security*|itin|taxpayer*");
}

#define PHONE_WORDS "phone*|telephone*|tel|mobile*|cell*|fax|call|calls|called|dial*|desk|office|whatsapp|sms|" \
                    "text me|text him|text her|reach*|contact*|ring|hotline|number is|answering|messages to|registered|landline"
#define NO_PHONE_WORDS "zip*|invoice*|order|isbn|amount|driver*|licen*|birth*|born|located|account number|account no|card"

/* How a number is divided tells: groups of two and more digits, no longer than five but the last, or a country's code.
 * Dates, times, amounts and ranges are divided otherwise. */
static bool check_phone(struct candidate *c)
{
    size_t n, groups = 0, run = 0, shortest = SIZE_MAX, longest = 0, tail;
    char d[16], divider = 0;
    bool plus, paren, mixed = false, slash = false, dot = false;

    while (c->end > c->start && !is_digit(c->text[c->end - 1]))
        c->end--;
    n = digits_of(c, d, sizeof(d));
    plus = c->text[c->start] == '+' || memcmp(d, "00", 2) == 0;
    paren = memchr(c->text + c->start, '(', c->end - c->start);
    for (size_t i = c->start; i <= c->end; i++) {
        char ch = i < c->end ? c->text[i] : ' ';
        if (is_digit(ch)) {
            run++;
            continue;
        }
        if (i < c->end && strchr(" .-/", ch)) {
            mixed |= divider && divider != ch;
            divider = ch;
            slash |= ch == '/';
            dot |= ch == '.';
        }
        if (run) {
            groups++;
            shortest = MIN(shortest, run);
            longest = MAX(longest, run);
        }
        run = 0;
    }
    if (n < 7 || n > 17)
        return false;
    tail = MIN(c->len, c->end + 16);
    if (plus && n >= 8)
        return true;
    if (says(c, c->end, tail, "usd|eur|gbp|dollars|euros|percent|%"))
        return false;
    if (said_before(c, PHONE_WORDS) || says(c, c->end, tail, "office|fax|mobile|cell|phone|desk|home|work"))
        return !(slash && n <= 8) && !said_within(c, CONTEXT_BYTES / 2, NO_PHONE_WORDS);
    /* Year first or last, one or two digits between: a date. */
    if (groups == 3 && (slash || dot || divider == '-') && shortest <= 2 && (n == 8 || n == 7 || n == 6))
        return false;
    if (paren && n >= 9)
        return true;
    if (groups >= 3 && n >= 9 && n <= 12 && (n > 9 || d[0] == '0') && shortest >= 2 && longest <= 4 && !mixed &&
        !slash && !(dot && groups == 4))
        return true;
    return groups == 3 && n == 10 && shortest == 3 && !slash;          /* 555-123-4567, 555.123.4567 */
}

/* Shannon entropy of its characters, in bits. */
static double entropy_of(const char *s, size_t n)
{
    unsigned counts[256] = { 0 };
    double bits = 0;

    for (size_t i = 0; i < n; i++)
        counts[(uint8_t)s[i]]++;
    for (size_t i = 0; i < 256; i++)
        if (counts[i])
            bits -= counts[i] / (double)n * log2(counts[i] / (double)n);
    return bits;
}

/* Letters of both cases and digits mixed, or long hexadecimal: words, paths and camelCase names are neither. */
static bool check_entropy(struct candidate *c)
{
    const char *s = c->text + c->start;
    size_t n = c->end - c->start, upper = 0, lower = 0, digit = 0, hex = 0;
    double bits;

    for (size_t i = 0; i < n; i++) {
        upper += is_upper(s[i]);
        lower += s[i] >= 'a' && s[i] <= 'z';
        digit += is_digit(s[i]);
        hex += is_hex(s[i]);
    }
    bits = entropy_of(s, n);
    if (hex == n && digit && digit < n)
        return n >= 32 && bits > 3;
    return upper && lower && digit >= 2 && bits > 3.9;
}

/* ---- the table --------------------------------------------------------------------------------------------------- */

const struct pii_row pii_rows[] = {
    { PII_PEM, "-----BEGIN [A-Z ]{0,32}PRIVATE KEY(?: BLOCK)?-----", check_pem, false },
    { PII_KEY,
      "(?<![A-Za-z0-9_-])(?:"
      "sk-(?:ant-|proj-|svcacct-)?[A-Za-z0-9_-]{20,200}|(?:AKIA|ASIA|AGPA|AIDA|AROA)[0-9A-Z]{16}|"
      "gh[pousr]_[A-Za-z0-9]{30,255}|github_pat_[A-Za-z0-9_]{22,255}|glpat-[A-Za-z0-9_-]{20,64}|"
      "xox[abeoprs]-[A-Za-z0-9-]{10,255}|AIza[0-9A-Za-z_-]{35}|ya29\\.[0-9A-Za-z_-]{20,255}|hf_[A-Za-z0-9]{30,64}|"
      "npm_[A-Za-z0-9]{36}|(?:sk|rk|pk)_(?:live|test)_[A-Za-z0-9]{16,255}|"
      "SG\\.[A-Za-z0-9_-]{16,64}\\.[A-Za-z0-9_-]{16,64}|dop_v1_[a-f0-9]{64}|shpat_[a-fA-F0-9]{32}|"
      "eyJ[A-Za-z0-9_-]{8,4096}\\.[A-Za-z0-9_-]{4,8192}(?:\\.[A-Za-z0-9_-]{0,4096})?"
      ")(?![A-Za-z0-9])", NULL, true },
    { PII_KEY,
      "(?:[:=]\\s{0,4}[\"']?|\\s(?:is|bearer|Bearer|basic|Basic)\\s{1,4}[\"']?)"
      "\\K[^\\s\"',;:=][^\\s\"',;]{5}", check_assigned, false },
    { PII_EMAIL,
      "@(?:[A-Za-z0-9\\x80-\\xff](?:[A-Za-z0-9\\x80-\\xff-]{0,62})\\.){1,8}[A-Za-z\\x80-\\xff]{2,24}(?![A-Za-z0-9_])",
      check_email, false },
    { PII_URL, "(?i)\\b(?:https?|ftps?|wss?)://[^\\s<>\"{}|\\\\^`\\x00-\\x20]{4,2048}", check_url, false },
    { PII_URL, "(?i)(?<![\\w@.-])www\\.(?:[a-z0-9-]{1,63}\\.){1,6}[a-z]{2,24}(?:/[^\\s<>\"]{0,2048})?", check_url, false },
    { PII_IBAN, "(?i)(?<=[a-z][a-z])(?<![a-z0-9][a-z][a-z])[0-9]{2}(?:[ -]?[a-z0-9]){11,30}", check_iban, false },
    { PII_CARD,
      "(?<![0-9A-Za-z.,])(?<![0-9][- ])[0-9]{4}(?:[ -]?[0-9]){8,15}(?![0-9])(?![.,][0-9])(?![- ][0-9])",
      check_card, false },
    { PII_IP, "(?<![0-9.])(?:[0-9]{1,3}\\.){3}[0-9]{1,3}(?![0-9]|\\.[0-9])", check_ip4, false },
    { PII_IP, ":[0-9A-Fa-f:]", check_ip6, false },
    { PII_SSN, "(?<![0-9-])[0-9]{3}([- ]?)[0-9]{2}\\1[0-9]{4}(?![0-9]|-[0-9])", check_ssn, false },
    { PII_PHONE,
      "(?<![0-9A-Za-z_+/-])(?<![0-9][ .,(])(?<![0-9] \\()(?:\\+|\\()?[0-9](?:[ ./()-]{0,3}[0-9]){6,16}"
      "(?: ?(?:x|ext\\.?) ?[0-9]{1,6})?(?![0-9A-Za-z_]|[.,/-][0-9])", check_phone, false },
    { PII_ENTROPY, "(?<![A-Za-z0-9+/_-])[A-Za-z0-9+/_-]{24,512}={0,2}(?![A-Za-z0-9+/_-])", check_entropy, true },
};
const size_t n_pii_rows = ARRAY_SIZE(pii_rows);
