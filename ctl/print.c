/* How ternctl's answers look on a terminal. */
#include "ctl/ctl.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#define DIM "\033[2m"
#define BOLD "\033[1m"
#define PLAIN "\033[0m"
#define MAX_COLUMNS 24

void print_json(const json_t *j)
{
    json_dumpf(j, stdout, JSON_INDENT(2) | JSON_ENCODE_ANY);
    putchar('\n');
}

/* A cell's text in buf (owned by it) or inside the value. Control characters a server sent never reach the terminal. */
static const char *cell(const json_t *v, char *out, size_t size)
{
    switch (json_typeof(v)) {
    case JSON_STRING:
        snprintf(out, size, "%s", json_string_value(v));
        for (char *p = out; *p; p++)
            if ((unsigned char)*p < 0x20 || *p == 0x7f)
                *p = ' ';
        return out;
    case JSON_INTEGER:
        snprintf(out, size, "%lld", (long long)json_integer_value(v));
        return out;
    case JSON_REAL:
        snprintf(out, size, "%.3g", json_real_value(v));
        return out;
    case JSON_TRUE:
        return "yes";
    case JSON_FALSE:
        return "no";
    default:
        return "-";
    }
}

/* Terminal columns of UTF-8 text, counting a character as one. */
static int width(const char *s)
{
    int n = 0;

    for (; *s; s++)
        n += ((unsigned char)*s & 0xc0) != 0x80;
    return n;
}

void print_table(const struct ctl *c, const json_t *rows, const char *const *columns)
{
    int widths[MAX_COLUMNS], n = 0;
    bool right[MAX_COLUMNS] = { false };
    char text[256];
    const json_t *row, *v;
    size_t i;

    for (; columns[n] && n < MAX_COLUMNS; n++)
        widths[n] = width(columns[n]);
    json_array_foreach(rows, i, row)
        for (int k = 0; k < n; k++) {
            v = json_object_get(row, columns[k]);
            widths[k] = MAX(widths[k], v ? width(cell(v, text, sizeof(text))) : 1);
            right[k] = right[k] || json_is_number(v);
        }

    if (c->color)
        fputs(BOLD, stdout);
    for (int k = 0; k < n; k++)
        printf("%s%*s", k ? "  " : "", right[k] ? widths[k] : k == n - 1 ? 0 : -widths[k], columns[k]);
    puts(c->color ? PLAIN : "");
    json_array_foreach(rows, i, row) {
        for (int k = 0; k < n; k++) {
            const char *s;
            int pad;

            v = json_object_get(row, columns[k]);
            s = v ? cell(v, text, sizeof(text)) : "-";
            pad = widths[k] - width(s);
            printf("%s%*s%s%*s", k ? "  " : "", right[k] ? pad : 0, "", s, right[k] || k == n - 1 ? 0 : pad, "");
        }
        putchar('\n');
    }
}

void print_route(const struct ctl *c, const struct client_route *r)
{
    bool dim = isatty(STDERR_FILENO) && c->color;

    if (!r->route[0])
        return;
    fprintf(stderr, "%s[%s%s: %s · %s", dim ? DIM : "", r->route, r->degraded ? ", degraded" : "", r->reason, r->model);
    if (r->confidence[0])
        fprintf(stderr, " · P(right) %s", r->confidence);
    if (r->cost[0] && strtod(r->cost, NULL) > 0)
        fprintf(stderr, " · %s USD", r->cost);
    fprintf(stderr, " · %s]%s\n", r->id, dim ? PLAIN : "");
}

int usage_error(const struct verb *v, const char *fmt, ...)
{
    va_list ap;

    fprintf(stderr, "ternctl %s: ", v->name);
    va_start(ap, fmt);
    vfprintf(stderr, fmt, ap);
    va_end(ap);
    fprintf(stderr, "\nUsage: ternctl %s %s\n", v->name, v->arguments);
    return CTL_USAGE;
}
