/* Who waits for the engine, and whose turn is next. */
#include <criterion/criterion.h>
#include <math.h>
#include "base/clock.h"
#include "router/internal.h"

#define MANY 400

static struct line line;
static struct request requests[MANY];
static size_t n;

static void setup(void)
{
    line_init(&line);
    n = 0;
}

static struct request *request(const char *key, const char *peer, bool batch)
{
    struct request *q = &requests[n++];

    *q = (struct request) {.asked = {.key = key, .peer = peer, .batch = batch}};
    q->deadline_usec = clock_usec() + 3600 * USEC_PER_SEC;
    return q;
}

static struct request *enter(const char *key, const char *peer, bool batch)
{
    struct request *q = request(key, peer, batch);

    cr_assert_eq(line_enter(&line, q, MANY, MANY), 0);
    return q;
}

static struct request *next(bool batch_too)
{
    return line_next(&line, batch_too);
}

TestSuite(line, .init = setup);

Test(line, one_client_in_order)
{
    struct request *a = enter("k", "p", false), *b = enter("k", "q", false), *c = enter("k", "p", false);

    cr_expect_eq(line.n_waiting, 3u);
    line_leave(&line, b);
    cr_expect_eq(next(true), a);
    cr_expect_eq(next(true), c);
    cr_expect_null(next(true));
    line_ran(&line, a->client, true);
    line_ran(&line, c->client, true);
    cr_expect(TAILQ_EMPTY(&line.clients), "a client without requests is forgotten");
}

/* Whoever sends many waits behind whoever sends one. */
Test(line, clients_take_turns)
{
    struct request *many[6], *late, *first;

    for (size_t i = 0; i < 6; i++)
        many[i] = enter(NULL, "127.0.0.1", false);
    first = next(true);
    cr_expect_eq(first, many[0]);
    cr_expect_eq(next(true), many[1]);
    late = enter("127.0.0.1", "127.0.0.1", false);      /* a key of that name is somebody else */
    cr_expect_eq(next(true), late);
    line_ran(&line, late->client, true);
    late = enter("other", "127.0.0.1", false);
    cr_expect_eq(next(true), late, "it has none running, the other two");
    cr_expect_eq(next(true), many[2]);
}

/* Equally many at work: the one served longest ago. */
Test(line, turns_go_round)
{
    struct request *q[9];

    for (size_t i = 0; i < 9; i++)
        q[i] = enter(i % 3 == 0 ? "a" : i % 3 == 1 ? "b" : "c", "p", false);
    for (size_t i = 0; i < 9; i++)
        cr_expect_eq(next(true), q[i], "%zu", i);
}

Test(line, batch_waits)
{
    struct request *b = enter("k", "p", true), *i = enter("l", "p", false), *c = enter("l", "p", true);

    cr_expect_eq(next(true), i);
    cr_expect_null(next(false));
    cr_expect_eq(next(true), b);
    cr_expect_eq(next(true), c);
}

Test(line, bounds)
{
    for (int i = 0; i < 3; i++)
        cr_assert_eq(line_enter(&line, request("k", "p", i == 1), 4, 3), 0);
    cr_expect_eq(line_enter(&line, request("k", "p", false), 4, 3), LINE_E_CLIENT);
    cr_assert_eq(line_enter(&line, request("l", "p", false), 4, 3), 0);
    cr_expect_eq(line_enter(&line, request("m", "p", false), 4, 3), LINE_E_FULL);
    cr_expect_eq(line_enter(&line, request("n", "p", false), 0, 3), LINE_E_FULL);
}

/* 20 ms a place, ten of one client before: another client's first is second in turn. */
Test(line, waits_are_told_from_the_pace)
{
    struct request *q[11], *late;
    double own;

    for (int i = 0; i < 11; i++)
        q[i] = enter("k", "p", false);
    cr_expect_eq(line_wait_sec(&line, q[10]), 0);
    for (int i = 0; i < 5; i++) {
        struct request *run = next(true);

        cr_assert_eq(run, q[i]);
        usleep(20000);
        line_ran(&line, run->client, true);
    }
    cr_expect(line.gap_sec >= 0.02 && line.gap_sec < 0.2, "%f", line.gap_sec);
    own = line_wait_sec(&line, q[10]);
    cr_expect_float_eq(own, 7 * line.gap_sec, 1e-9);
    late = request("other", "p", false);
    cr_expect_float_eq(line_wait_sec(&line, late), 2 * line.gap_sec, 1e-9);
    late->asked.batch = true;
    cr_expect_float_eq(line_wait_sec(&line, late), 7 * line.gap_sec, 1e-9);

    /* Who would be served after its deadline does not wait for it. */
    late = request("k", "p", false);
    late->deadline_usec = clock_usec() + (uint64_t)(own / 2 * USEC_PER_SEC);
    cr_expect_eq(line_enter(&line, late, MANY, MANY), LINE_E_LATE);
    late = request("k", "p", false);
    late->deadline_usec = clock_usec() + (uint64_t)(own * 2 * USEC_PER_SEC);
    cr_expect_eq(line_enter(&line, late, MANY, MANY), 0);
}
