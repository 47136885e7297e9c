/* The GGUF reader: what it reads from a good file, what it says of malformed ones, and that nothing it is fed makes it
 * read a byte outside (run under the address sanitizer, the file lies in memory of exactly its size). */
#include <criterion/criterion.h>
#include <errno.h>
#include "tests/engine/gguf_write.h"

static void write_good(struct gguf_writer *w)
{
    static const float f[8] = { 1, 2, 3, 4, 5, 6, 7, 8 };
    static const uint8_t packed[64] = { 0x55 };
    struct buf *b;

    writer_init(w);
    write_string(w, "a.name", "tern");
    write_u32(w, "a.count", 7);
    write_bool(w, "a.flag", true);
    write_f32(w, "a.ratio", 0.5f);
    put_u64(write_key(w, "a.big", GGUF_U64), UINT64_MAX);
    put_u64(write_key(w, "a.negative", GGUF_I64), (uint64_t)-1);
    b = write_array(w, "a.list", GGUF_STRING, 3);
    put_string(b, "one");
    put_string(b, "");
    put_string(b, "three");
    put_u32(write_array(w, "a.numbers", GGUF_I32, 2), (uint32_t)-5);
    put_u32(b, 9);
    write_array(w, "a.nothing", GGUF_F32, 0);
    write_tensor(w, "t.one", 8, 1, TENSOR_F32, f, sizeof(f));
    write_tensor(w, "t.two", 128, 1, TENSOR_I2_S, packed, sizeof(packed));
    write_tensor(w, "t.half", 4, 2, TENSOR_F16, f, 16);
}

static struct gguf *open_good(uint8_t **ret_file)
{
    struct gguf_writer w;
    struct gguf *g = NULL;
    struct err err;
    size_t size;

    write_good(&w);
    *ret_file = writer_file(&w, &size);
    writer_done(&w);
    cr_assert_eq(gguf_open(&g, *ret_file, size, &err), 0, "%s", err.msg);
    return g;
}

Test(gguf, reads_scalars)
{
    cleanup(freep) uint8_t *file = NULL;
    cleanup(gguf_freep) struct gguf *g = open_good(&file);
    struct gguf_string s;
    uint64_t u;
    double d;
    bool flag = false;

    cr_assert_eq(gguf_get_u64(g, "a.count", &u, NULL), 1);
    cr_assert_eq(u, 7);
    cr_assert_eq(gguf_get_u64(g, "a.big", &u, NULL), 1);
    cr_assert_eq(u, UINT64_MAX);
    cr_assert_eq(gguf_get_double(g, "a.ratio", &d, NULL), 1);
    cr_assert_eq(d, 0.5);
    cr_assert_eq(gguf_get_bool(g, "a.flag", &flag, NULL), 1);
    cr_assert(flag);
    cr_assert_eq(gguf_get_string(g, "a.name", &s, NULL), 1);
    cr_assert(s.len == 4 && !memcmp(s.data, "tern", 4));
    cr_assert_eq(gguf_get_u64(g, "a.absent", &u, NULL), 0);
    cr_assert_eq(gguf_get_string(g, "a.nam", &s, NULL), 0);
}

Test(gguf, refuses_other_types)
{
    cleanup(freep) uint8_t *file = NULL;
    cleanup(gguf_freep) struct gguf *g = open_good(&file);
    struct gguf_string s;
    struct err err = {0};
    uint64_t u = 42;
    double d;
    bool flag;

    cr_assert_eq(gguf_get_u64(g, "a.negative", &u, &err), -EINVAL);
    cr_assert(strstr(err.msg, "a.negative") && strstr(err.msg, "byte"));
    cr_assert_eq(gguf_get_u64(g, "a.name", &u, &err), -EINVAL);
    cr_assert_eq(gguf_get_u64(g, "a.flag", &u, &err), -EINVAL);
    cr_assert_eq(gguf_get_double(g, "a.count", &d, &err), -EINVAL);
    cr_assert_eq(gguf_get_bool(g, "a.count", &flag, &err), -EINVAL);
    cr_assert_eq(gguf_get_string(g, "a.list", &s, &err), -EINVAL);
    cr_assert_eq(gguf_get_array(g, "a.list", GGUF_I32, &u, &err), -EINVAL);
    cr_assert_eq(gguf_get_array(g, "a.name", GGUF_STRING, &u, &err), -EINVAL);
    cr_assert_eq(u, 42);
}

Test(gguf, reads_arrays)
{
    cleanup(freep) uint8_t *file = NULL;
    cleanup(gguf_freep) struct gguf *g = open_good(&file);
    struct gguf_string s;
    uint64_t n;

    cr_assert_eq(gguf_get_array(g, "a.list", GGUF_STRING, &n, NULL), 1);
    cr_assert_eq(n, 3);
    s = gguf_array_string(g, "a.list", 2);
    cr_assert(s.len == 5 && !memcmp(s.data, "three", 5));
    cr_assert_eq(gguf_array_string(g, "a.list", 1).len, 0);
    cr_assert_eq(gguf_get_array(g, "a.numbers", GGUF_I32, &n, NULL), 1);
    cr_assert_eq(gguf_array_number(g, "a.numbers", 0), -5);
    cr_assert_eq(gguf_array_number(g, "a.numbers", 1), 9);
    cr_assert_eq(gguf_get_array(g, "a.nothing", GGUF_F32, &n, NULL), 1);
    cr_assert_eq(n, 0);
}

Test(gguf, finds_tensors)
{
    cleanup(freep) uint8_t *file = NULL;
    cleanup(gguf_freep) struct gguf *g = open_good(&file);
    const struct gguf_tensor *t = gguf_tensor(g, "t.two");

    cr_assert(t && t->type == TENSOR_I2_S && t->bytes == 64 && t->dims[0] == 128 && t->dims[1] == 1);
    cr_assert_eq(t->data[0], 0x55);
    t = gguf_tensor(g, "t.half");
    cr_assert(t && t->bytes == 16 && t->n_dims == 2 && t->dims[1] == 2);
    cr_assert_null(gguf_tensor(g, "t.three"));
    cr_assert(gguf_tensor_at(g, 2) == t);
    cr_assert_null(gguf_tensor_at(g, 3));
}

/* ---- malformed files -------------------------------------------------------------------------------------------- */

/* The good file with one more key or tensor, or with one field of its bytes changed. */
static void key_string_too_long(struct gguf_writer *w) { put_u64(write_key(w, "x.long", GGUF_STRING), 1 << 20); }
static void key_string_wraps(struct gguf_writer *w) { put_u64(write_key(w, "x.wraps", GGUF_STRING), UINT64_MAX - 4); }
static void key_twice(struct gguf_writer *w) { write_u32(w, "a.count", 8); }
static void key_empty(struct gguf_writer *w) { write_u32(w, "", 8); }
static void key_unknown_type(struct gguf_writer *w) { put_u32(write_key(w, "x.type", 13), 0); }
static void key_bool_of_two(struct gguf_writer *w) { put(write_key(w, "x.bool", GGUF_BOOL), &(uint8_t){ 2 }, 1); }
static void key_name_with_nul(struct gguf_writer *w)
{
    put_u64(&w->keys, 3);
    put(&w->keys, "x\0y", 3);
    put_u32(&w->keys, GGUF_U8);
    put(&w->keys, "z", 1);
    w->n_keys++;
}
static void key_name_too_long(struct gguf_writer *w)
{
    static char name[70001];

    memset(name, 'n', sizeof(name) - 1);
    write_u32(w, name, 1);
}
static void array_too_many(struct gguf_writer *w) { write_array(w, "x.many", GGUF_U32, 1 << 20); }
static void array_wraps(struct gguf_writer *w) { write_array(w, "x.wraps", GGUF_U64, UINT64_MAX / 8 + 2); }
static void array_of_arrays(struct gguf_writer *w) { put_u32(write_array(w, "x.nested", GGUF_ARRAY, 1), 0); }
static void array_of_unknown(struct gguf_writer *w) { write_array(w, "x.elem", 99, 0); }
static void array_strings_too_many(struct gguf_writer *w) { write_array(w, "x.strings", GGUF_STRING, UINT64_MAX / 2); }
static void array_string_too_long(struct gguf_writer *w) { put_u64(write_array(w, "x.strings", GGUF_STRING, 1), 1 << 20); }
static void array_of_odd_bools(struct gguf_writer *w) { put(write_array(w, "x.bools", GGUF_BOOL, 2), "\1\7", 2); }
static void alignment_odd(struct gguf_writer *w) { write_u32(w, "general.alignment", 48); }
static void alignment_zero(struct gguf_writer *w) { write_u32(w, "general.alignment", 0); }
static void alignment_huge(struct gguf_writer *w) { write_u32(w, "general.alignment", 8192); }
static void alignment_small(struct gguf_writer *w) { write_u32(w, "general.alignment", 1); }
static void alignment_a_string(struct gguf_writer *w) { write_string(w, "general.alignment", "32"); }

static void tensor_raw(struct gguf_writer *w, const char *name, uint32_t n_dims, uint64_t dim0, uint64_t dim1, uint32_t type, uint64_t offset)
{
    put_string(&w->infos, name);
    put_u32(&w->infos, n_dims);
    put_u64(&w->infos, dim0);
    if (n_dims > 1)
        put_u64(&w->infos, dim1);
    put_u32(&w->infos, type);
    put_u64(&w->infos, offset);
    w->n_tensors++;
}
static void tensor_unknown_type(struct gguf_writer *w) { tensor_raw(w, "x", 1, 4, 0, 10, 0); }
static void tensor_no_dims(struct gguf_writer *w) { tensor_raw(w, "x", 0, 4, 0, 0, 0); }
static void tensor_five_dims(struct gguf_writer *w) { tensor_raw(w, "x", 5, 4, 0, 0, 0); }
static void tensor_zero_dim(struct gguf_writer *w) { tensor_raw(w, "x", 2, 4, 0, 0, 0); }
static void tensor_dims_wrap(struct gguf_writer *w) { tensor_raw(w, "x", 2, 1ULL << 33, 1ULL << 33, 0, 0); }
static void tensor_bytes_wrap(struct gguf_writer *w) { tensor_raw(w, "x", 2, 1ULL << 31, 1ULL << 32, 0, 0); }
static void tensor_broken_block(struct gguf_writer *w) { tensor_raw(w, "x", 1, 33, 0, TENSOR_Q8_0, 0); }
static void tensor_broken_i2s(struct gguf_writer *w) { tensor_raw(w, "x", 1, 130, 0, TENSOR_I2_S, 0); }
static void tensor_unaligned(struct gguf_writer *w) { tensor_raw(w, "x", 1, 1, 0, 0, 4); }
static void tensor_past_the_end(struct gguf_writer *w) { tensor_raw(w, "x", 1, 1 << 20, 0, 0, 0); }
static void tensor_offset_far(struct gguf_writer *w) { tensor_raw(w, "x", 1, 1, 0, 0, 1 << 20); }
static void tensor_offset_wraps(struct gguf_writer *w) { tensor_raw(w, "x", 1, 1, 0, 0, UINT64_MAX - 31); }
static void tensor_overlaps(struct gguf_writer *w) { tensor_raw(w, "x", 1, 1, 0, 0, 64); }     /* inside t.two */
static void tensor_same_place(struct gguf_writer *w) { tensor_raw(w, "x", 1, 8, 0, 0, 0); }
static void tensor_twice(struct gguf_writer *w) { write_tensor(w, "t.one", 1, 1, TENSOR_F32, "1234", 4); }
static void tensor_empty_name(struct gguf_writer *w) { write_tensor(w, "", 1, 1, TENSOR_F32, "1234", 4); }
static void tensor_long_name(struct gguf_writer *w)
{
    write_tensor(w, "n0123456789012345678901234567890123456789012345678901234567890123", 1, 1, TENSOR_F32, "1234", 4);
}

static void keys_over_the_cap(struct gguf_writer *w)
{
    char key[32];

    for (int i = 0; i < 65536; i++) {
        snprintf(key, sizeof(key), "x.%d", i);
        write_bool(w, key, true);
    }
}
static void tensors_over_the_cap(struct gguf_writer *w)
{
    char name[32];

    for (int i = 0; i < 4096; i++) {
        snprintf(name, sizeof(name), "x.%d", i);
        write_tensor(w, name, 1, 1, TENSOR_F32, "1234", 4);
    }
}

static const struct {
    const char *name;
    void (*write)(struct gguf_writer *w);
    size_t at;          /* or: this field of the header ... */
    uint64_t value;     /* ... holds this */
    size_t keep;        /* or: only so many bytes of the file */
    const char *says;
} bad[] = {
    { .name = "empty", .keep = 1, .says = "ends" },
    { .name = "magic", .at = 0, .value = 0x46554758, .says = "not a GGUF" },
    { .name = "version 1", .at = 4, .value = 1, .says = "version 1" },
    { .name = "big-endian version", .at = 4, .value = 3u << 24, .says = "version" },
    { .name = "tensors by the billion", .at = 8, .value = 1ULL << 40, .says = "tensors" },
    { .name = "more tensors than bytes", .at = 8, .value = 4000, .says = "tensors" },
    { .name = "more tensors than there are", .at = 8, .value = 5, .says = "byte" },
    { .name = "keys by the billion", .at = 16, .value = UINT64_MAX, .says = "65,536" },
    { .name = "more keys than bytes", .at = 16, .value = 60000, .says = "the file can hold" },
    { .name = "cut in the header", .keep = 20, .says = "ends" },
    { .name = "cut in a key", .keep = 40, .says = "" },
    { .name = "cut in the data", .keep = SIZE_MAX, .says = "past the end" },
#define BAD(f, words) { .name = #f, .write = f, .says = words }
    BAD(key_string_too_long, "longer than the file"), BAD(key_string_wraps, "longer than the file"),
    BAD(key_twice, "a.count"), BAD(key_empty, "allowed are"), BAD(key_unknown_type, "x.type"), BAD(key_bool_of_two, "x.bool"),
    BAD(key_name_with_nul, "NUL"), BAD(key_name_too_long, "allowed are"), BAD(array_too_many, "x.many"),
    BAD(array_wraps, "x.wraps"), BAD(array_of_arrays, "x.nested"), BAD(array_of_unknown, "x.elem"),
    BAD(array_strings_too_many, "x.strings"), BAD(array_string_too_long, "longer than the file"),
    BAD(array_of_odd_bools, "x.bools"), BAD(alignment_odd, "general.alignment"), BAD(alignment_zero, "general.alignment"),
    BAD(alignment_huge, "general.alignment"), BAD(alignment_small, "general.alignment"),
    BAD(alignment_a_string, "general.alignment"), BAD(tensor_unknown_type, "type 10"), BAD(tensor_no_dims, "dimensions"),
    BAD(tensor_five_dims, "dimensions"), BAD(tensor_zero_dim, "shape"), BAD(tensor_dims_wrap, "shape"),
    BAD(tensor_bytes_wrap, "shape"), BAD(tensor_broken_block, "shape"), BAD(tensor_broken_i2s, "shape"),
    BAD(tensor_unaligned, "aligned"), BAD(tensor_past_the_end, "past the end"), BAD(tensor_offset_far, "past the end"),
    BAD(tensor_offset_wraps, "past the end"), BAD(tensor_overlaps, "overlaps"), BAD(tensor_same_place, "overlaps"),
    BAD(tensor_twice, "t.one stands twice"), BAD(tensor_empty_name, "allowed are"), BAD(tensor_long_name, "allowed are"),
    BAD(keys_over_the_cap, "65,536"), BAD(tensors_over_the_cap, "4,096"),
};

Test(gguf, malformed_files_are_refused_in_words)
{
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
        cleanup(freep) uint8_t *file = NULL;
        cleanup(gguf_freep) struct gguf *g = NULL;
        struct gguf_writer w;
        struct err err = {0};
        size_t size;
        int r;

        write_good(&w);
        if (bad[i].write)
            bad[i].write(&w);
        file = writer_file(&w, &size);
        writer_done(&w);
        if (!bad[i].write && !bad[i].keep)
            memcpy(file + bad[i].at, &bad[i].value, bad[i].at < 8 ? 4 : 8);
        if (bad[i].keep)
            size = MIN(bad[i].keep, size - 1);
        file = realloc(file, size);

        r = gguf_open(&g, file, size, &err);
        cr_expect_eq(r, -EINVAL, "%s: %d", bad[i].name, r);
        cr_expect(*err.msg && strstr(err.msg, bad[i].says), "%s says: %s", bad[i].name, err.msg);
    }
}

/* Every prefix of the good file, and every byte of it changed: refused or read, never outside the file. */
Test(gguf, survives_every_cut_and_change)
{
    struct gguf_writer w;
    size_t size, refused = 0;
    cleanup(freep) uint8_t *file = NULL;

    write_good(&w);
    file = writer_file(&w, &size);
    writer_done(&w);
    for (size_t n = 0; n < size; n++) {
        uint8_t *cut = malloc(n + !n);
        struct gguf *g = NULL;

        memcpy(cut, file, n);
        refused += gguf_open(&g, cut, n, NULL) == -EINVAL;
        gguf_free(g);
        free(cut);
    }
    cr_assert_eq(refused, size);

    for (size_t at = 0; at < size; at++)
        for (int k = 0; k < 6; k++) {
            static const uint8_t with[] = { 0x00, 0xff, 0x7f, 0x80, 0x01, 0x09 };
            uint8_t old = file[at];
            struct gguf *g = NULL;
            uint64_t n;

            file[at] = with[k];
            if (!gguf_open(&g, file, size, NULL) && gguf_get_array(g, "a.list", GGUF_STRING, &n, NULL) == 1)
                for (uint64_t i = 0; i < n; i++) {
                    struct gguf_string s = gguf_array_string(g, "a.list", i);

                    cr_assert(s.data + s.len <= (const char *)file + size);
                }
            gguf_free(g);
            file[at] = old;
        }
}
