//! The socket and its clients: each has a thread, and there is a limit to
//! them. Who is silent gives way.

use std::io;
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};

use super::contents::Contents;
use super::line::{Ended, Patient, Silence};
use super::negotiation::negotiate;
use super::transmission::Transmission;

/// Most clients at a time.
const MOST_CLIENTS: usize = 64;
/// Most threads, those included that have still to notice that their client had
/// to give way.
const MOST_THREADS: usize = 128;
/// Who has been silent for so long gives way to somebody else.
const GIVES_WAY: Duration = Duration::from_secs(1);
/// How long nobody is taken after an error of the host, such as no descriptors.
const REST: Duration = Duration::from_millis(100);
/// Stack of a client's thread: its buffers are elsewhere.
const STACK: usize = 256 << 10;

struct Client {
    number: u64,
    stream: UnixStream,
    silence: Arc<Silence>,
}

struct Shared {
    contents: Box<dyn Contents>,
    clients: Mutex<Vec<Client>>,
    threads: AtomicUsize,
    clock: Instant,
}

/// Serves whoever connects, until `stop` is readable. The threads of clients
/// are in the sandbox that this one is in.
///
/// # Errors
/// The socket cannot be used any more.
pub(crate) fn serve(
    listener: &UnixListener,
    stop: &OwnedFd,
    contents: Box<dyn Contents>,
) -> io::Result<()> {
    let shared = Arc::new(Shared {
        contents,
        clients: Mutex::default(),
        threads: AtomicUsize::new(0),
        clock: Instant::now(),
    });
    // Who else has the socket may take a client first.
    listener.set_nonblocking(true)?;
    for number in 0.. {
        if awaited(listener, stop)? {
            break;
        }
        match listener.accept() {
            Ok((stream, _)) => {
                if let Err(error) = begin(&shared, number, stream) {
                    log::warn!("a client is turned away: {error}");
                    thread::sleep(REST);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) if is_fatal(&error) => return Err(error),
            Err(error) => {
                log::warn!("no client can be taken: {error}");
                thread::sleep(REST);
            }
        }
    }
    Ok(())
}

/// Waits for a client, or for the wish to stop: then true.
fn awaited(listener: &UnixListener, stop: &OwnedFd) -> io::Result<bool> {
    let mut fds = [
        PollFd::new(stop, PollFlags::IN),
        PollFd::new(listener, PollFlags::IN),
    ];
    match poll(&mut fds, None) {
        Ok(_) => Ok(!fds[0].revents().is_empty()),
        Err(rustix::io::Errno::INTR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// The socket is of no use any more.
fn is_fatal(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EBADF | libc::EINVAL | libc::ENOTSOCK | libc::EOPNOTSUPP)
    )
}

fn begin(shared: &Arc<Shared>, number: u64, stream: UnixStream) -> io::Result<()> {
    let silence = Arc::new(Silence::default());
    if !shared.admit(number, &stream, &silence)? {
        log::warn!("a client is turned away: {MOST_CLIENTS} others are being served");
        return Ok(());
    }
    let of_thread = Arc::clone(shared);
    shared.threads.fetch_add(1, Ordering::Relaxed);
    let spawned = thread::Builder::new()
        .name("client".to_owned())
        .stack_size(STACK)
        .spawn(move || {
            converse(&of_thread, number, stream, silence);
            of_thread.leave(number);
            of_thread.threads.fetch_sub(1, Ordering::Relaxed);
        });
    if let Err(error) = spawned {
        shared.leave(number);
        shared.threads.fetch_sub(1, Ordering::Relaxed);
        return Err(error);
    }
    Ok(())
}

fn converse(shared: &Shared, number: u64, stream: UnixStream, silence: Arc<Silence>) {
    let contents = shared.contents.as_ref();
    let mut line = match Patient::new(stream, silence, shared.clock) {
        Ok(line) => line,
        Err(error) => return log::warn!("client {number}: {error}"),
    };
    log::debug!("client {number} has come");
    let ended = match negotiate(&mut line, contents) {
        Ok(agreed) => Transmission::new(&mut line, contents, agreed).run(),
        Err(ended) => ended,
    };
    match ended {
        Ended::Gone | Ended::Asked => {
            log::debug!("client {number}: {ended}");
        }
        _ => log::info!("client {number}: {ended}"),
    }
}

impl Shared {
    /// Makes room for one more; whether there is any.
    fn admit(&self, number: u64, stream: &UnixStream, silence: &Arc<Silence>) -> io::Result<bool> {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if self.threads.load(Ordering::Relaxed) >= MOST_THREADS {
            return Ok(false);
        }
        if clients.len() >= MOST_CLIENTS {
            let silent = |client: &Client| client.silence.length(self.clock);
            let longest = (0..clients.len())
                .filter_map(|index| Some((clients.get(index).and_then(silent)?, index)))
                .filter(|(length, _)| *length >= GIVES_WAY)
                .max();
            let Some((_, index)) = longest else {
                return Ok(false);
            };
            let client = clients.swap_remove(index);
            log::info!(
                "client {} gives way: it has been silent longest",
                client.number
            );
            // Its thread notices; it may be about to end anyway.
            let _ = client.stream.shutdown(Shutdown::Both);
        }
        clients.push(Client {
            number,
            stream: stream.try_clone()?,
            silence: Arc::clone(silence),
        });
        Ok(true)
    }

    fn leave(&self, number: u64) {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        clients.retain(|client| client.number != number);
    }
}
