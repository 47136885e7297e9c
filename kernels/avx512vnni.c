/* Ternary products for x86-64 with AVX-512 VNNI: a line is one vector. The rest is AVX2's. */
#include "kernels/avx512.h"

#define FEW 4
#define FEW_GROUPS 2
#define TILE 12

#include "kernels/vnni.h"

void ternary_matmul_avx512vnni(int32_t *out, size_t out_stride, const uint8_t *w, const int8_t *x, size_t x_stride,
                               size_t n, size_t rows, size_t cols)
{
    switch (n) {
    case 1: few(out, out_stride, w, x, x_stride, rows, cols, 1); return;
    case 2: few(out, out_stride, w, x, x_stride, rows, cols, 2); return;
    case 3: few(out, out_stride, w, x, x_stride, rows, cols, 3); return;
    case 4: few(out, out_stride, w, x, x_stride, rows, cols, 4); return;
    }
    many_rows(out, out_stride, w, x, x_stride, n, rows, cols);
}

void kernels_set_avx512vnni(struct kernels *k)
{
    k->name = "avx512vnni";
    k->ternary_matmul = ternary_matmul_avx512vnni;
}
