/* What is recorded is JSON with every number, and never a number that JSON cannot say. */
#include <criterion/criterion.h>
#include <string.h>
#include "policy/policy.h"

Test(record, features)
{
    struct policy_input in = { .label = LABEL_PUBLIC, .ask = ASK_CLOUD, .local_up = true };
    json_t *j, *signals;

    in.features = (struct policy_features){ .bytes = 4000000000u, .p_hard = 0.25 };
    j = policy_features_json(&in);
    cr_assert(json_integer_value(json_object_get(j, "bytes")) == 4000000000);
    cr_assert(json_real_value(json_object_get(j, "p_hard")) == 0.25 && !json_object_get(j, "signals"));
    cr_assert(json_is_true(json_object_get(j, "local_up")) && json_is_false(json_object_get(j, "link_up")));
    json_decref(j);

    policy_signals_add(&in.signals, -1, 2, 0.5);
    policy_signals_add(&in.signals, -3, 4, 1.5);
    in.features.p_hard = NAN;
    j = policy_features_json(&in);
    signals = json_object_get(j, "signals");
    cr_assert(json_real_value(json_object_get(signals, "mean_logprob")) == -2);
    cr_assert(json_real_value(json_object_get(signals, "mean_margin")) == 3);
    cr_assert(json_real_value(json_object_get(signals, "max_entropy")) == 1.5);
    cr_assert(json_is_real(json_object_get(signals, "confidence")) && json_is_null(json_object_get(j, "p_hard")));
    json_decref(j);
}

Test(record, candidates)
{
    struct policy_config c;
    struct policy_input in = { .label = LABEL_PRIVATE, .local_up = true, .local_fits = true };
    struct policy_decision d;
    char *text;
    json_t *j;

    policy_config_default(&c);
    c.n_endpoints = 2;
    strcpy(c.endpoints[0].name, "near");
    strcpy(c.endpoints[1].name, "far");
    c.endpoints[1].labels = 15;
    policy_decide(&d, &c, &in);
    j = policy_candidates_json(&d, &c);
    text = json_canonical(j);
    cr_assert(strcmp(text, "[{\"route\":\"local\"},{\"endpoint\":\"near\",\"rejected\":\"label\",\"route\":\"cloud\"},"
                           "{\"endpoint\":\"far\",\"rejected\":\"offline\",\"route\":\"cloud\"}]") == 0, "%s", text);
    free(text);
    json_decref(j);
}
