/* Modes narrow and never widen; the digest names exactly one configuration. */
#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>
#include "policy/policy.h"

Test(config, nothing_leaves_by_default)
{
    struct policy_config c;

    policy_config_default(&c);
    cr_assert(c.default_label == LABEL_PRIVATE && c.n_endpoints == 0);
    cr_assert(c.abort_threshold <= c.threshold && c.threshold > 0 && c.threshold < 1);
}

Test(config, mode_of_a_request)
{
    static const struct { enum mode configured; const char *asked; int r; enum mode mode; } cases[] = {
        { MODE_AUTO, NULL, 0, MODE_AUTO },
        { MODE_AUTO, "local-only", 0, MODE_LOCAL_ONLY },
        { MODE_AUTO, "Cloud-Only", 0, MODE_CLOUD_ONLY },
        { MODE_PREFER_LOCAL, "auto", 0, MODE_AUTO },
        { MODE_LOCAL_ONLY, NULL, 0, MODE_LOCAL_ONLY },
        { MODE_LOCAL_ONLY, "cloud-only", 0, MODE_LOCAL_ONLY },
        { MODE_LOCAL_ONLY, "auto", 0, MODE_LOCAL_ONLY },
        { MODE_LOCAL_ONLY, "prefer-local", 0, MODE_LOCAL_ONLY },
        { MODE_CLOUD_ONLY, "auto", 0, MODE_CLOUD_ONLY },
        { MODE_CLOUD_ONLY, "prefer-local", 0, MODE_CLOUD_ONLY },
        { MODE_CLOUD_ONLY, "local-only", -EPERM, MODE_COUNT },
        { MODE_AUTO, "", -EINVAL, MODE_COUNT },
        { MODE_LOCAL_ONLY, "loud", -EINVAL, MODE_COUNT },
    };

    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        enum mode m = MODE_COUNT;
        struct err err = { "" };

        cr_assert(policy_mode(&m, cases[i].configured, cases[i].asked, &err) == cases[i].r, "case %zu", i);
        cr_assert(m == cases[i].mode, "case %zu: %s", i, mode_name(m));
        cr_assert(!cases[i].r == !err.msg[0]);
    }
    cr_assert(strcmp(mode_name((enum mode)42), "local-only") == 0);
}

Test(config, digest_changes_with_every_field)
{
    struct policy_config base, all[12];
    char digests[ARRAY_SIZE(all)][POLICY_DIGEST_BYTES], again[POLICY_DIGEST_BYTES];

    policy_config_default(&base);
    base.n_endpoints = 1;
    base.endpoints[0] = (struct policy_endpoint){ "a", "big", "eu", 3, 150000, 600000 };
    for (size_t i = 0; i < ARRAY_SIZE(all); i++)
        all[i] = base;
    all[1].mode = MODE_LOCAL_ONLY;
    all[2].default_label = LABEL_PUBLIC;
    all[3].hold_tokens++;
    all[4].threshold += 1e-9;
    all[5].abort_threshold += 1e-9;
    all[6].max_prompt_bytes = 1;
    all[7].n_endpoints = 0;
    all[8].endpoints[0].labels = 1;
    all[9].endpoints[0].price_out++;
    strcpy(all[10].endpoints[0].model, "bigger");
    strcpy(all[11].endpoints[0].region, "us");

    for (size_t i = 0; i < ARRAY_SIZE(all); i++) {
        cr_assert(policy_digest(digests[i], &all[i]) == 0);
        cr_assert(strlen(digests[i]) == POLICY_DIGEST_BYTES - 1 && strncmp(digests[i], "sha256:", 7) == 0);
        for (size_t j = 0; j < i; j++)
            cr_assert(strcmp(digests[i], digests[j]) != 0, "%zu and %zu", i, j);
    }
    /* What is beyond n_endpoints is no part of the policy. */
    strcpy(base.endpoints[5].name, "left over");
    cr_assert(policy_digest(again, &base) == 0 && strcmp(again, digests[0]) == 0);
}
