/* A checkpoint's files, mapped, and its tensors by name.
 *
 * Keys always end as one parsed GGUF image: that of the file, of a split set's first part, or one that huggingface.c
 * writes in memory from the JSON files. Tensors of all parts stand in one array in order of name.
 *
 * A split set (llama.cpp's gguf-split) is name-00001-of-0000N.gguf and so on; split.no, split.count and
 * split.tensors.count in each part say the same, and all keys of the model stand in the first. */
#include "engine/container.h"

#include <errno.h>
#include <fcntl.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define MEMORY_ALIGNMENT 8
#define MAX_FILES 512
#define MAX_PATH 4096
#define DIGEST_PART (8u << 20)
#define NAME_ARGS(s) (int)MIN((s).len, 64), (s).data      /* of a "%.*s": names in errors stay short */

/* ---- files ------------------------------------------------------------------------------------------------------ */

int source_map(struct source *s, const char *dir, const char *name, struct source_file *ret, struct err *err)
{
    cleanup(closep) int fd = -1;
    struct source_file *files, f = { .mapped = true };
    char path[MAX_PATH];
    struct stat st;
    void *p;

    if (snprintf(path, sizeof(path), "%s%s%s", dir ? dir : "", dir ? "/" : "", name) >= (int)sizeof(path))
        return err_set(err, -ENAMETOOLONG, "%.64s...: %s", name, strerror(ENAMETOOLONG));
    fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);           /* NONBLOCK: a FIFO must not hold us */
    if (fd < 0 || fstat(fd, &st) < 0)
        return err_set(err, -errno, "%s: %s", path, strerror(errno));
    if (!S_ISREG(st.st_mode) || !st.st_size)
        return err_set(err, -EINVAL, "%s: %s", path, S_ISREG(st.st_mode) ? "is empty" : "is not a file");
    if (s->n_files == MAX_FILES)
        return err_set(err, -EINVAL, "%s: the model has more than %d files", path, MAX_FILES);
    files = reallocarray(s->files, s->n_files + 1, sizeof(*files));
    if (!files)
        return -ENOMEM;
    s->files = files;
    p = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_SHARED, fd, 0);
    if (p == MAP_FAILED)
        return err_set(err, -errno, "%s: %s", path, strerror(errno));
    f.data = p;
    f.fd = fd;
    fd = -1;
    f.size = (size_t)st.st_size;
    f.st = st;
    snprintf(f.name, sizeof(f.name), "%.255s", dir || !strrchr(name, '/') ? name : strrchr(name, '/') + 1);
    files[s->n_files++] = f;
    *ret = f;
    return 0;
}

static void file_close(const struct source_file *f)
{
    if (!f->mapped)
        return;
    munmap((void *)f->data, f->size);
    close(f->fd);
}

/* ---- tensors ---------------------------------------------------------------------------------------------------- */

static int compare_tensors(const void *a, const void *b)
{
    struct gguf_string x = ((const struct source_tensor *)a)->name, y = ((const struct source_tensor *)b)->name;
    int r = memcmp(x.data, y.data, MIN(x.len, y.len));

    return r ? r : (x.len > y.len) - (x.len < y.len);
}

int source_sort(struct source *s, struct err *err)
{
    qsort(s->tensors, s->n_tensors, sizeof(*s->tensors), compare_tensors);
    for (size_t i = 1; i < s->n_tensors; i++)
        if (!compare_tensors(&s->tensors[i - 1], &s->tensors[i]))
            return err_set(err, -EINVAL, "tensor %.*s stands twice", NAME_ARGS(s->tensors[i].name));
    return 0;
}

static int add_gguf_tensors(struct source *s, const struct gguf *g, struct err *err)
{
    struct source_tensor *tensors;
    const struct gguf_tensor *t;
    size_t n = 0;

    while (gguf_tensor_at(g, n))
        n++;
    if (s->n_tensors + n > MAX_SOURCE_TENSORS)
        return err_set(err, -EINVAL, "more than %d tensors in all", MAX_SOURCE_TENSORS);
    tensors = reallocarray(s->tensors, MAX(s->n_tensors + n, 1), sizeof(*tensors));
    if (!tensors)
        return -ENOMEM;
    s->tensors = tensors;
    for (size_t i = 0; (t = gguf_tensor_at(g, i)); i++) {
        struct source_tensor *to = &tensors[s->n_tensors++];

        *to = (struct source_tensor){ .name = t->name, .type = t->type, .n_dims = t->n_dims, .data = t->data,
                                      .bytes = t->bytes, .scale = 1 };
        memcpy(to->dims, t->dims, sizeof(to->dims));
    }
    return 0;
}

/* ---- split sets ------------------------------------------------------------------------------------------------- */

struct split { uint64_t no, count, tensors; };

static int read_split(const struct gguf *g, const char *name, struct split *ret, struct err *err)
{
    static const char *const keys[] = { "split.count", "split.no", "split.tensors.count" };
    uint64_t *values[] = { &ret->count, &ret->no, &ret->tensors };
    int r;

    *ret = (struct split){ .count = 1 };
    for (size_t i = 0; i < ARRAY_SIZE(keys); i++) {
        r = gguf_get_u64(g, keys[i], values[i], err);
        if (r < 0)
            return r;
        if (!r && ret->count > 1)
            return err_set(err, -EINVAL, "%s: key %s is missing", name, keys[i]);
    }
    if (!ret->count || ret->count > MAX_FILES)
        return err_set(err, -EINVAL, "%s: split.count is %llu; allowed are 1 to %d", name,
                       (unsigned long long)ret->count, MAX_FILES);
    return 0;
}

/* Where "-00001-of-00003.gguf" begins in a name that ends like that, or NULL. */
static const char *split_suffix(const char *name)
{
    static const char form[] = "-00000-of-00000.gguf";
    size_t len = strlen(name), n = sizeof(form) - 1;

    if (len < n)
        return NULL;
    for (size_t i = 0; i < n; i++) {
        char c = name[len - n + i];

        if (form[i] == '0' ? c < '0' || c > '9' : c != form[i])
            return NULL;
    }
    return name + len - n;
}

static int open_parts(struct source *s, const char *path, const struct split *all, struct err *err)
{
    const char *suffix = split_suffix(path);
    char name[MAX_PATH], of[16];

    snprintf(of, sizeof(of), "-of-%05llu", (unsigned long long)all->count);
    if (!suffix || strncmp(suffix + 6, of, strlen(of)))
        return err_set(err, -EINVAL, "%s: split.count is %llu, but the name does not end in -00001%s.gguf", path,
                       (unsigned long long)all->count, of);
    s->container = "GGUF split";
    s->parts = calloc(all->count, sizeof(*s->parts));
    if (!s->parts)
        return -ENOMEM;
    for (size_t i = 0; i < all->count; i++) {
        struct source_file f;
        struct split here;
        struct gguf *g;
        int r;

        snprintf(name, sizeof(name), "%.*s-%05zu%s.gguf", (int)(suffix - path), path, i + 1, of);
        r = source_map(s, NULL, name, &f, err);
        if (r < 0)
            return r;
        r = gguf_open(&g, f.data, f.size, err);
        if (r < 0)
            return r;
        s->parts[s->n_parts++] = g;
        r = read_split(g, f.name, &here, err);
        if (r < 0)
            return r;
        if (here.no != i || here.count != all->count || here.tensors != all->tensors)
            return err_set(err, -EINVAL,
                           "%s: split.no %llu, split.count %llu and split.tensors.count %llu are not those of part %zu",
                           f.name, (unsigned long long)here.no, (unsigned long long)here.count,
                           (unsigned long long)here.tensors, i + 1);
        r = add_gguf_tensors(s, g, err);
        if (r < 0)
            return r;
    }
    if (s->n_tensors != all->tensors)
        return err_set(err, -EINVAL, "%s: %zu tensors in all parts, split.tensors.count is %llu", path, s->n_tensors,
                       (unsigned long long)all->tensors);
    s->keys = s->parts[0];
    return 0;
}

/* ---- opening ---------------------------------------------------------------------------------------------------- */

/* path NULL: the one file s already has. */
static int open_gguf(struct source *s, const char *path, struct err *err)
{
    cleanup(gguf_freep) struct gguf *g = NULL;
    struct source_file f;
    struct split split;
    int r;

    s->container = "GGUF";
    if (path) {
        r = source_map(s, NULL, path, &f, err);
        if (r < 0)
            return r;
    }
    r = gguf_open(&g, s->files[0].data, s->files[0].size, err);
    if (r < 0)
        return r;
    r = read_split(g, s->files[0].name, &split, err);
    if (r < 0)
        return r;
    if (split.count > 1 && !path)
        return err_set(err, -EINVAL, "split.count is %llu: a model in memory must be whole",
                       (unsigned long long)split.count);
    if (split.count > 1) {
        file_close(&s->files[0]);                                /* it comes again, in its turn */
        s->n_files = 0;
        return open_parts(s, path, &split, err);
    }
    s->keys = TAKE(g);
    return add_gguf_tensors(s, s->keys, err);
}

static int source_new(struct source **ret)
{
    struct source *s = calloc(1, sizeof(*s));

    if (!s)
        return -ENOMEM;
    arena_init(&s->copies);
    *ret = s;
    return 0;
}

int source_open(struct source **ret, const char *path, struct err *err)
{
    cleanup(source_freep) struct source *s = NULL;
    struct stat st;
    int r;

    r = source_new(&s);
    if (r < 0)
        return r;
    if (stat(path, &st) < 0)
        return err_set(err, -errno, "%s: %s", path, strerror(errno));
    r = S_ISDIR(st.st_mode) ? huggingface_read(s, path, err) : open_gguf(s, path, err);
    if (r < 0)
        return r;
    r = source_sort(s, err);
    if (r < 0)
        return r;
    *ret = TAKE(s);
    return 0;
}

int source_open_memory(struct source **ret, const void *data, size_t size, struct err *err)
{
    cleanup(source_freep) struct source *s = NULL;
    int r;

    if ((uintptr_t)data % MEMORY_ALIGNMENT)
        return err_set(err, -EINVAL, "a model in memory must begin at a multiple of %d", MEMORY_ALIGNMENT);
    r = source_new(&s);
    if (r < 0)
        return r;
    s->files = calloc(1, sizeof(*s->files));
    if (!s->files)
        return -ENOMEM;
    s->files[s->n_files++] = (struct source_file){ .name = "a model in memory", .data = data, .size = size };
    r = open_gguf(s, NULL, err);
    if (r < 0)
        return r;
    r = source_sort(s, err);
    if (r < 0)
        return r;
    *ret = TAKE(s);
    return 0;
}

void source_free(struct source *s)
{
    if (!s)
        return;
    for (size_t i = 0; i < s->n_parts; i++)
        gguf_free(s->parts[i]);
    if (!s->parts)                                               /* else the keys are the first part's */
        gguf_free(s->keys);
    free(s->parts);
    for (size_t i = 0; i < s->n_files; i++)
        file_close(&s->files[i]);
    free(s->files);
    free(s->tensors);
    buf_done(&s->image);
    arena_done(&s->copies);
    free(s);
}

/* ---- reading it ------------------------------------------------------------------------------------------------- */

const struct gguf *source_keys(const struct source *s)
{
    return s->keys;
}

const struct source_tensor *source_tensor(const struct source *s, const char *name)
{
    const struct source_tensor want = { .name = { name, strlen(name) } };

    return bsearch(&want, s->tensors, s->n_tensors, sizeof(want), compare_tensors);
}

const struct source_tensor *source_tensor_at(const struct source *s, size_t i)
{
    return i < s->n_tensors ? &s->tensors[i] : NULL;
}

size_t source_tensor_count(const struct source *s)
{
    return s->n_tensors;
}

size_t source_bytes(const struct source *s)
{
    size_t sum = 0;

    for (size_t i = 0; i < s->n_files; i++)
        sum += s->files[i].size;
    return sum;
}

const char *source_container(const struct source *s)
{
    return s->container;
}

int source_file_of(const struct source *s, const void *data, size_t *ret_offset)
{
    for (size_t i = 0; i < s->n_files; i++) {
        const struct source_file *f = &s->files[i];

        if (f->mapped && (const uint8_t *)data >= f->data && (const uint8_t *)data < f->data + f->size) {
            *ret_offset = (size_t)((const uint8_t *)data - f->data);
            return f->fd;
        }
    }
    return 0;
}

const struct stat *source_stat(const struct source *s)
{
    return s->n_files == 1 && s->files[0].mapped ? &s->files[0].st : NULL;
}

void source_forget(const struct source *s, const void *data, size_t n)
{
    const uint8_t *begin = data, *end = begin + n;
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), from = ((uintptr_t)begin + page - 1) / page * page;
    uintptr_t to = (uintptr_t)end / page * page;

    for (size_t i = 0; i < s->n_files; i++)
        if (s->files[i].mapped && begin >= s->files[i].data && end <= s->files[i].data + s->files[i].size && from < to)
            madvise((void *)from, to - from, MADV_DONTNEED);
}

/* ---- the digest ------------------------------------------------------------------------------------------------- */

/* In parts, so that a mapped file need not be in memory as a whole. */
static int digest_hex(const struct source *s, const void *data, size_t size, char ret[65])
{
    EVP_MD_CTX *c = EVP_MD_CTX_new();
    uint8_t sum[EVP_MAX_MD_SIZE];
    const uint8_t *p = data;
    unsigned n = 0;
    bool ok = c && EVP_DigestInit_ex(c, EVP_sha256(), NULL);

    for (size_t part; ok && size; p += part, size -= part) {
        part = MIN(size, DIGEST_PART);
        ok = EVP_DigestUpdate(c, p, part);
        source_forget(s, p, part);
    }
    ok = ok && EVP_DigestFinal_ex(c, sum, &n);
    EVP_MD_CTX_free(c);
    for (unsigned i = 0; i < n; i++)
        snprintf(ret + 2 * (size_t)i, 3, "%02x", sum[i]);
    return ok ? 0 : -ENOMEM;
}

static int compare_files(const void *a, const void *b)
{
    return strcmp(((const struct source_file *)a)->name, ((const struct source_file *)b)->name);
}

int source_digest(const struct source *s, char ret[80])
{
    cleanup(freep) struct source_file *sorted = calloc(s->n_files, sizeof(*sorted));
    cleanup(buf_done) struct buf lines;
    char hex[65];
    int r = 0;

    buf_init(&lines, MAX_FILES * 512);
    if (!sorted)
        return -ENOMEM;
    memcpy(sorted, s->files, s->n_files * sizeof(*sorted));
    qsort(sorted, s->n_files, sizeof(*sorted), compare_files);
    for (size_t i = 0; i < s->n_files && !r; i++) {
        r = digest_hex(s, sorted[i].data, sorted[i].size, hex);
        if (!r && s->n_files > 1)
            r = buf_printf(&lines, "%s  %s\n", hex, sorted[i].name);
    }
    if (!r && s->n_files > 1)
        r = digest_hex(s, lines.data, lines.len, hex);
    if (!r)
        snprintf(ret, 80, "sha256:%s", hex);
    return r;
}
