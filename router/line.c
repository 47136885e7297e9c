/* Who waits for the engine, and whose turn is next.
 *
 * Every client (an API key, or where there is none the peer) has two lines of its own, one for people who wait and one
 * for batch work. The next request is an interactive one while there is any; among clients, of the one with the fewest
 * requests at the engine, and of those the one served longest ago. So a client that sends a thousand requests delays
 * another's first one by nothing but the run that must end before a place is free.
 *
 * How long a newcomer would wait is told from the pace at which places became free while somebody waited, and from how
 * many would go before it by the rule above. Whoever could not be served before its deadline does not wait for it. */
#include <math.h>
#include <string.h>
#include "base/clock.h"
#include "router/internal.h"

#define PACE_WEIGHT 0.1                /* of the newest gap between two places becoming free */

void line_init(struct line *s)
{
    *s = (struct line) {0};
    TAILQ_INIT(&s->clients);
}

static const char *client_name(const struct request *q)
{
    return q->asked.key ? q->asked.key : q->asked.peer ? q->asked.peer : "";
}

/* A key named as a peer is another client. */
static struct line_client *client_find(const struct line *s, const struct request *q)
{
    struct line_client *c;

    TAILQ_FOREACH(c, &s->clients, all)
        if (c->is_key == (q->asked.key != NULL) && strcmp(c->name, client_name(q)) == 0)
            return c;
    return NULL;
}

static struct line_client *client_new(struct line *s, const struct request *q)
{
    size_t len = strlen(client_name(q)) + 1;
    struct line_client *c = calloc(1, sizeof(*c) + len);

    if (!c)
        return NULL;
    memcpy(c->name, client_name(q), len);
    c->is_key = q->asked.key;
    TAILQ_INIT(&c->lines[LINE_INTERACTIVE]);
    TAILQ_INIT(&c->lines[LINE_BATCH]);
    TAILQ_INSERT_TAIL(&s->clients, c, all);
    return c;
}

/* Forget a client that has nothing here any more. */
static void client_drop(struct line *s, struct line_client *c)
{
    if (c->n_running || c->n_waiting[LINE_INTERACTIVE] || c->n_waiting[LINE_BATCH])
        return;
    TAILQ_REMOVE(&s->clients, c, all);
    free(c);
}

void line_done(struct line *s)
{
    struct line_client *c;

    while ((c = TAILQ_FIRST(&s->clients))) {
        TAILQ_REMOVE(&s->clients, c, all);
        free(c);
    }
}

static enum line_class class_of(const struct request *q)
{
    return q->asked.batch ? LINE_BATCH : LINE_INTERACTIVE;
}

double line_wait_sec(const struct line *s, const struct request *q)
{
    const struct line_client *c, *own = client_find(s, q);
    enum line_class class = class_of(q);
    unsigned before, mine = own ? own->n_waiting[class] : 0;

    before = mine;
    TAILQ_FOREACH(c, &s->clients, all) {
        if (c != own)
            before += MIN(c->n_waiting[class], mine + 1);
        if (class == LINE_BATCH)
            before += c->n_waiting[LINE_INTERACTIVE];
    }
    return (before + 1) * s->gap_sec;
}

int line_enter(struct line *s, struct request *q, unsigned max, unsigned max_client)
{
    struct line_client *c = client_find(s, q);
    enum line_class class = class_of(q);

    if (c && c->n_waiting[LINE_INTERACTIVE] + c->n_waiting[LINE_BATCH] >= max_client)
        return LINE_E_CLIENT;
    if (s->n_waiting >= max)
        return LINE_E_FULL;
    if (s->n_waiting && line_wait_sec(s, q) * USEC_PER_SEC > (double)q->deadline_usec - (double)clock_usec())
        return LINE_E_LATE;
    if (!c)
        c = client_new(s, q);
    if (!c)
        return LINE_E_FULL;
    q->client = c;
    TAILQ_INSERT_TAIL(&c->lines[class], q, tier);
    c->n_waiting[class]++;
    s->n_waiting++;
    return 0;
}

static void line_remove(struct line *s, struct request *q)
{
    struct line_client *c = q->client;
    enum line_class class = class_of(q);

    TAILQ_REMOVE(&c->lines[class], q, tier);
    c->n_waiting[class]--;
    s->n_waiting--;
    q->client = NULL;
}

void line_leave(struct line *s, struct request *q)
{
    struct line_client *c = q->client;

    line_remove(s, q);
    client_drop(s, c);
}

struct request *line_next(struct line *s, bool batch_too)
{
    for (enum line_class class = LINE_INTERACTIVE; class <= (batch_too ? LINE_BATCH : LINE_INTERACTIVE); class++) {
        struct line_client *c, *best = NULL;
        struct request *q;

        TAILQ_FOREACH(c, &s->clients, all)
            if (c->n_waiting[class] && (!best || c->n_running < best->n_running ||
                                        (c->n_running == best->n_running && c->turn < best->turn)))
                best = c;
        if (!best)
            continue;
        q = TAILQ_FIRST(&best->lines[class]);
        line_remove(s, q);
        best->n_running++;
        best->turn = ++s->turns;
        q->client = best;
        return q;
    }
    return NULL;
}

void line_ran(struct line *s, struct line_client *c, bool paced)
{
    uint64_t now = clock_usec();

    /* A gap counts when somebody waited for the whole of it. */
    if (paced && s->n_waiting && s->freed_usec) {
        double gap = (double)(now - s->freed_usec) / USEC_PER_SEC;

        s->gap_sec = s->gap_sec > 0 ? s->gap_sec + PACE_WEIGHT * (gap - s->gap_sec) : gap;
    }
    s->freed_usec = s->n_waiting ? now : 0;
    c->n_running--;
    client_drop(s, c);
}
