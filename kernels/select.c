/* Which kernels this machine runs. The table reads top to bottom, better rows overwriting plainer ones; TERN_CPU picks
 * one by name. */
#include "kernels/internal.h"

#ifdef __x86_64__
#include <cpuid.h>
#elif defined(__aarch64__)
#include <sys/auxv.h>
#endif
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

static pthread_once_t once = PTHREAD_ONCE_INIT;
static const struct kernels *variants[8], *chosen;
static size_t n_variants;
static struct err refusal;

static void refuse(const char *name)
{
    char list[128] = "";

    for (size_t i = 0, at = 0; i < n_variants && at < sizeof(list); i++)
        at += (size_t)snprintf(list + at, sizeof(list) - at, " %s", variants[i]->name);
    err_set(&refusal, -EINVAL, "TERN_CPU=%.32s: this machine has%s", name, list);
}

#ifdef __x86_64__
/* clang 14's __builtin_cpu_supports() does not know the name. That the system keeps the registers is avx2's check. */
static bool has_f16c(void)
{
    unsigned a, b, c = 0, d;

    return __get_cpuid(1, &a, &b, &c, &d) && c & bit_F16C;
}
#endif

#ifdef __aarch64__
/* The kernel's names for them, which older headers lack. */
#define HWCAP_DOTPROD (1ul << 20)
#define HWCAP2_MATMUL (1ul << 13)

static void find_arm(void)
{
    static struct kernels dot, i8mm;
    bool has_dot = getauxval(AT_HWCAP) & HWCAP_DOTPROD;

    variants[n_variants++] = &kernels_neon;
    if (has_dot) {
        dot = kernels_neon_dot();
        variants[n_variants++] = &dot;
    }
    if (has_dot && getauxval(AT_HWCAP2) & HWCAP2_MATMUL) {
        i8mm = kernels_neon_i8mm();
        variants[n_variants++] = &i8mm;
    }
}
#endif

static void find_variants(void)
{
    const char *name = getenv("TERN_CPU");

    variants[n_variants++] = &kernels_ref;
#ifdef __x86_64__
    if (__builtin_cpu_supports("avx2") && has_f16c())
        variants[n_variants++] = &kernels_avx2;
#elif defined(__aarch64__)
    find_arm();
#endif

    if (!name || !*name) {
        chosen = variants[n_variants - 1];
        return;
    }
    for (size_t i = 0; i < n_variants; i++)
        if (!strcmp(variants[i]->name, name))
            chosen = variants[i];
    if (!chosen)
        refuse(name);
}

const struct kernels *kernels_get(struct err *err)
{
    pthread_once(&once, find_variants);
    if (!chosen)
        err_set(err, -EINVAL, "%s", refusal.msg);
    return chosen;
}

size_t kernels_list(const struct kernels *const **ret)
{
    pthread_once(&once, find_variants);
    *ret = variants;
    return n_variants;
}
