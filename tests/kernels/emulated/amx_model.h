/* AMX tiles in C, after the operation sections of Intel's Instruction Set Reference: LDTILECFG, TILERELEASE, TILELOADD,
 * TILESTORED, TDPBSUD. What the processor answers with #UD or #GP ends the program with a message. */
#pragma once

#include <stddef.h>

void model_load_config(const void *config);
void model_release(void);
void model_load(int tile, const void *base, size_t stride);
void model_store(int tile, void *base, size_t stride);
void model_dot_signed_unsigned(int sum, int a, int b);
int model_in_use(void);                 /* was a configuration loaded and not released? */

#define _tile_loadconfig(config) model_load_config(config)
#define _tile_release() model_release()
#define _tile_loadd(tile, base, stride) model_load(tile, base, stride)
#define _tile_stored(tile, base, stride) model_store(tile, base, stride)
#define _tile_dpbsud(sum, a, b) model_dot_signed_unsigned(sum, a, b)
