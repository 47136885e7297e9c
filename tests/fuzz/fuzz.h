/* Every fuzz target is one function on bytes. With clang and -DTERN_SANITIZE=fuzz, libFuzzer calls it (`cmake --preset
 * fuzz`, then build-fuzz/tests/fuzz/fuzz_NAME tests/fuzz/corpus/NAME); in every other build replay.c calls it on each file
 * of the corpus, as ctest's fuzz.NAME. */
#pragma once

#include <stddef.h>
#include <stdint.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
