/* The decision. First every route passes the hard gates, which know labels, modes and what is up but no score; what is
 * left is the allowed set. Then the first row of one table whose conditions hold chooses inside that set.
 *
 * What is unknown (a number out of its enum's range) is taken as private and local, so that no mistake of a caller
 * opens a way to the cloud. */
#include "policy/policy.h"

/* ---- The hard gates ---------------------------------------------------------------------------------------------- */

static struct policy_input understood(const struct policy_input *in)
{
    struct policy_input u = *in;

    if ((unsigned)u.label >= LABEL_COUNT)
        u.label = LABEL_PRIVATE;
    if ((unsigned)u.mode >= MODE_COUNT)
        u.mode = MODE_LOCAL_ONLY;
    if ((unsigned)u.ask > ASK_CLOUD)
        u.ask = ASK_LOCAL;
    if ((unsigned)u.stage >= STAGE_COUNT) {
        u.stage = STAGE_BEFORE;
        u.mode = MODE_LOCAL_ONLY;
    }
    return u;
}

static enum reason local_gate(const struct policy_input *in)
{
    /* An answer that is under way or whole needs no engine any more. */
    const bool in_hand = in->stage == STAGE_STREAM || in->stage == STAGE_END || in->local_complete;

    if (in->mode == MODE_CLOUD_ONLY)
        return REASON_REJ_MODE;
    if (in->ask == ASK_CLOUD)
        return REASON_REJ_ASK;
    if (in->stage == STAGE_LOCAL_FAILED)
        return REASON_REJ_LOCAL_TRIED;
    if (!in_hand && !in->local_up)
        return REASON_REJ_LOCAL_DOWN;
    if (!in_hand && !in->local_fits)
        return REASON_REJ_LOCAL_FITS;
    return REASON_NONE;
}

static enum reason endpoint_gate(const struct policy_config *c, const struct policy_input *in, size_t i,
                                 bool local_allowed)
{
    if (!(c->endpoints[i].labels & 1u << in->label))
        return REASON_REJ_LABEL;
    if (in->endpoint_denied[i])
        return REASON_REJ_KEY;
    if (in->mode == MODE_LOCAL_ONLY || (in->mode == MODE_PREFER_LOCAL && local_allowed))
        return REASON_REJ_MODE;
    if (in->ask == ASK_LOCAL || (in->ask == ASK_CLOUD && in->ask_endpoint != i))
        return REASON_REJ_ASK;
    if (in->released)
        return REASON_REJ_RELEASED;
    if (in->endpoint_tried[i])
        return REASON_REJ_TRIED;
    if (!in->link_up)
        return REASON_REJ_OFFLINE;
    if (!in->endpoint_ready[i])
        return REASON_REJ_BREAKER;
    return REASON_NONE;
}

static void list_candidates(struct policy_decision *d, const struct policy_config *c, const struct policy_input *in)
{
    const size_t n = MIN(c->n_endpoints, POLICY_MAX_ENDPOINTS);
    const enum reason local = local_gate(in);

    d->candidates[0] = (struct policy_candidate){ ROUTE_LOCAL, -1, local };
    for (size_t i = 0; i < n; i++)
        d->candidates[1 + i] = (struct policy_candidate){
            ROUTE_CLOUD, (int)i, endpoint_gate(c, in, i, local == REASON_NONE)
        };
    d->n_candidates = 1 + n;
}

/* ---- The choice -------------------------------------------------------------------------------------------------- */

enum fact {
    LOCAL = 1 << 0,          /* allowed and available */
    CLOUD = 1 << 1,          /* some endpoint is allowed and available */
    MISSED = 1 << 2,         /* some endpoint is allowed by label, mode and model, but tried, offline or broken */
    CONFIGURED = 1 << 3,     /* there are endpoints at all */
    LOW = 1 << 4,            /* the stage's score is below its bound */
    FITS = 1 << 5,
    LOCAL_ONLY = 1 << 6, CLOUD_ONLY = 1 << 7, PREFER_LOCAL = 1 << 8,
    ASKED_LOCAL = 1 << 9, ASKED_CLOUD = 1 << 10,
};

enum {
    BEFORE = 1 << STAGE_BEFORE, STREAM = 1 << STAGE_STREAM, END = 1 << STAGE_END,
    LOCAL_FAILED = 1 << STAGE_LOCAL_FAILED, CLOUD_FAILED = 1 << STAGE_CLOUD_FAILED,
    JUDGED = STREAM | END, ANY = (1 << STAGE_COUNT) - 1,
};

enum { DEGRADE = 1, HOLD = 2, SCORED = 4 /* the score took part */ };

/* Read top to bottom: the first row whose stage fits, whose facts all hold and whose `lacks` all do not, decides. */
static const struct rule {
    unsigned stages, needs, lacks;
    enum route route;
    enum reason reason;
    unsigned marks;
} rules[] = {
    /* stages     needs                lacks           route        reason                     marks */
    { ANY,          0,                   LOCAL | CLOUD,  ROUTE_NONE,  REASON_NOTHING_ALLOWED,    0 },
    { ANY,          CLOUD | ASKED_CLOUD, 0,              ROUTE_CLOUD, REASON_MODEL_ASKED_CLOUD,  0 },
    { CLOUD_FAILED, CLOUD,               0,              ROUTE_CLOUD, REASON_NEXT_ENDPOINT,      0 },
    { CLOUD_FAILED, LOCAL,               0,              ROUTE_LOCAL, REASON_CLOUD_FAILED_LOCAL, DEGRADE },
    { ANY,          CLOUD | CLOUD_ONLY,  0,              ROUTE_CLOUD, REASON_CLOUD_ONLY_MODE,    0 },
    { ANY,          CLOUD,               LOCAL | FITS,   ROUTE_CLOUD, REASON_DOES_NOT_FIT,       0 },
    { LOCAL_FAILED, CLOUD,               LOCAL,          ROUTE_CLOUD, REASON_LOCAL_FAILED,       0 },
    { ANY,          CLOUD,               LOCAL,          ROUTE_CLOUD, REASON_LOCAL_DOWN,         0 },

    /* From here on local is allowed. A local answer is under way or whole: is it good enough? */
    { JUDGED,       0,                   LOW,            ROUTE_LOCAL, REASON_CONFIDENT,          SCORED },
    { STREAM,       CLOUD,               0,              ROUTE_CLOUD, REASON_UNSURE_STREAM,      SCORED },
    { END,          CLOUD,               0,              ROUTE_CLOUD, REASON_UNSURE_END,         SCORED },
    { JUDGED,       MISSED,              0,              ROUTE_LOCAL, REASON_UNSURE_KEPT,        SCORED | DEGRADE },
    { JUDGED,       0,                   CONFIGURED | LOCAL_ONLY | PREFER_LOCAL | ASKED_LOCAL,
                                                         ROUTE_LOCAL, REASON_UNSURE_KEPT,        SCORED | DEGRADE },
    { JUDGED,       0,                   0,              ROUTE_LOCAL, REASON_UNSURE_KEPT,        SCORED },

    /* Nothing was generated yet. */
    { BEFORE,       LOCAL_ONLY,          0,              ROUTE_LOCAL, REASON_LOCAL_ONLY_MODE,    0 },
    { BEFORE,       ASKED_LOCAL,         0,              ROUTE_LOCAL, REASON_MODEL_ASKED_LOCAL,  0 },
    { BEFORE,       0,                   CONFIGURED,     ROUTE_LOCAL, REASON_NO_ENDPOINT,        0 },
    { BEFORE,       PREFER_LOCAL,        0,              ROUTE_LOCAL, REASON_PREFER_LOCAL,       0 },
    { BEFORE,       0,                   CLOUD | MISSED, ROUTE_LOCAL, REASON_LABEL_KEEPS_LOCAL,  0 },
    /* Out of reach now. The local answer is judged all the same: only an unsure one counts as degraded. */
    { BEFORE,       LOW,                 CLOUD,          ROUTE_LOCAL, REASON_CLOUD_UNAVAILABLE,  SCORED | DEGRADE },
    { BEFORE,       0,                   CLOUD,          ROUTE_LOCAL, REASON_CLOUD_UNAVAILABLE,  SCORED | HOLD },
    { BEFORE,       LOW,                 0,              ROUTE_CLOUD, REASON_TOO_HARD,           SCORED },
    { BEFORE,       0,                   0,              ROUTE_LOCAL, REASON_TRY_LOCAL,          SCORED | HOLD },
};

/* What the local answer's worth is judged by at this stage, and the bound it must reach. */
static void score(double *ret_score, double *ret_bound, const struct policy_config *c, const struct policy_input *in)
{
    const bool judged = in->stage == STAGE_STREAM || in->stage == STAGE_END;
    const bool too_long = c->max_prompt_bytes && in->features.bytes > c->max_prompt_bytes;

    *ret_score = judged ? policy_confidence(&in->signals) : too_long ? 0 : 1 - in->features.p_hard;
    *ret_bound = in->stage == STAGE_END ? c->threshold : c->abort_threshold;
}

static unsigned gather(const struct policy_decision *d, const struct policy_input *in)
{
    unsigned facts = 0;

    for (size_t i = 0; i < d->n_candidates; i++) {
        const struct policy_candidate *k = &d->candidates[i];

        if (k->rejected == REASON_NONE)
            facts |= k->route == ROUTE_LOCAL ? LOCAL : CLOUD;
        else if (k->rejected == REASON_REJ_TRIED || k->rejected == REASON_REJ_OFFLINE ||
                 k->rejected == REASON_REJ_BREAKER)
            facts |= MISSED;
    }
    return facts | (d->n_candidates > 1 ? CONFIGURED : 0) | (in->local_fits ? FITS : 0) |
           (in->mode == MODE_LOCAL_ONLY ? LOCAL_ONLY : in->mode == MODE_CLOUD_ONLY ? CLOUD_ONLY :
            in->mode == MODE_PREFER_LOCAL ? PREFER_LOCAL : 0) |
           (in->ask == ASK_LOCAL ? ASKED_LOCAL : in->ask == ASK_CLOUD ? ASKED_CLOUD : 0);
}

/* The first allowed candidate of the chosen route is it; the other allowed ones are told why not. */
static void settle(struct policy_decision *d, const struct rule *rule)
{
    d->endpoint = -1;
    for (size_t i = 0, found = 0; i < d->n_candidates; i++) {
        struct policy_candidate *k = &d->candidates[i];

        if (k->rejected != REASON_NONE)
            continue;
        if (k->route != rule->route)
            k->rejected = rule->marks & SCORED ? REASON_REJ_SCORE : REASON_REJ_ORDER;
        else if (found++)
            k->rejected = REASON_REJ_ORDER;
        else
            d->endpoint = k->endpoint;
    }
}

void policy_decide(struct policy_decision *ret, const struct policy_config *c, const struct policy_input *in)
{
    const struct policy_input input = understood(in);
    const struct rule *rule = rules;
    struct policy_decision d = { .stage = input.stage };
    unsigned facts;

    list_candidates(&d, c, &input);
    facts = gather(&d, &input);
    score(&d.score, &d.threshold, c, &input);
    if (d.score < d.threshold)
        facts |= LOW;

    /* Ends: every stage has a row that holds whenever local is allowed, and one for when only a cloud is. */
    while (!(rule->stages & 1u << input.stage) || (facts & rule->needs) != rule->needs || facts & rule->lacks)
        rule++;

    d.route = rule->route;
    d.reason = rule->reason;
    d.degraded = rule->marks & DEGRADE;
    d.hold = rule->marks & HOLD;
    if (!(rule->marks & SCORED))
        d.score = d.threshold = NAN;
    settle(&d, rule);
    *ret = d;
}
