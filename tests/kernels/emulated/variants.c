/* Kernels for instructions that this machine may lack, built to be emulated. Their floats are the reference's: what is
 * checked here is what these files bring. */
#include "../check.h"

#include <stdio.h>
#include "amx_model.h"
#include "kernels/internal.h"

static struct kernels ref, tables[3];
static void (*amx)(int32_t *out, size_t out_stride, const uint8_t *w, const int8_t *x, size_t x_stride, size_t n, size_t rows,
                   size_t cols);

/* A thread that keeps tiles makes each switch dearer. */
static void released_amx(int32_t *out, size_t out_stride, const uint8_t *w, const int8_t *x, size_t x_stride, size_t n,
                         size_t rows, size_t cols)
{
    amx(out, out_stride, w, x, x_stride, n, rows, cols);
    if (model_in_use()) {
        printf("FAILED amx: tiles are kept after a call\n");
        exit(1);
    }
}

size_t check_list(const struct kernels *const **ret)
{
    static const struct kernels *const list[] = { &ref, &tables[0], &tables[1], &tables[2] };
    static void (*const set[])(struct kernels *) = { kernels_set_avxvnni, kernels_set_avx512vnni, kernels_set_amx };

    kernels_set_ref(&ref);
    for (size_t i = 0; i < ARRAY_SIZE(set); i++) {
        tables[i] = ref;
        tables[i].layout = &ternary_lines;
        set[i](&tables[i]);
    }
    amx = tables[2].ternary_matmul;
    tables[2].ternary_matmul = released_amx;
    *ret = list;
    return ARRAY_SIZE(list);
}
