/* The capped buffer: exactly the cap fits, one more does not, and a refusal changes nothing. */
#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>
#include "base/buf.h"

Test(buf, grows_to_its_cap_and_no_further)
{
    for (size_t max = 0; max < 200; max++) {
        cleanup(buf_done) struct buf b;
        buf_init(&b, max);
        for (size_t i = 0; i < max; i++)
            cr_assert_eq(buf_append(&b, "x", 1), 0);
        cr_assert_eq(buf_append(&b, "y", 1), -EMSGSIZE);
        cr_assert_eq(buf_puts(&b, "yy"), -EMSGSIZE);
        cr_assert_eq(buf_printf(&b, "%d", 123), -EMSGSIZE);
        cr_assert_eq(b.len, max);
        cr_assert_leq(b.cap, MAX(max + 1, (size_t)64));
        for (size_t i = 0; i < max; i++)
            cr_assert_eq(b.data[i], 'x');
        if (max)
            cr_assert_eq(b.data[max], 0);
    }
}

Test(buf, a_length_that_wraps_is_refused)
{
    cleanup(buf_done) struct buf b;

    buf_init(&b, SIZE_MAX);
    cr_assert_eq(buf_puts(&b, "abc"), 0);
    cr_assert_eq(buf_append(&b, "", SIZE_MAX), -EMSGSIZE);
    cr_assert_eq(buf_append(&b, "", SIZE_MAX - 3), -ENOMEM);
    cr_assert_str_eq((char *)b.data, "abc");
}

Test(buf, zeroed_struct)
{
    struct buf b = {0};

    cr_assert_eq(buf_puts(&b, "x"), -EMSGSIZE);
    cr_assert_eq(buf_append(&b, NULL, 0), 0);
    buf_done(&b);
    buf_done(&b);
}

Test(buf, text)
{
    cleanup(buf_done) struct buf b;
    char *s;

    buf_init(&b, 1000);
    s = buf_take(&b);
    cr_assert_str_eq(s, "");
    free(s);
    cr_assert_eq(buf_printf(&b, "%s=%d;", "a", 1), 0);
    cr_assert_eq(buf_puts(&b, "rest"), 0);
    cr_assert_str_eq((char *)b.data, "a=1;rest");
    buf_consume(&b, 4);
    cr_assert_str_eq((char *)b.data, "rest");
    buf_consume(&b, 4);
    cr_assert_eq(b.len, 0);
    cr_assert_eq(buf_puts(&b, "again"), 0);
    s = buf_take(&b);
    cr_assert_str_eq(s, "again");
    free(s);
    cr_assert_eq(b.len, 0);
    cr_assert_null(b.data);
    cr_assert_eq(buf_puts(&b, "new"), 0);
    buf_clear(&b);
    cr_assert_str_eq((char *)b.data, "");
}
