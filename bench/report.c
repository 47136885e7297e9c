/* What tern-bench says: a table for people, JSON for programs, and how far it is. */
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "bench/bench.h"

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

double median(double *v, size_t n)
{
    qsort(v, n, sizeof(*v), compare);
    return n % 2 ? v[n / 2] : (v[n / 2 - 1] + v[n / 2]) / 2;
}

void report_progress(const char *fmt, ...)
{
    static bool shown;
    va_list args;

    if (!isatty(STDERR_FILENO))
        return;
    if (shown || *fmt)
        fputs("\r\033[K", stderr);
    va_start(args, fmt);
    vfprintf(stderr, fmt, args);
    va_end(args);
    shown = true;
}

void report_text(const struct bench_result *r)
{
    printf("%s (%s), %.0f MB; kernels %s; %s\n", r->model, r->architecture, (double)r->file_bytes * 1e-6, r->kernels, r->cpu);
    printf("loaded in %.2f s cold, %.2f s warm; peak memory %.0f MB\n\n", r->cold_seconds, r->warm_seconds,
           (double)r->peak_rss_bytes * 1e-6);
    printf("%-8s %7s %6s %6s %5s %9s %17s %9s %7s %7s %5s %9s\n", "", "threads", "tokens", "depth", "batch", "tokens/s",
           "least .. most", "MB/token", "GB/s", "memory", "%", "J/token");
    for (size_t i = 0; i < r->n_measures; i++) {
        const struct measure *m = &r->measures[i];

        printf("%-8s %7u %6zu %6zu %5zu %9.2f %8.2f %8.2f", m->kind == MEASURE_PREFILL ? "prefill" : "decode", m->threads,
               m->n, m->depth, m->batch, m->tokens_per_second, m->least, m->most);
        if (m->kind == MEASURE_DECODE)
            printf(" %9.1f %7.2f %7.2f %5.0f", m->bytes_per_token * 1e-6, m->bytes_per_second * 1e-9, m->bandwidth * 1e-9,
                   100 * m->bytes_per_second / m->bandwidth);
        else if (!isnan(m->joules_per_token))
            printf("%32s", "");
        if (!isnan(m->joules_per_token))
            printf(" %9.3f", m->joules_per_token);
        putchar('\n');
    }
}

static json_t *measure_json(const struct measure *m)
{
    json_t *j = json_pack("{s:s,s:i,s:I,s:I,s:I,s:f,s:f,s:f}", "kind", m->kind == MEASURE_PREFILL ? "prefill" : "decode",
                          "threads", (int)m->threads, "tokens", (json_int_t)m->n, "depth", (json_int_t)m->depth,
                          "batch", (json_int_t)m->batch, "tokens_per_second", m->tokens_per_second,
                          "least", m->least, "most", m->most);

    if (j && m->kind == MEASURE_DECODE)
        json_object_update_new(j, json_pack("{s:f,s:f,s:f,s:f}", "bytes_per_token", m->bytes_per_token,
                                            "bytes_per_second", m->bytes_per_second,
                                            "memory_bytes_per_second", m->bandwidth,
                                            "share_of_memory", m->bandwidth > 0 ? m->bytes_per_second / m->bandwidth : 0));
    if (j)
        json_object_set_new(j, "joules_per_token", isnan(m->joules_per_token) ? json_null()
                                                                             : json_real(m->joules_per_token));
    return j;
}

json_t *report_json(const struct bench_result *r)
{
    json_t *list = json_array();

    for (size_t i = 0; i < r->n_measures; i++)
        json_array_append_new(list, measure_json(&r->measures[i]));
    return json_pack("{s:s,s:s,s:s,s:s,s:s,s:s,s:I,s:I,s:I,s:I,s:f,s:f,s:o}", "version", TERN_VERSION, "model", r->model,
                     "architecture", r->architecture, "digest", r->digest, "kernels", r->kernels, "cpu", r->cpu,
                     "file_bytes", (json_int_t)r->file_bytes, "weight_bytes", (json_int_t)r->weight_bytes,
                     "head_bytes", (json_int_t)r->head_bytes, "peak_rss_bytes", (json_int_t)r->peak_rss_bytes,
                     "cold_seconds", r->cold_seconds, "warm_seconds", r->warm_seconds, "measures", list);
}
