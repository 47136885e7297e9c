/* The one table of options: name, type, default, range, reload, and the sentence that the shipped tern.conf and the
 * manual print. Nothing else in the tree repeats a default or a range. Values are parsed here, strictly: a whole
 * value or an error. */
#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <string.h>
#include "base/log.h"
#include "daemon/options.h"
#include "engine/engine.h"

static const char *const mode_words[] = {"auto", "local-only", "cloud-only", "prefer-local", NULL};
static const char *const label_words[] = {"public", "internal", "private", "secret", NULL};
static const char *const scope_words[] = {"local", "cloud", "auto", NULL};
static const char *const api_words[] = {"openai", "anthropic", "ollama", "tern", NULL};
static const char *const priority_words[] = {"interactive", "batch", NULL};
static const char *const fault_words[] = {"refuse", "local", NULL};
static const char *const layout_words[] = {"auto", "a", "b", "c", NULL};
static const char *const kv_words[] = {"f16", "int8", "f32", NULL};
static const char *const activation_words[] = {"auto", "relu2", "silu", "gelu", NULL};
static const char *const dialect_words[] = {"openai", "anthropic", NULL};   /* enum upstream_dialect */
static const char *const level_words[] = {"error", "warning", "notice", "info", "debug", NULL};

#define MEMBER(home_, type_, member) \
    .home = home_, .offset = offsetof(type_, member), .size = sizeof(((type_ *)0)->member)
#define CONFIG(member) MEMBER(HOME_CONFIG, struct config, member)
#define ROUTER(member) MEMBER(HOME_ROUTER, struct router_config, member)
#define CLOUD(member) MEMBER(HOME_CLOUD, struct cloud_endpoint, member)
#define KEY(member) MEMBER(HOME_KEY, struct api_key, member)

const struct config_option options[] = {
    {"listen", "tcp", CONFIG(listen.tcp), .type = OPTION_STRING, .standard = "127.0.0.1:8420",
     .about = "Loopback address and port to listen on; empty for none. Ignored when the service manager passes "
              "sockets."},
    {"listen", "tls", CONFIG(listen.tls), .type = OPTION_STRING, .standard = "", .example = "0.0.0.0:8443",
     .about = "Address and port to listen on with TLS; empty for none. One that is not loopback needs auth.required and "
              "a key, and its names in hosts. Sockets of that kind that the service manager passes are served with TLS "
              "too."},
    {"listen", "tls_cert", CONFIG(listen.tls_cert), .type = OPTION_STRING, .standard = "",
     .example = "/etc/tern/server.pem", .reload = true,
     .about = "Certificate and its chain in PEM; a reload reads it again, and connections made from then on use it."},
    {"listen", "tls_key", CONFIG(listen.tls_key), .type = OPTION_STRING, .standard = "", .example = "server.key",
     .reload = true,
     .about = "Its private key in PEM; a bare name is looked up in $CREDENTIALS_DIRECTORY."},
    {"listen", "tls_client_ca", CONFIG(listen.tls_client_ca), .type = OPTION_STRING, .standard = "",
     .example = "/etc/tern/clients.pem", .reload = true,
     .about = "Certificates in PEM that clients' certificates must be signed by; empty asks for none."},
    {"listen", "unix", CONFIG(listen.unix_path), .type = OPTION_STRING, .standard = "",
     .example = "/run/tern/tern.sock",
     .about = "Path of a unix socket to listen on, made with mode 0660; empty for none. Ignored when the service "
              "manager passes sockets."},
    {"listen", "unix_uids", CONFIG(listen.unix_uids), .count_offset = offsetof(struct config, listen.n_unix_uids),
     .type = OPTION_LIST, .standard = "", .example = "1000, 1001", .reload = true,
     .about = "User ids that may use the unix socket, by number and separated by commas, besides root and the one that "
              "ternd runs as; * for everybody whom the file's mode lets in."},
    {"listen", "hosts", CONFIG(listen.hosts), .count_offset = offsetof(struct config, listen.n_hosts),
     .type = OPTION_LIST, .standard = "", .example = "assistant.home.example", .reload = true,
     .about = "Names allowed in the Host header besides those of loopback, separated by commas; no ports."},
    {"listen", "origins", CONFIG(listen.origins), .count_offset = offsetof(struct config, listen.n_origins),
     .type = OPTION_LIST, .standard = "", .example = "http://localhost:3000", .reload = true,
     .about = "Web origins whose pages may call the API, separated by commas; every other page is refused."},
    {"listen", "max_connections", CONFIG(listen.max_connections), .type = OPTION_UINT, .standard = "1024", .min = 1,
     .max = 16384, .reload = true,
     .about = "Connections open at the same time; more are closed at once."},
    {"listen", "max_connections_peer", CONFIG(listen.max_connections_peer), .type = OPTION_UINT, .standard = "256",
     .min = 1, .max = 16384, .reload = true,
     .about = "Connections open at the same time from one address that is not loopback; more are closed at once."},
    {"listen", "max_body", CONFIG(listen.max_body_bytes), .type = OPTION_SIZE, .standard = "4M", .min = 1024,
     .max = 32 << 20, .reload = true,
     .about = "Longest request body."},
    {"listen", "max_header", CONFIG(listen.max_header_bytes), .type = OPTION_SIZE, .standard = "16K", .min = 1024,
     .max = 1 << 20, .reload = true,
     .about = "Longest request line and headers together."},
    {"listen", "header_timeout", CONFIG(listen.header_timeout_msec), .type = OPTION_MSEC, .standard = "10s",
     .min = 0.1, .max = 300, .reload = true,
     .about = "Time a client has to send its headers, counted from its first byte or from connecting."},
    {"listen", "body_timeout", CONFIG(listen.body_timeout_msec), .type = OPTION_MSEC, .standard = "30s", .min = 0.1,
     .max = 3600, .reload = true,
     .about = "Time a client has to send its body."},
    {"listen", "write_timeout", CONFIG(listen.write_timeout_msec), .type = OPTION_MSEC, .standard = "60s", .min = 0.1,
     .max = 3600, .reload = true,
     .about = "Time a client may take no byte of an answer before it counts as gone."},

    {"store", "path", CONFIG(store.path), .type = OPTION_STRING, .standard = "/var/lib/tern/tern.db",
     .about = "The audit database. Under a service manager the default is tern.db in $STATE_DIRECTORY."},
    {"store", "on_failure", CONFIG(store.answer_unrecorded), .type = OPTION_ENUM, .names = fault_words,
     .standard = "refuse", .reload = true,
     .about = "What happens to requests while the database cannot be written: refuse answers 503, local answers on "
              "the device without a record. Nothing ever leaves the device unrecorded."},
    {"store", "max_requests", CONFIG(store.max_requests), .type = OPTION_UINT, .standard = "1024", .min = 1,
     .max = 65536,
     .about = "Requests that may be in flight, each with its place in the audit queue; more get 503."},

    {"engine", "model", CONFIG(engine.model), .type = OPTION_STRING, .standard = "",
     .example = "/usr/share/tern/model.gguf",
     .about = "GGUF file of the local ternary model; empty for the one built in."},
    {"engine", "threads", CONFIG(engine.threads), .type = OPTION_UINT, .standard = "0", .max = 64,
     .about = "Threads that share each product; 0 for all cores, at most 8."},
    {"engine", "context", CONFIG(engine.context), .type = OPTION_UINT, .standard = "0", .max = 1 << 20,
     .about = "Tokens a conversation may hold; 0 for what the model was made for."},
    {"engine", "sessions", CONFIG(engine.sessions), .type = OPTION_UINT, .standard = "16", .min = 1, .max = 64,
     .about = "Local answers generated side by side. Each costs memory for what it has read and said; together they are "
              "faster than one after the other."},
    {"engine", "cache", CONFIG(engine.cache), .type = OPTION_STRING, .standard = "",
     .example = "/var/cache/tern",
     .about = "Directory for weights in the order that this machine computes with, so that the next start need not make it "
              "again: about as large as the model file. Empty takes $CACHE_DIRECTORY, $XDG_CACHE_HOME/tern or "
              "$HOME/.cache/tern, the first that is set; none keeps nothing."},
    {"engine", "kv", CONFIG(engine.kv), .type = OPTION_ENUM, .names = kv_words, .standard = "f16",
     .about = "What the keys and values of a conversation are kept as: f16, int8 in half the memory, or f32 in twice."},
    {"engine", "kv_memory", CONFIG(engine.kv_bytes), .type = OPTION_SIZE, .standard = "0", .max = 1ull << 40,
     .about = "Memory for the keys and values of all conversations together; 0 for a quarter of the machine's. It is "
              "taken as conversations grow. When it is full, the newest one waits for another to end."},
    {"engine", "prefix_cache", CONFIG(engine.prefix_bytes), .type = OPTION_SIZE, .standard = "256M", .max = 1ull << 40,
     .about = "How much of it may be kept of what was read before, so that the next turn of a conversation, or another "
              "one that begins alike, is not read again; 0 keeps nothing. Nothing is shared between API keys."},
    {"engine", "draft", CONFIG(engine.draft), .type = OPTION_BOOL, .standard = "yes",
     .about = "Yes guesses tokens from the text so far and checks several at once where that is faster. Answers are the "
              "same."},
    {"engine", "queue", CONFIG(engine.queue), .type = OPTION_UINT, .standard = "256", .max = 4096,
     .about = "Local requests that may wait for a session; more get 503 or go to an allowed cloud."},
    {"engine", "queue_client", CONFIG(engine.queue_client), .type = OPTION_UINT, .standard = "128", .max = 4096,
     .about = "The same of one client, an API key or an address; more get 429 or go to an allowed cloud."},
    {"engine", "max_tokens", CONFIG(engine.max_tokens), .type = OPTION_UINT, .standard = "0", .max = 1 << 20,
     .about = "Longest local answer in tokens where the client gives no limit; 0 for what the context leaves."},
    {"engine", "temperature", CONFIG(engine.temperature), .type = OPTION_DOUBLE, .standard = "0", .max = 2,
     .reload = true,
     .about = "Sampling temperature of local answers where the client gives none; 0 always takes the likeliest "
              "token."},
    {"engine", "top_p", CONFIG(engine.top_p), .type = OPTION_DOUBLE, .standard = "1", .min = 0.01, .max = 1,
     .about = "Share of the likeliest tokens that local answers are sampled from where the client gives none."},
    {"engine", "template", CONFIG(engine.template), .type = OPTION_STRING, .standard = "auto",
     .check = engine_template_check,
     .example = "{bos} system:\"System: {content}<|eot_id|>\" user:\"User: {content}<|eot_id|>\" "
                "assistant:\"Assistant: {content}<|eot_id|>\" prompt:\"Assistant: \"",
     .about = "What the model sees around messages: auto chooses by the model; bitnet, llama3, falcon3, chatml and "
              "plain are built in; or pieces of your own, each a name, a colon and a text in double quotes.\n"
              "The pieces are system, user, assistant and tool around a message of that role (one that is missing is "
              "written as user), prompt before the answer and between for what separates messages. {bos} before them "
              "begins with the model's first token.\n"
              "In a piece {content} is the message without blanks at its ends, {verbatim} the message as it is, <NAME> "
              "a control token of the vocabulary; a backslash and n is a line break, and a backslash makes <, {, a "
              "quote or another backslash plain. No message can write a control token."},
    {"engine", "i2s_layout", CONFIG(engine.i2s_layout), .type = OPTION_ENUM, .names = layout_words, .standard = "a",
     .about = "How a file of type I2_S orders its weights, which it does not say itself: a in "
              "blocks of 128 as most converters do, b in blocks of 64 as on Arm, c interleaved by four rows; "
              "auto takes a."},
    {"engine", "activation", CONFIG(engine.activation), .type = OPTION_ENUM, .names = activation_words,
     .standard = "auto",
     .about = "Activation function of the feed-forward layers, for files whose architecture implies a wrong one; auto "
              "goes by the architecture."},
    {"engine", "weight_only", CONFIG(engine.weight_only), .type = OPTION_BOOL, .standard = "no",
     .about = "Yes computes with unquantised activations, for models whose weights alone were trained as ternary."},

    {"policy", "mode", ROUTER(policy.mode), .type = OPTION_ENUM, .names = mode_words, .standard = "auto",
     .reload = true,
     .about = "auto tries locally and escalates an unsure answer; local-only never uses a cloud; cloud-only always "
              "does where the label allows it; prefer-local uses a cloud only when the device cannot answer."},
    {"policy", "default_label", ROUTER(policy.default_label), .type = OPTION_ENUM, .names = label_words,
     .standard = "private", .reload = true,
     .about = "Label of a request that nothing else labels. An endpoint is sent only what its labels list, so the "
              "default keeps unlabelled requests on the device."},
    {"policy", "detect", ROUTER(policy.detect), .type = OPTION_PII,
     .standard = "pem, key, email, iban, card, ssn, phone, term, custom", .reload = true,
     .about = "What is looked for, by form and checksum, in a request labelled lower than detected_label: private keys "
              "(pem), API keys, tokens and passwords (key), email, url, iban, card, ip, ssn, phone, random-looking "
              "words (entropy), the words of terms (term), what matches pattern (custom); all or none. Names and "
              "addresses have no form and are not found."},
    {"policy", "detected_label", ROUTER(policy.detected_label), .type = OPTION_ENUM, .names = label_words,
     .standard = "private", .reload = true,
     .about = "Label of a request in which something was found, unless it has a higher one."},
    {"policy", "terms", ROUTER(policy.terms), .type = OPTION_STRING, .standard = "", .example = "Project Heron, ACME",
     .reload = true,
     .about = "Words that count as found wherever they stand, in any case, separated by commas."},
    {"policy", "pattern", ROUTER(policy.pattern), .type = OPTION_STRING, .standard = "", .example = "EMP-[0-9]{5}",
     .reload = true,
     .about = "Regular expression (PCRE2) whose matches count as found."},
    {"policy", "hold_tokens", ROUTER(policy.hold_tokens), .type = OPTION_UINT, .standard = "24", .max = 1024,
     .reload = true,
     .about = "Tokens of a local answer held back and judged before a byte is released; 0 never judges in the "
              "stream."},
    {"policy", "threshold", ROUTER(policy.threshold), .type = OPTION_DOUBLE, .standard = "0.6", .max = 1,
     .reload = true,
     .about = "A finished local answer escalates when its probability of being right is below this."},
    {"policy", "abort_threshold", ROUTER(policy.abort_threshold), .type = OPTION_DOUBLE, .standard = "0.2", .max = 1,
     .reload = true,
     .about = "A local answer is given up in the held window when its probability of being right is below this; at "
              "most threshold."},
    {"policy", "max_prompt", ROUTER(policy.max_prompt_bytes), .type = OPTION_SIZE, .standard = "0", .max = 32 << 20,
     .reload = true,
     .about = "Prompts longer than this count as too hard for the local model; 0 for no such rule."},
    {"policy", "offline", ROUTER(offline), .type = OPTION_BOOL, .standard = "no", .reload = true,
     .about = "Yes closes every way to the cloud, whatever else is set."},
    {"policy", "deadline", ROUTER(deadline_usec), .type = OPTION_USEC, .standard = "120s", .min = 0.1, .max = 300,
     .reload = true,
     .about = "A request's whole time; a client may ask for less."},

    {"cloud", "url", CLOUD(url), .type = OPTION_STRING, .example = "https://api.example.com/v1", .reload = true,
     .about = "Base URL of the API, up to its version; https, or http to a loopback address."},
    {"cloud", "dialect", CLOUD(dialect), .type = OPTION_ENUM, .names = dialect_words, .standard = "openai",
     .reload = true,
     .about = "What the endpoint speaks: openai for the chat completions that most servers offer, anthropic for "
              "Anthropic's Messages API, which is told 4096 where a client gives no max_tokens."},
    {"cloud", "model", CLOUD(policy.model), .type = OPTION_STRING, .example = "example-large", .reload = true,
     .about = "Model to ask for there."},
    {"cloud", "key_file", CLOUD(key_file), .type = OPTION_STRING, .standard = "", .example = "example.key",
     .reload = true,
     .about = "File that holds the API key; a bare name is looked up in $CREDENTIALS_DIRECTORY; empty for no key."},
    {"cloud", "ca_file", CLOUD(ca_file), .type = OPTION_STRING, .standard = "", .example = "/etc/tern/ca.pem",
     .reload = true,
     .about = "Certificates in PEM to trust instead of the system's; empty for the system's."},
    {"cloud", "labels", CLOUD(policy.labels), .type = OPTION_LABELS, .standard = "public", .reload = true,
     .about = "Labels of requests that may be sent there, separated by commas: public, internal, private, secret."},
    {"cloud", "region", CLOUD(policy.region), .type = OPTION_STRING, .standard = "", .example = "eu-west",
     .reload = true,
     .about = "Where it is, for the record."},
    {"cloud", "price_in", CLOUD(policy.price_in), .type = OPTION_PRICE, .standard = "0", .max = 1e6, .reload = true,
     .about = "Price of a million prompt tokens in US dollars."},
    {"cloud", "price_out", CLOUD(policy.price_out), .type = OPTION_PRICE, .standard = "0", .max = 1e6, .reload = true,
     .about = "Price of a million answer tokens in US dollars."},
    {"cloud", "connect_timeout", CLOUD(connect_timeout_msec), .type = OPTION_MSEC, .standard = "3s", .min = 0.05,
     .max = 60, .reload = true,
     .about = "Time to connect, TLS included."},
    {"cloud", "first_byte_timeout", CLOUD(first_byte_timeout_msec), .type = OPTION_MSEC, .standard = "30s",
     .min = 0.05, .max = 300, .reload = true,
     .about = "Time from sending the request to the first event of the answer."},
    {"cloud", "idle_timeout", CLOUD(idle_timeout_msec), .type = OPTION_MSEC, .standard = "15s", .min = 0.05,
     .max = 300, .reload = true,
     .about = "Longest silence between two events of an answer."},

    {"auth", "required", CONFIG(auth.required), .type = OPTION_BOOL, .standard = "no", .reload = true,
     .about = "Yes refuses requests that do not carry one of the keys below."},
    {"auth", "keys_file", CONFIG(auth.keys_file), .type = OPTION_STRING, .standard = "/etc/tern/keys.conf",
     .about = "File with [key NAME] sections, written by ternctl key and read again whenever it changes; it may be "
              "missing. Empty for none."},

    {"key", "sha256", KEY(sha256), .type = OPTION_SHA256, .secret = true, .reload = true,
     .example = "the output of: printf %s KEY | sha256sum",
     .about = "SHA-256 of the key in 64 hexadecimal digits, so that this file holds no key."},
    {"key", "label", KEY(label), .count_offset = offsetof(struct api_key, has_label), .type = OPTION_ENUM,
     .names = label_words, .standard = "", .example = "internal", .reload = true,
     .about = "Label this key puts on its requests; a header can only raise it. Empty leaves them unlabelled."},
    {"key", "max_label", KEY(scope.max_label), .count_offset = offsetof(struct api_key, scope.has_max_label),
     .type = OPTION_ENUM, .names = label_words, .standard = "", .example = "internal", .reload = true,
     .about = "Requests that turn out to have a higher label are refused. Empty for no such limit."},
    {"key", "apis", KEY(apis), .type = OPTION_SET, .names = api_words, .standard = "", .example = "openai, ollama",
     .reload = true,
     .about = "APIs this key may use: openai, anthropic, ollama, and tern for metrics and the record; empty for all."},
    {"key", "modes", KEY(scope.modes), .type = OPTION_SET, .names = scope_words, .standard = "", .example = "local",
     .reload = true,
     .about = "Modes this key may use: local, cloud, auto (which is also prefer-local); empty for all. Where a request "
              "names none, it gets one of these."},
    {"key", "endpoints", KEY(scope.endpoints), .count_offset = offsetof(struct api_key, scope.n_endpoints),
     .type = OPTION_LIST, .standard = "", .example = "main", .reload = true,
     .about = "Names of [cloud NAME] sections this key's requests may go to; empty for all."},
    {"key", "rate", KEY(rate), .type = OPTION_UINT, .standard = "0", .max = 1000000, .reload = true,
     .about = "Requests a minute; more get 429 with Retry-After. 0 for any number."},
    {"key", "tokens_per_day", KEY(tokens_per_day), .type = OPTION_UINT, .standard = "0", .max = 1e12, .reload = true,
     .about = "Tokens in and out a day (UTC), after which requests get 429 until the next; 0 for any number. What is "
              "under way when they are used up is finished."},
    {"key", "usd_per_day", KEY(microusd_per_day), .type = OPTION_PRICE, .standard = "0", .max = 1e6, .reload = true,
     .about = "Dollars of cloud answers a day, likewise."},
    {"key", "priority", KEY(batch), .type = OPTION_ENUM, .names = priority_words, .standard = "interactive",
     .reload = true,
     .about = "batch lets this key's requests wait for a session while others do, and keeps them from the last quarter "
              "of the sessions; the header x-tern-priority says it for one request."},

    {"log", "level", CONFIG(log.level), .type = OPTION_ENUM, .names = level_words, .standard = "info", .reload = true,
     .about = "The least grave messages that are logged."},
};
const size_t n_options = ARRAY_SIZE(options);

static const struct { const char *section, *about; } sections[] = {
    {"listen", "The HTTP server."},
    {"store", "The audit record."},
    {"engine", "The local model."},
    {"policy", "Where a request may go.\n"
               "To let unlabelled requests escalate: add a [cloud NAME] section and set default_label = public\n"
               "(or list private in that endpoint's labels)."},
    {"cloud", "A cloud endpoint; repeat with other names, in order of preference. None by default, so nothing leaves."},
    {"auth", "Who may use the API."},
    {"key", "An API key; repeat with other names. ternctl key makes them, in a file of their own (auth.keys_file)."},
    {"log", "Messages to the journal or to standard error."},
};

static bool is_named(const struct config_option *o)
{
    return o->home == HOME_CLOUD || o->home == HOME_KEY;
}

int option_section(const char *section)
{
    for (size_t i = 0; i < n_options; i++)
        if (strcmp(options[i].section, section) == 0)
            return is_named(&options[i]) ? 2 : 1;
    return 0;
}

const struct config_option *option_find(const char *section, const char *key)
{
    for (size_t i = 0; i < n_options; i++)
        if (strcmp(options[i].section, section) == 0 && strcmp(options[i].key, key) == 0)
            return &options[i];
    return NULL;
}

/* Levenshtein distance over one row, with names longer than any of ours taken as far away. */
static unsigned distance(const char *a, const char *b)
{
    unsigned row[32], diagonal, above;
    size_t n = strlen(b);

    if (n >= ARRAY_SIZE(row) || strlen(a) >= ARRAY_SIZE(row))
        return ARRAY_SIZE(row);
    for (size_t j = 0; j <= n; j++)
        row[j] = (unsigned)j;
    for (size_t i = 0; a[i]; i++) {
        diagonal = row[0];
        row[0] = (unsigned)i + 1;
        for (size_t j = 1; j <= n; j++) {
            above = row[j];
            row[j] = MIN(MIN(above, row[j - 1]) + 1, diagonal + (a[i] != b[j - 1]));
            diagonal = above;
        }
    }
    return row[n];
}

const char *option_nearest(const char *section, const char *key)
{
    const char *best = NULL, *name;
    unsigned best_distance = 4, d;

    for (size_t i = 0; i < n_options; i++) {
        if (key && strcmp(options[i].section, section) != 0)
            continue;
        name = key ? options[i].key : options[i].section;
        d = distance(key ? key : section, name);
        if (d < best_distance && d < strlen(name)) {
            best = name;
            best_distance = d;
        }
    }
    return best;
}

/* ---- Values ---------------------------------------------------------------------------------------------------- */

/* Decimal digits only, as the start of s. */
static int parse_digits(uint64_t *ret, const char *s, const char **ret_end)
{
    uint64_t v = 0;

    if (!isdigit((unsigned char)*s))
        return -EINVAL;
    for (; isdigit((unsigned char)*s); s++)
        if (__builtin_mul_overflow(v, 10, &v) || __builtin_add_overflow(v, (uint64_t)(*s - '0'), &v))
            return -EINVAL;
    *ret = v;
    *ret_end = s;
    return 0;
}

struct suffix { const char *text; uint64_t factor; };
static const struct suffix size_suffixes[] = {{"", 1}, {"K", 1 << 10}, {"M", 1 << 20}, {"G", 1 << 30}, {NULL, 0}};
static const struct suffix no_suffixes[] = {{"", 1}, {NULL, 0}};
static const struct suffix time_suffixes[] = {{"ms", 1000}, {"s", USEC_PER_SEC}, {"min", 60 * USEC_PER_SEC},
                                              {"h", 3600 * USEC_PER_SEC}, {"", USEC_PER_SEC}, {NULL, 0}};

static int parse_scaled(uint64_t *ret, const char *s, const struct suffix *suffixes)
{
    uint64_t v;

    if (parse_digits(&v, s, &s) < 0)
        return -EINVAL;
    while (*s == ' ')
        s++;
    for (const struct suffix *x = suffixes; x->text; x++)
        if (strcmp(s, x->text) == 0)
            return __builtin_mul_overflow(v, x->factor, ret) ? -EINVAL : 0;
    return -EINVAL;
}

/* Dollars to micro-dollars, exactly: binary fractions would turn 0.15 into 149999. */
static int parse_price(int64_t *ret, const char *s, double max)
{
    uint64_t whole, micro = 0, digit = 100000;

    if (parse_digits(&whole, s, &s) < 0 || whole > (uint64_t)max)
        return -EINVAL;
    if (*s == '.') {
        if (!s[1])
            return -EINVAL;
        for (s++; isdigit((unsigned char)*s); s++, digit /= 10) {
            if (digit == 0 && *s != '0')
                return -EINVAL;
            micro += digit * (uint64_t)(*s - '0');
        }
    }
    if (*s)
        return -EINVAL;
    *ret = (int64_t)(whole * 1000000 + micro);
    return *ret > (int64_t)(max * 1e6) ? -EINVAL : 0;
}

static int parse_hex(uint8_t *out, size_t n, const char *s)
{
    if (strlen(s) != 2 * n || strspn(s, "0123456789abcdefABCDEF") != 2 * n)
        return -EINVAL;
    for (size_t i = 0; i < n; i++) {
        char pair[3] = {s[2 * i], s[2 * i + 1], 0};

        out[i] = (uint8_t)strtoul(pair, NULL, 16);
    }
    return 0;
}

static int parse_bool(bool *ret, const char *s)
{
    static const char *const yes[] = {"yes", "true", "on", "1"}, *const no[] = {"no", "false", "off", "0"};

    for (size_t i = 0; i < ARRAY_SIZE(yes); i++)
        if (strcasecmp(s, yes[i]) == 0 || strcasecmp(s, no[i]) == 0) {
            *ret = strcasecmp(s, yes[i]) == 0;
            return 0;
        }
    return -EINVAL;
}

/* Comma-separated, blanks around an item dropped, empty items refused. */
static int parse_list(char (*items)[128], size_t *n, const char *s)
{
    size_t len, used;

    memset(items, 0, CONFIG_MAX_HOSTS * sizeof(*items));
    *n = 0;
    if (!*s)
        return 0;
    for (;; s += len + 1) {
        len = strcspn(s, ",");
        for (used = len; used > 0 && s[used - 1] == ' '; used--)
            ;
        while (used > 0 && *s == ' ')
            s++, len--, used--;
        if (used == 0 || used >= sizeof(*items) || *n >= CONFIG_MAX_HOSTS)
            return -EINVAL;
        memcpy(items[(*n)++], s, used);
        if (!s[len])
            return 0;
    }
}

static void store_uint(void *member, size_t size, uint64_t v)
{
    if (size == 1)
        *(uint8_t *)member = (uint8_t)v;
    else if (size == 4)
        *(uint32_t *)member = (uint32_t)v;
    else
        *(uint64_t *)member = v;
}

/* Words to bits; nothing is no bit. */
static int parse_set(unsigned *ret, const char *s, const char *const *names)
{
    unsigned set = 0;

    while (*(s += strspn(s, ", "))) {
        size_t n = strcspn(s, ", "), i = 0;

        while (names[i] && (strlen(names[i]) != n || strncasecmp(names[i], s, n) != 0))
            i++;
        if (!names[i])
            return -EINVAL;
        set |= 1u << i;
        s += n;
    }
    *ret = set;
    return 0;
}

static int parse_value(const struct config_option *o, void *home, const char *s)
{
    char *member = (char *)home + o->offset, *end;
    uint64_t v;
    double d;
    int r;

    switch (o->type) {
    case OPTION_STRING:
        if (strlen(s) >= o->size || (!o->standard && !*s))
            return -EINVAL;
        memset(member, 0, o->size);
        memcpy(member, s, strlen(s));
        return 0;
    case OPTION_BOOL:
        return parse_bool((bool *)member, s);
    case OPTION_UINT:
    case OPTION_SIZE:
        r = parse_scaled(&v, s, o->type == OPTION_SIZE ? size_suffixes : no_suffixes);
        if (r < 0 || (double)v < o->min || (double)v > o->max)
            return -EINVAL;
        store_uint(member, o->size, v);
        return 0;
    case OPTION_MSEC:
    case OPTION_USEC:
        r = parse_scaled(&v, s, time_suffixes);
        if (r < 0 || (double)v < o->min * 1e6 || (double)v > o->max * 1e6)
            return -EINVAL;
        store_uint(member, o->size, o->type == OPTION_MSEC ? v / USEC_PER_MSEC : v);
        return 0;
    case OPTION_DOUBLE:
        d = strtod(s, &end);
        if (!*s || *end || isspace((unsigned char)*s) || !isfinite(d) || d < o->min || d > o->max)
            return -EINVAL;
        *(double *)(void *)member = d;
        return 0;
    case OPTION_ENUM:
        if (o->count_offset)
            *((bool *)home + o->count_offset) = *s != 0;
        if (o->count_offset && !*s) {
            store_uint(member, o->size, 0);
            return 0;
        }
        for (v = 0; o->names[v]; v++)
            if (strcasecmp(s, o->names[v]) == 0) {
                store_uint(member, o->size, v);
                return 0;
            }
        return -EINVAL;
    case OPTION_LABELS:
        return label_set_from_string((unsigned *)(void *)member, s);
    case OPTION_SET:
        return parse_set((unsigned *)(void *)member, s, o->names);
    case OPTION_PII:
        return pii_set_from_string((unsigned *)(void *)member, s);
    case OPTION_LIST:
        return parse_list((char (*)[128])(void *)member, (size_t *)(void *)((char *)home + o->count_offset), s);
    case OPTION_PRICE:
        return parse_price((int64_t *)(void *)member, s, o->max);
    case OPTION_SHA256:
        return parse_hex((uint8_t *)member, o->size, s);
    }
    return -EINVAL;
}

static void write_range(char *out, size_t size, const struct config_option *o)
{
    size_t n = 0;

    switch (o->type) {
    case OPTION_STRING:
        snprintf(out, size, "text of at most %zu bytes%s", o->size - 1, o->standard ? "" : ", not empty");
        return;
    case OPTION_BOOL:
        snprintf(out, size, "yes or no");
        return;
    case OPTION_UINT:
        snprintf(out, size, "%.0f to %.0f", o->min, o->max);
        return;
    case OPTION_SIZE:
        snprintf(out, size, "%.0f to %.0f bytes, with K, M or G if you like", o->min, o->max);
        return;
    case OPTION_DOUBLE:
        snprintf(out, size, "%g to %g", o->min, o->max);
        return;
    case OPTION_MSEC:
    case OPTION_USEC:
        snprintf(out, size, "%g s to %g s, with ms, s, min or h", o->min, o->max);
        return;
    case OPTION_ENUM:
    case OPTION_SET:
        for (size_t i = 0; o->names[i] && n < size; i++)
            n += (size_t)snprintf(out + n, size - n, "%s%s", i == 0 ? "" : o->names[i + 1] ? ", " : " or ",
                                  o->names[i]);
        if (o->type == OPTION_SET && n < size)
            snprintf(out + n, size - n, ", some separated by commas");
        return;
    case OPTION_LABELS:
        snprintf(out, size, "labels separated by commas");
        return;
    case OPTION_PII:
        snprintf(out, size, "all, none, or some of pem, key, email, url, iban, card, ip, ssn, phone, entropy, term and "
                            "custom, separated by commas");
        return;
    case OPTION_LIST:
        snprintf(out, size, "at most %d items of at most 127 bytes, separated by commas", CONFIG_MAX_HOSTS);
        return;
    case OPTION_PRICE:
        snprintf(out, size, "0 to %.0f dollars, at most 6 decimals", o->max);
        return;
    case OPTION_SHA256:
        snprintf(out, size, "64 hexadecimal digits");
        return;
    }
}

int option_set(const struct config_option *o, void *home, const char *value, struct err *err)
{
    char range[160] = "";
    struct err why;
    int r;

    r = parse_value(o, home, value);
    if (r == 0 && o->check && o->check(value, &why) < 0)
        return err_set(err, -EINVAL, "%s: %s", o->key, why.msg);
    if (r == 0)
        return 0;
    write_range(range, sizeof(range), o);
    if (o->secret)
        return err_set(err, -EINVAL, "%s: not accepted; expected %s", o->key, range);
    return err_set(err, -EINVAL, "%s: \"%.80s\" is not accepted; expected %s", o->key, value, range);
}

bool option_equal(const struct config_option *o, const void *a, const void *b)
{
    return memcmp((const char *)a + o->offset, (const char *)b + o->offset, o->size) == 0;
}

/* ---- Printing -------------------------------------------------------------------------------------------------- */

/* Words of `text` on lines of at most 100 columns, each after `prefix`. A newline in the text ends a line. In mdoc,
 * where there is no prefix, so does the end of a sentence. */
static void print_wrapped(FILE *out, const char *prefix, const char *text)
{
    size_t column = 0, len;
    bool ends;

    for (; *text; text += len) {
        len = strcspn(text, " \n");
        ends = text[len] == '\n' || (!*prefix && len > 0 && text[len - 1] == '.');
        if (column == 0 || column + 1 + len > 100) {
            fprintf(out, "%s%s", column ? "\n" : "", prefix);
            column = strlen(prefix);
        } else {
            fputc(' ', out);
            column++;
        }
        fwrite(text, 1, len, out);
        column += len;
        if (ends) {
            fputc('\n', out);
            column = 0;
        }
        len += text[len] != 0;
    }
    if (column)
        fputc('\n', out);
}

static void print_facts(FILE *out, const char *prefix, const struct config_option *o)
{
    char range[160] = "", text[256];

    write_range(range, sizeof(range), o);
    snprintf(text, sizeof(text), "(%s; %s)", range, o->reload ? "applied by a reload" : "needs a restart");
    print_wrapped(out, prefix, text);
}

static void print_section_ini(FILE *out, const char *section, const char *about)
{
    bool named = option_section(section) == 2;
    const char *value;

    fputc('\n', out);
    print_wrapped(out, "# ", about);
    fprintf(out, named ? "#[%s NAME]\n" : "[%s]\n", section);
    for (size_t i = 0; i < n_options; i++) {
        if (strcmp(options[i].section, section) != 0)
            continue;
        value = options[i].standard && *options[i].standard ? options[i].standard : "";
        fputc('\n', out);
        print_wrapped(out, "# ", options[i].about);
        print_facts(out, "# ", &options[i]);
        if (options[i].example)
            fprintf(out, "# Example: %s = %s\n", options[i].key, options[i].example);
        fprintf(out, "#%s =%s%s\n", options[i].key, *value ? " " : "", value);
    }
}

void options_print_ini(FILE *out)
{
    fputs("# tern's configuration: every option, with its default. See tern.conf(5).\n"
          "# Remove the # before an option to change it. Files in tern.conf.d are read after this one; the last\n"
          "# setting wins.\n"
          "# Check with: ternd --check. Apply with: systemctl reload ternd.\n", out);
    for (size_t i = 0; i < ARRAY_SIZE(sections); i++)
        print_section_ini(out, sections[i].section, sections[i].about);
}

static void print_section_mdoc(FILE *out, const char *section, const char *about)
{
    fprintf(out, ".Ss [%s%s] section\n", section, option_section(section) == 2 ? " NAME" : "");
    print_wrapped(out, "", about);
    fputs(".Bl -tag -width Ds\n", out);
    for (size_t i = 0; i < n_options; i++) {
        if (strcmp(options[i].section, section) != 0)
            continue;
        fprintf(out, ".It Ic %s\n", options[i].key);
        print_wrapped(out, "", options[i].about);
        print_facts(out, "", &options[i]);
        if (!options[i].standard)
            fputs("Must be given.\n", out);
        else if (*options[i].standard)
            fprintf(out, "The default is\n.Ql %s .\n", options[i].standard);
        else
            fputs("Empty by default.\n", out);
    }
    fputs(".El\n", out);
}

void options_print_mdoc(FILE *out)
{
    for (size_t i = 0; i < ARRAY_SIZE(sections); i++)
        print_section_mdoc(out, sections[i].section, sections[i].about);
}
