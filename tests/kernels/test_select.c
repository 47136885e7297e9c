/* TERN_CPU picks a variant by name, and refuses what the machine lacks in words. One process a choice, since the choice
 * is made once. */
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include "kernels/kernels.h"

/* In a child: does TERN_CPU=name choose `want` (NULL: refuse)? */
static int choose(const char *name, const char *want)
{
    int status;
    pid_t pid = fork();

    if (!pid) {
        struct err err = {0};
        const struct kernels *k;

        setenv("TERN_CPU", name, 1);
        k = kernels_get(&err);
        if (want)
            _exit(!(k && !strcmp(k->name, want)));
        _exit(!(!k && strstr(err.msg, "ref") && strstr(err.msg, name)));
    }
    waitpid(pid, &status, 0);
    if (!WIFEXITED(status) || WEXITSTATUS(status)) {
        printf("TERN_CPU=%s did not %s\n", name, want ? "choose it" : "refuse");
        return 1;
    }
    return 0;
}

int main(void)
{
    const struct kernels *const *list;
    size_t n;
    int failures = choose("ref", "ref") + choose("abacus", NULL);

    n = kernels_list(&list);        /* after the children: they inherit nothing chosen */
    for (size_t i = 0; i < n; i++)
        printf("%s\n", list[i]->name);
    return failures + (n < 1);
}
