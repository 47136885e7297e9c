/* Codes are complete, unique and go both ways. */
#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>
#include "policy/policy.h"

Test(reasons, codes_are_unique_words)
{
    for (unsigned i = 0; i < REASON_COUNT; i++) {
        const char *code = reason_code(i);
        enum reason back;

        cr_assert(code && *code && strspn(code, "abcdefghijklmnopqrstuvwxyz-") == strlen(code), "%u", i);
        cr_assert(reason_sentence(i) && *reason_sentence(i));
        cr_assert(reason_from_code(&back, code) == 0 && back == i, "%s is there twice", code);
    }
    cr_assert(reason_from_code(&(enum reason){ 0 }, "because") == -EINVAL);
    cr_assert(strcmp(reason_code((enum reason)-5), "none") == 0);
    cr_assert(strcmp(route_name((enum route)7), "none") == 0 && strcmp(stage_name((enum stage)77), "before") == 0);
}
