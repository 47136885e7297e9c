/* What this aarch64 processor has, as the system tells. */
#include "kernels/internal.h"

#include <sys/auxv.h>

/* The kernel's names for them, which older headers lack. */
#define HWCAP_DOTPROD (1ul << 20)
#define HWCAP2_MATMUL (1ul << 13)

bool aarch64_has_dotprod(void)
{
    return getauxval(AT_HWCAP) & HWCAP_DOTPROD;
}

bool aarch64_has_i8mm(void)
{
    return aarch64_has_dotprod() && getauxval(AT_HWCAP2) & HWCAP2_MATMUL;
}
