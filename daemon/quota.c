/* What each API key used: of its requests a minute, a bucket that fills evenly, and of its tokens and dollars of the day
 * (UTC). Kept by the key's name, so that a reload changes nothing, in a table of fixed size; the entry that was longest
 * without use gives way, and loses nothing that the store cannot tell again: what a key used today is asked of it when
 * its entry is new. Everything belongs to the loop's thread. */
#include <errno.h>
#include <string.h>
#include "base/clock.h"
#include "daemon/http.h"

#define DAY_USEC (86400 * USEC_PER_SEC)
#define MINUTE_USEC (60 * USEC_PER_SEC)

static struct quota {
    char name[sizeof(((struct api_key *)0)->name)];      /* "": free */
    bool asked;
    uint64_t touched_usec;
    double requests;               /* in the bucket */
    uint64_t filled_usec;
    uint64_t day, tokens;
    int64_t microusd;
} quotas[2 * CONFIG_MAX_KEYS];

static struct quota *quota_find(const char *name)
{
    for (size_t i = 0; i < ARRAY_SIZE(quotas); i++)
        if (strcmp(quotas[i].name, name) == 0)
            return &quotas[i];
    return NULL;
}

static struct quota *quota_of(const struct api_key *key, uint64_t now)
{
    struct quota *q = quota_find(key->name);

    if (!q) {
        q = &quotas[0];
        for (size_t i = 1; i < ARRAY_SIZE(quotas); i++)
            if (quotas[i].touched_usec < q->touched_usec)
                q = &quotas[i];
        *q = (struct quota) {.requests = key->rate, .filled_usec = now};
        strcpy(q->name, key->name);
    }
    q->touched_usec = now;
    return q;
}

static void quota_day(struct quota *q, uint64_t wall)
{
    if (q->day == wall / DAY_USEC)
        return;
    q->day = wall / DAY_USEC;
    q->tokens = 0;
    q->microusd = 0;
}

/* The store's answer, for the key whose name `arg` holds. */
static void on_used(void *arg, json_t *used, const struct err *err)
{
    cleanup(freep) char *name = arg;
    struct quota *q = quota_find(name);

    if (q && used) {
        q->tokens += (uint64_t)json_integer_value(json_object_get(used, "tokens_in")) +
                     (uint64_t)json_integer_value(json_object_get(used, "tokens_out"));
        q->microusd += json_integer_value(json_object_get(used, "cost_microusd"));
    }
    json_decref(used);
}

static void quota_ask(struct quota *q, const struct api_key *key, struct store *s, uint64_t wall)
{
    const struct store_query today = {
        .ask = STORE_STATS, .key = key->name, .since_usec = wall / DAY_USEC * DAY_USEC, .until_usec = wall,
    };
    char *name = strdup(key->name);

    q->asked = name && store_query(s, &today, on_used, name) == 0;
    if (!q->asked)
        free(name);
}

static int exceeded(struct request_error *e, const char *code, const char *message, uint64_t wait_usec)
{
    *e = (struct request_error) {
        .http_status = 429, .type = "rate_limit_error", .code = code, .message = message,
        .retry_after_sec = (unsigned)(wait_usec / USEC_PER_SEC) + 1,
    };
    return -EACCES;
}

int quota_take(const struct api_key *key, struct store *s, uint64_t now, uint64_t wall, struct request_error *e)
{
    bool budget = key->tokens_per_day || key->microusd_per_day;
    struct quota *q;

    if (!key->rate && !budget)
        return 0;
    q = quota_of(key, now);
    quota_day(q, wall);
    if (budget && s && !q->asked)
        quota_ask(q, key, s, wall);
    if (key->tokens_per_day && q->tokens >= key->tokens_per_day)
        return exceeded(e, "token_budget_used", "this API key has used its tokens of today", DAY_USEC - wall % DAY_USEC);
    if (key->microusd_per_day && q->microusd >= key->microusd_per_day)
        return exceeded(e, "spend_budget_used", "this API key has used its money of today", DAY_USEC - wall % DAY_USEC);
    if (!key->rate)
        return 0;

    q->requests += (double)(now - q->filled_usec) * key->rate / MINUTE_USEC;
    q->requests = MIN(q->requests, (double)key->rate);
    q->filled_usec = now;
    if (q->requests < 1)
        return exceeded(e, "rate_limit_exceeded", "this API key sends more requests a minute than it may",
                        (uint64_t)((1 - q->requests) * MINUTE_USEC / key->rate));
    q->requests--;
    return 0;
}

void quota_spend(const char *key, uint64_t wall, uint64_t tokens, int64_t microusd)
{
    struct quota *q = quota_find(key);

    if (!q)
        return;
    quota_day(q, wall);
    q->tokens += tokens;
    q->microusd += microusd;
}

void quota_forget(void)
{
    memset(quotas, 0, sizeof(quotas));
}
