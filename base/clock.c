/* Reading the clocks, and RFC 3339 in UTC both ways. Dates are the proleptic Gregorian years 1970 to 9999; leap seconds
 * do not exist in Unix time, so second 60 is refused. */
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include "base/clock.h"

#define LAST_USEC 253402300799999999ULL   /* 9999-12-31T23:59:59.999999Z */

static uint64_t clock_read(clockid_t id)
{
    struct timespec ts;

    clock_gettime(id, &ts);
    return (uint64_t)ts.tv_sec * USEC_PER_SEC + (uint64_t)ts.tv_nsec / 1000;
}

uint64_t clock_usec(void)
{
    return clock_read(CLOCK_MONOTONIC);
}

uint64_t clock_wall_usec(void)
{
    return clock_read(CLOCK_REALTIME);
}

void clock_rfc3339(char out[CLOCK_RFC3339_BYTES], uint64_t wall_usec)
{
    uint64_t usec = MIN(wall_usec, LAST_USEC);
    time_t sec = (time_t)(usec / USEC_PER_SEC);
    struct tm tm;
    size_t n;

    gmtime_r(&sec, &tm);
    n = strftime(out, CLOCK_RFC3339_BYTES, "%Y-%m-%dT%H:%M:%S", &tm);
    snprintf(out + n, CLOCK_RFC3339_BYTES - n, ".%06uZ", (unsigned)(usec % USEC_PER_SEC));
}

/* Exactly n digits and then `after` (NUL included) at *s, which moves past both; the number must lie in min..max. */
static bool take_number(const char **s, int n, char after, int min, int max, int *ret)
{
    int v = 0;

    for (int i = 0; i < n; i++) {
        char c = (*s)[i];
        if (c < '0' || c > '9')
            return false;
        v = v * 10 + (c - '0');
    }
    if ((*s)[n] != after || v < min || v > max)
        return false;
    *s += n + (after != 0);
    *ret = v;
    return true;
}

static int days_of_month(int year, int month)
{
    static const int days[] = {31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};
    bool leap = (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;

    return days[month - 1] + (month == 2 && leap);
}

int clock_from_rfc3339(uint64_t *ret_wall_usec, const char *s)
{
    int year, month, day, hour = 0, minute = 0, second = 0, usec = 0;
    bool with_time = strchr(s, 'T');
    struct tm tm;

    if (!take_number(&s, 4, '-', 1970, 9999, &year) || !take_number(&s, 2, '-', 1, 12, &month) ||
        !take_number(&s, 2, with_time ? 'T' : 0, 1, days_of_month(year, month), &day))
        return -EINVAL;
    if (with_time) {
        bool fraction = strchr(s, '.');

        if (!take_number(&s, 2, ':', 0, 23, &hour) || !take_number(&s, 2, ':', 0, 59, &minute) ||
            !take_number(&s, 2, fraction ? '.' : 'Z', 0, 59, &second))
            return -EINVAL;
        if (fraction) {
            int n = 0;

            /* Up to nanoseconds are read; what is finer than a microsecond is cut off. */
            for (; s[n] >= '0' && s[n] <= '9'; n++)
                usec = n < 6 ? usec * 10 + (s[n] - '0') : usec;
            if (n < 1 || n > 9 || s[n] != 'Z')
                return -EINVAL;
            for (int i = n; i < 6; i++)
                usec *= 10;
            s += n + 1;
        }
        if (*s)
            return -EINVAL;
    }

    tm = (struct tm) {.tm_year = year - 1900, .tm_mon = month - 1, .tm_mday = day,
                      .tm_hour = hour, .tm_min = minute, .tm_sec = second};
    *ret_wall_usec = (uint64_t)timegm(&tm) * USEC_PER_SEC + (uint64_t)usec;
    return 0;
}
