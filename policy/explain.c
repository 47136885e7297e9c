/* One recorded request in plain sentences: who asked, how it was labelled, what was decided at each stage and why,
 * what was tried, what left the device, and how it ended. For a person who never read the manual; the numbers stay in
 * the rows.
 *
 * A row may come from another version of the daemon, so every member may be missing; what is missing is not told. */
#include "policy/policy.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include "base/buf.h"

#define SENTENCE_MAX (64u << 10)

struct telling {
    json_t *lines;
    struct buf line;
    bool failed;
};

PRINTF_LIKE(2, 3) static void say(struct telling *t, const char *fmt, ...)
{
    cleanup(freep) char *piece = NULL;
    va_list args;
    int r;

    va_start(args, fmt);
    r = vasprintf(&piece, fmt, args);
    va_end(args);
    if (r < 0) {
        piece = NULL;
        t->failed = true;
        return;
    }
    /* What is beyond any sane length is left out whole, so that no character is cut. */
    if (buf_puts(&t->line, piece) == -ENOMEM)
        t->failed = true;
}

static void end_line(struct telling *t)
{
    if (json_array_append_new(t->lines, json_stringn((const char *)t->line.data, t->line.len)) < 0)
        t->failed = true;
    buf_clear(&t->line);
}

static const char *text(const json_t *row, const char *key, const char *otherwise)
{
    const char *s = json_string_value(json_object_get(row, key));
    return s && *s ? s : otherwise;
}

static bool is(const json_t *row, const char *key, const char *value)
{
    return strcmp(text(row, key, ""), value) == 0;
}

static double number(const json_t *row, const char *key)
{
    const json_t *v = json_object_get(row, key);
    return json_is_number(v) ? json_number_value(v) : NAN;
}

static json_int_t integer(const json_t *row, const char *key)
{
    return json_integer_value(json_object_get(row, key));
}

static bool is_set(const json_t *row, const char *key)
{
    const json_t *v = json_object_get(row, key);
    return json_is_true(v) || json_integer_value(v) != 0;
}

/* ---- The request ------------------------------------------------------------------------------------------------- */

/* "because it holds an e-mail address and a card number" */
static void tell_found(struct telling *t, const json_t *decision)
{
    static const struct { const char *type, *words; } kinds[] = {
        { "PEM", "a private key" }, { "KEY", "a key, token or password" }, { "EMAIL", "an e-mail address" },
        { "URL", "a web address" }, { "IBAN", "a bank account (IBAN)" }, { "CARD", "a card number" },
        { "IP", "an IP address" }, { "SSN", "a social security number" }, { "PHONE", "a phone number" },
        { "ENTROPY", "a random-looking word" }, { "TERM", "one of the configured terms" },
        { "CUSTOM", "what the configured pattern matches" },
    };
    const json_t *found = json_object_get(json_object_get(decision, "features"), "found"), *name;
    size_t i, n = json_array_size(found);

    say(t, "because it holds %s", n ? "" : "something that was to be found");
    json_array_foreach(found, i, name)
        for (size_t k = 0; k < ARRAY_SIZE(kinds); k++)
            if (json_is_string(name) && strcmp(json_string_value(name), kinds[k].type) == 0)
                say(t, "%s%s", i == 0 ? "" : i + 1 == n ? " and " : ", ", kinds[k].words);
}

static void tell_request(struct telling *t, const json_t *request, const json_t *decision)
{
    static const struct { const char *source, *because; } sources[] = {
        { "key", "because its key says so" },
        { "header", "because the request said so" },
        { "error", "because its label could not be understood, and what cannot be understood is private" },
    };
    static const struct { const char *dialect, *api; } apis[] = {
        { "openai", "OpenAI" }, { "anthropic", "Anthropic" }, { "ollama", "Ollama" },
    };
    const char *api = text(request, "dialect", NULL), *key = text(request, "key", NULL);
    const char *label = text(request, "label", NULL), *model = text(request, "model_asked", NULL);
    const char *time = text(request, "time", "");

    say(t, "Asked");
    if (strlen(time) >= strlen("2026-11-22T17:30:27") && !time[strspn(time, "0123456789-T:.Z")])
        say(t, " at %.10s %.8s UTC", time, time + 11);
    for (size_t i = 0; api && i < ARRAY_SIZE(apis); i++)
        if (strncmp(api, apis[i].dialect, strlen(apis[i].dialect)) == 0)
            api = apis[i].api;
    if (api)
        say(t, " through the %s API", api);
    if (key)
        say(t, " by key '%s'", key);
    if (model)
        say(t, " for the model '%s'", model);
    if (label) {
        say(t, "; labelled %s ", label);
        if (is(request, "label_source", "default"))
            say(t, "because nothing labelled it and default_label = %s", label);
        if (is(request, "label_source", "detector"))
            tell_found(t, decision);
        for (size_t i = 0; i < ARRAY_SIZE(sources); i++)
            if (is(request, "label_source", sources[i].source))
                say(t, "%s", sources[i].because);
    }
    say(t, ".");
    end_line(t);
}

/* ---- Its decisions ----------------------------------------------------------------------------------------------- */

/* What to set so that such requests may leave. */
static void tell_remedy(struct telling *t, const json_t *request, const json_t *candidates, enum reason reason)
{
    const char *label = text(request, "label", "private"), *name = "NAME";
    const bool by_default = is(request, "label_source", "default");
    const bool guarded = strcmp(label, "private") == 0 || strcmp(label, "secret") == 0;
    const json_t *k;
    size_t i;

    json_array_foreach(candidates, i, k) {
        if (is(k, "route", "cloud")) {
            name = text(k, "endpoint", name);
            break;
        }
    }

    if (reason == REASON_NO_ENDPOINT && by_default && guarded)
        say(t, " To let unlabelled requests escalate, add a section [cloud NAME] with url, model and "
               "labels = public, internal, and set [policy] default_label = internal.");
    else if (reason == REASON_NO_ENDPOINT)
        say(t, " To let such requests escalate, add a section [cloud NAME] with url, model and labels that include %s.",
            label);
    else if (by_default && guarded)
        say(t, " To let unlabelled requests escalate, set [policy] default_label = internal and [cloud %s] "
               "labels = public, internal.", name);
    else
        say(t, " To let such requests escalate, add %s to [cloud %s] labels.", label, name);
}

/* The other routes and why they were not taken. */
static void tell_passed_over(struct telling *t, const json_t *candidates)
{
    const char *before = " Passed over: ";
    const json_t *k;
    size_t i;

    json_array_foreach(candidates, i, k) {
        const char *code = text(k, "rejected", NULL);
        enum reason r;

        if (!code)
            continue;
        say(t, "%s%s (%s)", before,
            is(k, "route", "local") ? "the local model" : text(k, "endpoint", "a cloud endpoint"),
            reason_from_code(&r, code) == 0 ? reason_sentence(r) : code);
        before = "; ";
    }
    if (*before == ';')
        say(t, ".");
}

static void tell_route(struct telling *t, const json_t *decision)
{
    const char *endpoint = text(decision, "endpoint", NULL), *model = text(decision, "model", NULL);

    if (is(decision, "route", "local"))
        say(t, is(decision, "stage", "before") ? "Kept on the device" : "The local answer was kept");
    else if (!is(decision, "route", "cloud"))
        say(t, "Refused");
    else {
        say(t, "Escalated to %s", endpoint ? endpoint : "a cloud");
        if (model)
            say(t, " (model %s)", model);
    }
}

static void tell_decision(struct telling *t, const json_t *request, const json_t *decision)
{
    const json_t *candidates = json_object_get(decision, "candidates");
    const double score = number(decision, "score"), threshold = number(decision, "threshold");
    const char *code = text(decision, "reason", "none"), *label = text(request, "label", "private");
    enum reason reason = REASON_NONE;
    const bool known = reason_from_code(&reason, code) == 0;

    tell_route(t, decision);
    if (reason == REASON_LABEL_KEEPS_LOCAL)
        say(t, ": no configured endpoint may receive %s data.", label);
    else
        say(t, ": %s.", known ? reason_sentence(reason) : code);

    if (isfinite(score) && isfinite(threshold))
        say(t, is(decision, "stage", "before") ? " Fit for the local model: %.2f, at least %.2f is asked." :
                                                 " P(right) %.2f against the threshold %.2f.", score, threshold);
    if (is_set(decision, "degraded"))
        say(t, " Marked degraded: with everything up, a cloud might have answered.");

    if (reason == REASON_LABEL_KEEPS_LOCAL || reason == REASON_NO_ENDPOINT)
        tell_remedy(t, request, candidates, reason);
    else
        tell_passed_over(t, candidates);
    end_line(t);
}

/* ---- What was done ----------------------------------------------------------------------------------------------- */

static void tell_attempt(struct telling *t, const json_t *attempt)
{
    const bool local = is(attempt, "tier", "local");
    const json_int_t status = integer(attempt, "http_status");
    const double duration_ms = number(attempt, "duration_ms");
    const char *model = text(attempt, "model", NULL), *error = text(attempt, "error", NULL);

    say(t, local ? "The local model" : "The cloud endpoint %s", text(attempt, "endpoint", ""));
    if (model)
        say(t, local ? " %s" : " (model %s)", model);
    if (is(attempt, "result", "ok"))
        say(t, " answered");
    else if (is(attempt, "result", "failed"))
        say(t, " failed");
    else if (is(attempt, "result", "cancelled"))
        say(t, " was stopped");
    else if (is(attempt, "result", "abandoned"))
        say(t, " was abandoned");
    else
        say(t, ": %s", text(attempt, "result", "no result"));
    if (error)
        say(t, " (%s)", error);
    if (status)
        say(t, " with HTTP status %" JSON_INTEGER_FORMAT, status);
    if (isfinite(duration_ms))
        say(t, " after %.3f s", duration_ms / 1000);
    say(t, ", %" JSON_INTEGER_FORMAT " tokens in, %" JSON_INTEGER_FORMAT " out.", integer(attempt, "tokens_in"),
        integer(attempt, "tokens_out"));
    end_line(t);
}

static void tell_egress(struct telling *t, const json_t *egress)
{
    const char *region = text(egress, "region", NULL), *label = text(egress, "label", NULL);
    const json_int_t redactions = integer(egress, "redactions");

    say(t, "%" JSON_INTEGER_FORMAT " bytes left the device to %s", integer(egress, "bytes"),
        text(egress, "host", "an unnamed host"));
    if (region)
        say(t, " (region %s)", region);
    if (label)
        say(t, ", labelled %s", label);
    if (redactions)
        say(t, ", with %" JSON_INTEGER_FORMAT " redactions", redactions);
    say(t, ".");
    end_line(t);
}

static void tell_outcome(struct telling *t, const json_t *outcome)
{
    static const struct { const char *outcome, *says; } ends[] = {
        { "ok", "The answer was delivered" },
        { "degraded", "The answer was delivered, marked degraded" },
        { "refused", "The request was refused" },
        { "error", "It ended with an error" },
        { "cancelled", "The client left before it was over" },
        { "truncated", "The answer was cut before its end, and the client was told" },
    };
    const char *how = text(outcome, "outcome", "no outcome"), *error = text(outcome, "error", NULL);
    const json_int_t cost = integer(outcome, "cost_microusd"), status = integer(outcome, "http_status");
    const double confidence = number(outcome, "confidence"), latency_ms = number(outcome, "latency_ms");

    if (!json_is_object(outcome)) {
        say(t, "It was never finished: the daemon stopped before it was over.");
        end_line(t);
        return;
    }
    for (size_t i = 0; i < ARRAY_SIZE(ends); i++)
        if (strcmp(how, ends[i].outcome) == 0)
            how = ends[i].says;
    say(t, "%s", how);
    if (error)
        say(t, " (%s)", error);
    if (status >= 400)
        say(t, " with HTTP status %" JSON_INTEGER_FORMAT, status);
    if (isfinite(latency_ms))
        say(t, " after %.3f s", latency_ms / 1000);
    if (isfinite(confidence))
        say(t, "; P(right) %.2f", confidence);
    if (cost > 0)
        say(t, "; cost %" JSON_INTEGER_FORMAT ".%06" JSON_INTEGER_FORMAT " USD", cost / 1000000, cost % 1000000);
    say(t, ".");
    end_line(t);
}

json_t *policy_explain(const json_t *row)
{
    const json_t *request = json_object_get(row, "request"), *each;
    struct telling t = { .lines = json_array() };
    size_t i;

    if (!t.lines)
        return NULL;
    buf_init(&t.line, SENTENCE_MAX);

    if (!json_is_object(row)) {
        say(&t, "No request with this id is in the record.");
        end_line(&t);
    } else {
        tell_request(&t, request, json_array_get(json_object_get(row, "decisions"), 0));
        json_array_foreach(json_object_get(row, "decisions"), i, each)
            tell_decision(&t, request, each);
        json_array_foreach(json_object_get(row, "attempts"), i, each)
            tell_attempt(&t, each);
        json_array_foreach(json_object_get(row, "egress"), i, each)
            tell_egress(&t, each);
        if (json_array_size(json_object_get(row, "egress")) == 0) {
            say(&t, "Nothing left the device.");
            end_line(&t);
        }
        tell_outcome(&t, json_object_get(row, "outcome"));
    }

    buf_done(&t.line);
    if (t.failed) {
        json_decref(t.lines);
        return NULL;
    }
    return t.lines;
}
