/* What a model's file is turned into when it is loaded - weights in the machine's order, the head's screening copy - and
 * the file that keeps it for the next start.
 *
 * All of it lies in one region, section after section, each under a name and at a multiple of 64 bytes. Without a file,
 * or until it is written, that is private memory in huge pages where the system grants them. With a file it is the file
 * itself, mapped and shared with every engine that runs the same model.
 *
 * The file, named after the identity of the model's (device, inode, size and times of change) and the order of its rows:
 *     0          struct header: magic, version, order; identity and digest of the model; how many sections, how many
 *                bytes; a SHA-256 of the header, itself as zeros, and of the directory
 *     directory  struct section, one after the other
 *     BODY       the region
 * It is opened before the process gives up opening files (cache_file_open), and so cannot be renamed into place later.
 * Instead the header is written last, after the rest has reached the disk: a file whose header, digest or size is not
 * right is not used and written anew. Who writes holds an exclusive lock, who reads a shared one; who gets none goes
 * on with private memory. A model file that was changed has another identity, so its digest need not be computed again to
 * know it. The body is as trusted as any file of the user's own; it is not digested at each start. */
#include "engine/internal.h"
#include "engine/source.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <openssl/evp.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define VERSION 1
#define BODY (2u << 20)
#define ALIGNMENT 64
#define HUGE_PAGE (2u << 20)
#define WRITE_BYTES (16u << 20)
#define MAX_FILES 8                     /* of all models */
#define SUFFIX ".weights"

static const char magic[8] = "ternpack";

struct identity { uint64_t device, inode, size, changed_nsec, status_nsec; };

struct section { char name[56]; uint64_t offset, bytes; };

struct header {
    char magic[8];
    uint32_t version, n_sections;
    char layout[16], digest[80];
    struct identity identity;
    uint64_t body_bytes;
    uint8_t sum[32];
};

#define MAX_SECTIONS ((BODY - sizeof(struct header)) / sizeof(struct section))

struct cache {
    int fd;                             /* -1: none, or not to be written */
    atomic_bool warm;                   /* the region is a file that is whole */
    bool sealed;                        /* no more sections: they are being written, or were */
    pthread_t writer;
    bool writes;
    atomic_bool stop;
    void (*failed)(const char *why);
    int result;                         /* of writing */
    struct identity identity;
    char layout[16], digest[80];
    uint8_t *region;
    size_t room, used;                  /* bytes of it */
    struct section *sections;
    size_t n_sections, next;
    struct arena more;                  /* what the region had no room for */
};

static struct identity identity_of(const struct stat *st)
{
    return (struct identity){
        .device = st->st_dev, .inode = st->st_ino, .size = (uint64_t)st->st_size,
        .changed_nsec = (uint64_t)st->st_mtim.tv_sec * 1000000000 + (uint64_t)st->st_mtim.tv_nsec,
        .status_nsec = (uint64_t)st->st_ctim.tv_sec * 1000000000 + (uint64_t)st->st_ctim.tv_nsec,
    };
}

/* ---- the file's name, and the other files ----------------------------------------------------------------------- */

static int make_directories(char *path)
{
    for (char *slash = strchr(path + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
        *slash = 0;
        mkdir(path, 0700);
        *slash = '/';
    }
    return mkdir(path, 0700) < 0 && errno != EEXIST ? -errno : 0;
}

/* Take away what was made of earlier states of the same file, and the oldest where there are too many. */
static void tidy(int dir_fd, const char *name, size_t same)
{
    char oldest[NAME_MAX + 1] = "";
    struct timespec when = {0};
    struct dirent *e;
    size_t n = 0;
    DIR *dir = fdopendir(dup(dir_fd));

    if (!dir)
        return;
    rewinddir(dir);
    while ((e = readdir(dir))) {
        size_t len = strlen(e->d_name);
        const char *state = strchr(name, '.'), *layout = strchr(state + 1, '.');
        struct stat st;

        if (len < strlen(SUFFIX) || strcmp(e->d_name + len - strlen(SUFFIX), SUFFIX) || !strcmp(e->d_name, name) ||
            fstatat(dir_fd, e->d_name, &st, AT_SYMLINK_NOFOLLOW) < 0)
            continue;
        if (!strncmp(e->d_name, name, same) && strncmp(e->d_name, name, (size_t)(layout - name))) {
            unlinkat(dir_fd, e->d_name, 0);
            continue;
        }
        if (!n++ || st.st_mtim.tv_sec < when.tv_sec) {
            when = st.st_mtim;
            snprintf(oldest, sizeof(oldest), "%s", e->d_name);
        }
    }
    if (n >= MAX_FILES)
        unlinkat(dir_fd, oldest, 0);
    closedir(dir);
}

int engine_cache_open(const char *dir, const char *model_path, struct err *err)
{
    const struct kernels *kernels = kernels_get(err);
    cleanup(closep) int dir_fd = -1;
    struct identity id;
    char path[4096], name[NAME_MAX + 1];
    struct stat st;
    size_t same;
    int fd, r;

    if (!kernels)
        return -EINVAL;
    if (stat(model_path, &st) < 0)
        return err_set(err, -errno, "%s: %s", model_path, strerror(errno));
    if (!S_ISREG(st.st_mode))
        return err_set(err, -ENOTSUP, "%s: only models of one file are kept repacked", model_path);
    if (snprintf(path, sizeof(path), "%s", dir) >= (int)sizeof(path))
        return err_set(err, -ENAMETOOLONG, "%.64s...: %s", dir, strerror(ENAMETOOLONG));
    r = make_directories(path);
    dir_fd = r < 0 ? -1 : open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (dir_fd < 0)
        return err_set(err, r < 0 ? r : -errno, "%s: %s", path, strerror(r < 0 ? -r : errno));
    id = identity_of(&st);
    same = (size_t)snprintf(name, sizeof(name), "%llx-%llx.", (unsigned long long)id.device, (unsigned long long)id.inode);
    snprintf(name + same, sizeof(name) - same, "%llx-%llx-%llx.%s-%d" SUFFIX, (unsigned long long)id.size,
             (unsigned long long)id.changed_nsec, (unsigned long long)id.status_nsec, kernels->layout->name, VERSION);
    tidy(dir_fd, name, same);
    fd = openat(dir_fd, name, O_RDWR | O_CREAT | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC, 0600);
    if (fd < 0 || fstat(fd, &st) < 0)
        return err_set(err, -errno, "%s/%s: %s", path, name, strerror(errno));
    if (!S_ISREG(st.st_mode) || st.st_uid != geteuid() || st.st_mode & 022) {
        close(fd);
        return err_set(err, -EPERM, "%s/%s: is not a file that only its owner writes", path, name);
    }
    return fd;
}

/* ---- reading it ------------------------------------------------------------------------------------------------- */

static int sum_of(uint8_t sum[32], const struct header *h, const struct section *sections)
{
    struct header plain = *h;
    EVP_MD_CTX *c = EVP_MD_CTX_new();
    bool ok;

    memset(plain.sum, 0, sizeof(plain.sum));
    ok = c && EVP_DigestInit_ex(c, EVP_sha256(), NULL) && EVP_DigestUpdate(c, &plain, sizeof(plain)) &&
         EVP_DigestUpdate(c, sections, h->n_sections * sizeof(*sections)) && EVP_DigestFinal_ex(c, sum, NULL);
    EVP_MD_CTX_free(c);
    return ok ? 0 : -ENOMEM;
}

/* Is the file whole? Its header, and its sections into c. */
static bool read_file(struct cache *c, struct header *ret, size_t size)
{
    struct header h;
    uint8_t sum[32];

    if (pread(c->fd, &h, sizeof(h), 0) != sizeof(h) || memcmp(h.magic, magic, sizeof(magic)) || h.version != VERSION ||
        h.n_sections > MAX_SECTIONS || h.body_bytes > SIZE_MAX / 2 || size != BODY + h.body_bytes ||
        h.digest[sizeof(h.digest) - 1])
        return false;
    c->sections = calloc(h.n_sections + 1, sizeof(*c->sections));
    if (!c->sections || pread(c->fd, c->sections, h.n_sections * sizeof(*c->sections), sizeof(h)) !=
        (ssize_t)(h.n_sections * sizeof(*c->sections)) || sum_of(sum, &h, c->sections) < 0 || memcmp(sum, h.sum, 32))
        return false;
    for (size_t i = 0; i < h.n_sections; i++) {
        const struct section *s = &c->sections[i];

        if (s->name[sizeof(s->name) - 1] || s->offset % ALIGNMENT || s->offset > h.body_bytes ||
            s->bytes > h.body_bytes - s->offset)
            return false;
    }
    *ret = h;
    return true;
}

static uint8_t *map_file(int fd, size_t bytes, uint8_t *at)
{
    void *p = mmap(at, bytes, PROT_READ, MAP_SHARED | (at ? MAP_FIXED : 0), fd, BODY);

    if (p == MAP_FAILED)
        return NULL;
    madvise(p, bytes, MADV_HUGEPAGE);       /* where the file system can: weights are read a tenth to a third faster */
    return p;
}

/* 1: c is warm; 0: it is not, and may be written if it keeps its file; -errno. *err: words, though it is no failure. */
static int open_file(struct cache *c, struct err *err)
{
    struct header h = {0};
    bool whole = false;
    struct stat st;

    if (fstat(c->fd, &st) < 0)
        return -errno;
    if (st.st_size && flock(c->fd, LOCK_SH | LOCK_NB) == 0 && fstat(c->fd, &st) == 0)
        whole = read_file(c, &h, (size_t)st.st_size);
    if (whole && !memcmp(&h.identity, &c->identity, sizeof(h.identity)) && !memcmp(h.layout, c->layout, sizeof(h.layout))) {
        c->region = map_file(c->fd, h.body_bytes, NULL);
        c->n_sections = h.n_sections;
        c->used = c->room = h.body_bytes;
        memcpy(c->digest, h.digest, sizeof(h.digest));
        return c->region ? 1 : -ENOMEM;
    }
    free(c->sections);
    c->sections = NULL;
    if (flock(c->fd, LOCK_EX | LOCK_NB) < 0)
        c->fd = -1;                     /* someone writes it, or reads it as what it was made for */
    else if (st.st_size && !whole)
        err_set(err, 0, "the kept copy of the repacked weights is damaged or was not finished; it is made anew");
    return 0;
}

int cache_new(struct cache **ret, int fd, const struct source *s, const char *layout, struct err *err)
{
    const struct stat *st = source_stat(s);
    struct cache *c = calloc(1, sizeof(*c));
    size_t room = 2 * source_bytes(s) + (32u << 20);
    int r = 0;

    if (!c)
        return -ENOMEM;
    arena_init(&c->more);
    snprintf(c->layout, sizeof(c->layout), "%s", layout);
    c->fd = st && fd > 0 ? fd : -1;
    if (c->fd > 0) {
        c->identity = identity_of(st);
        r = open_file(c, err);
    }
    c->warm = c->sealed = r > 0;
    if (!c->warm) {
        /* Addresses, not memory: what is not touched costs nothing. */
        void *p = mmap(NULL, room, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

        c->sections = r < 0 ? NULL : calloc(MAX_SECTIONS, sizeof(*c->sections));
        c->region = p == MAP_FAILED ? NULL : p;
        c->room = c->region ? room : 0;
        if (!c->sections) {
            cache_free(c);
            return -ENOMEM;
        }
        if (c->region) {
            size_t lost = -(uintptr_t)c->region % HUGE_PAGE;

            munmap(c->region, lost);
            c->region += lost;
            c->room -= lost;
            if (c->room > 8 * HUGE_PAGE + (32u << 20))
                madvise(c->region, c->room, MADV_HUGEPAGE);
        }
    }
    *ret = c;
    return 0;
}

void cache_free(struct cache *c)
{
    if (!c)
        return;
    c->stop = true;
    cache_settle(c);
    if (c->region)
        munmap(c->region, c->room);
    arena_done(&c->more);
    free(c->sections);
    free(c);
}

bool cache_is_warm(const struct cache *c)
{
    return c->warm;
}

const char *cache_digest(const struct cache *c)
{
    return c->digest;
}

/* They are mostly asked for in the order they were made in. */
static const struct section *find(struct cache *c, const char *name, size_t bytes)
{
    for (size_t k = 0; k < c->n_sections; k++) {
        size_t i = (c->next + k) % c->n_sections;

        if (!strcmp(c->sections[i].name, name)) {
            c->next = i + 1;
            return c->sections[i].bytes == bytes ? &c->sections[i] : NULL;
        }
    }
    return NULL;
}

int cache_section(struct cache *c, const char *name, size_t bytes, void **ret)
{
    const struct section *there = find(c, name, bytes);
    struct section *s;
    size_t at = (c->used + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;

    if (there) {
        *ret = c->region + there->offset;
        return 1;
    }
    if (c->sealed || at > c->room || bytes > c->room - at || c->n_sections == MAX_SECTIONS ||
        strlen(name) >= sizeof(s->name)) {
        c->fd = c->sealed ? c->fd : -1; /* not all is in the region: it is not to be kept */
        *ret = arena_alloc(&c->more, bytes);
        return *ret ? 0 : -ENOMEM;
    }
    s = &c->sections[c->n_sections++];
    *s = (struct section){ .offset = at, .bytes = bytes };
    strcpy(s->name, name);
    c->used = at + bytes;
    *ret = c->region + at;
    return 0;
}

/* ---- writing it ------------------------------------------------------------------------------------------------- */

static int write_all(const struct cache *c, const void *data, size_t n, off_t at)
{
    while (n) {
        ssize_t done = c->stop ? -1 : pwrite(c->fd, data, MIN(n, WRITE_BYTES), at);

        if (c->stop)
            return -ECANCELED;

        if (done < 0 && errno != EINTR)
            return -errno;
        if (done > 0) {
            data = (const uint8_t *)data + done;
            n -= (size_t)done;
            at += done;
        }
    }
    return 0;
}

static int write_file(const struct cache *c)
{
    struct header h = { .version = VERSION, .n_sections = (uint32_t)c->n_sections, .identity = c->identity,
                        .body_bytes = c->used };
    int r;

    memcpy(h.magic, magic, sizeof(magic));
    memcpy(h.layout, c->layout, sizeof(h.layout));
    memcpy(h.digest, c->digest, sizeof(h.digest));
    if ((r = sum_of(h.sum, &h, c->sections)) < 0 || (r = ftruncate(c->fd, 0) < 0 ? -errno : 0) < 0 ||
        (r = write_all(c, c->sections, c->n_sections * sizeof(*c->sections), sizeof(h))) < 0 ||
        (r = write_all(c, c->region, c->used, BODY)) < 0 || (r = fsync(c->fd) < 0 ? -errno : 0) < 0 ||
        (r = write_all(c, &h, sizeof(h), 0)) < 0 || (r = fsync(c->fd) < 0 ? -errno : 0) < 0) {
        if (ftruncate(c->fd, 0) < 0)                    /* what cannot be undone is found out by the next start */
            return r;
        return r;
    }
    return 0;
}

/* Others may be reading the region all the time. */
static void *write_and_map(void *arg)
{
    struct cache *c = arg;
    size_t whole = (c->used + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;

    c->result = write_file(c);
    if (c->result < 0) {
        if (c->failed && c->result != -ECANCELED)
            c->failed(strerror(-c->result));
        return NULL;
    }
    flock(c->fd, LOCK_SH | LOCK_NB);
    /* From here on the file itself, the same bytes in the same place; what is behind it was never touched. */
    if (map_file(c->fd, c->used, c->region) && whole < c->room) {
        munmap(c->region + whole, c->room - whole);
        c->room = whole;
    }
    c->warm = true;
    return NULL;
}

int cache_keep(struct cache *c, const char *digest, void (*failed)(const char *why))
{
    sigset_t all, before;
    int r;

    if (c->fd < 0 || c->sealed || !c->n_sections)
        return 0;
    c->sealed = true;
    c->failed = failed;
    snprintf(c->digest, sizeof(c->digest), "%s", digest);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    r = pthread_create(&c->writer, NULL, write_and_map, c);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    c->writes = !r;
    return -r;
}

int cache_settle(struct cache *c)
{
    if (c->writes)
        pthread_join(c->writer, NULL);
    c->writes = false;
    return c->result;
}
