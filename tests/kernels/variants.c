/* What this machine runs. */
#include "check.h"

size_t check_list(const struct kernels *const **ret)
{
    return kernels_list(ret);
}
