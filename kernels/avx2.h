/* What the files for AVX2 share. Included only where the compiler may use it. */
#pragma once

#include "kernels/internal.h"

#include <immintrin.h>
#include <stdalign.h>
#include <string.h>

#define ALWAYS_INLINE static inline __attribute__((always_inline))

ALWAYS_INLINE __m256i load(const void *p)
{
    return _mm256_loadu_si256((const __m256i *)p);
}
