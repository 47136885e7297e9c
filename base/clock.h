/* Time. Timers and latencies use the monotonic clock only, so that a wall clock set ten years off hurts nothing. */
#pragma once

#include "base/util.h"

uint64_t clock_usec(void);            /* CLOCK_MONOTONIC, microseconds */
uint64_t clock_wall_usec(void);       /* CLOCK_REALTIME, microseconds since 1970 */
#define CLOCK_RFC3339_BYTES 28        /* "2026-11-22T17:30:27.123456Z" + NUL */
void clock_rfc3339(char out[CLOCK_RFC3339_BYTES], uint64_t wall_usec);
int clock_from_rfc3339(uint64_t *ret_wall_usec, const char *s);   /* date, or date and time with Z; 0 or -EINVAL */
