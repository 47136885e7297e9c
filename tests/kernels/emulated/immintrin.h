/* Stands in for the compiler's header where kernels are built for instructions that this machine may lack: SIMDe computes
 * the vectors, amx_model.c the tiles. What SIMDe 0.7.4 has not is written out, from Intel's descriptions. Only what is
 * used is included: all of it takes long to compile. */
#pragma once

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wshadow"
#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512/add.h>
#include <simde/x86/avx512/and.h>
#include <simde/x86/avx512/dpbusd.h>
#include <simde/x86/avx512/loadu.h>
#include <simde/x86/avx512/set1.h>
#include <simde/x86/avx512/srli.h>
#include <simde/x86/avx512/storeu.h>
#pragma GCC diagnostic pop

#include "amx_model.h"

/* VPDPBUSD in AVX's encoding: the one of AVX-512 without masks. */
#define _mm256_dpbusd_avx_epi32(sum, a, b) simde_mm256_dpbusd_epi32(sum, a, b)

/* VPSRAD */
static inline simde__m512i emulated_srai(simde__m512i v, unsigned n)
{
    simde__m512i_private p = simde__m512i_to_private(v);

    for (int i = 0; i < 16; i++)
        p.i32[i] = p.i32[i] >> (n > 31 ? 31 : n);
    return simde__m512i_from_private(p);
}
#define _mm512_srai_epi32(v, n) emulated_srai(v, n)
