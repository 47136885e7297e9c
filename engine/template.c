/* Chat templates, as code: what a model was trained to see around each message.
 *
 * The prompt is gathered as text and cut only where a control token stands, so that a role's prefix and the content
 * behind it are encoded as one string and merge as they did in training. All of that text is encoded without special
 * parsing: whatever a message says, the control tokens of the prompt are the ones written here. Roles the model does
 * not know (tool) speak as the user. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "engine/internal.h"

#define PROMPT_MAX (64u << 20)

struct prompt {
    const struct tokenizer *tokenizer;
    struct tokens *out;
    struct buf text;          /* not yet encoded */
    struct err *err;
};

static void prompt_done(struct prompt *p)
{
    buf_done(&p->text);
}

static int prompt_flush(struct prompt *p)
{
    int r;

    if (!p->text.len)
        return 0;
    r = tokenizer_encode(p->tokenizer, (const char *)p->text.data, p->text.len, false, p->out);
    if (r == -EINVAL)
        return err_set(p->err, r, "a message has characters this model's vocabulary cannot express");
    buf_clear(&p->text);
    return r;
}

static int prompt_text(struct prompt *p, const char *s, size_t len)
{
    return buf_append(&p->text, s, len) < 0 ? -ENOMEM : 0;
}

static int prompt_id(struct prompt *p, int32_t id)
{
    int r = prompt_flush(p);

    return r < 0 ? r : tokens_push(p->out, id);
}

/* A control token by name. */
static int prompt_control(struct prompt *p, const char *name)
{
    int32_t id = tokenizer_find(p->tokenizer, name);

    if (id < 0)
        return err_set(p->err, -EINVAL, "the model's vocabulary has no %s", name);
    return prompt_id(p, id);
}

/* One message in the words of a template. */
struct message { const char *role, *content; size_t len; };

/* Write a format: "%r" the role, "%c" the content, "<|…|>" a control token, "%<" a plain "<", anything else itself. */
static int prompt_format(struct prompt *p, const char *format, const struct message *m)
{
    int r = 0;

    for (const char *s = format; *s && r == 0;) {
        size_t n;
        char name[64];

        if (*s == '%') {
            n = 2;
            if (s[1] == 'r')
                r = prompt_text(p, m->role, strlen(m->role));
            else
                r = s[1] == 'c' ? prompt_text(p, m->content, m->len) : prompt_text(p, s + 1, 1);
        } else if (*s == '<') {
            n = strcspn(s, ">") + 1;
            snprintf(name, sizeof(name), "%.*s", (int)n, s);
            r = prompt_control(p, name);
        } else {
            n = strcspn(s, "%<");
            r = prompt_text(p, s, n);
        }
        s += n;
    }
    return r;
}

/* What surrounds a message, and what makes the assistant speak. */
static const struct shape {
    const char *roles[3];             /* system, user, assistant */
    const char *message;              /* formats */
    const char *answer;               /* an earlier answer's; NULL: as any message */
    const char *between, *generate;
    bool trim;
} shapes[] = {
    [TEMPLATE_BITNET]  = { { "System", "User", "Assistant" }, "%r: %c<|eot_id|>", NULL, "", "Assistant: ", true },
    [TEMPLATE_LLAMA3]  = { { "system", "user", "assistant" },
                           "<|start_header_id|>%r<|end_header_id|>\n\n%c<|eot_id|>", NULL, "",
                           "<|start_header_id|>assistant<|end_header_id|>\n\n", true },
    /* Falcon 3's roles are ordinary text in its vocabulary; only the end of an answer is a token. */
    [TEMPLATE_FALCON3] = { { "system", "user", "assistant" }, "%<|%r|>\n%c\n", "%<|%r|>\n%c<|endoftext|>\n", "",
                           "%<|assistant|>\n", false },
    [TEMPLATE_CHATML]  = { { "system", "user", "assistant" }, "<|im_start|>%r\n%c<|im_end|>\n", NULL, "",
                           "<|im_start|>assistant\n", false },
    [TEMPLATE_PLAIN]   = { { "", "", "" }, "%c", NULL, "\n", "", false },
};

enum template_kind template_choose(const struct tokenizer *t, const char *architecture)
{
    bool eot = tokenizer_find(t, "<|eot_id|>") >= 0;

    /* 2B4T has Llama 3's vocabulary, headers included, and was trained without them. */
    if (strncmp(architecture, "bitnet", 6) == 0 && eot)
        return TEMPLATE_BITNET;
    if (eot && tokenizer_find(t, "<|start_header_id|>") >= 0 && tokenizer_find(t, "<|end_header_id|>") >= 0)
        return TEMPLATE_LLAMA3;
    if (tokenizer_find(t, "<|im_start|>") >= 0 && tokenizer_find(t, "<|im_end|>") >= 0)
        return TEMPLATE_CHATML;
    if (tokenizer_find(t, ">>TITLE<<") >= 0 && tokenizer_find(t, "<|endoftext|>") >= 0)
        return TEMPLATE_FALCON3;
    return TEMPLATE_PLAIN;
}

static void trim(struct message *m)
{
    static const char space[] = " \t\n\v\f\r";

    while (m->len && memchr(space, m->content[m->len - 1], 6))
        m->len--;
    while (m->len && memchr(space, *m->content, 6)) {
        m->content++;
        m->len--;
    }
}

static int render(struct prompt *p, const struct shape *shape, const json_t *messages)
{
    size_t i;
    json_t *item;
    int r;

    if (tokenizer_bos(p->tokenizer) >= 0) {
        r = tokens_push(p->out, tokenizer_bos(p->tokenizer));
        if (r < 0)
            return r;
    }
    json_array_foreach(messages, i, item) {
        const char *role = json_string_value(json_object_get(item, "role"));
        const json_t *content = json_object_get(item, "content");
        struct message m = { .content = json_string_value(content), .len = json_string_length(content) };
        bool assistant;

        if (!role || !m.content)
            return err_set(p->err, -EINVAL, "messages[%zu]: expected a role and a content", i);
        assistant = strcmp(role, "assistant") == 0;
        m.role = shape->roles[strcmp(role, "system") == 0 ? 0 : assistant ? 2 : 1];
        if (shape->trim)
            trim(&m);
        r = i ? prompt_text(p, shape->between, strlen(shape->between)) : 0;
        if (r == 0)
            r = prompt_format(p, assistant && shape->answer ? shape->answer : shape->message, &m);
        if (r < 0)
            return r;
    }
    r = prompt_format(p, shape->generate, NULL);
    return r < 0 ? r : prompt_flush(p);
}

int template_render(enum template_kind kind, const struct tokenizer *t, const json_t *messages, struct tokens *out,
                    struct err *err)
{
    cleanup(prompt_done) struct prompt p = { .tokenizer = t, .out = out, .err = err };
    size_t kept = out->len;
    int r;

    buf_init(&p.text, PROMPT_MAX);
    r = render(&p, &shapes[kind], messages);
    if (r < 0)
        out->len = kept;
    return r;
}
