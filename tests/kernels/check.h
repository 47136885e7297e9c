/* What the files of the check share. */
#pragma once

#include "kernels/kernels.h"

/* values.c: random values of sorts that find faults; all from random_state. Arrays are the caller's to free. */
extern uint64_t random_state;

enum { KIND_PLAIN, KIND_WIDE, KIND_TINY, KIND_ZERO, KIND_TIES, KIND_SIGNED_ZERO, KIND_HUGE, N_KINDS };

uint64_t random_u64(void);
void *allocate(size_t bytes);                                     /* or the program ends */
float *random_floats(size_t n, int kind);
int8_t *random_activations(size_t n, bool extreme);               /* extreme: 127 and -127 */
uint8_t *random_ternary(size_t bytes, bool extreme);              /* codes 0..2; extreme: all the same */
uint16_t random_half(void);                                       /* finite, all exponents */
uint8_t *random_q8_0(size_t blocks);

/* variants.c, or emulated/variants.c: those to check, reference first; returns how many. */
size_t check_list(const struct kernels *const **ret);

/* bench.c */
void bench_small(const struct kernels *ref, const struct kernels *k);
int bench_ternary(const struct kernels *k, unsigned max_threads);
