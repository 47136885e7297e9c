/* Labels only ever go up, and what cannot be understood is private at least. */
#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>
#include "policy/policy.h"

Test(label, names_go_both_ways)
{
    enum label l;

    for (unsigned i = 0; i < LABEL_COUNT; i++) {
        cr_assert(label_from_string(&l, label_name(i)) == 0 && l == i);
    }
    cr_assert(label_from_string(&l, "Internal") == 0 && l == LABEL_INTERNAL);
    l = LABEL_SECRET;
    cr_assert(label_from_string(&l, "") == -EINVAL && label_from_string(&l, "publi") == -EINVAL &&
              label_from_string(&l, "public ") == -EINVAL && l == LABEL_SECRET);
    cr_assert(strcmp(label_name((enum label)99), "private") == 0);
}

Test(label, sets)
{
    static const struct { const char *text; int r; unsigned set; } cases[] = {
        { "", 0, 0 }, { "  ", 0, 0 }, { "public", 0, 1 }, { "public, internal", 0, 3 }, { "SECRET,public", 0, 9 },
        { " public\t,\tprivate ", 0, 5 }, { "public public", -EINVAL, 0 }, { "public,", -EINVAL, 0 },
        { ",", -EINVAL, 0 }, { "public,,internal", -EINVAL, 0 }, { "all", -EINVAL, 0 },
        { "publicinternal", -EINVAL, 0 }, { ", public", -EINVAL, 0 },
    };

    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        unsigned set = 77;
        int r = label_set_from_string(&set, cases[i].text);

        cr_assert(r == cases[i].r && set == (r ? 77 : cases[i].set), "'%s': %d, %u", cases[i].text, r, set);
    }
}

/* Over every default, key label and header: never below the key's, never below the header's, the default only alone. */
Test(label, effective_is_the_maximum)
{
    static const char *const headers[] = {
        NULL, "public", "internal", "private", "secret", "", "pubic", "public, internal",
    };

    for (unsigned def = 0; def <= LABEL_COUNT; def++) {
        for (unsigned k = 0; k <= LABEL_COUNT + 1; k++) {
            for (size_t h = 0; h < ARRAY_SIZE(headers); h++) {
                const enum label key = k - 1;
                const bool has_key = k > 0, broken = h > 4;
                const unsigned key_level = key < LABEL_COUNT ? key : LABEL_PRIVATE;
                const unsigned header_level = broken ? LABEL_PRIVATE : h ? h - 1 : 0;
                const struct label_result got = policy_label(def, has_key ? &key : NULL, headers[h]);

                if (!has_key && !headers[h]) {
                    cr_assert(got.label == (def < LABEL_COUNT ? def : LABEL_PRIVATE));
                    cr_assert(got.source == (def < LABEL_COUNT ? LABEL_FROM_DEFAULT : LABEL_FROM_ERROR));
                } else {
                    cr_assert(got.label == MAX(has_key ? key_level : 0, header_level), "key %u header %zu: %u", k, h,
                              got.label);
                    cr_assert(got.source != LABEL_FROM_DEFAULT);
                    if (broken && (!has_key || key_level <= LABEL_PRIVATE))
                        cr_assert(got.source == LABEL_FROM_ERROR);
                    if (!broken && !headers[h] && key < LABEL_COUNT)
                        cr_assert(got.source == LABEL_FROM_KEY);
                }
            }
        }
    }
    cr_assert(strcmp(label_source_name(LABEL_FROM_HEADER), "header") == 0);
}

/* Over every label, outcome of the scan and configured label: never lower, found is enough, a failure is private. */
Test(label, what_is_found_only_raises)
{
    for (unsigned l = 0; l < LABEL_COUNT; l++)
        for (unsigned raise = 0; raise <= LABEL_COUNT; raise++)
            for (int scan = -1; scan <= 0; scan++)
                for (unsigned found = 0; found < 4; found++) {
                    struct label_result before = { (enum label)l, LABEL_FROM_HEADER };
                    struct label_result after = policy_label_found(before, scan, found, (enum label)raise);
                    unsigned to = raise < LABEL_COUNT ? raise : LABEL_PRIVATE;
                    unsigned want = scan < 0 ? MAX(l, LABEL_PRIVATE) : found ? MAX(l, to) : l;

                    cr_assert(after.label == want, "%u, %u, %d, %u: %u", l, raise, scan, found, after.label);
                    cr_assert((after.label == l) == (after.source == LABEL_FROM_HEADER));
                }
}
