/* What this x86-64 processor has and its system keeps the registers of: cpuid says the one, xgetbv the other. Intel's
 * manual, volume 1, 13 and 18. */
#include "kernels/internal.h"

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#define KEEPS_YMM 0x06          /* of XCR0 */
#define KEEPS_ZMM 0xe6
#define KEEPS_TILES 0x600e6
#define LEAF1_C_XGETBV (1u << 27)
#define LEAF1_C_F16C (1u << 29)
#define LEAF7_B_AVX2 (1u << 5)
#define LEAF7_B_AVX512F_BW (1u << 16 | 1u << 30)
#define LEAF7_C_AVX512VNNI (1u << 11)
#define LEAF7_D_AMX_TILE_INT8 (1u << 24 | 1u << 25)
#define LEAF7_1_A_AVXVNNI (1u << 4)
#define ARCH_REQ_XCOMP_PERM 0x1023      /* of asm/prctl.h, which older systems lack */
#define XFEATURE_TILE_DATA 18

struct leaf { unsigned a, b, c, d; };

static struct leaf leaf(unsigned number, unsigned sub)
{
    struct leaf l = {0};

    __get_cpuid_count(number, sub, &l.a, &l.b, &l.c, &l.d);
    return l;
}

static bool keeps(uint64_t registers)
{
    uint32_t low, high;

    if (!(leaf(1, 0).c & LEAF1_C_XGETBV))
        return false;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (low & registers) == registers;
}

static bool has(unsigned bits, unsigned wanted)
{
    return (bits & wanted) == wanted;
}

bool x86_has_avx2(void)
{
    return keeps(KEEPS_YMM) && has(leaf(7, 0).b, LEAF7_B_AVX2) && has(leaf(1, 0).c, LEAF1_C_F16C);
}

bool x86_has_avxvnni(void)
{
    return x86_has_avx2() && has(leaf(7, 1).a, LEAF7_1_A_AVXVNNI);
}

bool x86_has_avx512vnni(void)
{
    return x86_has_avx2() && keeps(KEEPS_ZMM) && has(leaf(7, 0).b, LEAF7_B_AVX512F_BW) && has(leaf(7, 0).c, LEAF7_C_AVX512VNNI);
}

/* Tiles are kept for processes that ask; threads begun later may use them too. */
bool x86_has_amx(void)
{
    return x86_has_avx512vnni() && keeps(KEEPS_TILES) && has(leaf(7, 0).d, LEAF7_D_AMX_TILE_INT8) &&
           !syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_TILE_DATA);
}
