/* RFC 3339 both ways, against instants whose Unix time is known, and everything that only looks like a date. */
#include <criterion/criterion.h>
#include <errno.h>
#include "base/clock.h"

static const struct { const char *s; uint64_t usec; } instants[] = {
    {"1970-01-01T00:00:00.000000Z", 0},
    {"1999-12-31T23:59:59.999999Z", 946684799999999},
    {"2000-02-29T12:00:00.000001Z", 951825600000001},
    {"2026-11-22T17:30:27.123456Z", 1795368627123456},
    {"2100-03-01T00:00:00.000000Z", 4107542400000000},
    {"9999-12-31T23:59:59.999999Z", 253402300799999999},
};

Test(clock, both_ways)
{
    for (size_t i = 0; i < ARRAY_SIZE(instants); i++) {
        char out[CLOCK_RFC3339_BYTES];
        uint64_t usec = 1;

        clock_rfc3339(out, instants[i].usec);
        cr_assert_str_eq(out, instants[i].s);
        cr_assert_eq(clock_from_rfc3339(&usec, instants[i].s), 0, "%s", instants[i].s);
        cr_assert_eq(usec, instants[i].usec, "%s gave %llu", instants[i].s, (unsigned long long)usec);
    }
}

Test(clock, beyond_the_last_year)
{
    char out[CLOCK_RFC3339_BYTES];

    clock_rfc3339(out, UINT64_MAX);
    cr_assert_str_eq(out, "9999-12-31T23:59:59.999999Z");
}

Test(clock, shorter_forms)
{
    uint64_t usec;

    cr_assert_eq(clock_from_rfc3339(&usec, "2026-11-22"), 0);
    cr_assert_eq(usec, 1795305600000000);
    cr_assert_eq(clock_from_rfc3339(&usec, "2026-11-22T00:00:01Z"), 0);
    cr_assert_eq(usec, 1795305601000000);
    cr_assert_eq(clock_from_rfc3339(&usec, "2026-11-22T00:00:01.5Z"), 0);
    cr_assert_eq(usec, 1795305601500000);
    cr_assert_eq(clock_from_rfc3339(&usec, "2026-11-22T00:00:01.123456789Z"), 0);
    cr_assert_eq(usec, 1795305601123456);
}

Test(clock, refuses)
{
    static const char *const bad[] = {
        "", "2026", "2026-11", "2026-11-2", "2026-11-22T", "2026-11-22T10:00Z", "2026-11-22T10:00:00",
        "2026-11-22T10:00:00+01:00", "2026-11-22T10:00:00Zx", "2026-11-22x", "2026-11-22 10:00:00Z",
        "2026-00-22", "2026-13-22", "2026-11-00", "2026-11-31", "2026-02-29", "2100-02-29", "1969-12-31",
        "2026-11-22T24:00:00Z", "2026-11-22T10:60:00Z", "2026-11-22T10:00:60Z", "2026-11-22T10:00:00.Z",
        "2026-11-22T10:00:00.1234567890Z", "2026-11-22T10:00:00.1", "2026-11-22T10:00:00Z.1Z", " 2026-11-22",
        "+026-11-22", "2026-1 -22", "2026-11-22T-1:00:00Z",
    };

    for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
        uint64_t usec = 42;
        cr_assert_eq(clock_from_rfc3339(&usec, bad[i]), -EINVAL, "'%s' was taken", bad[i]);
        cr_assert_eq(usec, 42);
    }
}

Test(clock, runs_forward)
{
    uint64_t a = clock_usec();

    cr_assert_leq(a, clock_usec());
    cr_assert_gt(clock_wall_usec(), 1577836800000000ULL);
}
