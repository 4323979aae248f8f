//! The system calls of an agent: what tokio, rustls and hyper need, and BPF maps' elements.
//! Everything else is answered with EPERM, so that a library which tries an alternative goes on.
//!
//! Owns the list. Each line is there because something in the process uses it; arguments are
//! checked where a call could do more than that use (make processes, make executable memory,
//! open other kinds of sockets, make or load anything of BPF).

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen::Dword, SeccompCmpArgLen::Qword, SeccompCmpOp as Op,
    SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};
use std::collections::BTreeMap;

type Rules = BTreeMap<libc::c_long, Vec<SeccompRule>>;

/// Needed with any arguments.
const PLAIN: &[libc::c_long] = &[
    // Bytes in and out.
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_sendto,
    libc::SYS_recvfrom,
    libc::SYS_sendmsg,
    libc::SYS_recvmsg,
    libc::SYS_sendmmsg,
    libc::SYS_recvmmsg,
    libc::SYS_close,
    libc::SYS_lseek,
    libc::SYS_fcntl,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_pipe2,
    // Sockets; which kinds may be made is checked below.
    libc::SYS_bind,
    libc::SYS_listen,
    libc::SYS_accept4,
    libc::SYS_accept,
    libc::SYS_connect,
    libc::SYS_shutdown,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    // Waiting.
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_ppoll,
    libc::SYS_eventfd2,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
    libc::SYS_futex,
    libc::SYS_nanosleep,
    libc::SYS_clock_nanosleep,
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_gettimeofday,
    libc::SYS_sched_yield,
    libc::SYS_restart_syscall,
    // Memory; executable memory is refused below.
    libc::SYS_brk,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_membarrier,
    // Threads and signals of this process.
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_getrusage,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_setaffinity,
    libc::SYS_sigaltstack,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_exit,
    libc::SYS_exit_group,
    // clone3 hides its flags behind a pointer; a second filter answers ENOSYS, so that libc
    // falls back to clone, whose flags are checked below.
    libc::SYS_clone3,
    // Files: configuration, keys, the last good state.
    libc::SYS_openat,
    // Apps' files, beneath their folder only.
    libc::SYS_openat2,
    libc::SYS_statx,
    libc::SYS_newfstatat,
    libc::SYS_fstat,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_readlinkat,
    libc::SYS_getdents64,
    libc::SYS_getcwd,
    libc::SYS_mkdirat,
    libc::SYS_unlinkat,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_ftruncate,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_umask,
    libc::SYS_flock,
    libc::SYS_copy_file_range,
    // What the process is and has.
    libc::SYS_getrandom,
    libc::SYS_uname,
    libc::SYS_sysinfo,
    libc::SYS_capget,
    libc::SYS_pidfd_open,
];

/// The older forms that libc still uses on x86-64.
#[cfg(target_arch = "x86_64")]
const OLDER: &[libc::c_long] = &[
    libc::SYS_open,
    libc::SYS_stat,
    libc::SYS_lstat,
    libc::SYS_access,
    libc::SYS_readlink,
    libc::SYS_mkdir,
    libc::SYS_unlink,
    libc::SYS_rmdir,
    libc::SYS_rename,
    libc::SYS_chmod,
    libc::SYS_poll,
    libc::SYS_epoll_wait,
    libc::SYS_epoll_create,
    libc::SYS_pipe,
    libc::SYS_time,
];
#[cfg(not(target_arch = "x86_64"))]
const OLDER: &[libc::c_long] = &[];

/// `bpf(2)`: the commands that are left: reading, writing and removing an element, walking a map's
/// keys, and asking what a map is. They need a descriptor, and weft-node hands over each map with no
/// more access than the agent needs.
const BPF_ELEMENTS: [u64; 5] = [1, 2, 3, 4, 15];
/// `prctl` option by which the allocator names its memory.
const PR_SET_VMA: u64 = 0x5356_4d41;
/// The kind in a socket's type, without SOCK_CLOEXEC and SOCK_NONBLOCK.
const SOCKET_KIND: u64 = 0xf;

/// A call that must not be made, for the self-test: never on the list, whatever the arguments.
pub(crate) const NEVER: &[(&str, libc::c_long)] = &[
    ("execve", libc::SYS_execve),
    ("execveat", libc::SYS_execveat),
    ("ptrace", libc::SYS_ptrace),
    ("process_vm_readv", libc::SYS_process_vm_readv),
    ("mount", libc::SYS_mount),
    ("setns", libc::SYS_setns),
    ("unshare", libc::SYS_unshare),
    ("pivot_root", libc::SYS_pivot_root),
    ("chroot", libc::SYS_chroot),
    ("init_module", libc::SYS_init_module),
    ("kexec_load", libc::SYS_kexec_load),
    ("keyctl", libc::SYS_keyctl),
    ("io_uring_setup", libc::SYS_io_uring_setup),
    ("perf_event_open", libc::SYS_perf_event_open),
    ("userfaultfd", libc::SYS_userfaultfd),
    ("setuid", libc::SYS_setuid),
    ("capset", libc::SYS_capset),
    ("kill", libc::SYS_kill),
];

fn when(index: u8, op: Op, value: u64) -> Result<SeccompCondition, seccompiler::BackendError> {
    SeccompCondition::new(index, Dword, op, value)
}

fn rules() -> Result<Rules, seccompiler::BackendError> {
    let mut rules: Rules = PLAIN
        .iter()
        .chain(OLDER)
        .map(|&call| (call, Vec::new()))
        .collect();
    let one = |c: SeccompCondition| SeccompRule::new(vec![c]);

    // Threads of this process, not processes and not namespaces.
    let namespaces = libc::CLONE_NEWNS
        | libc::CLONE_NEWCGROUP
        | libc::CLONE_NEWUTS
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWUSER
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWNET;
    let thread = libc::CLONE_VM | libc::CLONE_THREAD;
    let flags = u64::from((namespaces | thread).cast_unsigned());
    let thread = u64::from(thread.cast_unsigned());
    let condition = SeccompCondition::new(0, Qword, Op::MaskedEq(flags), thread)?;
    rules.insert(libc::SYS_clone, vec![one(condition)?]);

    // Internet and unix sockets, streams and datagrams (name resolution).
    let mut sockets = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6, libc::AF_UNIX] {
        for kind in [libc::SOCK_STREAM, libc::SOCK_DGRAM, libc::SOCK_SEQPACKET] {
            sockets.push(SeccompRule::new(vec![
                when(0, Op::Eq, u64::from(family.cast_unsigned()))?,
                when(1, Op::MaskedEq(SOCKET_KIND), u64::from(kind.cast_unsigned()))?,
            ])?);
        }
    }
    rules.insert(libc::SYS_socket, sockets);
    rules.insert(libc::SYS_socketpair, vec![one(when(0, Op::Eq, 1)?)?]);

    // Memory, but none that can be run.
    let executable = u64::from(libc::PROT_EXEC.cast_unsigned());
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        rules.insert(call, vec![one(when(2, Op::MaskedEq(executable), 0)?)?]);
    }

    let elements: Result<Vec<_>, _> = BPF_ELEMENTS.iter().map(|&c| one(when(0, Op::Eq, c)?)).collect();
    rules.insert(libc::SYS_bpf, elements?);

    let ioctls = [
        libc::FIONBIO,
        libc::FIONREAD,
        libc::FIOCLEX,
        libc::TCGETS,
        libc::TIOCGWINSZ,
    ];
    let ioctls: Result<Vec<_>, _> = ioctls.iter().map(|&r| one(when(1, Op::Eq, r)?)).collect();
    rules.insert(libc::SYS_ioctl, ioctls?);

    let options = [
        libc::PR_SET_NAME,
        libc::PR_GET_NAME,
        libc::PR_GET_NO_NEW_PRIVS,
        libc::PR_CAPBSET_READ,
        libc::PR_GET_SECCOMP,
    ];
    let options = options
        .iter()
        .map(|o| u64::from(o.cast_unsigned()))
        .chain([PR_SET_VMA]);
    let options: Result<Vec<_>, _> = options.map(|o| one(when(0, Op::Eq, o)?)).collect();
    rules.insert(libc::SYS_prctl, options?);

    // Reading limits of its own; prlimit64 also sets those of others.
    rules.insert(
        libc::SYS_prlimit64,
        vec![SeccompRule::new(vec![
            when(0, Op::Eq, 0)?,
            SeccompCondition::new(2, Qword, Op::Eq, 0)?,
        ])?],
    );

    // Signals to its own threads: abort(3) and panics use tgkill; the filter can not know the
    // process's number in general, so it is put in when the filter is made.
    let own = u64::from(std::process::id());
    rules.insert(libc::SYS_tgkill, vec![one(when(0, Op::Eq, own)?)?]);
    Ok(rules)
}

fn compile(rules: Rules, otherwise: SeccompAction, matched: SeccompAction) -> Result<BpfProgram, String> {
    let arch = TargetArch::try_from(std::env::consts::ARCH).map_err(|e| e.to_string())?;
    SeccompFilter::new(rules, otherwise, matched, arch)
        .and_then(BpfProgram::try_from)
        .map_err(|e| e.to_string())
}

/// Installs both filters for all threads of the process.
pub(crate) fn install() -> Result<(), String> {
    let eperm = SeccompAction::Errno(libc::EPERM.cast_unsigned());
    let allowed = rules().map_err(|e| e.to_string())?;
    let allow = compile(allowed, eperm, SeccompAction::Allow)?;
    let enosys = SeccompAction::Errno(libc::ENOSYS.cast_unsigned());
    let no_clone3 = Rules::from([(libc::SYS_clone3, Vec::new())]);
    let clone3 = compile(no_clone3, SeccompAction::Allow, enosys)?;
    // The list last: it does not let a further filter be installed.
    for program in [clone3, allow] {
        seccompiler::apply_filter_all_threads(&program).map_err(|e| e.to_string())?;
    }
    Ok(())
}

/// Whether this thread runs under a filter.
pub(crate) fn active() -> bool {
    const FILTER: i32 = 2;
    // SAFETY: PR_GET_SECCOMP takes no pointers and only reads.
    unsafe { libc::prctl(libc::PR_GET_SECCOMP, 0, 0, 0, 0) == FILTER }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_must_not_be_made_is_not_on_the_list() {
        let rules = rules().unwrap();
        for (name, call) in NEVER {
            assert!(!rules.contains_key(call), "{name} is on the list");
        }
    }

    #[test]
    fn both_filters_compile() {
        let program = compile(rules().unwrap(), SeccompAction::Errno(1), SeccompAction::Allow).unwrap();
        // The kernel takes at most 4096 instructions.
        assert!(program.len() < 4096, "{} instructions", program.len());
    }
}
