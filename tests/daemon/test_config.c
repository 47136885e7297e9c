/* config.c and options.c: defaults, files and their order, every kind of value, and each error with its place. */
#include <criterion/criterion.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include "base/log.h"
#include "daemon/options.h"
#include "engine/engine.h"

/* Any struct that options live in. */
union home { struct config c; struct router_config r; struct cloud_endpoint e; struct api_key k; };

static char directory[64], file[128];

static void setup(void)
{
    unsetenv("STATE_DIRECTORY");
    strcpy(directory, "/tmp/tern-config-XXXXXX");
    cr_assert(mkdtemp(directory));
    snprintf(file, sizeof(file), "%s/tern.conf", directory);
}

static void teardown(void)
{
    char command[128];

    snprintf(command, sizeof(command), "rm -r %s", directory);
    cr_assert(system(command) == 0);
}

TestSuite(config, .init = setup, .fini = teardown);

static void write_to(const char *path, const char *text)
{
    FILE *f = fopen(path, "w");

    cr_assert(f && fputs(text, f) >= 0 && fclose(f) == 0);
}

/* Load `text` as the file and `sets` ("a=b", ended by NULL). */
static int load(struct config **ret, const char *text, char *const *sets, struct err *err)
{
    size_t n = 0;

    while (sets && sets[n])
        n++;
    write_to(file, text);
    return config_load(ret, file, true, sets, n, err);
}

static struct config *good(const char *text)
{
    struct config *c = NULL;
    struct err err = {""};

    cr_assert_eq(load(&c, text, NULL, &err), 0, "%s", err.msg);
    return c;
}

/* It fails, and the words hold `words`. */
static void bad_sets(const char *text, char *const *sets, const char *words)
{
    struct config *c = NULL;
    struct err err = {""};
    int r = load(&c, text, sets, &err);

    cr_assert_lt(r, 0, "accepted: %s", text);
    cr_expect_null(c);
    cr_expect(strstr(err.msg, words), "\"%s\" does not hold \"%s\"", err.msg, words);
}

static void bad(const char *text, const char *words)
{
    bad_sets(text, NULL, words);
}

Test(config, defaults_are_those_of_the_table)
{
    struct config *c = good("");
    struct policy_config p;

    cr_expect_str_eq(c->listen.tcp, "127.0.0.1:8420");
    cr_expect_str_eq(c->listen.unix_path, "");
    cr_expect_str_eq(c->store.path, "/var/lib/tern/tern.db");
    cr_expect_eq(c->listen.max_body_bytes, 4u << 20);
    cr_expect_eq(c->listen.header_timeout_msec, 10000);
    cr_expect_eq(c->router->deadline_usec, 120 * USEC_PER_SEC);
    cr_expect(!c->auth.required && !c->store.answer_unrecorded && !c->router->offline);
    cr_expect(c->router->audit_or_refuse);
    cr_expect_eq(c->log.level, LOG_LEVEL_INFO);
    cr_expect_eq(c->router->cloud.n_endpoints, 0);
    cr_expect_eq(c->router->sessions, c->engine.sessions);
    cr_expect_eq(c->router->queue, c->engine.queue);

    /* The policy's own defaults and the table's are the same policy. */
    policy_config_default(&p);
    cr_expect_eq(c->router->policy.mode, p.mode);
    cr_expect_eq(c->router->policy.default_label, LABEL_PRIVATE);
    cr_expect_eq(c->router->policy.default_label, p.default_label);
    cr_expect_eq(c->router->policy.hold_tokens, p.hold_tokens);
    cr_expect_float_eq(c->router->policy.threshold, p.threshold, 1e-12);
    cr_expect_float_eq(c->router->policy.abort_threshold, p.abort_threshold, 1e-12);
    cr_expect_eq(c->router->policy.max_prompt_bytes, p.max_prompt_bytes);
    cr_expect(strncmp(c->router->policy_digest, "sha256:", 7) == 0);
    config_unref(c);
}

Test(config, enumerations_mean_what_others_mean)
{
    char text[128];
    struct config *c;
    enum log_level level;

    for (unsigned m = 0; m < MODE_COUNT; m++) {
        snprintf(text, sizeof(text), "[policy]\nmode = %s\n", mode_name((enum mode)m));
        c = good(text);
        cr_expect_eq(c->router->policy.mode, m);
        config_unref(c);
    }
    for (unsigned l = 0; l < LABEL_COUNT; l++) {
        snprintf(text, sizeof(text), "[policy]\ndefault_label = %s\n", label_name((enum label)l));
        c = good(text);
        cr_expect_eq(c->router->policy.default_label, l);
        config_unref(c);
    }
    for (unsigned i = 0; i <= LOG_LEVEL_DEBUG; i++) {
        const char *const *names = option_find("log", "level")->names;

        cr_expect_eq(log_level_from_string(&level, names[i]), 0);
        cr_expect_eq(level, i);
    }
}

Test(config, every_option_parses_its_default_and_says_something)
{
    for (size_t i = 0; i < n_options; i++) {
        const struct config_option *o = &options[i];
        union home *home = calloc(1, sizeof(*home));
        struct err err = {""};

        cr_expect_eq(option_find(o->section, o->key), o, "%s.%s stands twice", o->section, o->key);
        cr_expect(o->about && o->about[strlen(o->about) - 1] == '.');
        cr_expect(o->standard || o->example);
        if (o->standard)
            cr_expect_eq(option_set(o, home, o->standard, &err), 0, "%s", err.msg);
        if (o->example && o->type != OPTION_SHA256)
            cr_expect_eq(option_set(o, home, o->example, &err), 0, "%s", err.msg);
        free(home);
    }
}

/* Both ends of every range are in, the numbers beside them are not. */
Test(config, ranges_hold)
{
    for (size_t i = 0; i < n_options; i++) {
        const struct config_option *o = &options[i];
        union home *home = calloc(1, sizeof(*home));
        bool time = o->type == OPTION_MSEC || o->type == OPTION_USEC, real = o->type == OPTION_DOUBLE;
        double scale = time ? 1000 : 1, step = real ? 0.001 : 1;
        const char *unit = time ? "ms" : "";
        char text[64];

        if (time || real || o->type == OPTION_UINT || o->type == OPTION_SIZE) {
            const struct { double value; bool in; } cases[] = {
                {o->min * scale, true}, {o->max * scale, true},
                {o->min * scale - step, false}, {o->max * scale + step, false},
            };

            for (size_t k = 0; k < ARRAY_SIZE(cases); k++) {
                snprintf(text, sizeof(text), "%.*f%s", real ? 3 : 0, cases[k].value, unit);
                cr_expect_eq(option_set(o, home, text, NULL) == 0, cases[k].in, "%s.%s = %s", o->section, o->key, text);
            }
        }
        free(home);
    }
}

Test(config, all_kinds_of_values)
{
    struct config *c = good(
        "\xef\xbb\xbf# a comment\n"
        "[listen]\n"
        "tcp = [::1]:9000 ; and another\n"
        "  unix = /run/x.sock\r\n"
        "hosts = a.example,  b.example\n"
        "max_body: 2M\n"
        "header_timeout = 1500ms\n"
        "[engine]\n"
        "temperature = 0.7\n"
        "threads = 2\n"
        "template = {bos} user:\"U: {content}\\n\" prompt:\"A: \"\n"
        "i2s_layout = c\n"
        "activation = silu\n"
        "weight_only = yes\n"
        "[policy]\n"
        "offline = Yes\n"
        "deadline = 2min\n"
        "[store]\n"
        "on_failure = local\n"
        "[cloud one]\n"
        "url = https://one.example/v1\n"
        "model = m1\n"
        "labels = public, internal\n"
        "price_in = 0.15\n"
        "price_out = 1234.567891\n"
        "[cloud two.b]\n"
        "url = http://127.0.0.1:1/v1\n"
        "model = m2\n"
        "[key me]\n"
        "sha256 = 2C26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae\n"
        "label = internal\n"
        "[auth]\n"
        "required = true");
    const struct cloud_endpoint *e = c->router->cloud.endpoints;

    cr_expect_str_eq(c->listen.tcp, "[::1]:9000");
    cr_expect_str_eq(c->listen.unix_path, "/run/x.sock");
    cr_expect_eq(c->listen.n_hosts, 2);
    cr_expect_str_eq(c->listen.hosts[0], "a.example");
    cr_expect_str_eq(c->listen.hosts[1], "b.example");
    cr_expect_eq(c->listen.max_body_bytes, 2u << 20);
    cr_expect_eq(c->listen.header_timeout_msec, 1500);
    cr_expect_float_eq(c->router->default_temperature, 0.7, 1e-12);
    cr_expect_eq(c->engine.threads, 2);
    cr_expect_str_eq(c->engine.template, "{bos} user:\"U: {content}\\n\" prompt:\"A: \"");
    cr_expect(c->engine.i2s_layout == 3 && c->engine.activation == ACT_SILU && c->engine.weight_only);
    cr_expect(c->router->offline && !c->router->audit_or_refuse);
    cr_expect_eq(c->router->cloud.n_endpoints, 2);
    cr_expect_str_eq(e[0].policy.name, "one");
    cr_expect_str_eq(e[1].policy.name, "two.b");
    cr_expect_eq(e[0].policy.labels, 1u << LABEL_PUBLIC | 1u << LABEL_INTERNAL);
    cr_expect_eq(e[1].policy.labels, 1u << LABEL_PUBLIC);
    cr_expect_eq(e[0].policy.price_in, 150000);
    cr_expect_eq(e[0].policy.price_out, 1234567891);
    cr_expect_eq(e[1].connect_timeout_msec, 3000);
    cr_expect_eq(c->router->policy.n_endpoints, 2);
    cr_expect_eq(memcmp(&c->router->policy.endpoints[1], &e[1].policy, sizeof(e[1].policy)), 0);
    cr_expect(c->auth.required && c->auth.n_keys == 1 && c->auth.keys[0].has_label);
    cr_expect_eq(c->auth.keys[0].label, LABEL_INTERNAL);
    cr_expect(c->auth.keys[0].sha256[0] == 0x2c && c->auth.keys[0].sha256[31] == 0xae);
    config_unref(c);
}

Test(config, prices_are_exact)
{
    static const struct { const char *text; int64_t micro; } cases[] = {
        {"0", 0}, {"0.15", 150000}, {"0.000001", 1}, {"1.1", 1100000}, {"2.4000000", 2400000},
        {"1000000", 1000000000000}, {"0.3", 300000}, {"8.25", 8250000},
    };
    static const char *const wrong[] = {"", "-1", "0.0000001", "1e3", "1.", ".5", "1000001", "1000000.5", "0x1",
                                        "1,5", "99999999999999999999"};
    const struct config_option *o = option_find("cloud", "price_in");
    struct cloud_endpoint e = {0};

    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        cr_expect_eq(option_set(o, &e, cases[i].text, NULL), 0, "%s", cases[i].text);
        cr_expect_eq(e.policy.price_in, cases[i].micro, "%s gave %lld", cases[i].text, (long long)e.policy.price_in);
    }
    e.policy.price_in = 7;
    for (size_t i = 0; i < ARRAY_SIZE(wrong); i++)
        cr_expect_lt(option_set(o, &e, wrong[i], NULL), 0, "%s", wrong[i]);
}

Test(config, files_add_to_each_other_in_order)
{
    struct config *c;
    char path[256];
    char *sets[] = {"policy.hold_tokens=3", "cloud.a.b.url=https://set.example/v1", NULL};
    struct err err = {""};

    snprintf(path, sizeof(path), "%s.d", file);
    mkdir(path, 0700);
    snprintf(path, sizeof(path), "%s.d/20-b.conf", file);
    write_to(path, "[engine]\nthreads = 3\n[cloud a.b]\nmodel = from-20\n");
    snprintf(path, sizeof(path), "%s.d/10-a.conf", file);
    write_to(path, "[engine]\nthreads = 2\nsessions = 7\n[policy]\nhold_tokens = 2\n[cloud a.b]\nmodel = from-10\n");
    snprintf(path, sizeof(path), "%s.d/30-not-read.conf~", file);
    write_to(path, "[nonsense\n");
    cr_assert_eq(load(&c, "[engine]\nthreads = 1\nsessions = 5\n[cloud a.b]\nurl = https://x.example\n", sets, &err), 0,
                 "%s", err.msg);
    cr_expect_eq(c->engine.threads, 3);
    cr_expect_eq(c->engine.sessions, 7);
    cr_expect_eq(c->router->policy.hold_tokens, 3);
    cr_expect_eq(c->router->cloud.n_endpoints, 1);
    cr_expect_str_eq(c->router->cloud.endpoints[0].policy.model, "from-20");
    cr_expect_str_eq(c->router->cloud.endpoints[0].url, "https://set.example/v1");
    config_unref(c);

    snprintf(path, sizeof(path), "%s.d/15-bad.conf", file);
    write_to(path, "[engine]\n\nthreads = many\n");
    bad("", "15-bad.conf:3: threads: \"many\" is not accepted; expected 0 to 64");
}

Test(config, errors_say_where)
{
    bad("[listen]\n\ntpc = 127.0.0.1:1\n", "/tern.conf:3: unknown option \"tpc\"; did you mean \"tcp\"?");
    bad("[polcy]\nmode = auto\n", "/tern.conf:1: unknown section \"polcy\"; did you mean \"policy\"?");
    bad("\n[frobnication]\n", "/tern.conf:2: unknown section \"frobnication\"");
    bad("mode = auto\n", "/tern.conf:1: an option before the first [section]");
    bad("[policy]\nmode = auto\nmode = auto\n", "/tern.conf:3: mode: set twice in this file");
    bad("[policy]\nmode\n", "/tern.conf:2: expected [section] or name = value");
    bad("[policy\nmode = auto\n", "/tern.conf:1: the section's ] is missing");
    bad("[policy]\nmode = maybe\n",
        "/tern.conf:2: mode: \"maybe\" is not accepted; expected auto, local-only, cloud-only or prefer-local");
    bad("[policy x]\nmode = auto\n", "/tern.conf:1: this section takes no name");
    bad("[cloud]\nurl = https://x\n", "/tern.conf:1: this section needs a name");
    bad("[cloud a b]\nurl = https://x\n", "/tern.conf:1: this section needs a name");
    bad("[cloud auto]\n", "/tern.conf:1: a cloud may not be named");
    bad("[cloud 0123456789012345678901234567890123456789012345678901234567890]\n",
        "/tern.conf:1: section name is too long");
    bad("[cloud a]\n", "[cloud a]: url must be set");
    bad("[cloud a]\nurl = https://x.example\n", "[cloud a]: model must be set");
    bad("[cloud a]\nmodel = m\nurl = http://x.example/v1\n", "[cloud a] url");
    bad("[cloud a]\nmodel =\n", "model: \"\" is not accepted");
    bad("[key k]\n", "[key k]: sha256 must be set");
    bad("[policy]\nthreshold = 0.5\nabort_threshold = 0.6\n", "[policy] abort_threshold: 0.6 is above threshold (0.5)");
    bad("[policy]\nthreshold = nan\n", "threshold: \"nan\" is not accepted; expected 0 to 1");
    bad("[listen]\ntcp = 0.0.0.0:80\n", "not a loopback address");
    bad("[listen]\ntcp = 127.0.0.1\n", "is not ADDRESS:PORT");
    bad("[engine]\n\ntemplate = user:\"{contents}\"\n",
        "/tern.conf:3: template: byte 7: expected {content} or {verbatim}");
    bad("[engine]\ntemplate = lama3\n", "/tern.conf:2: template: expected auto, bitnet, llama3");
    bad("[engine]\ni2s_layout = d\n", "/tern.conf:2: i2s_layout: \"d\" is not accepted; expected auto, a, b or c");
    bad("[listen]\nunix = here.sock\n", "expected an absolute path");
}

Test(config, sets_say_which)
{
    bad_sets("", (char *[]) {"policy", NULL}, "--set policy: expected section.key=value");
    bad_sets("", (char *[]) {"policy=1", NULL}, "--set policy: expected section.key=value");
    bad_sets("", (char *[]) {"policy.moode=auto", NULL},
             "--set policy.moode: unknown option \"moode\"; did you mean \"mode\"?");
    bad_sets("", (char *[]) {"cloud.url=x", NULL}, "--set cloud.url: this section needs a name");
    bad_sets("", (char *[]) {"policy.x.mode=auto", NULL}, "--set policy.x.mode: this section takes no name");
    bad_sets("", (char *[]) {".mode=auto", NULL}, "--set .mode: unknown section");
}

Test(config, secrets_are_not_repeated)
{
    struct config *c = NULL;
    struct err err = {""};

    cr_assert_lt(load(&c, "[key k]\nsha256 = sk-verysecretkey\n", NULL, &err), 0);
    cr_expect(strstr(err.msg, "tern.conf:2: sha256: not accepted; expected 64 hexadecimal digits"), "%s", err.msg);
    cr_expect_null(strstr(err.msg, "verysecret"));
    cr_assert_lt(load(&c, "[cloud c]\nmodel = m\nurl = https://user:verysecret@x.example/v1\n", NULL, &err), 0);
    cr_expect_null(strstr(err.msg, "verysecret"), "%s", err.msg);
    cr_assert_lt(load(&c, "[cloud c]\nkey = sk-verysecretkey\n", NULL, &err), 0);
    cr_expect_null(strstr(err.msg, "verysecret"), "%s", err.msg);
}

Test(config, files_are_bounded)
{
    char *big = malloc((1 << 20) + 16), line[4096];
    struct config *c = NULL;
    struct err err = {""};
    FILE *f;

    memset(big, '\n', (1 << 20) + 2);
    big[(1 << 20) + 2] = 0;
    bad(big, "longer than 1048576 bytes");
    free(big);
    memset(line, 'x', sizeof(line) - 1);
    line[sizeof(line) - 1] = 0;
    memcpy(line, "[engine]\nmodel = ", 17);
    bad(line, "/tern.conf:2: the line is too long");
    f = fopen(file, "w");
    fwrite("[engine]\nmodel = a\0b\n", 1, 21, f);
    fclose(f);
    cr_assert_lt(config_load(&c, file, true, NULL, 0, &err), 0);
    cr_expect(strstr(err.msg, "NUL"), "%s", err.msg);
    cr_assert_eq(config_load(&c, "/nonexistent/tern.conf", true, NULL, 0, &err), -ENOENT);
    cr_assert_lt(config_load(&c, directory, true, NULL, 0, &err), 0);
    cr_expect(strstr(err.msg, "not a file"), "%s", err.msg);
}

/* As many as there is room for, and one more. */
Test(config, named_sections_are_bounded)
{
    static char text[64 << 10];
    char *end = text;
    struct config *c;

    for (int i = 0; i < POLICY_MAX_ENDPOINTS; i++)
        end += sprintf(end, "[cloud c%d]\nurl = https://x%d.example/v1\nmodel = m\n", i, i);
    c = good(text);
    cr_expect_eq(c->router->cloud.n_endpoints, POLICY_MAX_ENDPOINTS);
    config_unref(c);
    sprintf(end, "[cloud more]\nmodel = m\n");
    bad(text, "too many [cloud NAME] sections");
    end = text;
    for (int i = 0; i < CONFIG_MAX_KEYS; i++)
        end += sprintf(end, "[key k%d]\nsha256 = %064x\n", i, i + 1);
    c = good(text);
    cr_expect_eq(c->auth.n_keys, CONFIG_MAX_KEYS);
    config_unref(c);
    sprintf(end, "[key more]\nsha256 = %064x\n", 9999);
    bad(text, "too many [key NAME] sections");
    bad("[key a]\nsha256 = 2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae\n"
        "[key b]\nsha256 = 2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae\n",
        "[key a] and [key b] are the same key");
}

Test(config, state_directory_is_the_default_place)
{
    struct config *c;

    setenv("STATE_DIRECTORY", "/var/lib/private/tern:/other", 1);
    c = good("");
    cr_expect_str_eq(c->store.path, "/var/lib/private/tern/tern.db");
    config_unref(c);
    c = good("[store]\npath = /x/y.db\n");
    cr_expect_str_eq(c->store.path, "/x/y.db");
    config_unref(c);
}

Test(config, restart_is_asked_for_where_it_is_needed)
{
    struct config *a = good("[listen]\ntcp = 127.0.0.1:1\n");
    struct config *b = good("[listen]\ntcp = 127.0.0.1:1\n[policy]\nmode = local-only\n");
    struct config *c = good("[listen]\ntcp = 127.0.0.1:2\n");

    cr_expect_null(config_needs_restart(a, b));
    cr_expect_str_eq(config_needs_restart(a, c), "listen.tcp");
    config_unref(a);
    config_unref(b);
    config_unref(c);
}

/* Whatever one writes: a configuration or an error, never a crash. Lines are put together from what the parser looks
 * at. */
Test(config, nonsense_is_refused_calmly)
{
    static const char *const parts[] = {
        "[", "]", "cloud", "key", " ", "x", "=", "\n", "\r", ";", "#", "\xef\xbb\xbf", "policy", "mode", "auto",
        "listen", "hosts", ",", ":", "url", "99999999999", "-1", "%s", "\\", "\t", "sha256",
    };
    unsigned seed = 12345;
    char text[512];

    for (int round = 0; round < 1000; round++) {
        struct config *c = NULL;
        struct err err = {""};
        size_t n = 0;

        text[0] = 0;
        for (int i = 0; i < 40; i++) {
            seed = seed * 1103515245 + 12345;
            n += (size_t)snprintf(text + n, sizeof(text) - n, "%s", parts[(seed >> 16) % ARRAY_SIZE(parts)]);
        }
        if (load(&c, text, NULL, &err) < 0)
            cr_expect(*err.msg);
        config_unref(c);
    }
}
