/* Which kernels this machine runs. The table reads top to bottom: each row that the machine has overwrites, in a copy of
 * what stands above it, the functions it does better. TERN_CPU picks one by name. */
#include "kernels/internal.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

static bool always(void)
{
    return true;
}

static const struct { bool (*here)(void); void (*set)(struct kernels *k); } steps[] = {
    { always, kernels_set_ref },
#if defined(__x86_64__)
    { x86_has_avx2, kernels_set_avx2 },
    { x86_has_avxvnni, kernels_set_avxvnni },
    { x86_has_avx512vnni, kernels_set_avx512vnni },
    { x86_has_amx, kernels_set_amx },
#elif defined(__aarch64__)
    { always, kernels_set_neon },
    { aarch64_has_dotprod, kernels_set_dotprod },
    { aarch64_has_i8mm, kernels_set_i8mm },
#endif
};

static pthread_once_t once = PTHREAD_ONCE_INIT;
static struct kernels tables[ARRAY_SIZE(steps)];
static const struct kernels *variants[ARRAY_SIZE(steps)], *chosen;
static size_t n_variants;
static struct err refusal;

static void refuse(const char *name)
{
    char list[128] = "";

    for (size_t i = 0, at = 0; i < n_variants && at < sizeof(list); i++)
        at += (size_t)snprintf(list + at, sizeof(list) - at, " %s", variants[i]->name);
    err_set(&refusal, -EINVAL, "TERN_CPU=%.32s: this machine has%s", name, list);
}

static void find_variants(void)
{
    const char *name = getenv("TERN_CPU");
    const struct kernels *plainer = NULL;

    for (size_t i = 0; i < ARRAY_SIZE(steps); i++) {
        if (!steps[i].here())
            continue;
        if (plainer)
            tables[i] = *plainer;
        steps[i].set(&tables[i]);
        plainer = variants[n_variants++] = &tables[i];
    }

    if (!name || !*name) {
        chosen = plainer;
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
