//! Recording what passes an interface: a packet socket and a thread that reads it, no tool needed.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, recv};

use crate::error::{Error, io};
use crate::namespace::Namespace;
use crate::wire::Captured;

/// No frame here is larger: a segmented one is at most 64 KiB.
const FRAME: usize = 70 * 1024;
/// Recording ends here, and [`Captured::complete`] says so.
const LIMIT: usize = 256 * 1024 * 1024;
/// What the kernel queues while the reader is not scheduled.
const QUEUE: libc::c_int = 64 * 1024 * 1024;

#[derive(Debug, Default)]
struct Recorded {
    frames: Vec<Vec<u8>>,
    bytes: usize,
    overflow: bool,
}

/// A running recording of one interface, in both directions.
#[derive(Debug)]
pub struct Capture {
    recorded: Arc<Mutex<Recorded>>,
    socket: Arc<OwnedFd>,
    /// Closing it ends the reader.
    stop: Option<OwnedFd>,
    reader: Option<JoinHandle<io::Result<()>>>,
}

impl Capture {
    /// Begins; what passes after this returned is recorded.
    pub(crate) fn start(namespace: &Namespace, interface: &str) -> Result<Self, Error> {
        let socket = namespace
            .run(|| open(interface))?
            .map_err(io("capture on", interface))?;
        let socket = Arc::new(socket);
        let (ended, stop) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)
            .map_err(|errno| io("capture on", interface)(errno.into()))?;
        let recorded = Arc::new(Mutex::new(Recorded::default()));
        let (input, output) = (socket.clone(), recorded.clone());
        let reader = thread::Builder::new()
            .name("capture".into())
            .spawn(move || read(&input, &ended, &output))
            .map_err(io("capture on", interface))?;
        Ok(Self {
            recorded,
            socket,
            stop: Some(stop),
            reader: Some(reader),
        })
    }

    /// Ends the recording. What the kernel has queued by now is in it.
    pub fn stop(mut self) -> Result<Captured, Error> {
        self.end().map_err(io("end", "the capture"))?;
        let dropped = dropped(&self.socket).map_err(io("read the statistics of", "the capture"))?;
        let mut recorded = lock(&self.recorded);
        let frames = std::mem::take(&mut recorded.frames);
        Ok(Captured::new(frames, dropped, recorded.overflow))
    }

    /// Waits until `what` has passed in one frame; false after `timeout`.
    pub fn wait_for(&self, what: &[u8], timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        let mut seen = 0;
        loop {
            {
                let recorded = lock(&self.recorded);
                let new = recorded.frames.get(seen..).unwrap_or_default();
                if new.iter().any(|frame| crate::wire::contains(frame, what)) {
                    return true;
                }
                seen = recorded.frames.len();
            }
            if Instant::now() >= deadline {
                return false;
            }
            thread::sleep(Duration::from_millis(2));
        }
    }

    fn end(&mut self) -> io::Result<()> {
        drop(self.stop.take());
        match self.reader.take() {
            Some(reader) => reader
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
            None => Ok(()),
        }
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        let _ = self.end();
    }
}

fn lock(recorded: &Mutex<Recorded>) -> std::sync::MutexGuard<'_, Recorded> {
    recorded.lock().unwrap_or_else(PoisonError::into_inner)
}

fn read(socket: &OwnedFd, ended: &OwnedFd, recorded: &Mutex<Recorded>) -> io::Result<()> {
    let mut buffer = vec![0; FRAME];
    let mut last_round = false;
    loop {
        match recv(socket.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
            Ok(length) => {
                let mut recorded = lock(recorded);
                if recorded.bytes + length > LIMIT {
                    recorded.overflow = true;
                } else {
                    recorded.bytes += length;
                    recorded.frames.push(buffer[..length].to_vec());
                }
            }
            Err(nix::errno::Errno::EAGAIN) if last_round => return Ok(()),
            Err(nix::errno::Errno::EAGAIN) => {
                let mut wait = [
                    PollFd::new(socket.as_fd(), PollFlags::POLLIN),
                    PollFd::new(ended.as_fd(), PollFlags::POLLIN),
                ];
                match poll(&mut wait, PollTimeout::NONE) {
                    Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                    Err(errno) => return Err(errno.into()),
                }
                last_round = wait[1]
                    .revents()
                    .is_some_and(|events| events.contains(PollFlags::POLLHUP));
            }
            // An interface that went down says so once.
            Err(nix::errno::Errno::EINTR | nix::errno::Errno::ENETDOWN) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// A packet socket on one interface of the current namespace.
fn open(interface: &str) -> io::Result<OwnedFd> {
    let name = std::ffi::CString::new(interface)?;
    // SAFETY: a terminated string.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    if index == 0 {
        return Err(io::Error::last_os_error());
    }
    // Protocol 0: nothing is received until the socket is bound to the one interface.
    // SAFETY: plain integers.
    let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: just made, ours alone.
    let socket: OwnedFd = File::into(unsafe { File::from_raw_fd(fd) });
    set(&socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, &QUEUE)?;
    // SAFETY: all zero is a valid sockaddr_ll.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
    address.sll_ifindex = index.cast_signed();
    let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: a live address of the given length.
    let bound = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) };
    if bound < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(socket)
    }
}

fn set<T>(socket: &OwnedFd, level: libc::c_int, option: libc::c_int, value: &T) -> io::Result<()> {
    let length = size_of::<T>() as libc::socklen_t;
    // SAFETY: a live value of the given length.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            std::ptr::from_ref(value).cast(),
            length,
        )
    };
    if done < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// How many frames the kernel could not queue.
fn dropped(socket: &OwnedFd) -> io::Result<u32> {
    #[repr(C)]
    #[derive(Default)]
    struct Statistics {
        packets: u32,
        drops: u32,
    }
    const PACKET_STATISTICS: libc::c_int = 6;
    let mut statistics = Statistics::default();
    let mut length = size_of::<Statistics>() as libc::socklen_t;
    // SAFETY: a live value of the given length.
    let done = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            PACKET_STATISTICS,
            (&raw mut statistics).cast(),
            &mut length,
        )
    };
    if done < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(statistics.drops)
    }
}
