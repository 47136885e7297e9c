/* Features of a request before anything is generated: its length and structure, counted in time linear in its bytes.
 *
 * p_hard is a logistic of a few of them: "is this longer and more structured than what a small model is for". Its
 * coefficients are set by hand, not learned, and stand until a model learned from a device's own traffic replaces
 * them. The anchor is the shipped model, trained on single turns of up to about 50 tokens (some 200 bytes):
 *
 *     plain text of 60 bytes  0.03     plain text of 1,000 bytes      0.34
 *     plain text of 200 bytes 0.06     plain text of 4,000 bytes      0.85
 *     a third user turn adds what doubling the length adds, so do ten lines, ten code marks, or two questions more.
 *
 * Counts enter as logarithms: the tenth line tells more than the hundredth. */
#include "policy/policy.h"

#include <string.h>

static const struct { double bias, length, turns, lines, code, questions; } hard = {
    .bias = -4.0, .length = 1.3, .turns = 0.8, .lines = 0.4, .code = 0.4, .questions = 0.8,
};

enum { SPACE = 1, DIGIT = 2, CODE = 4, QUESTION = 8 };

/* One look a byte: a request may be megabytes long, and the loop waits for this. */
static const uint8_t kinds[256] = {
    [' '] = SPACE, ['\t' ... '\r'] = SPACE, ['0' ... '9'] = DIGIT, ['?'] = QUESTION,
    ['{'] = CODE, ['}'] = CODE, ['['] = CODE, [']'] = CODE, ['<'] = CODE, ['>'] = CODE, [';'] = CODE, ['`'] = CODE,
    ['\\'] = CODE, ['$'] = CODE, ['|'] = CODE, ['_'] = CODE,
};

static uint32_t count_words(const uint8_t *s, size_t len)
{
    uint32_t n = 0;
    bool in_word = false;

    for (size_t i = 0; i < len; i++) {
        const bool space = kinds[s[i]] & SPACE;
        n += !space && !in_word;
        in_word = !space;
    }
    return n;
}

static void count_structure(struct policy_features *f, const uint8_t *s, size_t len)
{
    uint32_t word = 0;

    f->lines = len > 0;
    for (size_t i = 0; i < len; i++) {
        const uint8_t kind = kinds[s[i]];

        f->digits += (kind & DIGIT) != 0;
        f->lines += s[i] == '\n' && i + 1 < len;
        f->code_marks += (kind & CODE) != 0;
        f->question_marks += (kind & QUESTION) != 0;
        f->non_ascii += s[i] >= 0x80;
        word = kind & SPACE ? 0 : word + 1;
        f->longest_word = MAX(f->longest_word, word);
    }
}

/* Doublings beyond the one that every request has. */
static double more(uint32_t n)
{
    return n > 1 ? log2(n) : 0;
}

static double p_hard(const struct policy_features *f)
{
    const double z = hard.bias + hard.length * log2(1 + f->bytes / 200.0) + hard.turns * more(f->turns) +
                     hard.lines * more(f->lines) + hard.code * log2(1 + f->code_marks) +
                     hard.questions * more(f->question_marks);
    return 1 / (1 + exp(-z));
}

void policy_features(struct policy_features *ret, const json_t *messages)
{
    struct policy_features f = { 0 };
    const json_t *message, *last = NULL;
    size_t i;

    json_array_foreach(messages, i, message) {
        const json_t *content = json_object_get(message, "content");
        const char *role = json_string_value(json_object_get(message, "role"));

        if (!json_is_string(content))
            continue;
        f.bytes += (uint32_t)json_string_length(content);
        f.words += count_words((const uint8_t *)json_string_value(content), json_string_length(content));
        if (role && strcmp(role, "user") == 0) {
            f.turns++;
            last = content;
        }
    }
    if (last)
        count_structure(&f, (const uint8_t *)json_string_value(last), json_string_length(last));
    f.p_hard = p_hard(&f);
    *ret = f;
}
