/* ternctl key: makes, lists and revokes API keys in the file that ternd reads beside its configuration (auth.keys_file)
 * and reads again whenever it changes. The file holds no key, only what tells one: its SHA-256. A new version is written
 * beside the old one and put in its place, under a lock, so that neither ternd nor a second ternctl sees half of it. */
#include "ctl/ctl.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include "base/id.h"

#define DEFAULT_FILE "/etc/tern/keys.conf"
#define FILE_MAX (1u << 20)
#define HEADING "# API keys of ternd, written by ternctl key; see tern.conf(5), section key.\n"

/* What a key may carry besides its digest: option here, name in the file, and the characters or words a value is of. */
static const struct { const char *option, *name, *words; } limits[] = {
    {"label", "label", "public internal private secret"}, {"max-label", "max_label", "public internal private secret"},
    {"apis", "apis", "openai anthropic ollama tern"}, {"modes", "modes", "local cloud auto"},
    {"endpoints", "endpoints", NULL}, {"rate", "rate", "0"}, {"tokens-per-day", "tokens_per_day", "0"},
    {"usd-per-day", "usd_per_day", "0."}, {"priority", "priority", "interactive batch"},
};
#define N_LIMITS ARRAY_SIZE(limits)

static bool is_name(const char *s)
{
    return *s && strlen(s) < 48 &&
           strspn(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-") == strlen(s);
}

/* Is every word of a list separated by commas one of `words`? */
static bool are_words(const char *list, const char *words)
{
    while (*(list += strspn(list, ", "))) {
        size_t n = strcspn(list, ", ");
        const char *w = words;

        while (w && (strncmp(w, list, n) != 0 || (w[n] && w[n] != ' ')))
            w = strchr(w, ' ') ? strchr(w, ' ') + 1 : NULL;
        if (!w)
            return false;
        list += n;
    }
    return true;
}

static bool is_value(size_t limit, const char *value)
{
    const char *words = limits[limit].words;

    if (!*value || strlen(value) > 500)
        return false;
    if (!words)
        return strspn(value, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-, ") == strlen(value);
    if (isdigit((unsigned char)*words))
        return strspn(value, strcmp(words, "0") == 0 ? "0123456789" : "0123456789.") == strlen(value);
    return are_words(value, words);
}

/* ---- The file ---------------------------------------------------------------------------------------------------- */

/* Locks the directory's entry for the file by a file beside it, for as long as we run. */
static int file_lock(const char *path)
{
    cleanup(freep) char *lock = NULL;
    int fd;

    if (asprintf(&lock, "%s.lock", path) < 0)
        return -ENOMEM;
    fd = open(lock, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0)
        return -errno;
    return flock(fd, LOCK_EX) < 0 ? -errno : 0;
}

/* All of it; nothing where there is no file yet. */
static int file_read(struct buf *out, const char *path)
{
    cleanup(closep) int fd = open(path, O_RDONLY | O_CLOEXEC);
    char chunk[4096];
    ssize_t n;
    int r;

    if (fd < 0)
        return errno == ENOENT ? buf_puts(out, HEADING) : -errno;
    while ((n = read(fd, chunk, sizeof(chunk))) > 0) {
        r = buf_append(out, chunk, (size_t)n);
        if (r < 0)
            return r;
    }
    return n < 0 ? -errno : 0;
}

static int write_whole(int fd, const struct buf *text)
{
    for (size_t at = 0; at < text->len;) {
        ssize_t n = write(fd, text->data + at, text->len - at);

        if (n < 0)
            return -errno;
        at += (size_t)n;
    }
    return fsync(fd) < 0 ? -errno : 0;
}

/* In place of the old one, with its mode and owner. */
static int file_write(const struct buf *text, const char *path)
{
    cleanup(freep) char *fresh = NULL;
    cleanup(closep) int fd = -1;
    struct stat st;
    int r;

    if (asprintf(&fresh, "%s.new", path) < 0)
        return -ENOMEM;
    fd = open(fresh, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0)
        return -errno;
    r = fchmod(fd, stat(path, &st) == 0 ? st.st_mode & 07777 : 0644) < 0 ? -errno : 0;
    if (r == 0 && stat(path, &st) == 0 && fchown(fd, st.st_uid, st.st_gid) < 0)
        r = -errno;
    if (r == 0)
        r = write_whole(fd, text);
    if (r == 0 && rename(fresh, path) < 0)
        r = -errno;
    if (r < 0)
        unlink(fresh);
    return r;
}

/* The section [key NAME], from its heading up to the next heading or the end: its length, 0 where there is none. */
static size_t section_find(const char *text, const char *name, const char **ret)
{
    char heading[64];

    snprintf(heading, sizeof(heading), "[key %s]", name);
    for (const char *p = text; p; p = strchr(p, '\n') ? strchr(p, '\n') + 1 : NULL)
        if (strncmp(p, heading, strlen(heading)) == 0) {
            const char *end = strstr(p, "\n[");

            *ret = p;
            return end ? (size_t)(end + 1 - p) : strlen(p);
        }
    return 0;
}

/* ---- The verb ---------------------------------------------------------------------------------------------------- */

static int failed(const char *path, int r)
{
    fprintf(stderr, "ternctl: %s: %s\n", path, strerror(-r));
    return CTL_REFUSED;
}

static void hex(char *out, const uint8_t *bytes, size_t n)
{
    for (size_t i = 0; i < n; i++)
        snprintf(out + 2 * i, 3, "%02x", bytes[i]);
}

static int key_add(const char *path, struct buf *text, const char *name, char *const values[N_LIMITS])
{
    char key[sizeof("tern-") + 64] = "tern-", digest_text[65];
    uint8_t chance[32], digest[32];
    const char *old;
    int r;

    if (section_find((char *)text->data, name, &old)) {
        fprintf(stderr, "ternctl: there is a key %s already; revoke it, or take another name\n", name);
        return CTL_REFUSED;
    }
    random_bytes(chance, sizeof(chance));
    hex(key + 5, chance, sizeof(chance));
    if (EVP_Digest(key, strlen(key), digest, NULL, EVP_sha256(), NULL) != 1)
        return failed(path, -ENOMEM);
    hex(digest_text, digest, sizeof(digest));
    r = buf_printf(text, "\n[key %s]\nsha256 = %s\n", name, digest_text);
    for (size_t i = 0; r == 0 && i < N_LIMITS; i++)
        if (values[i])
            r = buf_printf(text, "%s = %s\n", limits[i].name, values[i]);
    if (r == 0)
        r = file_write(text, path);
    if (r < 0)
        return failed(path, r);
    puts(key);
    fprintf(stderr, "This is key %s. It is shown only now; %s keeps no more than its digest.\n", name, path);
    return CTL_OK;
}

static int key_revoke(const char *path, struct buf *text, const char *name)
{
    const char *section;
    size_t len = section_find((char *)text->data, name, &section), at;
    int r;

    if (!len) {
        fprintf(stderr, "ternctl: %s has no key %s\n", path, name);
        return CTL_REFUSED;
    }
    at = (size_t)(section - (char *)text->data);
    memmove(text->data + at, text->data + at + len, text->len - at - len + 1);
    text->len -= len;
    r = file_write(text, path);
    return r < 0 ? failed(path, r) : CTL_OK;
}

/* The sections as objects, digests left out. */
static int key_list(const struct ctl *c, const struct buf *text)
{
    static const char *const columns[] = {"name", "label", "max_label", "apis", "modes", "endpoints", "rate",
                                          "tokens_per_day", "usd_per_day", "priority", NULL};
    cleanup(json_decrefp) json_t *rows = json_array();
    json_t *row = NULL;
    char name[64], value[512];

    for (const char *p = (char *)text->data; p && *p; p = strchr(p, '\n') ? strchr(p, '\n') + 1 : NULL) {
        if (sscanf(p, "[key %63[^]]", name) == 1) {
            row = json_pack("{s:s}", "name", name);
            json_array_append_new(rows, row);
        } else if (row && sscanf(p, " %63[a-z0-9_] = %511[^\n]", name, value) == 2 && strcmp(name, "sha256") != 0) {
            json_object_set_new(row, name, json_string(value));
        }
    }
    if (c->json)
        print_json(rows);
    else
        print_table(c, rows, columns);
    return CTL_OK;
}

static int key_run(struct ctl *c, int argc, char **argv)
{
    struct option options[N_LIMITS + 2] = {[N_LIMITS] = {"file", required_argument, NULL, 'f'}};
    const char *path = getenv("TERN_KEYS") ? getenv("TERN_KEYS") : DEFAULT_FILE, *what, *name;
    cleanup(buf_done) struct buf text = {.max = FILE_MAX};
    char *values[N_LIMITS] = {0};
    int opt, r;

    for (size_t i = 0; i < N_LIMITS; i++)
        options[i] = (struct option) {limits[i].option, required_argument, NULL, 256 + (int)i};
    optind = 0;                  /* anew, options and words in any order */
    while ((opt = getopt_long(argc, argv, "", options, NULL)) != -1) {
        if (opt == '?')
            return CTL_USAGE;
        if (opt == 'f')
            path = optarg;
        else if (!is_value((size_t)opt - 256, optarg))
            return usage_error(&key_verb, "--%s: \"%s\" is not accepted", limits[opt - 256].option, optarg);
        else
            values[opt - 256] = optarg;
    }
    what = optind < argc ? argv[optind++] : "";
    name = optind < argc ? argv[optind++] : NULL;
    if (strcmp(what, "list") == 0 ? name != NULL : !name || optind < argc ||
        (strcmp(what, "add") != 0 && strcmp(what, "revoke") != 0))
        return usage_error(&key_verb, "expected add NAME, list or revoke NAME");
    if (name && !is_name(name))
        return usage_error(&key_verb, "a name is of letters, digits, '.', '_' and '-', at most 47");

    r = name ? file_lock(path) : 0;
    if (r == 0)
        r = file_read(&text, path);
    if (r < 0)
        return failed(path, r);
    if (!name)
        return key_list(c, &text);
    return strcmp(what, "add") == 0 ? key_add(path, &text, name, values) : key_revoke(path, &text, name);
}

const struct verb key_verb = {
    "key", "add|list|revoke [NAME]", "make, list and revoke API keys",
    "It edits the file of keys, which a running ternd reads again at once; no daemon is needed.\n\n"
    "  --file FILE           the file ($TERN_KEYS, default " DEFAULT_FILE ")\n"
    "For add, all of them limits (see tern.conf(5), section key):\n"
    "  --label LABEL         put on the key's requests\n"
    "  --max-label LABEL     requests with a higher one are refused\n"
    "  --apis LIST           openai, anthropic, ollama, tern\n"
    "  --modes LIST          local, cloud, auto\n"
    "  --endpoints LIST      clouds its requests may go to\n"
    "  --rate N              requests a minute\n"
    "  --tokens-per-day N    in and out\n"
    "  --usd-per-day X       of cloud answers\n"
    "  --priority WORD       interactive or batch\n",
    key_run,
};
