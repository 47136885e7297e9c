/* The circuit breaker of one endpoint. Closed, it counts failures: 5 in a row, or half of at least 10 calls within 30
 * s, open it for 15 s, doubling to 5 minutes each time a probe fails. Half-open lets one probe out at a time; 2
 * successes close it. A refusal that waiting cannot mend (wrong key, unknown model) latches it until the configuration
 * is reloaded. */
#include "policy/policy.h"

#define FAILURES_IN_A_ROW  5
#define WINDOW_USEC        (30 * USEC_PER_SEC)
#define WINDOW_MIN_CALLS   10
#define OPEN_USEC          (15 * USEC_PER_SEC)
#define OPEN_MAX_USEC      (300 * USEC_PER_SEC)
#define SUCCESSES_TO_CLOSE 2

void breaker_init(struct breaker *b)
{
    *b = (struct breaker){ .state = BREAKER_CLOSED };
}

const char *breaker_state_name(enum breaker_state s)
{
    static const char *const names[] = {
        [BREAKER_CLOSED] = "closed",
        [BREAKER_OPEN] = "open",
        [BREAKER_HALF_OPEN] = "half-open",
        [BREAKER_LATCHED] = "latched",
    };
    return (unsigned)s < ARRAY_SIZE(names) ? names[s] : "unknown";
}

bool breaker_would_allow(const struct breaker *b, uint64_t now_usec)
{
    switch (b->state) {
    case BREAKER_CLOSED:
        return true;
    case BREAKER_OPEN:
        return now_usec >= b->open_until_usec;
    case BREAKER_HALF_OPEN:
        return b->probes_out == 0;
    case BREAKER_LATCHED:
        break;
    }
    return false;
}

bool breaker_allows(struct breaker *b, uint64_t now_usec)
{
    if (!breaker_would_allow(b, now_usec))
        return false;
    if (b->state == BREAKER_OPEN) {
        b->state = BREAKER_HALF_OPEN;
        b->successes = 0;
    }
    if (b->state == BREAKER_HALF_OPEN)
        b->probes_out = 1;
    return true;
}

static void breaker_open(struct breaker *b, uint64_t now_usec)
{
    b->open_for_usec = b->open_for_usec ? MIN(b->open_for_usec * 2, OPEN_MAX_USEC) : OPEN_USEC;
    b->open_until_usec = now_usec + b->open_for_usec;
    b->state = BREAKER_OPEN;
    b->probes_out = 0;
}

static bool half_failed(const struct breaker *b, uint64_t now_usec)
{
    size_t calls = 0, failed = 0;

    for (size_t i = 0; i < b->n_recent; i++) {
        if (b->recent[i].at_usec + WINDOW_USEC <= now_usec)
            continue;
        calls++;
        failed += !b->recent[i].ok;
    }
    return calls >= WINDOW_MIN_CALLS && 2 * failed >= calls;
}

static void note_closed(struct breaker *b, uint64_t now_usec, bool ok)
{
    b->recent[b->next].at_usec = now_usec;
    b->recent[b->next].ok = ok;
    b->next = (b->next + 1) % ARRAY_SIZE(b->recent);
    b->n_recent = MIN(b->n_recent + 1, ARRAY_SIZE(b->recent));

    b->consecutive = ok ? 0 : b->consecutive + 1;
    if (!ok && (b->consecutive >= FAILURES_IN_A_ROW || half_failed(b, now_usec)))
        breaker_open(b, now_usec);
}

static void note_half_open(struct breaker *b, uint64_t now_usec, bool ok)
{
    b->probes_out = 0;
    if (!ok)
        breaker_open(b, now_usec);
    else if (++b->successes >= SUCCESSES_TO_CLOSE)
        breaker_init(b);
}

void breaker_note(struct breaker *b, uint64_t now_usec, enum call_result r)
{
    /* A 400 is our fault, and shows that the endpoint is alive. */
    const bool ok = r == CALL_OK || r == CALL_REJECTED;

    if (b->state == BREAKER_LATCHED)
        return;
    if (r == CALL_DENIED)
        b->state = BREAKER_LATCHED;
    else if (r == CALL_CANCELLED)
        b->probes_out = 0;
    else if (b->state == BREAKER_CLOSED)
        note_closed(b, now_usec, ok);
    else if (b->state == BREAKER_HALF_OPEN)
        note_half_open(b, now_usec, ok);
    /* Open: a call from before it opened came back late, and says nothing about now. */
}
