/* ternctl ask and ternctl chat: one question, or a conversation, with the answer streamed and its route told quietly. */
#include "ctl/ctl.h"

#include <getopt.h>
#include <stdio.h>
#include <string.h>

struct asking {
    const char *label, *mode, *model, *system;
    json_int_t max_tokens;
};

static const struct option options[] = {
    { "label", required_argument, NULL, 'l' }, { "mode", required_argument, NULL, 'm' },
    { "model", required_argument, NULL, 'M' }, { "system", required_argument, NULL, 's' },
    { "max-tokens", required_argument, NULL, 'n' }, { 0 },
};

static int parse(const struct verb *v, struct asking *a, int argc, char **argv)
{
    int opt;
    char *end;

    while ((opt = getopt_long(argc, argv, "", options, NULL)) != -1) {
        switch (opt) {
        case 'l': a->label = optarg; break;
        case 'm': a->mode = optarg; break;
        case 'M': a->model = optarg; break;
        case 's': a->system = optarg; break;
        case 'n':
            a->max_tokens = strtol(optarg, &end, 10);
            if (*end || a->max_tokens < 1)
                return usage_error(v, "--max-tokens: expected a number of at least 1, not '%s'", optarg);
            break;
        default: return usage_error(v, "unknown option");
        }
    }
    return CTL_OK;
}

static void push(json_t *messages, const char *role, const char *content)
{
    json_array_append_new(messages, json_pack("{s:s, s:s}", "role", role, "content", content));
}

/* Shown text with control characters other than newline and tab left out: a model must not drive the terminal. */
struct shown { struct buf answer; bool print; };
static void on_text(void *arg, const char *text, size_t len)
{
    struct shown *s = arg;

    buf_append(&s->answer, text, len);
    if (!s->print)
        return;
    for (size_t i = 0; i < len; i++)
        if ((unsigned char)text[i] >= 0x20 || text[i] == '\n' || text[i] == '\t')
            putchar(text[i]);
    fflush(stdout);
}

/* Send the conversation; the answer ends up in s->answer. */
static int exchange(struct ctl *c, const struct asking *a, json_t *messages, struct shown *s)
{
    cleanup(json_decrefp) json_t *body = json_pack("{s:O, s:b, s:s}", "messages", messages, "stream", 1,
                                                    "model", a->model ? a->model : "auto");
    cleanup(json_decrefp) json_t *told = NULL;
    struct client_route route;
    char finish[32];
    int r;

    if (a->max_tokens)
        json_object_set_new(body, "max_tokens", json_integer(a->max_tokens));
    buf_clear(&s->answer);
    r = client_chat(c, body, a->label, a->mode, &route, finish, on_text, s);
    if (s->print && s->answer.len)
        putchar('\n');
    if (r != CTL_OK)
        return r;
    if (c->json) {
        told = json_pack("{s:s, s:s, s:s, s:s, s:s, s:s, s:s, s:b}", "answer", s->answer.len ? (char *)s->answer.data : "",
                         "id", route.id, "route", route.route, "reason", route.reason, "model", route.model,
                         "finish_reason", finish, "confidence", route.confidence, "degraded", route.degraded);
        print_json(told);
    } else {
        fflush(stdout);
        print_route(c, &route);
    }
    return CTL_OK;
}

static int ask_run(struct ctl *c, int argc, char **argv)
{
    struct asking a = { 0 };
    cleanup(json_decrefp) json_t *messages = json_array();
    struct shown s = { .print = !c->json };
    struct buf text;
    char chunk[4096];
    size_t n;
    int r;

    r = parse(&ask_verb, &a, argc, argv);
    if (r != CTL_OK)
        return r;
    buf_init(&text, 16 << 20);
    buf_init(&s.answer, 16 << 20);
    for (int i = optind; i < argc; i++)
        buf_printf(&text, "%s%s", i > optind ? " " : "", argv[i]);
    if (optind == argc || (optind + 1 == argc && !strcmp(argv[optind], "-"))) {
        buf_clear(&text);
        while ((n = fread(chunk, 1, sizeof(chunk), stdin)) > 0)
            if (buf_append(&text, chunk, n) < 0)
                break;
    }
    if (!text.len) {
        r = usage_error(&ask_verb, "nothing to ask: give the question as arguments or on standard input");
    } else {
        if (a.system)
            push(messages, "system", a.system);
        push(messages, "user", (char *)text.data);
        r = exchange(c, &a, messages, &s);
    }
    buf_done(&text);
    buf_done(&s.answer);
    return r;
}

static int chat_run(struct ctl *c, int argc, char **argv)
{
    struct asking a = { 0 };
    cleanup(json_decrefp) json_t *messages = json_array();
    cleanup(freep) char *line = NULL;
    struct shown s = { .print = !c->json };
    bool tty = isatty(STDIN_FILENO);
    size_t cap = 0;
    ssize_t len;
    int r;

    r = parse(&chat_verb, &a, argc, argv);
    if (r != CTL_OK)
        return r;
    if (optind < argc)
        return usage_error(&chat_verb, "unexpected argument '%s'", argv[optind]);
    buf_init(&s.answer, 16 << 20);
    if (a.system)
        push(messages, "system", a.system);
    if (tty)
        fputs("Ctrl-D ends the conversation, /new begins another.\n", stderr);
    for (;;) {
        if (tty)
            fputs("> ", stderr);
        len = getline(&line, &cap, stdin);
        if (len < 0)
            break;
        while (len > 0 && (line[len - 1] == '\n' || line[len - 1] == '\r'))
            line[--len] = '\0';
        if (!len)
            continue;
        if (!strcmp(line, "/new")) {
            json_array_clear(messages);
            if (a.system)
                push(messages, "system", a.system);
            continue;
        }
        push(messages, "user", line);
        r = exchange(c, &a, messages, &s);
        if (r == CTL_UNREACHABLE)
            break;
        if (r == CTL_OK)
            push(messages, "assistant", s.answer.len ? (char *)s.answer.data : "");
        else
            json_array_remove(messages, json_array_size(messages) - 1);
    }
    if (tty)
        fputc('\n', stderr);
    buf_done(&s.answer);
    return r;
}

#define ASK_HELP \
    "\n  --label LABEL     public, internal, private or secret: what the question may be shown to\n" \
    "  --mode MODE       auto, local-only, cloud-only or prefer-local, for this question only\n" \
    "  --model MODEL     auto (default), local, cloud, or a name that `ternctl status` shows\n" \
    "  --system TEXT     a system message first\n" \
    "  --max-tokens N    the longest answer\n"

const struct verb ask_verb = {
    .name = "ask", .arguments = "[OPTIONS] QUESTION…", .summary = "Ask one question; the answer streams to stdout",
    .help = ASK_HELP "\nWithout QUESTION, or with -, it is read from standard input.\n", .run = ask_run,
};
const struct verb chat_verb = {
    .name = "chat", .arguments = "[OPTIONS]", .summary = "Hold a conversation, a line a turn", .help = ASK_HELP, .run = chat_run,
};
