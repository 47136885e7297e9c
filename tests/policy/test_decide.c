/* The decision over its whole state space, against rules told here a second time and plainly; then by example. */
#include <criterion/criterion.h>
#include <string.h>
#include "policy/policy.h"

enum { N = 2 };   /* endpoints */

static struct policy_config config;
static struct policy_input easy, hard;   /* the same request with a good and with a bad score */

static void fresh(void)
{
    policy_config_default(&config);
    config.threshold = 0.6;
    config.abort_threshold = 0.2;
    config.n_endpoints = N;
    for (size_t i = 0; i < N; i++)
        config.endpoints[i].labels = 1u << LABEL_PUBLIC | 1u << LABEL_INTERNAL;

    easy = (struct policy_input){
        .local_up = true, .local_fits = true, .link_up = true, .endpoint_ready = { true, true },
    };
    hard = easy;
    easy.features.p_hard = 0.05;
    hard.features.p_hard = 0.95;
    policy_signals_init(&easy.signals);
    policy_signals_init(&hard.signals);
    for (unsigned i = 0; i < 8; i++) {
        policy_signals_add(&easy.signals, -1e-5, 12, 1e-4);
        policy_signals_add(&hard.signals, -3, 0.1, 2.5);
    }
}

TestSuite(decide, .init = fresh, .timeout = 100);

/* ---- The whole space --------------------------------------------------------------------------------------------- */

/* What the configuration and the request themselves say, whatever is up. */
static bool may_leave(const struct policy_input *in, int i)
{
    const unsigned label = (unsigned)in->label < LABEL_COUNT ? in->label : LABEL_PRIVATE;

    const bool asked = in->ask == ASK_AUTO || (in->ask == ASK_CLOUD && in->ask_endpoint == (size_t)i);

    return (config.endpoints[i].labels >> label & 1) && in->stage < STAGE_COUNT && in->mode < MODE_COUNT &&
           in->mode != MODE_LOCAL_ONLY && asked && !in->released;
}

static bool may_stay(const struct policy_input *in)
{
    const bool in_hand = in->stage == STAGE_STREAM || in->stage == STAGE_END || in->local_complete;

    if (in->stage < STAGE_COUNT && in->mode == MODE_CLOUD_ONLY)
        return false;
    return in->ask != ASK_CLOUD && in->stage != STAGE_LOCAL_FAILED && (in_hand || (in->local_up && in->local_fits));
}

static bool allowed(const struct policy_candidate *k)
{
    return k->rejected == REASON_NONE || k->rejected == REASON_REJ_SCORE || k->rejected == REASON_REJ_ORDER;
}

/* Criterion's assert is slow in the middle of millions. */
#define CHECK(x) do { if (!(x)) cr_assert(x, "stage %d label %d mode %d ask %d/%zu up %d fits %d complete %d link %d " \
    "ready %d%d tried %d%d labels %x %x -> %s %d %s", in->stage, in->label, in->mode, in->ask, in->ask_endpoint, \
    in->local_up, in->local_fits, in->local_complete, in->link_up, in->endpoint_ready[0], in->endpoint_ready[1], \
    in->endpoint_tried[0], in->endpoint_tried[1], config.endpoints[0].labels, config.endpoints[1].labels, \
    route_name(d->route), d->endpoint, reason_code(d->reason)); } while (0)

static void check(const struct policy_input *in, const struct policy_decision *d)
{
    bool some_may_leave = false, some_ready = false;
    unsigned chosen = 0;

    CHECK(d->n_candidates == 1 + config.n_endpoints);
    CHECK(d->candidates[0].route == ROUTE_LOCAL && d->candidates[0].endpoint == -1);
    CHECK(d->candidates[0].rejected < REASON_COUNT && allowed(&d->candidates[0]) == may_stay(in));
    for (int i = 0; i < (int)config.n_endpoints; i++) {
        const struct policy_candidate *k = &d->candidates[1 + i];
        const bool up = in->link_up && in->endpoint_ready[i] && !in->endpoint_tried[i];

        CHECK(k->route == ROUTE_CLOUD && k->endpoint == i);
        if (allowed(k))
            CHECK(may_leave(in, i) && up);
        else if (may_leave(in, i) && up)   /* the one gate that looks at local: prefer-local */
            CHECK(in->mode == MODE_PREFER_LOCAL && may_stay(in) && k->rejected == REASON_REJ_MODE);
        some_may_leave |= may_leave(in, i);
        some_ready |= allowed(k);
    }
    for (size_t i = 0; i < d->n_candidates; i++) {
        const struct policy_candidate *k = &d->candidates[i];

        CHECK(k->rejected == REASON_NONE || k->rejected >= REASON_REJ_LABEL);
        if (k->rejected == REASON_NONE) {
            chosen++;
            CHECK(k->route == d->route && k->endpoint == d->endpoint);
        }
    }

    CHECK(d->route <= ROUTE_CLOUD && d->reason > REASON_NONE && d->reason < REASON_REJ_LABEL);
    CHECK((d->route == ROUTE_NONE) == (d->reason == REASON_NOTHING_ALLOWED));
    CHECK((d->route == ROUTE_NONE) == (!may_stay(in) && !some_ready));
    CHECK(chosen == (d->route != ROUTE_NONE));
    CHECK((d->route == ROUTE_CLOUD) == (d->endpoint >= 0));
    if (d->route == ROUTE_CLOUD)
        CHECK(may_leave(in, d->endpoint));
    if (d->degraded)
        CHECK(d->route == ROUTE_LOCAL && (some_may_leave || !config.n_endpoints || in->stage == STAGE_CLOUD_FAILED));
    if (d->hold)
        CHECK(d->route == ROUTE_LOCAL && d->stage == STAGE_BEFORE && some_may_leave);
    CHECK(isnan(d->score) == isnan(d->threshold));
    CHECK(isnan(d->score) || (d->score >= 0 && d->score <= 1));
}

/* The score may choose inside the set of allowed routes, and only from local to cloud as it falls. */
static void check_score(const struct policy_input *in, const struct policy_decision *d,
                        const struct policy_decision *low)
{
    for (size_t i = 0; i < d->n_candidates; i++)
        CHECK(allowed(&d->candidates[i]) == allowed(&low->candidates[i]));
    if (d->route == ROUTE_CLOUD)
        CHECK(low->route == ROUTE_CLOUD);
    if (isnan(d->score))
        CHECK(isnan(low->score) && d->route == low->route && d->reason == low->reason && d->endpoint == low->endpoint);
}

static unsigned long long walked;

static void walk_state(const struct policy_input *state)
{
    struct policy_input low = *state;
    struct policy_decision d, worse;

    low.features = hard.features;
    low.signals = hard.signals;
    policy_decide(&d, &config, state);
    policy_decide(&worse, &config, &low);
    check(state, &d);
    check(&low, &worse);
    check_score(state, &d, &worse);
    walked += 2;
}

/* Bits: local up, fits, complete; link; released; then 0..2 for each endpoint: ready, broken, tried. No rule looks at
 * local_tried, so it need not double the space. */
static void walk_machine(struct policy_input *in)
{
    for (unsigned bits = 0; bits < 32; bits++) {
        in->local_up = bits & 1;
        in->local_fits = bits & 2;
        in->local_complete = bits & 4;
        in->link_up = bits & 8;
        in->released = bits & 16;
        for (unsigned e = 0; e < 9; e++) {
            in->local_tried = e & 1;
            in->endpoint_ready[0] = e % 3 == 0;
            in->endpoint_tried[0] = e % 3 == 2;
            in->endpoint_ready[1] = e / 3 == 0;
            in->endpoint_tried[1] = e / 3 == 2;
            walk_state(in);
        }
    }
}

static void walk_requests(void)
{
    static const struct { enum ask ask; size_t endpoint; } asks[] = {
        { ASK_AUTO, 0 }, { ASK_LOCAL, 0 }, { ASK_CLOUD, 0 }, { ASK_CLOUD, 1 }, { ASK_CLOUD, 9 }, { (enum ask)9, 0 },
    };
    struct policy_input in = easy;

    for (unsigned stage = 0; stage <= STAGE_COUNT; stage++)
        for (unsigned label = 0; label <= LABEL_COUNT; label++)
            for (unsigned mode = 0; mode <= MODE_COUNT; mode++)
                for (size_t a = 0; a < ARRAY_SIZE(asks); a++) {
                    in.stage = stage;
                    in.label = label;
                    in.mode = mode;
                    in.ask = asks[a].ask;
                    in.ask_endpoint = asks[a].endpoint;
                    walk_machine(&in);
                }
}

Test(decide, whole_space)
{
    static const unsigned sets[] = { 0, 1, 3, 4, 15 };   /* none, public, public and internal, private alone, all */

    for (size_t i = 0; i < ARRAY_SIZE(sets); i++)
        for (size_t j = 0; j < ARRAY_SIZE(sets); j++) {
            config.endpoints[0].labels = sets[i];
            config.endpoints[1].labels = sets[j];
            walk_requests();
        }
    config.n_endpoints = 0;
    walk_requests();
    cr_log_info("%llu decisions", walked);
    cr_assert(walked > 6000000);
}

/* More endpoints claimed than there can be, bits beyond the labels, scores that are no numbers: still an answer. */
Test(decide, odd_numbers)
{
    struct policy_decision d;

    config.n_endpoints = SIZE_MAX;
    for (size_t i = 0; i < POLICY_MAX_ENDPOINTS; i++)
        config.endpoints[i].labels = ~15u;
    easy.features.p_hard = NAN;
    policy_decide(&d, &config, &easy);
    cr_assert(d.n_candidates == POLICY_MAX_ENDPOINTS + 1 && d.reason == REASON_LABEL_KEEPS_LOCAL);

    config.endpoints[3].labels = 15;
    easy.endpoint_ready[3] = true;
    policy_decide(&d, &config, &easy);
    cr_assert(d.route == ROUTE_LOCAL && d.reason == REASON_TRY_LOCAL && d.hold);
    easy.stage = (enum stage)-1;
    easy.signals.min_logprob = NAN;
    policy_decide(&d, &config, &easy);
    cr_assert(d.route == ROUTE_LOCAL && d.reason == REASON_LOCAL_ONLY_MODE);
}

/* ---- By example -------------------------------------------------------------------------------------------------- */

static void expect_at(int line, const struct policy_input *in, enum stage stage, enum route route, int endpoint,
                      enum reason reason, bool degraded, bool hold)
{
    struct policy_input staged = *in;
    struct policy_decision d;

    staged.stage = stage;
    policy_decide(&d, &config, &staged);
    cr_assert(d.route == route && d.endpoint == endpoint && d.reason == reason && d.degraded == degraded &&
              d.hold == hold,
              "line %d: %s %d %s%s%s", line, route_name(d.route), d.endpoint, reason_code(d.reason),
              d.degraded ? " degraded" : "", d.hold ? " hold" : "");
}

#define stays(in, stage, reason, degraded, hold) \
    expect_at(__LINE__, &in, STAGE_##stage, ROUTE_LOCAL, -1, REASON_##reason, degraded, hold)
#define leaves(in, stage, endpoint, reason) \
    expect_at(__LINE__, &in, STAGE_##stage, ROUTE_CLOUD, endpoint, REASON_##reason, false, false)
#define refuses(in, stage) \
    expect_at(__LINE__, &in, STAGE_##stage, ROUTE_NONE, -1, REASON_NOTHING_ALLOWED, false, false)

Test(decide, automatic)
{
    stays(easy, BEFORE, TRY_LOCAL, false, true);
    leaves(hard, BEFORE, 0, TOO_HARD);
    stays(easy, STREAM, CONFIDENT, false, false);
    leaves(hard, STREAM, 0, UNSURE_STREAM);
    stays(easy, END, CONFIDENT, false, false);
    leaves(hard, END, 0, UNSURE_END);
    leaves(easy, LOCAL_FAILED, 0, LOCAL_FAILED);
    leaves(easy, CLOUD_FAILED, 0, NEXT_ENDPOINT);

    easy.features.bytes = 1001;
    config.max_prompt_bytes = 1000;
    leaves(easy, BEFORE, 0, TOO_HARD);
    easy.local_fits = false;
    leaves(easy, BEFORE, 0, DOES_NOT_FIT);
    easy.local_fits = true;
    easy.local_up = false;
    leaves(easy, BEFORE, 0, LOCAL_DOWN);
}

Test(decide, the_bounds_are_the_stages_own)
{
    struct policy_input in = easy;
    double p;

    policy_signals_init(&in.signals);
    policy_signals_add(&in.signals, -0.2, 2, 0.5);
    p = policy_confidence(&in.signals);
    config.threshold = p + 0.01;
    config.abort_threshold = p - 0.01;
    stays(in, STREAM, CONFIDENT, false, false);
    leaves(in, END, 0, UNSURE_END);
    config.threshold = p;    /* at the threshold is enough */
    stays(in, END, CONFIDENT, false, false);
}

Test(decide, private_has_no_way_out)
{
    for (unsigned l = LABEL_PRIVATE; l <= LABEL_SECRET; l++) {
        hard.label = l;
        stays(hard, BEFORE, LABEL_KEEPS_LOCAL, false, false);
        stays(hard, STREAM, UNSURE_KEPT, false, false);
        stays(hard, END, UNSURE_KEPT, false, false);
        stays(hard, CLOUD_FAILED, CLOUD_FAILED_LOCAL, true, false);
        refuses(hard, LOCAL_FAILED);
    }
    config.endpoints[1].labels |= 1u << LABEL_PRIVATE;
    hard.label = LABEL_PRIVATE;
    leaves(hard, BEFORE, 1, TOO_HARD);
}

Test(decide, cloud_is_out_of_reach)
{
    easy.link_up = hard.link_up = false;
    stays(easy, BEFORE, CLOUD_UNAVAILABLE, false, true);
    stays(easy, END, CONFIDENT, false, false);
    stays(hard, END, UNSURE_KEPT, true, false);
    refuses(hard, LOCAL_FAILED);
    hard.link_up = true;
    hard.endpoint_ready[0] = hard.endpoint_ready[1] = false;
    stays(hard, BEFORE, CLOUD_UNAVAILABLE, true, false);
    config.n_endpoints = 0;
    stays(hard, BEFORE, NO_ENDPOINT, false, false);
}

Test(decide, what_was_shown_is_finished_here)
{
    hard.released = true;
    stays(hard, END, UNSURE_KEPT, false, false);
    stays(easy, END, CONFIDENT, false, false);
}

Test(decide, unsure_with_no_cloud_at_all_is_degraded_unless_it_was_wanted_so)
{
    config.n_endpoints = 0;
    stays(hard, END, UNSURE_KEPT, true, false);
    hard.mode = MODE_LOCAL_ONLY;
    stays(hard, END, UNSURE_KEPT, false, false);
    hard.mode = MODE_PREFER_LOCAL;
    stays(hard, END, UNSURE_KEPT, false, false);
    hard.mode = MODE_AUTO;
    hard.ask = ASK_LOCAL;
    stays(hard, END, UNSURE_KEPT, false, false);
}

Test(decide, after_a_cloud_failed)
{
    hard.endpoint_tried[0] = true;
    leaves(hard, CLOUD_FAILED, 1, NEXT_ENDPOINT);
    hard.endpoint_tried[1] = true;
    stays(hard, CLOUD_FAILED, CLOUD_FAILED_LOCAL, true, false);
    hard.local_up = false;
    refuses(hard, CLOUD_FAILED);
    hard.local_complete = true;   /* a whole answer in hand outlives its engine */
    stays(hard, CLOUD_FAILED, CLOUD_FAILED_LOCAL, true, false);
    hard.mode = MODE_CLOUD_ONLY;
    refuses(hard, CLOUD_FAILED);
}

Test(decide, modes)
{
    hard.mode = MODE_LOCAL_ONLY;
    stays(hard, BEFORE, LOCAL_ONLY_MODE, false, false);
    stays(hard, END, UNSURE_KEPT, false, false);
    hard.mode = MODE_CLOUD_ONLY;
    leaves(hard, BEFORE, 0, CLOUD_ONLY_MODE);
    hard.label = LABEL_PRIVATE;
    refuses(hard, BEFORE);
    hard.label = LABEL_PUBLIC;
    hard.mode = MODE_PREFER_LOCAL;
    stays(hard, BEFORE, PREFER_LOCAL, false, false);
    stays(hard, END, UNSURE_KEPT, false, false);
    leaves(hard, LOCAL_FAILED, 0, LOCAL_FAILED);
    hard.local_fits = false;
    leaves(hard, BEFORE, 0, DOES_NOT_FIT);
}

Test(decide, models_by_name)
{
    struct policy_decision d;

    hard.ask = ASK_LOCAL;
    stays(hard, BEFORE, MODEL_ASKED_LOCAL, false, false);
    stays(hard, END, UNSURE_KEPT, false, false);
    refuses(hard, LOCAL_FAILED);

    easy.ask = ASK_CLOUD;
    easy.ask_endpoint = 1;
    leaves(easy, BEFORE, 1, MODEL_ASKED_CLOUD);
    easy.endpoint_tried[1] = true;
    refuses(easy, CLOUD_FAILED);
    easy.endpoint_tried[1] = false;
    easy.mode = MODE_LOCAL_ONLY;
    refuses(easy, BEFORE);
    easy.mode = MODE_AUTO;
    easy.label = LABEL_SECRET;
    policy_decide(&d, &config, &easy);
    cr_assert(d.route == ROUTE_NONE && d.candidates[2].rejected == REASON_REJ_LABEL &&
              d.candidates[0].rejected == REASON_REJ_ASK);
}
