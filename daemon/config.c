/* Configuration files to one struct config. inih splits lines into names and values, but Debian builds it without
 * line numbers and it says nothing of sections without keys; so its reader here (next_line) counts lines and watches
 * section headings itself. Everything that is set goes through set_option(), whether it came from a file or from
 * --set. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ini.h>
#include <string.h>
#include <sys/stat.h>
#include "daemon/daemon.h"
#include "daemon/options.h"
#include "daemon/tls.h"

#define DEFAULT_PATH "/etc/tern/tern.conf"
#define MAX_FILE_BYTES (1u << 20)
#define MAX_FILES 256
#define MAX_LINE_BYTES 2048
#define MAX_INSTANCES (POLICY_MAX_ENDPOINTS > CONFIG_MAX_KEYS ? POLICY_MAX_ENDPOINTS : CONFIG_MAX_KEYS)
#define MAX_SECTION 49                   /* inih cuts longer ones */

/* One file (or the --set list) being read. */
struct reading {
    struct config *config;
    struct err err;                      /* the first fault */
    int result;
    char where[600];                     /* "FILE:LINE" or "--set ARGUMENT" */
    const char *path, *text;             /* the file's name; what is left of it */
    unsigned line;
    char section[MAX_SECTION + 1];       /* as written: "cloud NAME" */
    const char *kind;                    /* its first word as the table writes it, or NULL before any section */
    void *home[4];                       /* by enum option_home: where options of this section go */
    size_t instance;                     /* of a named section */
    char where_tcp[600], where_tls[600]; /* these were set */
    bool keys_only;                      /* no other sections belong in this file */
    unsigned char *seen;                 /* n_options x MAX_INSTANCES: keys this file set already */
};

static int fault(struct reading *in, const char *text)
{
    if (in->result == 0)
        in->result = err_set(&in->err, -EINVAL, "%s: %s", in->where, text);
    return -EINVAL;
}

static void config_unrefp(struct config **c) { config_unref(*c); }

static bool name_is_valid(const char *s)
{
    return *s && strlen(s) < sizeof(((struct api_key *)0)->name) &&
           strspn(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-") == strlen(s);
}

/* ---- Defaults -------------------------------------------------------------------------------------------------- */

static int set_defaults(void *home_struct, enum option_home home, struct err *err)
{
    int r;

    for (size_t i = 0; i < n_options; i++) {
        if (options[i].home != home || !options[i].standard)
            continue;
        r = option_set(&options[i], home_struct, options[i].standard, err);
        if (r < 0)
            return r;
    }
    return 0;
}

/* The service manager's state directory, the first where it names several. */
static int set_state_directory(struct config *c, struct err *err)
{
    const char *dir = getenv("STATE_DIRECTORY");
    size_t n = dir ? strcspn(dir, ":") : 0;

    if (n == 0)
        return 0;
    if (n + sizeof("/tern.db") > sizeof(c->store.path))
        return err_set(err, -EINVAL, "$STATE_DIRECTORY is too long");
    memset(c->store.path, 0, sizeof(c->store.path));
    memcpy(c->store.path, dir, n);
    memcpy(c->store.path + n, "/tern.db", sizeof("/tern.db"));
    return 0;
}

/* ---- Sections -------------------------------------------------------------------------------------------------- */

static int enter_cloud(struct reading *in, const char *name)
{
    struct egress_config *cloud = &in->config->router->cloud;
    size_t i;

    for (i = 0; i < cloud->n_endpoints; i++)
        if (strcmp(cloud->endpoints[i].policy.name, name) == 0)
            break;
    if (i == POLICY_MAX_ENDPOINTS)
        return fault(in, "too many [cloud NAME] sections");
    if (strcasecmp(name, "auto") == 0 || strcasecmp(name, "local") == 0)
        return fault(in, "a cloud may not be named \"auto\" or \"local\": requests use these as model names");
    in->home[HOME_CLOUD] = &cloud->endpoints[i];
    in->instance = i;
    if (i < cloud->n_endpoints)
        return 0;
    cloud->n_endpoints++;
    strcpy(cloud->endpoints[i].policy.name, name);
    return set_defaults(&cloud->endpoints[i], HOME_CLOUD, &in->err);
}

static int enter_key(struct reading *in, const char *name)
{
    struct config *c = in->config;
    size_t i;

    for (i = 0; i < c->auth.n_keys; i++)
        if (strcmp(c->auth.keys[i].name, name) == 0)
            break;
    if (i == CONFIG_MAX_KEYS)
        return fault(in, "too many [key NAME] sections");
    in->home[HOME_KEY] = &c->auth.keys[i];
    in->instance = i;
    if (i < c->auth.n_keys)
        return 0;
    c->auth.n_keys++;
    strcpy(c->auth.keys[i].name, name);
    return set_defaults(&c->auth.keys[i], HOME_KEY, &in->err);
}

static int unknown(struct reading *in, const char *what, const char *name, const char *nearest)
{
    char text[256];

    snprintf(text, sizeof(text), "unknown %s \"%.64s\"%s%s%s", what, name, nearest ? "; did you mean \"" : "",
             nearest ? nearest : "", nearest ? "\"?" : "");
    return fault(in, text);
}

/* `section` is "listen" or "cloud NAME". */
static int enter_section(struct reading *in, const char *section)
{
    char kind[MAX_SECTION + 1];
    const char *name;
    size_t n;
    int r;

    in->kind = NULL;
    in->instance = 0;
    if (strlen(section) >= MAX_SECTION)
        return fault(in, "section name is too long");
    strcpy(in->section, section);
    n = strcspn(section, " \t");
    memcpy(kind, section, n);
    kind[n] = 0;
    name = section + n + strspn(section + n, " \t");

    r = option_section(kind);
    if (r == 0)
        return unknown(in, "section", kind, option_nearest(kind, NULL));
    if (in->keys_only && strcmp(kind, "key") != 0)
        return fault(in, "only [key NAME] sections belong here");
    if (r == 1 && *name)
        return fault(in, "this section takes no name");
    if (r == 2 && !name_is_valid(name))
        return fault(in, "this section needs a name of letters, digits, '.', '_' and '-', such as [cloud main]");
    for (size_t i = 0; i < n_options && !in->kind; i++)
        if (strcmp(options[i].section, kind) == 0)
            in->kind = options[i].section;
    if (r == 2)
        return strcmp(kind, "cloud") == 0 ? enter_cloud(in, name) : enter_key(in, name);
    return 0;
}

static int set_option(struct reading *in, const char *key, const char *value)
{
    const struct config_option *o = option_find(in->kind, key);
    unsigned char *seen;
    struct err err;

    if (!o)
        return unknown(in, "option", key, option_nearest(in->kind, key));
    seen = in->seen ? &in->seen[(size_t)(o - options) * MAX_INSTANCES + in->instance] : NULL;
    if (seen && *seen) {
        snprintf(err.msg, sizeof(err.msg), "%s: set twice in this file", key);
        return fault(in, err.msg);
    }
    if (seen)
        *seen = 1;
    if (in->home[o->home] == in->config && o->offset == offsetof(struct config, listen.tcp))
        strcpy(in->where_tcp, in->where);
    if (in->home[o->home] == in->config && o->offset == offsetof(struct config, listen.tls))
        strcpy(in->where_tls, in->where);
    return option_set(o, in->home[o->home], value, &err) < 0 ? fault(in, err.msg) : 0;
}

/* ---- Files ----------------------------------------------------------------------------------------------------- */

/* inih's reader: one line of the text, which ends with a NUL. */
static char *next_line(char *out, int size, void *stream)
{
    struct reading *in = stream;
    size_t len = strcspn(in->text, "\n"), n;
    const char *s = in->text, *end;
    char section[MAX_LINE_BYTES];

    if (!*s)
        return NULL;
    in->text += len + (s[len] == '\n');
    in->line++;
    snprintf(in->where, sizeof(in->where), "%s:%u", in->path, in->line);
    /* Blanks before a name have no meaning here (inih would take the line as going on from the one before). */
    n = MIN(strspn(s, " \t\r"), len);
    s += n;
    len -= n;
    if (len >= (size_t)size || len >= sizeof(section)) {
        fault(in, "the line is too long");
        len = 0;
    }
    memcpy(out, s, len);
    out[len] = 0;
    if (*out != '[')
        return out;
    end = strchr(out, ']');
    if (!end) {
        fault(in, "the section's ] is missing");
    } else {
        memcpy(section, out + 1, (size_t)(end - out - 1));
        section[end - out - 1] = 0;
        enter_section(in, section);
    }
    return out;
}

static int take_pair(void *user, const char *section, const char *key, const char *value)
{
    struct reading *in = user;

    if (in->result < 0)
        return 1;
    if (!in->kind) {
        fault(in, "an option before the first [section]");
        return 0;
    }
    return set_option(in, key, value) == 0;
}

/* The whole file, which may not be longer than MAX_FILE_BYTES, hold NUL bytes, or be anything that can make us wait. */
static int read_text(char **ret, const char *path, struct err *err)
{
    cleanup(closep) int fd = -1;
    cleanup(freep) char *text = NULL;
    size_t len = 0;
    struct stat st;
    ssize_t n;

    fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return err_set(err, -errno, "%s: %s", path, strerror(errno));
    if (fstat(fd, &st) < 0 || !(S_ISREG(st.st_mode) || S_ISCHR(st.st_mode)))
        return err_set(err, -EINVAL, "%s: not a file", path);
    text = malloc(MAX_FILE_BYTES + 1);
    if (!text)
        return -ENOMEM;
    while ((n = read(fd, text + len, MAX_FILE_BYTES + 1 - len)) > 0 && len <= MAX_FILE_BYTES)
        len += (size_t)n;
    if (n < 0)
        return err_set(err, -errno, "%s: %s", path, strerror(errno));
    if (len > MAX_FILE_BYTES)
        return err_set(err, -EINVAL, "%s: longer than %u bytes", path, MAX_FILE_BYTES);
    text[len] = 0;
    if (strlen(text) != len)
        return err_set(err, -EINVAL, "%s: holds NUL bytes", path);
    *ret = TAKE(text);
    return 0;
}

static int read_file(struct reading *in, const char *path)
{
    cleanup(freep) unsigned char *seen = NULL;
    cleanup(freep) char *text = NULL;
    int r;

    r = read_text(&text, path, &in->err);
    if (r < 0)
        return r;
    seen = calloc(n_options, MAX_INSTANCES);
    if (!seen)
        return -ENOMEM;

    in->path = path;
    in->text = strncmp(text, "\xef\xbb\xbf", 3) == 0 ? text + 3 : text;     /* some editors' mark of UTF-8 */
    in->line = 0;
    in->kind = NULL;
    in->seen = seen;
    ini_max_line = MAX_LINE_BYTES;
    ini_allow_multiline = false;
    r = ini_parse_stream(next_line, in, take_pair, in);
    in->seen = NULL;
    if (in->result < 0)
        return in->result;
    if (r != 0)
        return err_set(&in->err, -EINVAL, "%s:%d: expected [section] or name = value", path, r);
    return 0;
}

static int is_conf(const struct dirent *e)
{
    size_t n = strlen(e->d_name);

    return n > 5 && e->d_name[0] != '.' && strcmp(e->d_name + n - 5, ".conf") == 0;
}

static int by_name(const struct dirent **a, const struct dirent **b)
{
    return strcmp((*a)->d_name, (*b)->d_name);
}

/* PATH.d, that is /etc/tern/tern.conf.d beside /etc/tern/tern.conf. */
static int read_directory(struct reading *in, const char *path)
{
    struct dirent **names = NULL;
    char file[1024];
    int n, r = 0;

    if ((size_t)snprintf(file, sizeof(file), "%s.d", path) >= sizeof(file))
        return err_set(&in->err, -EINVAL, "%.200s: the path is too long", path);
    n = scandir(file, &names, is_conf, by_name);
    if (n < 0)
        return errno == ENOENT || errno == ENOTDIR ? 0 : err_set(&in->err, -errno, "%s: %s", file, strerror(errno));
    if (n > MAX_FILES)
        r = err_set(&in->err, -EINVAL, "%s: more than %d files", file, MAX_FILES);
    for (int i = 0; i < n; i++) {
        if (r == 0 && (size_t)snprintf(file, sizeof(file), "%s.d/%s", path, names[i]->d_name) >= sizeof(file))
            r = err_set(&in->err, -EINVAL, "%.200s.d: a path in it is too long", path);
        if (r == 0)
            r = read_file(in, file);
        free(names[i]);
    }
    free(names);
    return r;
}

/* "section.key=value" or "kind.NAME.key=value"; a NAME may hold dots, a key may not. */
static int read_set(struct reading *in, const char *set)
{
    char section[MAX_LINE_BYTES], *key, *dot;
    size_t n = strcspn(set, "=");

    snprintf(in->where, sizeof(in->where), "--set %.*s", (int)MIN(n, 200u), set);
    if (set[n] != '=' || n >= sizeof(section))
        return fault(in, "expected section.key=value");
    memcpy(section, set, n);
    section[n] = 0;
    key = strrchr(section, '.');
    if (!key)
        return fault(in, "expected section.key=value");
    *key++ = 0;
    dot = strchr(section, '.');
    if (dot)
        *dot = ' ';
    if (enter_section(in, section) < 0 || set_option(in, key, set + n + 1) < 0)
        return in->result < 0 ? in->result : -EINVAL;
    return 0;
}

/* ---- The whole ------------------------------------------------------------------------------------------------- */

static int check_cloud(struct cloud_endpoint *e, struct err *err)
{
    char host[300];
    struct err why;

    if (!*e->url || !*e->policy.model)
        return err_set(err, -EINVAL, "[cloud %s]: %s must be set", e->policy.name, *e->url ? "model" : "url");
    if (endpoint_host(host, sizeof(host), e->url, &why) < 0)
        return err_set(err, -EINVAL, "[cloud %s] url: %s", e->policy.name, why.msg);
    return 0;
}

static int check_keys(const struct config *c, struct err *err)
{
    static const uint8_t zero[32];

    for (size_t i = 0; i < c->auth.n_keys; i++) {
        if (memcmp(c->auth.keys[i].sha256, zero, sizeof(zero)) == 0)
            return err_set(err, -EINVAL, "[key %s]: sha256 must be set", c->auth.keys[i].name);
        for (size_t j = 0; j < i; j++)
            if (memcmp(c->auth.keys[i].sha256, c->auth.keys[j].sha256, sizeof(zero)) == 0)
                return err_set(err, -EINVAL, "[key %s] and [key %s] are the same key", c->auth.keys[j].name,
                               c->auth.keys[i].name);
    }
    return 0;
}

/* Who is reachable from elsewhere must be encrypted and ask for keys. */
static int check_addresses(const struct reading *in, const struct config *c, struct err *err)
{
    struct sockaddr_storage a;
    struct err why;

    if (*c->listen.tcp && listen_address(&a, c->listen.tcp, &why) < 0)
        return err_set(err, -EINVAL, "%s: [listen] tcp: %s", in->where_tcp, why.msg);
    if (*c->listen.tcp && !listen_is_loopback(&a))
        return err_set(err, -EINVAL, "%s: [listen] tcp: \"%.80s\" is not a loopback address; others are served with TLS "
                       "only: set [listen] tls, tls_cert and tls_key instead", in->where_tcp, c->listen.tcp);
    if (!*c->listen.tls)
        return 0;
    if (listen_address(&a, c->listen.tls, &why) < 0)
        return err_set(err, -EINVAL, "%s: [listen] tls: %s", in->where_tls, why.msg);
    if (!*c->listen.tls_cert || !*c->listen.tls_key)
        return err_set(err, -EINVAL, "%s: [listen] tls: needs a certificate and its key: set tls_cert and tls_key",
                       in->where_tls);
    if (!listen_is_loopback(&a) && !c->auth.required)
        return err_set(err, -EINVAL, "%s: [listen] tls: \"%.80s\" can be reached from elsewhere: set [auth] required = "
                       "yes, and make a key with ternctl key add", in->where_tls, c->listen.tls);
    return 0;
}

/* What spans several options; then the copies that the parts below take. */
static int finish(const struct reading *in, struct config *c, struct err *err)
{
    struct router_config *router = c->router;
    int r;

    r = check_addresses(in, c, err);
    if (r < 0)
        return r;
    if (*c->listen.unix_path && *c->listen.unix_path != '/')
        return err_set(err, -EINVAL, "[listen] unix: expected an absolute path");
    if (router->policy.abort_threshold > router->policy.threshold)
        return err_set(err, -EINVAL, "[policy] abort_threshold: %g is above threshold (%g)",
                       router->policy.abort_threshold, router->policy.threshold);
    for (size_t i = 0; i < router->cloud.n_endpoints; i++) {
        r = check_cloud(&router->cloud.endpoints[i], err);
        if (r < 0)
            return r;
        router->policy.endpoints[i] = router->cloud.endpoints[i].policy;
    }
    router->policy.n_endpoints = router->cloud.n_endpoints;
    router->audit_or_refuse = !c->store.answer_unrecorded;
    router->sessions = c->engine.sessions;
    router->queue = c->engine.queue;
    router->queue_client = c->engine.queue_client;
    router->default_temperature = c->engine.temperature;
    r = check_keys(c, err);
    if (r < 0)
        return r;
    r = detector_of_policy(&router->detector, &router->policy, err);
    if (r < 0)
        return r;
    return policy_digest(router->policy_digest, &router->policy);
}

int config_load(struct config **ret, const char *path, bool path_given, char *const *sets, size_t n_sets,
                struct err *err)
{
    cleanup(config_unrefp) struct config *c = calloc(1, sizeof(*c));
    struct reading in = {.config = c};
    int r;

    if (!path)
        path = DEFAULT_PATH;
    if (!c || !(c->router = router_config_new()))
        return err_set(err, -ENOMEM, "out of memory");
    c->refs = 1;
    in.home[HOME_CONFIG] = c;
    in.home[HOME_ROUTER] = c->router;

    r = set_defaults(c, HOME_CONFIG, &in.err);
    if (r == 0)
        r = set_defaults(c->router, HOME_ROUTER, &in.err);
    if (r == 0)
        r = set_state_directory(c, &in.err);
    if (r == 0)
        r = read_file(&in, path);
    if (r == -ENOENT && !path_given)
        r = 0;
    if (r == 0)
        r = read_directory(&in, path);
    for (size_t i = 0; r == 0 && i < n_sets; i++)
        r = read_set(&in, sets[i]);
    if (r == 0 && *c->auth.keys_file) {
        in.keys_only = true;
        r = read_file(&in, c->auth.keys_file);
        r = r == -ENOENT ? 0 : r;
    }
    if (r == 0)
        r = finish(&in, c, &in.err);
    if (r < 0)
        return r == -ENOMEM ? err_set(err, r, "out of memory") : err_set(err, r, "%s", in.err.msg);
    *ret = TAKE(c);
    return 0;
}

struct config *config_ref(struct config *c)
{
    c->refs++;
    return c;
}

void config_unref(struct config *c)
{
    if (!c || --c->refs > 0)
        return;
    SSL_CTX_free(c->tls);
    router_config_unref(c->router);
    free(c);
}

const char *config_needs_restart(const struct config *a, const struct config *b)
{
    static char name[64];

    for (size_t i = 0; i < n_options; i++) {
        const struct config_option *o = &options[i];
        const void *x = o->home == HOME_CONFIG ? (const void *)a : a->router;
        const void *y = o->home == HOME_CONFIG ? (const void *)b : b->router;

        if (o->reload || o->home == HOME_CLOUD || o->home == HOME_KEY || option_equal(o, x, y))
            continue;
        snprintf(name, sizeof(name), "%s.%s", o->section, o->key);
        return name;
    }
    return NULL;
}
