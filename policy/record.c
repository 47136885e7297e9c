/* What the record keeps of a decision: the numbers that went in and the routes that were considered, as JSON. */
#include "policy/privacy.h"

/* A number, or null for one that JSON cannot say. */
static json_t *number(double x)
{
    return isfinite(x) ? json_real(x) : json_null();
}

static json_t *signals_json(const struct policy_signals *s)
{
    const double n = s->n_tokens;

    return json_pack("{s:I, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:b, s:o}", "tokens", (json_int_t)s->n_tokens,
                     "mean_logprob", number(s->sum_logprob / n), "min_logprob", number(s->min_logprob),
                     "worst_window", number(s->worst_window), "mean_margin", number(s->sum_margin / n),
                     "min_margin", number(s->min_margin), "mean_entropy", number(s->sum_entropy / n),
                     "max_entropy", number(s->max_entropy), "complete", (int)s->complete,
                     "confidence", number(policy_confidence(s)));
}

static json_t *found_json(unsigned found)
{
    cleanup(json_decrefp) json_t *names = json_array();

    for (unsigned t = 0; t < PII_COUNT; t++)
        if (found & 1u << t && json_array_append_new(names, json_string(pii_name(t))) < 0)
            return NULL;
    return TAKE(names);
}

json_t *policy_features_json(const struct policy_input *in)
{
    static const char *const asks[] = { [ASK_AUTO] = "auto", [ASK_LOCAL] = "local", [ASK_CLOUD] = "cloud" };
    const struct policy_features *f = &in->features;
    cleanup(json_decrefp) json_t *j = json_pack(
        "{s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:o, s:s, s:s, s:b, s:b, s:b, s:b, s:b, s:b}",
        "bytes", (json_int_t)f->bytes, "words", (json_int_t)f->words, "turns", (json_int_t)f->turns,
        "digits", (json_int_t)f->digits, "lines", (json_int_t)f->lines, "code_marks", (json_int_t)f->code_marks,
        "question_marks", (json_int_t)f->question_marks, "non_ascii", (json_int_t)f->non_ascii,
        "longest_word", (json_int_t)f->longest_word, "p_hard", number(f->p_hard), "mode", mode_name(in->mode),
        "ask", asks[(unsigned)in->ask < ARRAY_SIZE(asks) ? in->ask : ASK_LOCAL], "local_up", (int)in->local_up,
        "local_fits", (int)in->local_fits, "local_tried", (int)in->local_tried,
        "local_complete", (int)in->local_complete, "released", (int)in->released, "link_up", (int)in->link_up);

    if (j && in->found && json_object_set_new(j, "found", found_json(in->found)) < 0)
        return NULL;
    if (j && in->signals.n_tokens && json_object_set_new(j, "signals", signals_json(&in->signals)) < 0)
        return NULL;
    return TAKE(j);
}

json_t *policy_candidates_json(const struct policy_decision *d, const struct policy_config *c)
{
    cleanup(json_decrefp) json_t *all = json_array();

    if (!all)
        return NULL;
    for (size_t i = 0; i < d->n_candidates; i++) {
        const struct policy_candidate *k = &d->candidates[i];
        json_t *j = json_pack("{s:s, s:s*, s:s*}", "route", route_name(k->route),
                              "endpoint", k->endpoint < 0 ? NULL : c->endpoints[k->endpoint].name,
                              "rejected", k->rejected == REASON_NONE ? NULL : reason_code(k->rejected));

        if (json_array_append_new(all, j) < 0)
            return NULL;
    }
    return TAKE(all);
}
