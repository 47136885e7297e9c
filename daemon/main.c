/* ternd: the front's life from arguments to exit, and the way into the two workers. The order in front_main() is the
 * security argument: the spawner is forked while this process knows nothing, sockets are opened while that is still
 * possible, then the sandbox closes, and only then come database, requests and workers. */
#include <errno.h>
#include <event2/event.h>
#include <getopt.h>
#include <libgen.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include "base/clock.h"
#include "base/log.h"
#include "daemon/http.h"
#include "daemon/tls.h"
#include "engine/engine.h"
#include "models/embedded.h"

#define EXIT_USAGE 2
#define EXIT_BAD_CONFIG 78                       /* EX_CONFIG; systemd shows it as 78/CONFIG */
#define DRAIN_USEC (20 * USEC_PER_SEC)
#define SETTLE_USEC (2 * USEC_PER_SEC)           /* for the last records of requests that are cut off */
#define HOPELESS_RESTARTS 3                      /* of an engine that never got ready */
#define MAX_SETS 256

struct arguments {
    const char *config;
    char *sets[MAX_SETS];
    size_t n_sets;
    const char *role;
    int fd;
};

struct front {
    struct daemon d;
    const struct arguments *args;
    struct listener listeners[LISTEN_MAX];
    size_t n_listeners;
    char addresses[256];
    int spawner_fd;
    pid_t spawner;
    struct event *mail, *tick, *watchdog, *drain, *keys, *signals[3];
    int keys_fd;                                 /* inotify's */
    bool ready;                                  /* READY=1 was sent */
    uint64_t drain_until_usec;
    int status;                                  /* to exit with */
    struct { struct mail mail; bool running, again; struct config *config; int result; struct err err; } reload;
    struct err kept_old;                         /* why the last reload did nothing; empty when it did */
};

/* All roles, and each reload, read the same files and --set arguments. */
static int load(struct config **ret, const struct arguments *args, struct err *err)
{
    return config_load(ret, args->config, args->config != NULL, args->sets, args->n_sets, err);
}

/* The front's: with what TLS needs, which the workers are never to hold. */
static int load_front(struct config **ret, const struct arguments *args, bool tls, struct err *err)
{
    struct config *c;
    int r = load(&c, args, err);

    if (r < 0)
        return r;
    r = tls_load(c, tls, err);
    if (r < 0)
        config_unref(c);
    else
        *ret = c;
    return r;
}

static bool serves_tls(const struct front *f)
{
    for (size_t i = 0; i < f->n_listeners; i++)
        if (f->listeners[i].tls)
            return true;
    return false;
}

/* ---- Status ---------------------------------------------------------------------------------------------------- */

static bool engine_hopeless(const struct front *f)
{
    return router_engine_failure(f->d.router) ||
           supervisor_restarts(f->d.supervisor, SPAWN_ENGINE) >= HOPELESS_RESTARTS;
}

static void update_status(struct front *f)
{
    const char *failure = router_engine_failure(f->d.router);

    if (f->d.draining)
        notify_status(&f->d, "stopping, finishing the requests that run");
    else if (*f->kept_old.msg)
        notify_status(&f->d, "configuration not reloaded: %s", f->kept_old.msg);
    else if (!store_healthy(f->d.store))
        notify_status(&f->d, "the audit database cannot be written");
    else if (router_engine_ready(f->d.router))
        notify_status(&f->d, "answering on %s", f->addresses);
    else if (engine_hopeless(f))
        notify_status(&f->d, "no local model: %s", failure ? failure : "the engine keeps ending");
    else
        notify_status(&f->d, "loading the local model");
}

/* Often until ready, then once a second. */
static void on_tick(evutil_socket_t fd, short what, void *arg)
{
    struct front *f = arg;

    update_status(f);
    if (!f->ready && !f->d.draining && (router_engine_ready(f->d.router) || engine_hopeless(f))) {
        f->ready = true;
        notify_ready(&f->d);
        log_notice("ready: %s", f->d.status);
    }
    evtimer_add(f->tick, f->ready ? &(struct timeval) {.tv_sec = 1} : &(struct timeval) {.tv_usec = 50000});
}

static void on_watchdog(evutil_socket_t fd, short what, void *arg)
{
    struct front *f = arg;

    if (supervisor_fresh(f->d.supervisor))
        notify_watchdog();
    else
        log_error("a part of this daemon has stopped answering: the watchdog is not fed");
}

/* ---- Reload: files are read on a thread of their own, since a loop never waits --------------------------------- */

static void reload_start(struct front *f);

static void apply_config(struct front *f, struct config *c)
{
    const char *fixed = config_needs_restart(f->d.config, c);

    if (fixed)
        log_warning("%s changed, which takes a restart; the rest was applied", fixed);
    log_set_level((enum log_level)c->log.level);
    router_set_config(f->d.router, c->router);
    http_set_config(f->d.http, c);
    config_unref(f->d.config);
    f->d.config = c;
    log_notice("configuration reloaded");
}

static void on_reloaded(struct mail *m)
{
    struct front *f = (struct front *)((char *)m - offsetof(struct front, reload.mail));

    f->reload.running = false;
    if (f->d.draining) {
        config_unref(TAKE(f->reload.config));
        return;
    }
    if (f->reload.result < 0) {
        f->kept_old = f->reload.err;
        log_error("configuration not reloaded: %s", f->kept_old.msg);
    } else {
        *f->kept_old.msg = 0;
        apply_config(f, TAKE(f->reload.config));
    }
    update_status(f);
    if (f->ready)
        notify_ready(&f->d);
    if (f->reload.again)
        reload_start(f);
}

static void *reload_thread(void *arg)
{
    struct front *f = arg;

    f->reload.result = load_front(&f->reload.config, f->args, serves_tls(f), &f->reload.err);
    mailbox_post(&f->d.mailbox, &f->reload.mail);
    return NULL;
}

static void reload_start(struct front *f)
{
    pthread_attr_t attr;
    pthread_t thread;
    int r;

    f->reload.again = f->reload.running;
    if (f->reload.running || f->d.draining)
        return;
    notify_reloading(&f->d);
    f->reload.running = true;
    f->reload.mail.run = on_reloaded;
    pthread_attr_init(&attr);
    pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
    r = pthread_create(&thread, &attr, reload_thread, f);
    pthread_attr_destroy(&attr);
    /* From here on f->reload is the thread's. */
    if (r != 0) {
        f->reload.result = err_set(&f->reload.err, -r, "%s", strerror(r));
        on_reloaded(&f->reload.mail);
    }
}

static void on_reload_signal(evutil_socket_t fd, short what, void *arg)
{
    reload_start(arg);
}

/* ---- Stopping -------------------------------------------------------------------------------------------------- */

static void on_drain(evutil_socket_t fd, short what, void *arg)
{
    struct front *f = arg;
    bool idle = router_idle(f->d.router) && http_idle(f->d.http) && !f->reload.running;

    if (!idle && clock_usec() < f->drain_until_usec)
        return;
    if (!idle)
        log_warning("requests still run after %llu s: ending them", DRAIN_USEC / USEC_PER_SEC);
    f->status = EXIT_SUCCESS;
    event_base_loopbreak(f->d.base);
}

static void on_stop_signal(evutil_socket_t fd, short what, void *arg)
{
    struct front *f = arg;

    if (f->d.draining) {
        log_warning("told to stop twice: ending now");
        event_base_loopbreak(f->d.base);
        return;
    }
    f->d.draining = true;
    f->drain_until_usec = clock_usec() + MIN(DRAIN_USEC, f->d.config->router->deadline_usec);
    update_status(f);
    notify_stopping(&f->d);
    log_notice("stopping");
    http_stop_accepting(f->d.http);
    router_drain(f->d.router);
    event_add(f->drain, &(struct timeval) {.tv_usec = 20000});
}

/* ---- The front's life ------------------------------------------------------------------------------------------ */

static void on_mail(evutil_socket_t fd, short what, void *arg)
{
    struct front *f = arg;

    mailbox_run(&f->d.mailbox);
}

static void on_worker_down(void *arg, bool engine)
{
    struct front *f = arg;

    if (f->d.supervisor)
        supervisor_worker_down(f->d.supervisor, engine ? SPAWN_ENGINE : SPAWN_EGRESS);
}

static void on_spent(void *arg, const char *key, uint64_t tokens, int64_t microusd)
{
    quota_spend(key, clock_wall_usec(), tokens, microusd);
}

/* ---- The keys' file: read again whenever it changes ------------------------------------------------------------- */

static void on_keys(evutil_socket_t fd, short what, void *arg)
{
    struct front *f = arg;
    const char *path = f->d.config->auth.keys_file, *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path;
    char events[4096] __attribute__((aligned(__alignof__(struct inotify_event))));
    ssize_t n;
    bool ours = false;

    while ((n = read(fd, events, sizeof(events))) > 0)
        for (char *p = events; p < events + n; p += sizeof(struct inotify_event) + ((struct inotify_event *)p)->len) {
            const struct inotify_event *e = (struct inotify_event *)p;

            ours |= e->mask & IN_Q_OVERFLOW || (e->len && strcmp(e->name, name) == 0);
        }
    if (ours)
        reload_start(f);
}

/* Its directory, since the file is replaced whole. Without one nobody can put the file there either. */
static int watch_keys(struct front *f)
{
    char path[sizeof(f->d.config->auth.keys_file)];
    int fd;

    strcpy(path, f->d.config->auth.keys_file);
    if (!*path)
        return 0;
    fd = inotify_init1(IN_NONBLOCK | IN_CLOEXEC);
    if (fd < 0)
        return -errno;
    f->keys_fd = fd;
    if (inotify_add_watch(fd, dirname(path), IN_MOVED_TO | IN_MOVED_FROM | IN_CLOSE_WRITE | IN_DELETE) < 0) {
        log_info("%s is not watched: %s; SIGHUP reads it again", f->d.config->auth.keys_file, strerror(errno));
        return 0;
    }
    f->keys = event_new(f->d.base, fd, EV_READ | EV_PERSIST, on_keys, f);
    return !f->keys || event_add(f->keys, NULL) < 0 ? -ENOMEM : 0;
}

static int make_events(struct front *f)
{
    static const struct { int signal; event_callback_fn fn; } handlers[] = {
        {SIGTERM, on_stop_signal}, {SIGINT, on_stop_signal}, {SIGHUP, on_reload_signal},
    };
    uint64_t watchdog = notify_watchdog_usec();
    struct timeval period = {(time_t)(watchdog / USEC_PER_SEC), (suseconds_t)(watchdog % USEC_PER_SEC)};

    f->d.base = event_base_new();
    if (!f->d.base)
        return -ENOMEM;
    f->mail = event_new(f->d.base, f->d.mailbox.fd, EV_READ | EV_PERSIST, on_mail, f);
    f->tick = evtimer_new(f->d.base, on_tick, f);
    f->drain = event_new(f->d.base, -1, EV_PERSIST, on_drain, f);
    f->watchdog = event_new(f->d.base, -1, EV_PERSIST, on_watchdog, f);
    if (!f->mail || !f->tick || !f->drain || !f->watchdog || event_add(f->mail, NULL) < 0 ||
        evtimer_add(f->tick, &(struct timeval) {0}) < 0 || (watchdog && event_add(f->watchdog, &period) < 0))
        return -ENOMEM;
    for (size_t i = 0; i < ARRAY_SIZE(handlers); i++) {
        f->signals[i] = evsignal_new(f->d.base, handlers[i].signal, handlers[i].fn, f);
        if (!f->signals[i] || event_add(f->signals[i], NULL) < 0)
            return -ENOMEM;
    }
    return 0;
}

static int open_store(struct front *f, struct err *err)
{
    const struct config *c = f->d.config;
    const struct store_config store = {
        .path = c->store.path, .max_requests = c->store.max_requests, .busy_timeout_msec = 5000,
    };

    return store_open(&f->d.store, &store, &f->d.mailbox, err);
}

/* Everything between an open configuration and a running loop. */
static int front_start(struct front *f, struct err *err)
{
    const struct router_hooks hooks = {on_worker_down, on_spent, f};
    int r;

    r = listen_open(f->listeners, &f->n_listeners, f->d.config, err);
    if (r < 0)
        return r;
    for (size_t i = 0, n = 0; i < f->n_listeners && n < sizeof(f->addresses); i++)
        n += (size_t)snprintf(f->addresses + n, sizeof(f->addresses) - n, "%s%s", i ? ", " : "", f->listeners[i].name);
    /* Sockets that were passed in show only now that they need it. */
    if (serves_tls(f) && !f->d.config->tls) {
        r = tls_load(f->d.config, true, err);
        if (r < 0)
            return r;
    }
#ifndef __SANITIZE_ADDRESS__   /* whose search for leaks needs to look */
    if (f->d.config->tls)
        prctl(PR_SET_DUMPABLE, 0);
#endif
    r = sandbox_enter(SANDBOX_FRONT, err);
    if (r < 0)
        return r;
    r = mailbox_init(&f->d.mailbox);
    if (r < 0)
        return err_set(err, r, "mailbox: %s", strerror(-r));
    r = open_store(f, err);
    if (r < 0)
        return r;
    r = make_events(f);
    if (r == 0)
        r = watch_keys(f);
    if (r == 0)
        r = router_new(&f->d.router, f->d.base, f->d.store, f->d.config->router, &hooks);
    if (r == 0)
        r = supervisor_new(&f->d.supervisor, &f->d, f->spawner_fd);
    if (r < 0)
        return err_set(err, r, "cannot start: %s", strerror(-r));
    return http_new(&f->d.http, &f->d, f->listeners, f->n_listeners, err);
}

static void drop_event(struct event **e)
{
    if (*e)
        event_free(TAKE(*e));
}

/* Requests that were cut off still have their outcome to record. */
static bool settle(struct front *f)
{
    uint64_t until = clock_usec() + SETTLE_USEC;

    while (!router_idle(f->d.router) && clock_usec() < until)
        event_base_loop(f->d.base, EVLOOP_ONCE);
    return router_idle(f->d.router);
}

static void front_end(struct front *f)
{
    f->d.draining = true;
    drop_event(&f->drain);
    http_free(TAKE(f->d.http));
    if (f->d.router && !settle(f)) {
        log_error("requests cannot be ended: leaving them as they are");
        f->d.router = NULL;
    }
    supervisor_free(TAKE(f->d.supervisor));
    router_free(TAKE(f->d.router));
    store_close(TAKE(f->d.store));
    /* Unless a reload that hangs on a file may yet post. */
    if (f->d.mailbox.fd >= 0 && !f->reload.running)
        mailbox_done(&f->d.mailbox);
    listen_unlink(f->listeners, f->n_listeners);
    drop_event(&f->mail);
    drop_event(&f->tick);
    drop_event(&f->watchdog);
    drop_event(&f->keys);
    closep(&f->keys_fd);
    for (size_t i = 0; i < ARRAY_SIZE(f->signals); i++)
        drop_event(&f->signals[i]);
    if (f->d.base)
        event_base_free(f->d.base);
    config_unref(f->d.config);
    /* It ends the workers and then itself. */
    close(f->spawner_fd);
    waitpid(f->spawner, NULL, 0);
}

/* Each connection is a descriptor; the usual soft limit of 1024 is meant for select(). */
static void raise_file_limit(void)
{
    struct rlimit limit;

    if (getrlimit(RLIMIT_NOFILE, &limit) < 0)
        return;
    limit.rlim_cur = limit.rlim_max;
    if (setrlimit(RLIMIT_NOFILE, &limit) < 0)
        log_warning("cannot raise the limit of open files: %s", strerror(errno));
}

static int front_main(const struct arguments *args, int argc, char **argv)
{
    static struct front f;
    struct err err;
    int r;

    f.args = args;
    f.status = EXIT_FAILURE;
    f.d.mailbox.fd = f.keys_fd = -1;
    f.d.started_usec = clock_usec();
    r = spawner_start(&f.spawner_fd, &f.spawner, argc, argv);
    if (r < 0) {
        log_error("cannot start the spawner: %s", strerror(-r));
        return EXIT_FAILURE;
    }
    r = load_front(&f.d.config, args, false, &err);
    if (r < 0) {
        log_error("%s", err.msg);
        f.status = EXIT_BAD_CONFIG;
    } else {
        log_init("ternd", (enum log_level)f.d.config->log.level);
        raise_file_limit();
        r = front_start(&f, &err);
        if (r < 0)
            log_error("%s", err.msg);
        else
            event_base_dispatch(f.d.base);
    }
    if (r < 0)
        notify_status(&f.d, "failed: %s", err.msg);
    front_end(&f);
    log_notice("ended");
    return f.status;
}

/* ---- Workers --------------------------------------------------------------------------------------------------- */

/* The file of repacked weights, opened while files may still be made. That there is none is no fault. */
static int open_cache(const struct config *c)
{
    const char *base = NULL, *suffix = "";
    char dir[sizeof(c->engine.cache) + 16];
    struct err err = {""};
    int fd;

    if (!*c->engine.model || !strcmp(c->engine.cache, "none"))
        return -1;
    if (*c->engine.cache || (base = getenv("CACHE_DIRECTORY"))) {
        base = *c->engine.cache ? c->engine.cache : base;
    } else if ((base = getenv("XDG_CACHE_HOME")) && *base) {
        suffix = "/tern";
    } else if ((base = getenv("HOME"))) {
        suffix = "/.cache/tern";
    }
    if (!base || *base != '/' || snprintf(dir, sizeof(dir), "%s%s", base, suffix) >= (int)sizeof(dir))
        return -1;
    fd = engine_cache_open(dir, c->engine.model, &err);
    if (fd < 0 && fd != -ENOTSUP && fd != -ENOENT)
        log_warning("repacked weights are not kept: %s", err.msg);
    return fd;
}

static int engine_main(const struct arguments *args)
{
    struct engine_config e = {0};
    struct config *c;
    struct err err;
    int r;

    r = load(&c, args, &err);
    if (r == 0) {
        log_init("engine", (enum log_level)c->log.level);
        e.cache_fd = open_cache(c);
        r = sandbox_enter(SANDBOX_ENGINE, &err);
    }
    if (r < 0) {
        log_error("%s", err.msg);
        return EXIT_FAILURE;
    }
    if (*c->engine.model) {
        e.model_path = c->engine.model;
    } else {
        e.model_data = embedded_model;
        e.model_bytes = (size_t)(embedded_model_end - embedded_model);
    }
    e.threads = c->engine.threads;
    e.context = c->engine.context;
    e.sessions = c->engine.sessions;
    e.max_tokens = c->engine.max_tokens;
    e.temperature = c->engine.temperature;
    e.top_p = c->engine.top_p;
    e.template = c->engine.template;
    e.i2s_layout = "aabc"[c->engine.i2s_layout];
    e.activation = (enum ffn_act)c->engine.activation;
    e.weight_only = c->engine.weight_only;
    e.kv = (enum kv_type)c->engine.kv;
    e.kv_bytes = c->engine.kv_bytes;
    e.prefix_bytes = c->engine.prefix_bytes;
    e.draft = c->engine.draft;
    r = engine_worker_main(args->fd, &e);
    config_unref(c);
    return r;
}

static int load_clouds(void *arg, struct egress_config *ret, struct err *err)
{
    struct config *c;
    int r;

    r = load(&c, arg, err);
    if (r < 0)
        return r;
    log_set_level((enum log_level)c->log.level);
    *ret = c->router->cloud;
    config_unref(c);
    return 0;
}

static int egress_main(const struct arguments *args)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE), n = (size_t)(embedded_model_end - embedded_model);
    struct err err;

    log_init("egress", LOG_LEVEL_INFO);
    /* The role that may talk to the world holds no model. Its last page has nothing else on it (embedded.S). */
    munmap((void *)embedded_model, (n + page - 1) / page * page);
    if (sandbox_enter(SANDBOX_EGRESS, &err) < 0) {
        log_error("%s", err.msg);
        return EXIT_FAILURE;
    }
    return egress_worker_main(args->fd, load_clouds, (void *)args);
}

/* ---- Arguments ------------------------------------------------------------------------------------------------- */

static void print_usage(FILE *out)
{
    fputs("Usage: ternd [OPTION]...\n"
          "Answer language-model requests on this device, or escalate those that may leave it.\n\n"
          "  --config FILE            read FILE and FILE.d/*.conf instead of /etc/tern/tern.conf\n"
          "  --set SECTION.KEY=VALUE  set an option over what the files say; [cloud NAME] is cloud.NAME\n"
          "  --check                  check the configuration and exit\n"
          "  --print-config           print every option with its default and exit\n"
          "  --version, --help\n\n"
          "See ternd(8) and tern.conf(5).\n", out);
}

static int check_config(const struct arguments *args)
{
    struct config *c;
    struct err err;

    if (load_front(&c, args, false, &err) < 0) {
        fprintf(stderr, "ternd: %s\n", err.msg);
        return EXIT_BAD_CONFIG;
    }
    config_unref(c);
    puts("configuration OK");
    return EXIT_SUCCESS;
}

/* Started by the spawner (spawner.c) with one end of a socketpair. */
static int worker_main(const struct arguments *args)
{
    if (strcmp(args->role, "engine") == 0 && args->fd > STDERR_FILENO) {
        prctl(PR_SET_NAME, "tern-engine");
        return engine_main(args);
    }
    if (strcmp(args->role, "egress") == 0 && args->fd > STDERR_FILENO) {
        prctl(PR_SET_NAME, "tern-egress");
        return egress_main(args);
    }
    fprintf(stderr, "ternd: --role and --fd are for ternd's own use\n");
    return EXIT_USAGE;
}

int main(int argc, char **argv)
{
    static struct arguments args = {.fd = -1};
    static const struct option long_options[] = {
        {"config", required_argument, NULL, 'c'}, {"set", required_argument, NULL, 's'},
        {"check", no_argument, NULL, 'k'},
        {"print-config", no_argument, NULL, 'p'}, {"print-mdoc", no_argument, NULL, 'm'},
        {"version", no_argument, NULL, 'v'}, {"help", no_argument, NULL, 'h'},
        {"role", required_argument, NULL, 'r'}, {"fd", required_argument, NULL, 'f'}, {0},
    };
    bool check = false;
    int c;

    signal(SIGPIPE, SIG_IGN);
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    log_init("ternd", LOG_LEVEL_INFO);
    while ((c = getopt_long(argc, argv, "", long_options, NULL)) != -1) {
        switch (c) {
        case 'c': args.config = optarg; break;
        case 's':
            if (args.n_sets == MAX_SETS) {
                fprintf(stderr, "ternd: more than %d --set\n", MAX_SETS);
                return EXIT_USAGE;
            }
            args.sets[args.n_sets++] = optarg;
            break;
        case 'k': check = true; break;
        case 'p': options_print_ini(stdout); return EXIT_SUCCESS;
        case 'm': options_print_mdoc(stdout); return EXIT_SUCCESS;
        case 'v': puts("ternd " TERN_VERSION); return EXIT_SUCCESS;
        case 'h': print_usage(stdout); return EXIT_SUCCESS;
        case 'r': args.role = optarg; break;
        case 'f': args.fd = atoi(optarg); break;
        default: print_usage(stderr); return EXIT_USAGE;
        }
    }
    if (optind < argc) {
        fprintf(stderr, "ternd: unexpected argument \"%s\"\n", argv[optind]);
        return EXIT_USAGE;
    }
    if (args.role)
        return worker_main(&args);
    return check ? check_config(&args) : front_main(&args, argc, argv);
}
