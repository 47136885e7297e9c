/* The arena: zeroed and aligned whatever the size, nothing overlaps, and strings arrive whole. */
#include <criterion/criterion.h>
#include <string.h>
#include "base/arena.h"

Test(arena, sizes)
{
    static const size_t sizes[] = {0, 1, 15, 16, 17, 4000, 8192, 8193, 1 << 20, 3};
    struct arena a;
    uint8_t *p[200];

    arena_init(&a);
    for (size_t i = 0; i < ARRAY_SIZE(p); i++) {
        size_t n = sizes[i % ARRAY_SIZE(sizes)];
        p[i] = arena_alloc(&a, n);
        cr_assert_not_null(p[i]);
        cr_assert_eq((uintptr_t)p[i] % 16, 0);
        for (size_t k = 0; k < n; k++)
            cr_assert_eq(p[i][k], 0);
        memset(p[i], (int)i + 1, n);
    }
    for (size_t i = 0; i < ARRAY_SIZE(p); i++)
        for (size_t k = 0; k < sizes[i % ARRAY_SIZE(sizes)]; k++)
            cr_assert_eq(p[i][k], (uint8_t)(i + 1), "allocation %zu was written over", i);
    arena_done(&a);
    cr_assert_null(a.head);
}

Test(arena, refuses_what_cannot_be)
{
    struct arena a;

    arena_init(&a);
    cr_assert_null(arena_alloc(&a, SIZE_MAX));
    cr_assert_null(arena_alloc(&a, SIZE_MAX - 40));
    cr_assert_not_null(arena_alloc(&a, 1));
    arena_done(&a);
}

Test(arena, strings)
{
    struct arena a;

    arena_init(&a);
    cr_assert_null(arena_strdup(&a, NULL));
    cr_assert_str_eq(arena_strdup(&a, "one"), "one");
    cr_assert_str_eq(arena_strndup(&a, "abcdef", 3), "abc");
    cr_assert_str_eq(arena_strndup(&a, "ab", 30), "ab");
    cr_assert_str_eq(arena_printf(&a, "%d-%s", 7, "x"), "7-x");
    arena_done(&a);
}
