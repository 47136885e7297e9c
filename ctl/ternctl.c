/* The command table of ternctl and its global options. */
#include "ctl/ctl.h"

#include <curl/curl.h>
#include <getopt.h>
#include <stdio.h>
#include <string.h>

static const struct verb *const verbs[] = { &ask_verb, &chat_verb, &status_verb, &log_verb, &why_verb, &stats_verb,
                                            &key_verb };

static void help(FILE *out)
{
    fputs("Usage: ternctl [--url URL | --socket PATH] [--key KEY] [--json] VERB [ARGUMENTS]\n\n"
          "Ask a running ternd, and ask it where queries went and why.\n\n", out);
    for (size_t i = 0; i < ARRAY_SIZE(verbs); i++)
        fprintf(out, "  %-8s %-28s %s\n", verbs[i]->name, verbs[i]->arguments, verbs[i]->summary);
    fputs("\n  --url URL      where ternd listens ($TERN_URL, default http://127.0.0.1:8420)\n"
          "  --socket PATH  its unix socket instead ($TERN_SOCKET)\n"
          "  --key KEY      API key ($TERN_API_KEY)\n"
          "  --json         the daemon's own JSON instead of text\n"
          "  --version, --help; ternctl VERB --help tells more\n\n"
          "Exit status: 0 done, 1 the daemon said no, 2 wrong usage, 3 no daemon reached.\n", out);
}

int main(int argc, char **argv)
{
    static const struct option options[] = {
        { "url", required_argument, NULL, 'u' }, { "socket", required_argument, NULL, 's' },
        { "key", required_argument, NULL, 'k' }, { "json", no_argument, NULL, 'j' },
        { "help", no_argument, NULL, 'h' },      { "version", no_argument, NULL, 'V' }, { 0 },
    };
    struct ctl c = {
        .url = getenv("TERN_URL"), .socket = getenv("TERN_SOCKET"), .key = getenv("TERN_API_KEY"),
        .color = isatty(STDOUT_FILENO) && !getenv("NO_COLOR"),
    };
    int opt, r;

    /* "+": options after the verb are the verb's. --json is understood in both places. */
    while ((opt = getopt_long(argc, argv, "+hV", options, NULL)) != -1) {
        switch (opt) {
        case 'u': c.url = optarg; c.socket = NULL; break;
        case 's': c.socket = optarg; break;
        case 'k': c.key = optarg; break;
        case 'j': c.json = true; break;
        case 'V': puts("ternctl " TERN_VERSION); return CTL_OK;
        case 'h': help(stdout); return CTL_OK;
        default: help(stderr); return CTL_USAGE;
        }
    }
    if (!c.url)
        c.url = "http://127.0.0.1:8420";
    if (optind == argc) {
        help(stderr);
        return CTL_USAGE;
    }
    argv += optind;
    argc -= optind;
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "--"))
            break;
        if (!strcmp(argv[i], "--json")) {
            c.json = true;
            memmove(&argv[i], &argv[i + 1], (size_t)(argc - i) * sizeof(*argv));
            argc--, i--;
        }
    }
    for (size_t i = 0; i < ARRAY_SIZE(verbs); i++) {
        if (strcmp(verbs[i]->name, argv[0]))
            continue;
        if (argc > 1 && (!strcmp(argv[1], "--help") || !strcmp(argv[1], "-h"))) {
            printf("Usage: ternctl %s %s\n\n%s.\n%s", verbs[i]->name, verbs[i]->arguments, verbs[i]->summary, verbs[i]->help);
            return CTL_OK;
        }
        curl_global_init(CURL_GLOBAL_DEFAULT);
        optind = 1;
        r = verbs[i]->run(&c, argc, argv);
        curl_global_cleanup();
        return r;
    }
    fprintf(stderr, "ternctl: unknown verb '%s'; ternctl --help lists them\n", argv[0]);
    return CTL_USAGE;
}
