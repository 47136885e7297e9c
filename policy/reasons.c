/* Reason codes and names of routes and stages: stable words for headers, rows and metrics, and a sentence each for
 * people. A code is never reused for another meaning: old rows keep it. */
#include "policy/policy.h"

#include <errno.h>
#include <string.h>

#define REASONS(X) \
    X(NONE, "none", "no reason was recorded") \
    X(LOCAL_ONLY_MODE, "local-only-mode", "the mode is local-only, so nothing may go to a cloud") \
    X(CLOUD_ONLY_MODE, "cloud-only-mode", "the mode is cloud-only") \
    X(MODEL_ASKED_LOCAL, "model-asked-local", "the request asked for the local model by name") \
    X(MODEL_ASKED_CLOUD, "model-asked-cloud", "the request asked for this cloud model by name") \
    X(LABEL_KEEPS_LOCAL, "label-keeps-local", "no configured endpoint may receive data with this label") \
    X(NO_ENDPOINT, "no-endpoint", "no cloud endpoint is configured") \
    X(CLOUD_UNAVAILABLE, "cloud-unavailable", "a cloud was allowed but none could be reached") \
    X(TRY_LOCAL, "try-local", "the local model answers first and its confidence is judged") \
    X(PREFER_LOCAL, "prefer-local", "the mode prefers the local model, and it was ready") \
    X(TOO_HARD, "too-hard", "the request is longer or more structured than the local model is made for") \
    X(DOES_NOT_FIT, "does-not-fit", "the request is too long for the local model's context, or asks for what it cannot do") \
    X(CONFIDENT, "confident", "the local model was sure enough of its answer") \
    X(UNSURE_STREAM, "unsure-stream", "the local model was unsure in its first words, so its answer was abandoned") \
    X(UNSURE_END, "unsure-end", "the local model was unsure of its finished answer, so it was not used") \
    X(UNSURE_KEPT, "unsure-kept", "the local model was unsure of its answer, but there was nowhere else to go") \
    X(LOCAL_DOWN, "local-down", "the local model was not running") \
    X(LOCAL_FAILED, "local-failed", "the local model failed before it had answered") \
    X(CLOUD_FAILED_LOCAL, "cloud-failed-local", "the cloud failed, so the local model answered") \
    X(NEXT_ENDPOINT, "next-endpoint", "one endpoint failed, so the next one was asked") \
    X(NOTHING_ALLOWED, "nothing-allowed", "no route was both allowed and available") \
    X(REJ_LABEL, "label", "may not receive data with this label") \
    X(REJ_MODE, "mode", "the mode does not allow it") \
    X(REJ_ASK, "asked-for-another", "the request asked for another model") \
    X(REJ_BREAKER, "breaker-open", "failed too often just now, or was refused access") \
    X(REJ_OFFLINE, "offline", "the device is offline") \
    X(REJ_RELEASED, "already-answering", "came too late: a part of the local answer was already shown") \
    X(REJ_TRIED, "already-tried", "had already failed this request") \
    X(REJ_LOCAL_DOWN, "local-not-running", "the local model is not running") \
    X(REJ_LOCAL_FITS, "local-too-long", "the request is too long for its context, or asks for what it cannot do") \
    X(REJ_LOCAL_TRIED, "local-already-failed", "had already failed this request") \
    X(REJ_SCORE, "score", "the score chose another route") \
    X(REJ_ORDER, "order", "another route comes first") \
    X(REJ_KEY, "key", "the API key may not use it")

static const struct { const char *code, *sentence; } reasons[REASON_COUNT] = {
#define X(name, code, sentence) [REASON_##name] = { code, sentence },
    REASONS(X)
#undef X
};

const char *reason_code(enum reason r)
{
    return reasons[(unsigned)r < REASON_COUNT ? r : REASON_NONE].code;
}

const char *reason_sentence(enum reason r)
{
    return reasons[(unsigned)r < REASON_COUNT ? r : REASON_NONE].sentence;
}

int reason_from_code(enum reason *ret, const char *code)
{
    for (unsigned r = 0; r < REASON_COUNT; r++) {
        if (strcmp(reasons[r].code, code) == 0) {
            *ret = (enum reason)r;
            return 0;
        }
    }
    return -EINVAL;
}

const char *route_name(enum route r)
{
    static const char *const names[] = { [ROUTE_NONE] = "none", [ROUTE_LOCAL] = "local", [ROUTE_CLOUD] = "cloud" };
    return names[(unsigned)r < ARRAY_SIZE(names) ? r : ROUTE_NONE];
}

const char *stage_name(enum stage s)
{
    static const char *const names[STAGE_COUNT] = {
        [STAGE_BEFORE] = "before",
        [STAGE_STREAM] = "stream",
        [STAGE_END] = "end",
        [STAGE_LOCAL_FAILED] = "local-failed",
        [STAGE_CLOUD_FAILED] = "cloud-failed",
    };
    return names[(unsigned)s < STAGE_COUNT ? s : STAGE_BEFORE];
}
