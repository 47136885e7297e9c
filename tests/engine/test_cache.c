/* The file that keeps repacked weights: made by the first start, taken as it is by the next ones, and by two at once; a
 * torn, changed or foreign one is never believed; and what it gives is what the model's file gives, to the bit. */
#include <criterion/criterion.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#include "tests/engine/gguf_write.h"

static char dir[64], path[96], cache_dir[96];

static void write_model(const struct tiny *spec)
{
    size_t size;
    cleanup(freep) uint8_t *file = tiny_file(spec, &size);
    FILE *f = fopen(path, "w");

    cr_assert(f && fwrite(file, 1, size, f) == size);
    fclose(f);
}

static void setup(void)
{
    struct tiny spec = TINY;

    if (kernels_get(NULL)->layout == &ternary_canonical)
        cr_skip_test("these kernels take weights as they lie in files: there is nothing to keep");

    snprintf(dir, sizeof(dir), "/tmp/tern-cache-XXXXXX");
    cr_assert(mkdtemp(dir));
    snprintf(path, sizeof(path), "%s/model.gguf", dir);
    snprintf(cache_dir, sizeof(cache_dir), "%s/a/b", dir);
    spec.ternary = TENSOR_TQ2_0;
    spec.n_embd = 256;
    spec.n_ff = 512;
    write_model(&spec);
}

static void remove_tree(void)
{
    char command[128];

    snprintf(command, sizeof(command), "rm -r %s", dir);
    cr_assert_eq(system(command), 0);
}

/* The only file in the cache's directory, or "". */
static size_t cache_files(char ret[400])
{
    DIR *d = opendir(cache_dir);
    struct dirent *e;
    size_t n = 0;

    cr_assert(d);
    while ((e = readdir(d)))
        if (*e->d_name != '.') {
            n++;
            snprintf(ret, 400, "%s/%s", cache_dir, e->d_name);
        }
    closedir(d);
    return n;
}

/* Open the model with the cache; its logits for a few tokens. *ret_warm: the file was believed. */
static struct model *open_model(int fd, struct model_options options, float logits[512], bool *ret_warm)
{
    struct err err = {0};
    struct kv_pool *kv;
    struct session *s;
    struct forward *f;
    struct model *m;
    struct pool *p;

    options.cache_fd = fd;
    options.threads = 2;
    cr_assert_eq(model_open(&m, path, &options, &err), 0, "%s", err.msg);
    *ret_warm = cache_is_warm(m->cache);
    cr_assert_eq(pool_new(&p, 1), 0);
    cr_assert_eq(forward_new(&f, m, p, 4, &err), 0);
    cr_assert_eq(kv_pool_new(&kv, m, KV_F32, 0, &err), 0);
    cr_assert_eq(session_new(&s, kv, 0), 0);
    for (int32_t i = 0; i < 4; i++)
        cr_assert_eq(forward_run(f, &(struct forward_row){ .session = s, .token = 7 * i + 1, .logits = logits }, 1), 0);
    session_free(s);
    kv_pool_free(kv);
    forward_free(f);
    pool_free(p);
    return m;
}

static int open_cache(void)
{
    struct err err = {0};
    int fd = engine_cache_open(cache_dir, path, &err);

    cr_assert_geq(fd, 0, "%s", err.msg);
    return fd;
}

/* One start; keeps what it makes. */
static bool start(struct model_options options, float logits[512], bool want_note)
{
    int fd = open_cache();
    struct model *m;
    bool warm;

    m = open_model(fd, options, logits, &warm);
    cr_expect_eq(!!*m->note.msg, want_note, "%s", m->note.msg);
    cr_expect_eq(strncmp(m->digest, "sha256:", 7), 0);
    cr_expect(model_keep(m, NULL) == 0 && cache_settle(m->cache) == 0);
    cr_expect(cache_is_warm(m->cache));
    model_free(m);
    close(fd);
    return warm;
}

TestSuite(cache, .init = setup, .fini = remove_tree);

Test(cache, second_start)
{
    const struct model_options plain = {0}, other = { .i2s_layout = 'b' };
    float want[512] = {0}, got[512] = {0};
    char file[400], digest[80];
    struct model *m;
    bool warm;
    int fd;

    m = open_model(0, plain, want, &warm);
    cr_expect(!warm);
    strcpy(digest, m->digest);
    model_free(m);
    cr_expect(!start(plain, got, false));
    cr_expect_arr_eq(want, got, sizeof(want));
    cr_expect_eq(cache_files(file), 1);
    memset(got, 0, sizeof(got));
    cr_expect(start(plain, got, false));
    cr_expect_arr_eq(want, got, sizeof(want));
    fd = open_cache();
    m = open_model(fd, plain, got, &warm);
    cr_expect_str_eq(m->digest, digest);
    model_free(m);
    close(fd);
    /* Read in another way it is another model. */
    cr_expect(!start(other, got, false));
    cr_expect(!start(plain, got, false));
    cr_expect(start(plain, got, false));
    cr_expect_arr_eq(want, got, sizeof(want));
}

/* After the file has been written the running model reads from it, and still the same. */
Test(cache, two_at_once)
{
    const struct model_options plain = {0};
    float want[512] = {0}, got[512] = {0};
    int first = open_cache(), second = open_cache(), third;
    struct model *a, *b, *c;
    bool warm;

    a = open_model(first, plain, want, &warm);
    b = open_model(second, plain, got, &warm);              /* while a has it to write */
    cr_expect(!warm && !*b->note.msg);
    cr_expect_arr_eq(want, got, sizeof(want));
    cr_expect(model_keep(b, NULL) == 0 && cache_settle(b->cache) == 0);
    cr_expect(!cache_is_warm(b->cache));
    cr_expect(model_keep(a, NULL) == 0 && cache_settle(a->cache) == 0);
    third = open_cache();
    c = open_model(third, plain, got, &warm);
    cr_expect(warm);
    cr_expect_arr_eq(want, got, sizeof(want));
    model_free(a);
    model_free(b);
    model_free(c);
    close(first);
    close(second);
    close(third);
}

/* A process that ends while it writes, or before, leaves nothing to be believed, and nothing to complain of. */
Test(cache, early_end)
{
    const struct model_options plain = {0};
    float want[512] = {0}, got[512] = {0};

    for (int i = 0; i < 8; i++) {
        int fd = open_cache();
        struct model *m;
        bool warm;

        m = open_model(fd, plain, want, &warm);
        cr_expect(!*m->note.msg, "%s", m->note.msg);
        if (i % 2)
            cr_expect_eq(model_keep(m, NULL), 0);
        if (i > 4)
            usleep((useconds_t)i * 100);
        model_free(m);
        close(fd);
    }
    start(plain, got, false);
    cr_expect_arr_eq(want, got, sizeof(want));
}

Test(cache, damage)
{
    const struct model_options plain = {0};
    float want[512] = {0}, got[512] = {0};
    char file[400];
    struct stat st;

    cr_expect(!start(plain, want, false));
    cr_assert_eq(cache_files(file), 1);
    cr_assert_eq(stat(file, &st), 0);
    for (int kind = 0; kind < 5; kind++) {
        int fd = open(file, O_RDWR);
        uint8_t byte = 0;

        switch (kind) {
        case 0: cr_assert_eq(ftruncate(fd, st.st_size - 1), 0); break;
        case 1: cr_assert_eq(ftruncate(fd, 100), 0); break;
        case 2: cr_assert_eq(pwrite(fd, "\0\0\0\0\0\0\0\0", 8, 0), 8); break;      /* written, but for its header */
        case 3: case 4:                             /* a bit of the header's, of the directory's */
            cr_assert_eq(pread(fd, &byte, 1, kind == 3 ? 20 : 300), 1);
            byte ^= 1;
            cr_assert_eq(pwrite(fd, &byte, 1, kind == 3 ? 20 : 300), 1);
        }
        close(fd);
        cr_expect(!start(plain, got, true), "kind %d", kind);
        cr_expect_arr_eq(want, got, sizeof(want));
        cr_expect(start(plain, got, false), "kind %d", kind);
        cr_expect_arr_eq(want, got, sizeof(want));
    }
}

/* A model file that changed, even in place and in no size, is another; what was made of it before goes. */
Test(cache, changed_model)
{
    const struct model_options plain = {0};
    float first[512] = {0}, got[512] = {0}, want[512] = {0};
    struct tiny spec = TINY;
    char file[400], before[400];
    struct model *m;
    bool warm;

    cr_expect(!start(plain, first, false));
    cr_assert_eq(cache_files(before), 1);
    usleep(20000);
    spec.ternary = TENSOR_TQ2_0;
    spec.n_embd = 256;
    spec.n_ff = 256;
    write_model(&spec);
    cr_expect(!start(plain, got, false));
    cr_expect_eq(cache_files(file), 1);
    cr_expect_str_neq(file, before);
    m = open_model(0, plain, want, &warm);
    cr_expect_arr_eq(want, got, sizeof(want));
    model_free(m);
}

Test(cache, refusals)
{
    struct err err = {0};
    char file[400], link[300];

    cr_expect_eq(engine_cache_open(cache_dir, "/nonexistent", &err), -ENOENT);
    cr_expect_eq(engine_cache_open(cache_dir, dir, &err), -ENOTSUP);
    cr_expect_lt(engine_cache_open("/proc/nowhere", path, &err), 0);
    close(open_cache());
    cr_assert_eq(cache_files(file), 1);
    cr_assert_eq(chmod(file, 0666), 0);
    cr_expect_eq(engine_cache_open(cache_dir, path, &err), -EPERM);
    cr_assert_eq(chmod(file, 0600), 0);
    snprintf(link, sizeof(link), "%s/elsewhere", dir);
    cr_assert_eq(rename(file, link), 0);
    cr_assert_eq(symlink(link, file), 0);
    cr_expect_eq(engine_cache_open(cache_dir, path, &err), -ELOOP);
}
