/* The breaker under a clock of our own. */
#include <criterion/criterion.h>
#include "policy/policy.h"

#define SEC USEC_PER_SEC

static struct breaker b;

static void fresh(void) { breaker_init(&b); }

static void note(uint64_t at, enum call_result r, unsigned times)
{
    while (times--)
        breaker_note(&b, at, r);
}

TestSuite(breaker, .init = fresh);

Test(breaker, five_in_a_row_open_it_for_fifteen_seconds)
{
    note(SEC, CALL_FAILED, 4);
    cr_assert(b.state == BREAKER_CLOSED && breaker_allows(&b, SEC));
    note(SEC, CALL_FAILED, 1);
    cr_assert(b.state == BREAKER_OPEN && !breaker_allows(&b, SEC) && !breaker_allows(&b, 16 * SEC - 1));
    cr_assert(breaker_would_allow(&b, 16 * SEC) && b.state == BREAKER_OPEN);
    cr_assert(breaker_allows(&b, 16 * SEC) && b.state == BREAKER_HALF_OPEN);
}

Test(breaker, a_success_between_starts_the_row_again)
{
    note(SEC, CALL_FAILED, 4);
    note(SEC, CALL_OK, 4);
    note(SEC, CALL_FAILED, 1);   /* 9 calls: the rate does not count yet */
    cr_assert(b.state == BREAKER_CLOSED);
}

Test(breaker, half_of_ten_within_thirty_seconds_open_it)
{
    for (unsigned i = 0; i < 4; i++) {
        note(i * SEC, CALL_OK, 1);
        note(i * SEC, CALL_FAILED, 1);
    }
    note(4 * SEC, CALL_OK, 1);
    cr_assert(b.state == BREAKER_CLOSED);
    note(4 * SEC, CALL_FAILED, 1);
    cr_assert(b.state == BREAKER_OPEN);
}

Test(breaker, what_is_thirty_seconds_old_is_forgotten)
{
    for (unsigned i = 0; i < 4; i++) {
        note(0, CALL_OK, 1);
        note(0, CALL_FAILED, 1);
    }
    note(30 * SEC, CALL_OK, 1);
    note(30 * SEC, CALL_FAILED, 1);
    cr_assert(b.state == BREAKER_CLOSED);
}

/* Fewer than half failed, over many times the ring's length. */
Test(breaker, a_third_of_failures_keeps_it_closed)
{
    for (unsigned i = 0; i < 1000; i++)
        note(i * SEC / 10, i % 3 ? CALL_OK : CALL_FAILED, 1);
    cr_assert(b.state == BREAKER_CLOSED);
}

Test(breaker, one_probe_and_two_successes_close_it)
{
    note(0, CALL_FAILED, 5);
    cr_assert(breaker_allows(&b, 15 * SEC));
    cr_assert(!breaker_would_allow(&b, 15 * SEC) && !breaker_allows(&b, 15 * SEC));
    note(15 * SEC, CALL_OK, 1);
    cr_assert(b.state == BREAKER_HALF_OPEN && breaker_allows(&b, 15 * SEC));
    note(15 * SEC, CALL_OK, 1);
    cr_assert(b.state == BREAKER_CLOSED && breaker_allows(&b, 15 * SEC) && breaker_allows(&b, 15 * SEC));
}

Test(breaker, failed_probes_double_the_pause_up_to_five_minutes)
{
    static const unsigned pauses[] = { 15, 30, 60, 120, 240, 300, 300, 300 };
    uint64_t now = 0;

    note(now, CALL_FAILED, 5);
    for (size_t i = 0; i < ARRAY_SIZE(pauses); i++) {
        now += pauses[i] * SEC;
        cr_assert(!breaker_allows(&b, now - 1) && breaker_allows(&b, now), "pause %zu", i);
        note(now, CALL_FAILED, 1);
    }
    now += 300 * SEC;
    for (unsigned i = 0; i < 2; i++) {
        cr_assert(breaker_allows(&b, now));
        note(now, CALL_OK, 1);
    }
    note(now, CALL_FAILED, 5);
    cr_assert(b.open_for_usec == 15 * SEC);
}

Test(breaker, a_cancelled_probe_makes_room_for_the_next)
{
    note(0, CALL_FAILED, 5);
    cr_assert(breaker_allows(&b, 15 * SEC));
    note(15 * SEC, CALL_CANCELLED, 1);
    cr_assert(b.state == BREAKER_HALF_OPEN && breaker_allows(&b, 15 * SEC));
}

Test(breaker, late_answers_say_nothing_while_it_is_open)
{
    note(0, CALL_FAILED, 5);
    note(SEC, CALL_FAILED, 10);
    note(SEC, CALL_OK, 10);
    cr_assert(b.state == BREAKER_OPEN && b.open_until_usec == 15 * SEC);
}

Test(breaker, a_refused_body_is_no_failure)
{
    note(0, CALL_REJECTED, 100);
    note(0, CALL_CANCELLED, 100);
    cr_assert(b.state == BREAKER_CLOSED);
}

Test(breaker, denied_latches_until_reload)
{
    note(0, CALL_DENIED, 1);
    cr_assert(b.state == BREAKER_LATCHED && !breaker_allows(&b, 1000000 * SEC));
    note(SEC, CALL_OK, 10);
    cr_assert(b.state == BREAKER_LATCHED);
    breaker_init(&b);
    cr_assert(breaker_allows(&b, 0));
}
