/* The energy counters of the processor's packages, /sys/class/powercap/intel-rapl:N; reading them often takes root. */
#include <stdio.h>
#include <string.h>

#include "bench/bench.h"

#define MAX_PACKAGES 8

static bool read_number(unsigned package, const char *file, uint64_t *ret)
{
    char path[96];
    unsigned long long v;
    bool ok;
    FILE *f;

    snprintf(path, sizeof(path), "/sys/class/powercap/intel-rapl:%u/%s", package, file);
    f = fopen(path, "re");
    if (!f)
        return false;
    ok = fscanf(f, "%llu", &v) == 1;
    fclose(f);
    if (ok)
        *ret = v;
    return ok;
}

bool energy_read(uint64_t *ret_microjoule)
{
    uint64_t sum = 0, v;
    bool any = false;

    for (unsigned i = 0; i < MAX_PACKAGES; i++)
        if (read_number(i, "energy_uj", &v)) {
            sum += v;
            any = true;
        }
    if (any)
        *ret_microjoule = sum;
    return any;
}

double energy_between(uint64_t begin, uint64_t end)
{
    uint64_t range = 0;

    if (end < begin)            /* one of the counters began anew; all have one range */
        read_number(0, "max_energy_range_uj", &range);
    return (double)(end + range - begin) * 1e-6;
}
