/* Parsing what came from outside, and reads that tell absent, wrong and right apart. */
#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>
#include "base/json.h"

static json_t *parse(const char *s, struct err *err)
{
    return json_parse(s, strlen(s), err);
}

Test(json, refuses_and_does_not_quote)
{
    static const struct { const char *text, *words; } bad[] = {
        {"", "too early"}, {"{\"a\":", "too early"}, {"{\"a\":1}x", "after the end"}, {"{\"a\":1,\"a\":2}", "twice"},
        {"{\"secret\" 1}", "not JSON"}, {"\"\xff\"", "UTF-8"}, {"\"secret\\u0000\"", "NUL"}, {"{\"\\u0000\":1}", "NUL"},
        {"[1e999]", "too large"}, {"[99999999999999999999]", "too large"}, {"[secret]", "not JSON"},
        {"\"\\ud800\"", "not JSON"},
    };

    for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
        struct err err = {0};
        cr_assert_null(parse(bad[i].text, &err), "%s", bad[i].text);
        cr_assert_not_null(strstr(err.msg, bad[i].words), "%s: %s", bad[i].text, err.msg);
        cr_assert_not_null(strstr(err.msg, "line "));
        cr_assert_null(strstr(err.msg, "secret"), "%s", err.msg);
        cr_assert_null(parse(bad[i].text, NULL));
    }
}

Test(json, deep_nesting_is_refused)
{
    size_t n = 1 << 20;
    cleanup(freep) char *s = malloc(n);
    struct err err;

    memset(s, '[', n);
    cr_assert_null(json_parse(s, n, &err));
    cr_assert_not_null(strstr(err.msg, "deep"), "%s", err.msg);
}

Test(json, only_len_bytes_are_read)
{
    cleanup(json_decrefp) json_t *j = json_parse("[1]garbage", 3, NULL);

    cr_assert_eq(json_array_size(j), 1);
}

Test(json, reads)
{
    cleanup(json_decrefp) json_t *j =
        parse("{\"s\":\"t\",\"i\":5,\"r\":0.5,\"b\":true,\"n\":null,\"i1\":1.0}", NULL);
    struct err err;
    const char *s = "kept";
    int64_t i = 42;
    double d = 42;
    bool b = false;

    cr_assert_eq(json_read_string(j, "s", &s, &err), 1);
    cr_assert_str_eq(s, "t");
    cr_assert_eq(json_read_string(j, "none", &s, &err), 0);
    cr_assert_eq(json_read_string(j, "n", &s, &err), 0);
    cr_assert_eq(json_read_string(j, "i", &s, &err), -EINVAL);
    cr_assert_str_eq(err.msg, "i: expected a string");
    cr_assert_eq(json_read_string(NULL, "s", &s, &err), 0);
    cr_assert_str_eq(s, "t");

    cr_assert_eq(json_read_int(j, "i", 5, 5, &i, &err), 1);
    cr_assert_eq(i, 5);
    i = 42;
    cr_assert_eq(json_read_int(j, "i", 6, 9, &i, &err), -EINVAL);
    cr_assert_str_eq(err.msg, "i: expected an integer from 6 to 9");
    cr_assert_eq(json_read_int(j, "i", 0, 4, &i, &err), -EINVAL);
    cr_assert_eq(json_read_int(j, "i1", 0, 4, &i, &err), -EINVAL);
    cr_assert_eq(json_read_int(j, "s", 0, 4, &i, NULL), -EINVAL);
    cr_assert_eq(json_read_int(j, "n", 0, 4, &i, &err), 0);
    cr_assert_eq(i, 42);

    cr_assert_eq(json_read_number(j, "r", 0.5, 0.5, &d, &err), 1);
    cr_assert_eq(d, 0.5);
    cr_assert_eq(json_read_number(j, "i", 0, 9, &d, &err), 1);
    cr_assert_eq(d, 5);
    cr_assert_eq(json_read_number(j, "r", 0.6, 1, &d, &err), -EINVAL);
    cr_assert_str_eq(err.msg, "r: expected a number from 0.6 to 1");
    cr_assert_eq(json_read_number(j, "r", 0, 0.4, &d, &err), -EINVAL);
    cr_assert_eq(json_read_number(j, "b", 0, 1, &d, &err), -EINVAL);
    cr_assert_eq(d, 5);

    cr_assert_eq(json_read_bool(j, "b", &b, &err), 1);
    cr_assert(b);
    cr_assert_eq(json_read_bool(j, "i", &b, &err), -EINVAL);
    cr_assert_str_eq(err.msg, "i: expected true or false");
    cr_assert_eq(json_read_bool(j, "n", &b, &err), 0);
}

Test(json, canonical)
{
    cleanup(json_decrefp) json_t *j =
        parse(" { \"b\" : [ 1 , \"\xc3\xa9\" ] , \"a\" : {\"z\":null, \"y\":0.1} } ", NULL);
    cleanup(freep) char *s = json_canonical(j);

    cr_assert_str_eq(s, "{\"a\":{\"y\":0.10000000000000001,\"z\":null},\"b\":[1,\"\xc3\xa9\"]}");
}
