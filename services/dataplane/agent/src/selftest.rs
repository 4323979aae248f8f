//! `weft-agent --check-seccomp`: hardens itself, then tries what must fail and what must work.
//!
//! Owns the list of attempts. It runs in a process of its own, because what is given up does not
//! come back. Prints one line per attempt; fails when one came out wrong.

use crate::{harden, seccomp};
use std::io::{Read, Write};

/// Makes one system call with harmless (null) arguments; the error number, 0 for success.
fn attempt(call: libc::c_long, arguments: [libc::c_long; 3]) -> i32 {
    let [a, b, c] = arguments;
    // SAFETY: every call is made with null pointers or plain numbers; where the filter should
    // let one through, the kernel answers EFAULT or EINVAL and touches nothing.
    let result = unsafe { libc::syscall(call, a, b, c, 0, 0, 0) };
    if result >= 0 {
        return 0;
    }
    std::io::Error::last_os_error().raw_os_error().unwrap_or(-1)
}

/// Hardens the process and reports. `Ok(false)`: something came out wrong.
pub fn run(out: &mut impl Write) -> anyhow::Result<bool> {
    harden::harden()?;
    let mut good = true;
    let mut say = |name: &str, right: bool, detail: String| -> std::io::Result<()> {
        good &= right;
        let word = if right { "ok" } else { "WRONG" };
        writeln!(out, "{word:5} {name}: {detail}")
    };

    say(
        "hardened",
        harden::hardened(),
        "no capabilities, no_new_privs, seccomp".into(),
    )?;
    for (name, call) in seccomp::NEVER {
        let errno = attempt(*call, [0, 0, 0]);
        say(name, errno == libc::EPERM, refused(errno))?;
    }
    let arguments: &[(&str, libc::c_long, [libc::c_long; 3])] = &[
        (
            "socket(AF_PACKET)",
            libc::SYS_socket,
            [libc::AF_PACKET.into(), libc::SOCK_RAW.into(), 0],
        ),
        (
            "socket(AF_NETLINK)",
            libc::SYS_socket,
            [libc::AF_NETLINK.into(), libc::SOCK_RAW.into(), 0],
        ),
        (
            "socket(AF_INET, SOCK_RAW)",
            libc::SYS_socket,
            [libc::AF_INET.into(), libc::SOCK_RAW.into(), 1],
        ),
        ("bpf(BPF_MAP_CREATE)", libc::SYS_bpf, [0, 0, 0]),
        ("bpf(BPF_OBJ_GET)", libc::SYS_bpf, [7, 0, 0]),
        ("bpf(BPF_LINK_DETACH)", libc::SYS_bpf, [34, 0, 0]),
        ("bpf(BPF_PROG_LOAD)", libc::SYS_bpf, [5, 0, 0]),
        ("clone (a process)", libc::SYS_clone, [libc::SIGCHLD.into(), 0, 0]),
        (
            "mmap(PROT_EXEC)",
            libc::SYS_mmap,
            [0, 4096, libc::PROT_EXEC.into()],
        ),
    ];
    for (name, call, arguments) in arguments {
        let errno = attempt(*call, *arguments);
        say(name, errno == libc::EPERM, refused(errno))?;
    }
    // The twins: the commands of bpf(2) for elements of maps reach the kernel, which finds no map.
    for (name, command) in [
        ("bpf(BPF_MAP_LOOKUP_ELEM)", 1),
        ("bpf(BPF_MAP_UPDATE_ELEM)", 2),
        ("bpf(BPF_MAP_DELETE_ELEM)", 3),
    ] {
        let errno = attempt(libc::SYS_bpf, [command, 0, 0]);
        say(
            name,
            errno != libc::EPERM && errno != 0,
            format!("reached the kernel (errno {errno})"),
        )?;
    }

    let served = serve_once();
    let detail = match &served {
        Ok(()) => "threads, epoll, TCP".to_owned(),
        Err(e) => e.to_string(),
    };
    say("serving", served.is_ok(), detail)?;
    Ok(good)
}

fn refused(errno: i32) -> String {
    match errno {
        0 => "was let through".into(),
        libc::EPERM => "refused".into(),
        n => format!("errno {n} instead of EPERM"),
    }
}

/// A runtime with threads serves one connection from another thread.
fn serve_once() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(async {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let to = listener.local_addr()?;
        let client = tokio::task::spawn_blocking(move || -> std::io::Result<String> {
            let mut stream = std::net::TcpStream::connect(to)?;
            stream.write_all(b"ping")?;
            stream.shutdown(std::net::Shutdown::Write)?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        });
        let (mut stream, _) = listener.accept().await?;
        let mut asked = String::new();
        stream.read_to_string(&mut asked).await?;
        stream.write_all(format!("{asked} pong").as_bytes()).await?;
        drop(stream);
        let answer = client.await??;
        anyhow::ensure!(answer == "ping pong", "got {answer:?}");
        Ok(())
    })
}
