/* tern-bench: tern-bench.c reads the options, run.c measures a model, bandwidth.c the memory beside it, kernels.c the
 * arithmetic alone, report.c prints. Every figure is the median of the runs. */
#pragma once

#include <jansson.h>

#include "engine/internal.h"

#define BENCH_LIST 16           /* numbers in one list of the command line */

struct numbers { size_t n, v[BENCH_LIST]; };

struct bench_options {
    const char *path, *cache;   /* cache: the directory that keeps repacked weights, NULL: none */
    struct numbers prompts, depths, batches, threads;
    size_t n_tokens, n_runs, chunk;
    enum kv_type kv;
    bool json;
};

/* ---- bandwidth.c: how fast this machine's memory can be read ------------------------------------------------------
 * A process of its own holds the half gigabyte that is read, so that it does not count as the model's memory. It tries
 * several numbers of interleaved streams and distances of prefetch at the start and goes on with the best. */
struct bandwidth;
int bandwidth_start(struct bandwidth **ret, struct err *err);    /* before any thread is started. 0 or -errno */
void bandwidth_stop(struct bandwidth *b);
static inline void bandwidth_stopp(struct bandwidth **b) { bandwidth_stop(*b); }
/* Bytes a second of one pass with so many threads (1..64), now; 0 when the process is gone. */
double bandwidth_measure(struct bandwidth *b, unsigned threads);
/* What the pattern is that it found best for so many threads: "4 streams, prefetch 2048". Lent. */
const char *bandwidth_pattern(struct bandwidth *b, unsigned threads);

/* ---- energy.c: what the processor has used, where powercap tells ------------------------------------------------- */
bool energy_read(uint64_t *ret_microjoule);                      /* of all packages; wraps are the difference's */
double energy_between(uint64_t begin, uint64_t end);             /* joules; knows where the counter wraps */

/* ---- run.c ------------------------------------------------------------------------------------------------------- */
enum measure_kind { MEASURE_PREFILL, MEASURE_DECODE };
struct measure {
    enum measure_kind kind;
    unsigned threads;
    size_t n, depth, batch;
    double tokens_per_second, least, most;      /* median and extremes of the runs */
    double bytes_per_token, bytes_per_second, bandwidth;  /* decode: what a step reads; bandwidth: of the memory, beside it */
    double joules_per_token;                    /* NAN: not known */
};
struct bench_result {
    char model[64], architecture[32], digest[80];
    const char *kernels;
    size_t file_bytes, weight_bytes, head_bytes;
    double cold_seconds, warm_seconds;          /* from the path to ready for the first token */
    size_t peak_rss_bytes;
    char cpu[96];
    size_t n_measures;
    struct measure measures[4 * BENCH_LIST * BENCH_LIST];
};
/* Do all that the options ask for. 0, or -errno with *err. */
int bench_run(struct bench_result *ret, const struct bench_options *o, struct bandwidth *b, struct err *err);

/* ---- kernels.c: each kernel of each variant alone, over weights in the cache and in memory ------------------------ */
/* Calls print for every kernel and shape; bytes: read a call. */
struct kernel_time { const char *variant, *kernel; char shape[48]; double seconds; size_t bytes, products; };
int bench_kernels(void (*print)(void *arg, const struct kernel_time *t), void *arg);      /* 0 or -ENOMEM */

/* ---- report.c ---------------------------------------------------------------------------------------------------- */
void report_text(const struct bench_result *r);
json_t *report_json(const struct bench_result *r);               /* NULL: no memory */
/* A line on stderr that says what is being measured, on a terminal only. "" takes it away. */
void report_progress(const char *fmt, ...) PRINTF_LIKE(1, 2);
double median(double *v, size_t n);                              /* sorts v; n >= 1 */
