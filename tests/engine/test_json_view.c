/* JSON views: what is JSON and what is not, and values as they stand. */
#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>
#include "engine/json_view.h"

static int open_text(const char *s, struct json_view *ret, struct err *err)
{
    return json_view_open(ret, s, strlen(s), "x.json", err);
}

Test(json_view, good)
{
    static const char *const good[] = {
        "0", " -1.5e+3 ", "true", "null", "\"\"", "[]", "{}", "[[],{}]", "{\"a\":[1,2,{\"b\":null}]}", "\"\\u00e9\\ud83d\\ude00\\n\"",
        "[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]", "\"\u20ac\"", "\t[ 1 , 2 ]\r\n", "1E5", "-0",
    };

    for (size_t i = 0; i < ARRAY_SIZE(good); i++) {
        struct json_view v;
        struct err err = { "" };

        cr_expect_eq(open_text(good[i], &v, &err), 0, "%s: %s", good[i], err.msg);
    }
}

Test(json_view, bad)
{
    static const char *const bad[] = {
        "", " ", "[", "{", "]", "}", "[1,]", "[,1]", "{\"a\"}", "{\"a\":}", "{\"a\":1,}", "{a:1}", "[1 2]", "1 2", "tru", "nul", "+1",
        "01", "1.", ".5", "1e", "1e+", "-", "\"", "\"\\\"", "\"\\x\"", "\"\\u12\"", "\"\\ud800\"", "\"\\ud800\\u0041\"", "\"\\udc00\"",
        "\"\n\"", "\"\xff\"", "\"\xc3\"", "\"\xed\xa0\x80\"", "[\"a\":1]", "NaN", "{1:2}", "[1}", "{\"a\":1]", "'a'", "// x\n1",
        "[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]",
        "11111111111111111111111111111111111111111111111111111111111111111",
    };

    for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
        char *exact = malloc(strlen(bad[i]) + !*bad[i]);      /* without the NUL: reading past the end shows */
        struct json_view v;
        struct err err = { "" };

        memcpy(exact, bad[i], strlen(bad[i]));
        cr_expect_eq(json_view_open(&v, exact, strlen(bad[i]), "x.json", &err), -EINVAL, "%s", bad[i]);
        cr_expect(strstr(err.msg, "x.json: byte "), "%s says: %s", bad[i], err.msg);
        free(exact);
    }
}

Test(json_view, values)
{
    static const char text[] = "{ \"n\" : 18446744073709551615 , \"d\":-2.5, \"s\":\"a\\u00e9\\ud83d\\ude00\\\"\\\\\", \"t\":true,\"z\":null,"
        "\"\\u0061\":[1,[2,\"]\"],{\"}\":3}], \"twice\":1, \"twice\":2, \"big\":18446744073709551616}";
    struct json_view root, v;
    struct json_walk w;
    struct err err = { "" };
    char out[32];
    uint64_t u;
    double d;
    bool b = false;

    cr_assert_eq(open_text(text, &root, &err), 0, "%s", err.msg);
    cr_expect_eq(json_view_count(root), 9);
    cr_expect(json_view_get(root, "n", &v, &err) == 1 && json_view_u64(v, &u) && u == UINT64_MAX);
    cr_expect(json_view_get(root, "big", &v, &err) == 1 && !json_view_u64(v, &u));
    cr_expect(json_view_get(root, "d", &v, &err) == 1 && json_view_double(v, &d) && d == -2.5 && !json_view_u64(v, &u));
    cr_expect(json_view_get(root, "t", &v, &err) == 1 && json_view_bool(v, &b) && b && !json_view_double(v, &d));
    cr_expect_eq(json_view_get(root, "z", &v, &err), 0);
    cr_expect_eq(json_view_get(root, "none", &v, &err), 0);
    cr_expect_eq(json_view_get(root, "twice", &v, &err), -EINVAL);
    cr_expect(json_view_get(root, "s", &v, &err) == 1 && json_view_text(v, out) == 9);
    cr_expect(!memcmp(out, "a\u00e9\U0001f600\"\\", 9));
    cr_expect(json_view_is(v, "a\u00e9\U0001f600\"\\") && !json_view_is(v, "a") && !json_view_is(v, "a\u00e9\U0001f600\"\\x"));
    cr_assert_eq(json_view_get(root, "a", &v, &err), 1);         /* a key is what it says, however it is spelt */
    w = json_walk(v);
    cr_expect(json_walk_next(&w) && json_view_kind(w.value) == '0');
    cr_expect(json_walk_next(&w) && json_view_count(w.value) == 2);
    cr_expect(json_walk_next(&w) && json_view_kind(w.value) == '{' && !json_walk_next(&w));
}
