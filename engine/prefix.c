/* Keys and values of what was read before, kept for whoever begins with the same tokens: the next turn of a
 * conversation, or another one under the same system prompt.
 *
 * Every client has a tree of its own, so that nothing of one client's text is ever seen, or timed, by another. A node is
 * a page and the tokens it stands for; its children go on where it is full. Tokens are compared, not digests of them. A
 * page that is not full is kept as well, and found by as many of its first tokens as agree: sessions copy a shared page
 * before they write to it.
 *
 * Pages are dropped least recently used first. A use touches the whole path from the leaf up, so a node is never older
 * than its children, and the oldest one is always a leaf. */
#include <errno.h>
#include <string.h>

#include "engine/worker.h"

struct prefix_node {
    TAILQ_ENTRY(prefix_node) by_use, siblings;
    TAILQ_HEAD(node_list, prefix_node) children;
    struct prefix_node *parent;        /* NULL: the root of a client's tree, which has its name instead of a page */
    char *client;
    struct kv_page *page;
    uint32_t n;                        /* tokens in the page */
    int32_t tokens[ATTEND_TOKENS];
};

void prefix_init(struct prefix *p, struct kv_pool *kv, size_t max_bytes)
{
    *p = (struct prefix){ .kv = kv, .max_pages = max_bytes / kv_pool_page_bytes(kv) };
    TAILQ_INIT(&p->by_use);
    TAILQ_INIT(&p->roots);
}

static struct node_list *siblings_of(struct prefix *p, struct prefix_node *node)
{
    return node->parent ? &node->parent->children : (struct node_list *)&p->roots;
}

/* Drop a leaf, and the client's root when it was its last. */
static void node_drop(struct prefix *p, struct prefix_node *node)
{
    struct prefix_node *parent = node->parent;

    TAILQ_REMOVE(siblings_of(p, node), node, siblings);
    if (parent) {
        TAILQ_REMOVE(&p->by_use, node, by_use);
        kv_page_unref(p->kv, node->page);
        p->n_pages--;
    }
    free(node->client);
    free(node);
    if (parent && !parent->parent && TAILQ_EMPTY(&parent->children))
        node_drop(p, parent);
}

bool prefix_shrink(struct prefix *p)
{
    struct prefix_node *oldest = TAILQ_FIRST(&p->by_use);

    if (oldest)
        node_drop(p, oldest);
    return oldest;
}

void prefix_done(struct prefix *p)
{
    while (p->kv && prefix_shrink(p))
        ;
}

static struct prefix_node *root_find(const struct prefix *p, const char *client)
{
    struct prefix_node *root;

    TAILQ_FOREACH(root, &p->roots, siblings)
        if (strcmp(root->client, client) == 0)
            return root;
    return NULL;
}

/* A new node under parent, or a root. NULL: no memory. */
static struct prefix_node *node_new(struct prefix *p, struct prefix_node *parent, const char *client)
{
    struct prefix_node *node = calloc(1, sizeof(*node));

    if (!node)
        return NULL;
    node->client = client ? strdup(client) : NULL;
    if (client && !node->client) {
        free(node);
        return NULL;
    }
    node->parent = parent;
    TAILQ_INIT(&node->children);
    TAILQ_INSERT_HEAD(siblings_of(p, node), node, siblings);
    return node;
}

/* How many of the first n tokens are the node's. */
static size_t agree(const struct prefix_node *node, const int32_t *tokens, size_t n)
{
    size_t i = 0;

    while (i < n && i < node->n && node->tokens[i] == tokens[i])
        i++;
    return i;
}

/* The child that agrees with most of the tokens, and with how many; NULL: with none. */
static struct prefix_node *child_find(const struct prefix_node *node, const int32_t *tokens, size_t n, size_t *ret_agree)
{
    struct prefix_node *child, *best = NULL;
    size_t most = 0, same;

    TAILQ_FOREACH(child, &node->children, siblings)
        if ((same = agree(child, tokens, n)) > most) {
            most = same;
            best = child;
        }
    *ret_agree = most;
    return best;
}

static void touch(struct prefix *p, struct prefix_node *node)
{
    for (; node && node->parent; node = node->parent) {
        TAILQ_REMOVE(&p->by_use, node, by_use);
        TAILQ_INSERT_TAIL(&p->by_use, node, by_use);
    }
}

size_t prefix_find(struct prefix *p, const char *client, const int32_t *tokens, size_t n, struct session *s)
{
    struct prefix_node *node = root_find(p, client), *next;
    cleanup(freep) struct kv_page **pages = calloc(n / ATTEND_TOKENS + 1, sizeof(struct kv_page *));
    size_t found = 0, n_pages = 0, same = ATTEND_TOKENS;

    while (pages && node && found < n && same == ATTEND_TOKENS) {
        next = child_find(node, tokens + found, MIN(n - found, ATTEND_TOKENS), &same);
        if (!next)
            break;
        pages[n_pages++] = next->page;
        found += same;
        node = next;
    }
    if (!found || session_adopt(s, pages, found) < 0)
        return 0;
    touch(p, node);
    return found;
}

/* The node for these tokens, whose keys and values are in the page: one that is there, one made longer, or a new one. */
static struct prefix_node *keep_page(struct prefix *p, struct prefix_node *parent, const int32_t *tokens, size_t n,
                                     struct kv_page *page)
{
    size_t same;
    struct prefix_node *node = child_find(parent, tokens, n, &same);

    if (node && same == n)
        return node;
    if (node && same == node->n) {
        kv_page_unref(p->kv, node->page);
    } else {
        node = node_new(p, parent, NULL);
        if (!node)
            return NULL;
        TAILQ_INSERT_TAIL(&p->by_use, node, by_use);
        p->n_pages++;
    }
    node->page = kv_page_ref(page);
    memcpy(node->tokens, tokens, n * sizeof(*tokens));
    node->n = (uint32_t)n;
    return node;
}

void prefix_keep(struct prefix *p, const char *client, const int32_t *tokens, const struct session *s)
{
    struct prefix_node *node;

    if (!s->n || !p->max_pages)
        return;
    node = root_find(p, client);
    if (!node)
        node = node_new(p, NULL, client);
    for (size_t i = 0; node && i < s->n_pages && i < p->max_pages; i++) {
        size_t start = i * ATTEND_TOKENS;
        struct prefix_node *next = keep_page(p, node, tokens + start, MIN(s->n - start, ATTEND_TOKENS), s->pages[i]);

        if (!next)
            break;
        node = next;
    }
    if (!node)
        return;
    touch(p, node);
    if (!node->parent && TAILQ_EMPTY(&node->children))
        node_drop(p, node);
    while (p->n_pages > p->max_pages)
        prefix_shrink(p);
}
