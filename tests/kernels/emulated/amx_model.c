/* Palette 1: eight tiles of at most 16 rows of 64 bytes. One thread's. */
#include "amx_model.h"

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define TILES 8
#define MAX_ROWS 16
#define MAX_ROW_BYTES 64

struct config { uint8_t palette, start_row, reserved[14]; uint16_t row_bytes[16]; uint8_t rows[16]; };

static struct config config;
static struct { uint8_t at[MAX_ROWS][MAX_ROW_BYTES]; } tiles[TILES];
static bool in_use;

static void need(bool holds, const char *what)
{
    if (holds)
        return;
    printf("FAILED amx: %s\n", what);
    exit(1);
}

void model_load_config(const void *from)
{
    memcpy(&config, from, sizeof(config));
    need(config.palette == 1 && !config.start_row, "palette");
    for (int i = 0; i < 14; i++)
        need(!config.reserved[i], "reserved bytes");
    for (int t = 0; t < 16; t++) {
        need(t < TILES || (!config.rows[t] && !config.row_bytes[t]), "tiles past the eighth");
        need(config.rows[t] <= MAX_ROWS && config.row_bytes[t] <= MAX_ROW_BYTES, "size of a tile");
        need(!config.rows[t] == !config.row_bytes[t], "a tile with only rows or only columns");
    }
    memset(tiles, 0, sizeof(tiles));
    in_use = true;
}

void model_release(void)
{
    in_use = false;
}

int model_in_use(void)
{
    return in_use;
}

static void need_tile(int t)
{
    need(in_use && t < TILES && config.rows[t], "a tile that is not configured");
}

void model_load(int t, const void *base, size_t stride)
{
    need_tile(t);
    memset(tiles[t].at, 0, sizeof(tiles[t].at));
    for (size_t r = 0; r < config.rows[t]; r++)
        memcpy(tiles[t].at[r], (const uint8_t *)base + r * stride, config.row_bytes[t]);
}

void model_store(int t, void *base, size_t stride)
{
    need_tile(t);
    for (size_t r = 0; r < config.rows[t]; r++)
        memcpy((uint8_t *)base + r * stride, tiles[t].at[r], config.row_bytes[t]);
}

/* sum[m][n] += a[m][k] (signed) * b[k][n] (unsigned), four bytes of a 32-bit element at a time. */
void model_dot_signed_unsigned(int sum, int a, int b)
{
    need_tile(sum);
    need_tile(a);
    need_tile(b);
    need(sum != a && sum != b && a != b, "the same tile twice");
    need(config.rows[sum] == config.rows[a] && config.row_bytes[a] == config.rows[b] * 4 &&
         config.row_bytes[sum] == config.row_bytes[b] && config.row_bytes[a] % 4 == 0 && config.row_bytes[b] % 4 == 0,
         "sizes of tiles that are multiplied");
    for (size_t m = 0; m < config.rows[a]; m++)
        for (size_t k = 0; k < config.row_bytes[a] / 4u; k++)
            for (size_t n = 0; n < config.row_bytes[b] / 4u; n++) {
                uint32_t total;

                memcpy(&total, &tiles[sum].at[m][4 * n], sizeof(total));
                for (size_t i = 0; i < 4; i++)
                    total += (uint32_t)((int8_t)tiles[a].at[m][4 * k + i] * (int)tiles[b].at[k][4 * n + i]);
                memcpy(&tiles[sum].at[m][4 * n], &total, sizeof(total));
            }
    /* Rows past those of the sum are zero. */
    for (size_t m = config.rows[sum]; m < MAX_ROWS; m++)
        memset(tiles[sum].at[m], 0, MAX_ROW_BYTES);
}
