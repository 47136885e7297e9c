/* Features: counts by hand, order of difficulty, and 32 MB in no time. */
#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>
#include "base/clock.h"
#include "policy/policy.h"

static struct policy_features of(json_t *messages)
{
    struct policy_features f;

    cr_assert(messages);
    policy_features(&f, messages);
    json_decref(messages);
    return f;
}

static struct policy_features of_text(const char *text)
{
    return of(json_pack("[{s:s, s:s}]", "role", "user", "content", text));
}

Test(features, counts)
{
    struct policy_features f = of(json_pack(
        "[{s:s,s:s},{s:s,s:s},{s:s,s:s},{s:s,s:s}]", "role", "system", "content", "Be brief.",
        "role", "user", "content", "{first} 1\n2?", "role", "assistant", "content", "ok",
        "role", "user", "content", "w\xc3\xa4hle 12 {x;y}\n\tlonger? or not?\n"));

    cr_assert(f.bytes == 9 + 12 + 2 + 33, "%u", f.bytes);
    cr_assert(f.words == 2 + 3 + 1 + 6, "%u", f.words);
    cr_assert(f.turns == 2 && f.digits == 2 && f.lines == 2 && f.code_marks == 3 && f.question_marks == 2);
    cr_assert(f.non_ascii == 2 && f.longest_word == 7, "%u", f.longest_word);
}

Test(features, nothing_there)
{
    struct policy_features f = of(json_array());

    cr_assert(f.bytes == 0 && f.lines == 0 && f.p_hard > 0 && f.p_hard < 0.1);
    f = of(json_pack("[{s:s},{s:s,s:n},{s:i}]", "role", "user", "role", "tool", "content", "content", 5));
    cr_assert(f.bytes == 0 && f.turns == 0);
}

static double hardness(unsigned bytes)
{
    char *text = calloc(1, bytes + 1);
    double p;

    for (unsigned i = 0; i < bytes; i++)
        text[i] = i % 6 ? 'a' : ' ';
    p = of_text(text).p_hard;
    free(text);
    return p;
}

/* The figures that features.c promises, and that each kind of structure adds to them. */
Test(features, hardness)
{
    const double plain = of_text("please tell me what the weather is like").p_hard;

    cr_assert(fabs(hardness(60) - 0.03) < 0.01 && fabs(hardness(200) - 0.06) < 0.01);
    cr_assert(fabs(hardness(1000) - 0.34) < 0.01 && fabs(hardness(4000) - 0.85) < 0.01);
    cr_assert(plain < 0.05);
    cr_assert(of_text("please\ntell\nme\nwhat\nthe weather is like").p_hard > plain);
    cr_assert(of_text("please tell me { what; [the] } <er is lik").p_hard > plain);
    cr_assert(of_text("please? tell me? what the weath? is like").p_hard > plain);
}

Test(features, linear_in_32_megabytes)
{
    static const char *const fillers[] = { "a", "? b{\n" };
    const size_t len = 32 << 20;
    const uint64_t begin = clock_usec();
    char *text = malloc(len + 1);

    for (size_t k = 0; k < ARRAY_SIZE(fillers); k++) {
        struct policy_features f;

        for (size_t i = 0; i < len; i++)
            text[i] = fillers[k][i % strlen(fillers[k])];
        text[len] = '\0';
        f = of_text(text);
        cr_assert(f.bytes >= len - 1 && f.p_hard > 0.99 && f.p_hard <= 1);
    }
    free(text);
    cr_assert(clock_usec() - begin < 60 * USEC_PER_SEC);
}
