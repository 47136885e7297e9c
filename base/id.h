/* Identifiers: ULID-like, 48 bits of milliseconds then 80 random bits in Crockford base 32, so they sort by time. */
#pragma once

#include "base/util.h"

#define ID_BYTES 27                                  /* 26 characters and a NUL */
void id_new(char out[ID_BYTES], uint64_t wall_usec); /* getrandom(); aborts only if the kernel has none */
int id_valid(const char *s);                         /* 1 when s is 26 characters of the alphabet */
void random_bytes(void *out, size_t n);
