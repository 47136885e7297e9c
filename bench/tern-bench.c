/* tern-bench's command line. */
#include <errno.h>
#include <getopt.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "bench/bench.h"

enum { BENCH_OK = 0, BENCH_FAILED = 1, BENCH_USAGE = 2 };

static const char usage[] = "Usage: tern-bench -m FILE [OPTIONS]\n       tern-bench --kernels [--json]\n";
static const char help[] =
    "\nMeasure how fast a model runs here, beside what the memory allows.\n\n"
    "  -m, --model FILE     a GGUF file, a part of a split set, or a Hugging Face directory\n"
    "  -p, --prompts LIST   tokens of the prompts to measure (default 128,512; 0: none)\n"
    "  -n, --tokens N       tokens of an answer (default 64; 0: none)\n"
    "  -d, --depths LIST    tokens that stand before the answer (default 0)\n"
    "  -b, --batch LIST     answers made together (default 1)\n"
    "  -t, --threads LIST   threads (default: all cores, at most 8)\n"
    "  -r, --runs N         runs of each, of which the median is told (default 5)\n"
    "  -c, --chunk N        rows of a prompt that run together (default 256)\n"
    "      --kv TYPE        keep keys and values as f16 (default), int8 or f32\n"
    "      --cache DIR      keep the weights there as this machine reads them, as [engine] cache does\n"
    "      --kernels        measure each kernel of each instruction set by itself\n"
    "      --json           JSON on stdout\n"
    "      --help, --version\n\n"
    "A LIST is numbers parted by commas. Exit status: 0 done, 1 it could not be done, 2 wrong usage.\n";

static int wrong_usage(const char *what, const char *value)
{
    fprintf(stderr, "tern-bench: %s: %s\n%s", what, value, usage);
    return BENCH_USAGE;
}

static bool read_list(const char *text, size_t min, size_t max, struct numbers *ret)
{
    struct numbers n = { 0 };

    for (const char *p = text;; p++) {
        char *end;
        unsigned long long v;

        errno = 0;
        v = strtoull(p, &end, 10);
        if (*p < '0' || *p > '9' || errno || v < min || v > max || n.n == BENCH_LIST)
            return false;
        n.v[n.n++] = (size_t)v;
        p = end;
        if (!*p)
            break;
        if (*p != ',')
            return false;
    }
    *ret = n;
    return true;
}

static bool read_one(const char *text, size_t min, size_t max, size_t *ret)
{
    struct numbers n;

    if (!read_list(text, min, max, &n) || n.n != 1)
        return false;
    *ret = n.v[0];
    return true;
}

static bool read_kv(const char *text, enum kv_type *ret)
{
    static const char *const names[] = { [KV_F16] = "f16", [KV_INT8] = "int8", [KV_F32] = "f32" };

    for (size_t i = 0; i < ARRAY_SIZE(names); i++)
        if (!strcmp(names[i], text)) {
            *ret = (enum kv_type)i;
            return true;
        }
    return false;
}

static int fail(int r, const struct err *err)
{
    fputs("tern-bench: ", stderr);
    /* Names from a hostile file must not move a terminal's cursor. */
    for (const char *c = err->msg[0] ? err->msg : strerror(-r); *c; c++)
        fputc((unsigned char)*c < 0x20 || *c == 0x7f ? '?' : *c, stderr);
    fputc('\n', stderr);
    return BENCH_FAILED;
}

static int print_json(json_t *j)
{
    cleanup(json_decrefp) json_t *owned = j;
    int r = owned ? json_dumpf(owned, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(6)) : -1;

    if (r == 0)
        putchar('\n');
    return r == 0 && fflush(stdout) == 0 ? BENCH_OK : fail(-EIO, &(struct err){ "" });
}

static void print_kernel(void *arg, const struct kernel_time *t)
{
    json_t *list = arg;

    if (list) {
        json_array_append_new(list, json_pack("{s:s,s:s,s:s,s:f,s:I,s:I}", "variant", t->variant, "kernel", t->kernel,
                                              "shape", t->shape, "nanoseconds", t->seconds * 1e9,
                                              "bytes", (json_int_t)t->bytes, "products", (json_int_t)t->products));
        return;
    }
    printf("%-12s %-16s %-26s %12.0f ns %8.2f GB/s %9.2f G/s\n", t->variant, t->kernel, t->shape, t->seconds * 1e9,
           (double)t->bytes / t->seconds * 1e-9, (double)t->products / t->seconds * 1e-9);
    fflush(stdout);
}

static int kernels_main(bool json)
{
    json_t *list = json ? json_array() : NULL;
    int r;

    if (!json)
        printf("%-12s %-16s %-26s %15s %13s %13s\n", "variant", "kernel", "shape", "a call", "read", "products");
    r = bench_kernels(print_kernel, list);
    if (r < 0) {
        json_decref(list);
        return fail(r, &(struct err){ "" });
    }
    return json ? print_json(json_pack("{s:s,s:o}", "version", TERN_VERSION, "kernels", list)) : BENCH_OK;
}

static int model_main(const struct bench_options *o)
{
    cleanup(freep) struct bench_result *result = calloc(1, sizeof(*result));
    cleanup(bandwidth_stopp) struct bandwidth *b = NULL;
    struct err err = { "" };
    int r;

    r = result ? bandwidth_start(&b, &err) : -ENOMEM;
    if (r == 0)
        r = bench_run(result, o, b, &err);
    if (r < 0)
        return fail(r, &err);
    if (o->json)
        return print_json(report_json(result));
    report_text(result);
    return fflush(stdout) == 0 ? BENCH_OK : fail(-EIO, &err);
}

int main(int argc, char **argv)
{
    static const struct option options[] = {
        { "model", required_argument, NULL, 'm' },   { "prompts", required_argument, NULL, 'p' },
        { "tokens", required_argument, NULL, 'n' },  { "depths", required_argument, NULL, 'd' },
        { "batch", required_argument, NULL, 'b' },   { "threads", required_argument, NULL, 't' },
        { "runs", required_argument, NULL, 'r' },    { "chunk", required_argument, NULL, 'c' },
        { "kernels", no_argument, NULL, 'k' },       { "kv", required_argument, NULL, 'K' },
        { "cache", required_argument, NULL, 'C' },   { "json", no_argument, NULL, 'j' },
        { "help", no_argument, NULL, 'h' },
        { "version", no_argument, NULL, 'V' },
        { 0 },
    };
    struct bench_options o = {
        .prompts = { 2, { 128, 512 } }, .depths = { 1, { 0 } }, .batches = { 1, { 1 } }, .n_tokens = 64, .n_runs = 5,
        .chunk = 256, .threads = { 1, { (size_t)MIN(MAX(sysconf(_SC_NPROCESSORS_ONLN), 1), 8) } },
    };
    bool kernels = false, good = true;
    int opt;

    while ((opt = getopt_long(argc, argv, "m:p:n:d:b:t:r:c:h", options, NULL)) != -1) {
        switch (opt) {
        case 'm': o.path = optarg; break;
        case 'p': good = read_list(optarg, 0, 1 << 20, &o.prompts); break;
        case 'n': good = read_one(optarg, 0, 1 << 20, &o.n_tokens); break;
        case 'd': good = read_list(optarg, 0, 1 << 20, &o.depths); break;
        case 'b': good = read_list(optarg, 1, 256, &o.batches); break;
        case 't': good = read_list(optarg, 1, 64, &o.threads); break;
        case 'r': good = read_one(optarg, 1, 1000, &o.n_runs); break;
        case 'c': good = read_one(optarg, 1, 4096, &o.chunk); break;
        case 'C': o.cache = optarg; break;
        case 'K': good = read_kv(optarg, &o.kv); break;
        case 'k': kernels = true; break;
        case 'j': o.json = true; break;
        case 'h': printf("%s%s", usage, help); return BENCH_OK;
        case 'V': puts("tern-bench " TERN_VERSION); return BENCH_OK;
        default: fputs(usage, stderr); return BENCH_USAGE;
        }
        if (!good)
            return wrong_usage("not what is expected here", optarg);
    }
    if (optind != argc)
        return wrong_usage("not an option", argv[optind]);
    if (kernels)
        return kernels_main(o.json);
    if (!o.path)
        return wrong_usage("expected", "-m FILE or --kernels");
    return model_main(&o);
}
