/* Identifiers: the form of a ULID, sorted by time, and no two alike. */
#include <criterion/criterion.h>
#include <string.h>
#include "base/id.h"

Test(id, form)
{
    char id[ID_BYTES], other[ID_BYTES];

    /* The time part of the ULID specification's own example, 1469918176385 ms. */
    id_new(id, 1469918176385000ULL);
    cr_assert_eq(strncmp(id, "01ARYZ6S41", 10), 0, "%s", id);
    cr_assert(id_valid(id));
    id_new(other, 1469918176385000ULL);
    cr_assert_str_neq(id, other);
    id_new(id, UINT64_MAX);
    cr_assert(id_valid(id));
    cr_assert_leq(id[0], '7');
}

Test(id, sorts_by_time)
{
    char last[ID_BYTES] = "", id[ID_BYTES];

    for (uint64_t msec = 1; msec < 1ULL << 48; msec += 1 + msec / 3) {
        id_new(id, msec * USEC_PER_MSEC);
        cr_assert_lt(strcmp(last, id), 0, "%s after %s", id, last);
        strcpy(last, id);
    }
}

Test(id, validity)
{
    cr_assert(id_valid("01ARYZ6S41TSV4RRFFQ69G5FAV"));
    cr_assert_not(id_valid(NULL));
    cr_assert_not(id_valid(""));
    cr_assert_not(id_valid("01ARYZ6S41TSV4RRFFQ69G5FA"));
    cr_assert_not(id_valid("01ARYZ6S41TSV4RRFFQ69G5FAVV"));
    cr_assert_not(id_valid("01ARYZ6S41TSV4RRFFQ69G5FAU"));
    cr_assert_not(id_valid("01aryz6s41tsv4rrffq69g5fav"));
    cr_assert_not(id_valid("01ARYZ6S41TSV4RRFFQ69G5FA\n"));
}

Test(id, every_bit_is_random)
{
    uint8_t any[32] = {0}, all[32], now[32];

    memset(all, 0xff, sizeof(all));
    for (int i = 0; i < 200; i++) {
        random_bytes(now, sizeof(now));
        for (size_t k = 0; k < sizeof(now); k++) {
            any[k] |= now[k];
            all[k] &= now[k];
        }
    }
    for (size_t k = 0; k < sizeof(any); k++)
        cr_assert(any[k] == 0xff && all[k] == 0);
}
