/* What each role can no longer do, told to the kernel with seccomp. The default is to allow: the lists below name
 * what is taken away, so that a new libc does not break the daemon, and cover every way from what a role holds to the
 * network, to other processes and to new programs. Refused calls get EPERM; calls under another ABI (i386, x32) end
 * the process, because the numbers there mean something else.
 *
 * Why the front is left with no way out: it holds listening and accepted TCP sockets made before. connect() covers
 * dialling and also disconnecting (AF_UNSPEC) and dialling again; MSG_FASTOPEN would dial through a listener that was
 * shut down; io_uring would do either without a system call. New sockets are AF_UNIX only, which the journal and
 * sd_notify() need for datagrams. */
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <sched.h>
#include <seccomp.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include "daemon/daemon.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED 1                      /* the leak checker stops its process with ptrace */
#else
#define SANITIZED 0
#endif

/* Nobody. */
static const char *const denied_all[] = {
    "execve", "execveat", "process_vm_readv", "process_vm_writev", "process_madvise", "pidfd_getfd", "kcmp",
    "io_uring_setup", "io_uring_enter", "io_uring_register", "bpf", "perf_event_open", "userfaultfd",
    "mount", "umount", "umount2", "pivot_root", "chroot", "move_mount", "open_tree", "fsopen", "fsconfig", "fsmount",
    "fspick", "mount_setattr", "setns", "unshare", "add_key", "request_key", "keyctl", "kexec_load", "kexec_file_load",
    "init_module", "finit_module", "delete_module", "reboot", "swapon", "swapoff", "acct", "quotactl", "quotactl_fd",
    "settimeofday", "clock_settime", "clock_settime64", "clock_adjtime", "clock_adjtime64", "adjtimex", "stime",
    "sethostname", "setdomainname", "iopl", "ioperm", "open_by_handle_at", "name_to_handle_at", "fanotify_init",
    "lookup_dcookie", "nfsservctl", "syslog", "vhangup", "modify_ldt", "vm86", "vm86old", "uselib", "personality",
};
/* The front: no new way in or out. */
static const char *const denied_front[] = {"connect", "bind", "listen"};
/* The engine: no socket but the one it has, nothing written but the file that was open before, nobody signalled. tkill and
 * tgkill are narrowed below, as abort() needs tgkill. */
static const char *const denied_engine[] = {
    "connect", "bind", "listen", "socket", "socketpair", "accept", "accept4",
    "creat", "truncate", "truncate64", "unlink", "unlinkat", "rename", "renameat", "renameat2", "link", "linkat",
    "symlink", "symlinkat", "mkdir", "mkdirat", "rmdir", "mknod", "mknodat", "chmod", "fchmod", "fchmodat", "chown",
    "fchown", "lchown", "fchownat", "setxattr", "lsetxattr", "fsetxattr", "removexattr", "lremovexattr", "fremovexattr",
    "utime", "utimes", "utimensat", "futimesat",
    "kill", "tkill", "rt_sigqueueinfo", "rt_tgsigqueueinfo", "pidfd_send_signal", "pidfd_open",
};
static const char *const denied_egress[] = {"listen", "accept", "accept4"};

static const struct { const char *const *names; size_t n; } denied[] = {
    [SANDBOX_FRONT]  = {denied_front, ARRAY_SIZE(denied_front)},
    [SANDBOX_ENGINE] = {denied_engine, ARRAY_SIZE(denied_engine)},
    [SANDBOX_EGRESS] = {denied_egress, ARRAY_SIZE(denied_egress)},
};

#define DENY SCMP_ACT_ERRNO(EPERM)

/* Deny `name`, or only calls whose arguments fit `arg`. A name that libseccomp does not know is a fault: silence
 * would leave a hole. One that this architecture does not have is not. */
static int deny(scmp_filter_ctx ctx, uint32_t action, const char *name, unsigned n_args, struct scmp_arg_cmp arg)
{
    int nr = seccomp_syscall_resolve_name(name);

    if (nr == __NR_SCMP_ERROR)
        return -ENOSYS;
    return seccomp_rule_add_array(ctx, action, nr, n_args, n_args ? &arg : NULL);
}

static int deny_list(scmp_filter_ctx ctx, const char *const *names, size_t n, const char **ret_name)
{
    int r;

    for (size_t i = 0; i < n; i++) {
        r = deny(ctx, DENY, names[i], 0, SCMP_A0(SCMP_CMP_EQ, 0));
        if (r < 0) {
            *ret_name = names[i];
            return r;
        }
    }
    return 0;
}

/* Arguments, each a way that only some values of the call open. */
struct arg_rule { const char *name; struct scmp_arg_cmp arg; };

static int deny_args(scmp_filter_ctx ctx, const struct arg_rule *rules, size_t n, const char **ret_name)
{
    int r;

    for (size_t i = 0; i < n; i++) {
        r = deny(ctx, DENY, rules[i].name, 1, rules[i].arg);
        if (r < 0) {
            *ret_name = rules[i].name;
            return r;
        }
    }
    return 0;
}

#define FLAG(n, flag) SCMP_CMP(n, SCMP_CMP_MASKED_EQ, (scmp_datum_t)(flag), (scmp_datum_t)(flag))
#define ACCESS(n, mode) SCMP_CMP(n, SCMP_CMP_MASKED_EQ, O_ACCMODE, (scmp_datum_t)(mode))

/* New namespaces would give a process capabilities inside them. */
static int deny_for_all(scmp_filter_ctx ctx, const char **ret_name)
{
    const struct arg_rule rules[] = {
        {"clone", FLAG(0, CLONE_NEWUSER)}, {"clone", FLAG(0, CLONE_NEWNET)}, {"clone", FLAG(0, CLONE_NEWNS)},
        {"clone", FLAG(0, CLONE_NEWPID)},
        {"sendto", FLAG(3, MSG_FASTOPEN)}, {"sendmsg", FLAG(2, MSG_FASTOPEN)}, {"sendmmsg", FLAG(3, MSG_FASTOPEN)},
    };

    return deny_args(ctx, rules, ARRAY_SIZE(rules), ret_name);
}

static int deny_for_front(scmp_filter_ctx ctx, const char **ret_name)
{
    const struct arg_rule rules[] = {{"socket", SCMP_A0(SCMP_CMP_NE, AF_UNIX)}};

    return deny_args(ctx, rules, ARRAY_SIZE(rules), ret_name);
}

/* Opening for anything but reading; O_TRUNC empties a file even when it is opened for reading. Both 1 | 2 asks for
 * neither but checks both. */
static int deny_for_engine(scmp_filter_ctx ctx, const char **ret_name)
{
    const struct arg_rule rules[] = {
        {"open", ACCESS(1, O_WRONLY)}, {"open", ACCESS(1, O_RDWR)}, {"open", ACCESS(1, O_ACCMODE)},
        {"open", FLAG(1, O_CREAT)}, {"open", FLAG(1, O_TRUNC)},
        {"openat", ACCESS(2, O_WRONLY)}, {"openat", ACCESS(2, O_RDWR)}, {"openat", ACCESS(2, O_ACCMODE)},
        {"openat", FLAG(2, O_CREAT)}, {"openat", FLAG(2, O_TRUNC)},
        {"tgkill", SCMP_A0(SCMP_CMP_NE, (scmp_datum_t)getpid())},
    };
    int r;

    /* Its flags lie in memory; libc falls back to openat. */
    *ret_name = "openat2";
    r = deny(ctx, SCMP_ACT_ERRNO(ENOSYS), "openat2", 0, rules[0].arg);
    return r < 0 ? r : deny_args(ctx, rules, ARRAY_SIZE(rules), ret_name);
}

/* Sockets that name lookup and TCP need; curl and the resolver make no others. One comparison a rule, so by the gaps
 * between: AF_UNIX 1, AF_INET 2, AF_INET6 10, AF_NETLINK 16. */
static int deny_for_egress(scmp_filter_ctx ctx, const char **ret_name)
{
    const struct arg_rule last = {"socket", SCMP_A0(SCMP_CMP_GT, AF_NETLINK)};
    struct arg_rule rule = {"socket", SCMP_A0(SCMP_CMP_EQ, 0)};
    int r = deny_args(ctx, &last, 1, ret_name);

    for (unsigned family = 0; r == 0 && family < AF_NETLINK; family++) {
        if (family == AF_UNIX || family == AF_INET || family == AF_INET6)
            continue;
        rule.arg.datum_a = family;
        r = deny_args(ctx, &rule, 1, ret_name);
    }
    return r;
}

static int build(scmp_filter_ctx ctx, enum sandbox_role role, const char **ret_name)
{
    static int (*const deny_for[])(scmp_filter_ctx ctx, const char **ret_name) = {
        [SANDBOX_FRONT] = deny_for_front, [SANDBOX_ENGINE] = deny_for_engine, [SANDBOX_EGRESS] = deny_for_egress,
    };
    static const char *const ptrace_only[] = {"ptrace"};
    int r;

    *ret_name = "filter attributes";
    /* A tree instead of a list: the filter runs at every call. */
    if ((r = seccomp_attr_set(ctx, SCMP_FLTATR_ACT_BADARCH, SCMP_ACT_KILL_PROCESS)) < 0 ||
        (r = seccomp_attr_set(ctx, SCMP_FLTATR_CTL_TSYNC, 1)) < 0 ||
        (r = seccomp_attr_set(ctx, SCMP_FLTATR_CTL_OPTIMIZE, 2)) < 0)
        return r;
    /* Flags of clone3 lie in memory, out of the filter's sight; libc falls back to clone. */
    *ret_name = "clone3";
    r = deny(ctx, SCMP_ACT_ERRNO(ENOSYS), "clone3", 0, SCMP_A0(SCMP_CMP_EQ, 0));
    if (r == 0)
        r = deny_list(ctx, denied_all, ARRAY_SIZE(denied_all), ret_name);
    if (r == 0 && !SANITIZED)
        r = deny_list(ctx, ptrace_only, 1, ret_name);
    if (r == 0)
        r = deny_list(ctx, denied[role].names, denied[role].n, ret_name);
    if (r == 0)
        r = deny_for_all(ctx, ret_name);
    return r < 0 ? r : deny_for[role](ctx, ret_name);
}

/* A network namespace of its own, without even a loopback that is up. Root keeps its rights over files, which the
 * model may need; others go through a user namespace, whose capabilities are dropped again. Not permitted everywhere,
 * and the filter does not rely on it. */
static void leave_network(void)
{
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct none[2] = {{0}};

    if (unshare(CLONE_NEWNET) < 0 && unshare(CLONE_NEWUSER | CLONE_NEWNET) == 0)
        syscall(SYS_capset, &header, none);
}

int sandbox_enter(enum sandbox_role role, struct err *err)
{
    const char *name = "seccomp";
    scmp_filter_ctx ctx;
    int r;

    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
        return err_set(err, -errno, "sandbox: no_new_privs: %s", strerror(errno));
    if (!SANITIZED)
        prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);              /* no core file with keys or prompts in it */
    if (role == SANDBOX_ENGINE)
        leave_network();

    ctx = seccomp_init(SCMP_ACT_ALLOW);
    if (!ctx)
        return err_set(err, -ENOMEM, "sandbox: out of memory");
    r = build(ctx, role, &name);
    if (r == 0) {
        name = "seccomp_load";
        r = seccomp_load(ctx);
    }
    seccomp_release(ctx);
    return r < 0 ? err_set(err, r, "sandbox: %s: %s", name, strerror(-r)) : 0;
}
