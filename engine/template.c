/* Chat templates: what a model was trained to see around each message, as a line of text that a configuration can hold.
 *
 *     {bos} user:"User: {content}<|eot_id|>" assistant:"Assistant: {content}<|eot_id|>" prompt:"Assistant: "
 *
 * A piece for each role (one without speaks as the user), one that makes the assistant speak, and one between messages.
 * In a piece {content} is the message without the blanks around it and {verbatim} all of it, <…> is a control token,
 * which the vocabulary must have, and a backslash makes n a line break and <, {, " and itself plain. The models we know
 * have their templates here in the same words; the others are written in tern.conf.
 *
 * The prompt is gathered as text and cut only where a control token stands, so that a role's prefix and the content
 * behind it are encoded as one string and merge as they did in training. All of that text is encoded without special
 * parsing: whatever a message says, the control tokens of the prompt are the ones the template writes. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "engine/internal.h"

#define PROMPT_MAX (64u << 20)
#define CONTROL_MAX 64           /* a control token's name, with its NUL */

/* ---- Reading a template ---- */

enum piece { PIECE_SYSTEM, PIECE_USER, PIECE_ASSISTANT, PIECE_TOOL, PIECE_PROMPT, PIECE_BETWEEN, N_PIECES };

static const char *const piece_names[] = { "system", "user", "assistant", "tool", "prompt", "between" };

/* Where each piece begins, behind its quote; NULL: not given. A piece ends at the next quote that no element takes. */
struct layout { bool bos; const char *pieces[N_PIECES]; };

static const struct { const char *name, *text; } builtin[] = {
    { "bitnet", "{bos} system:\"System: {content}<|eot_id|>\" user:\"User: {content}<|eot_id|>\" "
                "assistant:\"Assistant: {content}<|eot_id|>\" prompt:\"Assistant: \"" },
    { "llama3", "{bos} system:\"<|start_header_id|>system<|end_header_id|>\\n\\n{content}<|eot_id|>\" "
                "user:\"<|start_header_id|>user<|end_header_id|>\\n\\n{content}<|eot_id|>\" "
                "assistant:\"<|start_header_id|>assistant<|end_header_id|>\\n\\n{content}<|eot_id|>\" "
                "prompt:\"<|start_header_id|>assistant<|end_header_id|>\\n\\n\"" },
    /* Falcon 3's roles are ordinary text in its vocabulary; only the end of an answer is a token. */
    { "falcon3", "{bos} system:\"\\<|system|>\\n{verbatim}\\n\" user:\"\\<|user|>\\n{verbatim}\\n\" "
                 "assistant:\"\\<|assistant|>\\n{verbatim}<|endoftext|>\\n\" prompt:\"\\<|assistant|>\\n\"" },
    { "chatml", "{bos} system:\"<|im_start|>system\\n{verbatim}<|im_end|>\\n\" "
                "user:\"<|im_start|>user\\n{verbatim}<|im_end|>\\n\" "
                "assistant:\"<|im_start|>assistant\\n{verbatim}<|im_end|>\\n\" prompt:\"<|im_start|>assistant\\n\"" },
    { "plain", "{bos} user:\"{verbatim}\" between:\"\\n\" prompt:\"\"" },
};

/* What a piece is made of. */
struct element {
    enum { ELEMENT_TEXT, ELEMENT_CONTROL, ELEMENT_CONTENT, ELEMENT_VERBATIM } kind;
    const char *s;            /* of text, or a control token's name */
    size_t len;
};

static bool starts_with(const char *s, const char *prefix)
{
    return strncmp(s, prefix, strlen(prefix)) == 0;
}

/* The element at s, which is no end of a piece. Returns the bytes it takes, 0: it is none, and *ret_expected is. */
static size_t element_read(struct element *ret, const char *s, const char **ret_expected)
{
    static const char escapes[] = "n<{\"\\", plain[] = "\n<{\"\\";
    const char *escape;

    if (*s == '\\') {
        escape = s[1] ? strchr(escapes, s[1]) : NULL;
        *ret_expected = "n, <, {, a quote or a backslash behind the backslash";
        if (!escape)
            return 0;
        *ret = (struct element){ ELEMENT_TEXT, plain + (escape - escapes), 1 };
        return 2;
    }
    if (*s == '<') {
        *ret = (struct element){ ELEMENT_CONTROL, s, strcspn(s, ">\"") + 1 };
        *ret_expected = "a control token such as <|eot_id|>, or a backslash before a plain <";
        return s[ret->len - 1] == '>' && ret->len < CONTROL_MAX ? ret->len : 0;
    }
    if (*s == '{') {
        *ret = (struct element){ .kind = starts_with(s, "{content}") ? ELEMENT_CONTENT : ELEMENT_VERBATIM };
        *ret_expected = "{content} or {verbatim}, or a backslash before a plain {";
        return starts_with(s, "{content}") ? 9 : starts_with(s, "{verbatim}") ? 10 : 0;
    }
    *ret = (struct element){ ELEMENT_TEXT, s, strcspn(s, "\\<{\"") };
    return ret->len;
}

/* Check the piece at s. Returns its end, the closing quote, or NULL with what was expected at *ret_at. */
static const char *piece_read(const char *s, enum piece piece, const char **ret_at, const char **ret_expected)
{
    bool spoken = piece < PIECE_PROMPT, content = false;
    struct element e;
    size_t n;

    for (; *s && *s != '"'; s += n) {
        *ret_at = s;
        n = element_read(&e, s, ret_expected);
        if (!n)
            return NULL;
        if (e.kind >= ELEMENT_CONTENT && !spoken) {
            *ret_expected = "no content, as this piece belongs to no message";
            return NULL;
        }
        content |= e.kind >= ELEMENT_CONTENT;
    }
    *ret_at = s;
    *ret_expected = *s ? "{content} or {verbatim} before the end of the piece" : "a quote at the end of the piece";
    return *s && content == spoken ? s : NULL;
}

/* NULL, or what was expected at *ret_at. */
static const char *layout_read(struct layout *ret, const char *s, const char **ret_at)
{
    const char *expected = NULL;
    size_t n, i;

    *ret = (struct layout){ .bos = starts_with(s, "{bos}") };
    for (s += ret->bos ? 5 : 0; s += strspn(s, " \t"), *s; s++) {
        *ret_at = s;
        n = strcspn(s, ":");
        for (i = 0; i < N_PIECES; i++)
            if (n == strlen(piece_names[i]) && memcmp(s, piece_names[i], n) == 0)
                break;
        if (i == N_PIECES || s[n] != ':' || s[n + 1] != '"')
            return "system:, user:, assistant:, tool:, prompt: or between: and a quote";
        if (ret->pieces[i])
            return "each piece once";
        ret->pieces[i] = s + n + 2;
        s = piece_read(ret->pieces[i], (enum piece)i, ret_at, &expected);
        if (!s)
            return expected;
    }
    *ret_at = s;
    return !ret->pieces[PIECE_USER] ? "a piece user:" : !ret->pieces[PIECE_PROMPT] ? "a piece prompt:" : NULL;
}

static int layout_find(struct layout *ret, const char *template, struct err *err)
{
    const char *text = template, *at, *expected;

    for (size_t i = 0; i < ARRAY_SIZE(builtin); i++)
        if (strcmp(template, builtin[i].name) == 0)
            text = builtin[i].text;
    expected = layout_read(ret, text, &at);
    if (!expected)
        return 0;
    if (text == template && !strchr(text, ':'))
        return err_set(err, -EINVAL, "expected auto, bitnet, llama3, falcon3, chatml, plain, or pieces such as "
                       "user:\"User: {content}\" prompt:\"Assistant: \"");
    return err_set(err, -EINVAL, "byte %zu: expected %s", (size_t)(at - text) + 1, expected);
}

int engine_template_check(const char *text, struct err *err)
{
    struct layout layout;

    return strcmp(text, "auto") == 0 ? 0 : layout_find(&layout, text, err);
}

const char *template_choose(const struct tokenizer *t, const char *architecture)
{
    bool eot = tokenizer_find(t, "<|eot_id|>") >= 0;

    /* 2B4T has Llama 3's vocabulary, headers included, and was trained without them. */
    if (strncmp(architecture, "bitnet", 6) == 0 && eot)
        return "bitnet";
    if (eot && tokenizer_find(t, "<|start_header_id|>") >= 0 && tokenizer_find(t, "<|end_header_id|>") >= 0)
        return "llama3";
    if (tokenizer_find(t, "<|im_start|>") >= 0 && tokenizer_find(t, "<|im_end|>") >= 0)
        return "chatml";
    if (tokenizer_find(t, ">>TITLE<<") >= 0 && tokenizer_find(t, "<|endoftext|>") >= 0)
        return "falcon3";
    return "plain";
}

/* ---- Writing a prompt ---- */

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
static int prompt_control(struct prompt *p, const char *s, size_t len)
{
    char name[CONTROL_MAX];
    int32_t id;

    snprintf(name, sizeof(name), "%.*s", (int)len, s);
    id = tokenizer_find(p->tokenizer, name);
    if (id < 0)
        return err_set(p->err, -EINVAL, "the model's vocabulary has no %s", name);
    return prompt_id(p, id);
}

struct content { const char *s; size_t len; };
static const struct content none = { "", 0 };

static struct content trim(struct content c)
{
    static const char space[] = " \t\n\v\f\r";

    while (c.len && memchr(space, c.s[c.len - 1], 6))
        c.len--;
    while (c.len && memchr(space, *c.s, 6)) {
        c.s++;
        c.len--;
    }
    return c;
}

static int prompt_piece(struct prompt *p, const char *s, struct content content)
{
    struct content trimmed = trim(content);
    const char *expected;
    struct element e;
    int r = 0;

    while (*s != '"' && r == 0) {
        s += element_read(&e, s, &expected);
        if (e.kind == ELEMENT_CONTROL)
            r = prompt_control(p, e.s, e.len);
        else if (e.kind == ELEMENT_TEXT)
            r = prompt_text(p, e.s, e.len);
        else
            r = e.kind == ELEMENT_CONTENT ? prompt_text(p, trimmed.s, trimmed.len)
                                          : prompt_text(p, content.s, content.len);
    }
    return r;
}

static const char *piece_of(const struct layout *layout, const char *role)
{
    for (size_t i = 0; i < PIECE_PROMPT; i++)
        if (strcmp(role, piece_names[i]) == 0 && layout->pieces[i])
            return layout->pieces[i];
    return layout->pieces[PIECE_USER];
}

static int render(struct prompt *p, const struct layout *layout, const json_t *messages)
{
    size_t i;
    json_t *item;
    int r;

    if (layout->bos && tokenizer_bos(p->tokenizer) >= 0) {
        r = tokens_push(p->out, tokenizer_bos(p->tokenizer));
        if (r < 0)
            return r;
    }
    json_array_foreach(messages, i, item) {
        const char *role = json_string_value(json_object_get(item, "role"));
        const json_t *content = json_object_get(item, "content");
        struct content c = { json_string_value(content), json_string_length(content) };

        if (!role || !c.s)
            return err_set(p->err, -EINVAL, "messages[%zu]: expected a role and a content", i);
        r = i && layout->pieces[PIECE_BETWEEN] ? prompt_piece(p, layout->pieces[PIECE_BETWEEN], none) : 0;
        if (r == 0)
            r = prompt_piece(p, piece_of(layout, role), c);
        if (r < 0)
            return r;
    }
    r = prompt_piece(p, layout->pieces[PIECE_PROMPT], none);
    return r < 0 ? r : prompt_flush(p);
}

int template_render(const char *template, const struct tokenizer *t, const json_t *messages, struct tokens *out,
                    struct err *err)
{
    cleanup(prompt_done) struct prompt p = { .tokenizer = t, .out = out, .err = err };
    struct layout layout;
    size_t kept = out->len;
    int r;

    buf_init(&p.text, PROMPT_MAX);
    r = layout_find(&layout, template, err);
    if (r == 0)
        r = render(&p, &layout, messages);
    if (r < 0)
        out->len = kept;
    return r;
}

int template_check(const char *template, const struct tokenizer *t, struct err *err)
{
    cleanup(tokens_done) struct tokens ids = { 0 };
    cleanup(prompt_done) struct prompt p = { .tokenizer = t, .out = &ids, .err = err };
    struct layout layout;
    int r;

    buf_init(&p.text, PROMPT_MAX);
    r = layout_find(&layout, template, err);
    for (size_t i = 0; i < N_PIECES && r == 0; i++)
        if (layout.pieces[i])
            r = prompt_piece(&p, layout.pieces[i], none);
    return r < 0 ? r : prompt_flush(&p);
}
