//! Serves the clients of a socket on one thread, which waits for none of them:
//! whatever some do or leave undone, the others have their answers.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};

use super::clients::{Bounds, Client, Clients, Doing, Turn};
use super::events::Subscription;

/// What is made of what a client has sent.
#[derive(Debug)]
pub(super) enum Heard {
    /// No request yet.
    More,
    /// A request that is under way from now on.
    Served,
    /// A request for which there is no place yet: ask again later.
    Waiting,
    /// A request, answered.
    Answer(Vec<u8>),
    /// Something after which the client is to leave.
    Last(Vec<u8>),
}

/// What somebody who has connected hears first.
#[derive(Debug)]
pub(super) enum Greeting {
    /// Nothing.
    None,
    /// This.
    Line(Vec<u8>),
    /// Something after which it is to leave.
    Last(Vec<u8>),
}

/// Who is served there, and how.
pub(super) trait Service: Send + 'static {
    /// A connection.
    type Stream: Read + Write + AsFd;
    /// Who is at its other end.
    type Peer: Copy;

    /// Each client leaves after one answer.
    const ONE_ANSWER: bool = false;

    /// The next connection, which never makes anybody wait.
    fn accept(&self) -> io::Result<(Self::Stream, Self::Peer)>;

    /// Where connections come from.
    fn listener(&self) -> BorrowedFd<'_>;

    /// Whether two connections count as one party's.
    fn same(one: Self::Peer, other: Self::Peer) -> bool;

    /// What is said to somebody who has just connected: before its first
    /// answer, or when it has been silent for a moment.
    fn greet(&self, _peer: Self::Peer) -> Greeting {
        Greeting::None
    }

    /// Looks for a request at the beginning of what was received, and takes
    /// it out.
    fn hear(&mut self, client: &mut Client<Self::Stream, Self::Peer>) -> Heard;

    /// What tells that a request has ended that was under way, or that there
    /// are news.
    fn wakers(&self) -> Vec<BorrowedFd<'_>> {
        Vec::new()
    }

    /// Something that a client is told without asking; empty if nothing.
    fn news(&self, _of: &mut Subscription) -> Vec<u8> {
        Vec::new()
    }

    /// Answers to what was under way, by the numbers of clients.
    fn finished(&mut self) -> Vec<(u64, Vec<u8>)> {
        Vec::new()
    }
}

/// How long connections are left alone when the host has no descriptors or
/// memory for them.
const PAUSE: Duration = Duration::from_millis(200);
/// Connections taken in before those that are there have another turn.
const AT_ONCE: usize = 16;

/// Serves for the life of the process. `name` is what the log calls it.
pub(super) fn serve<T: Service>(mut service: T, bounds: Bounds, name: &str) -> ! {
    let _pulse = pulse::join(name, pulse::Doing::Turning);
    let mut clients = Clients::new(bounds);
    let mut paused: Option<Instant> = None;
    loop {
        if paused.is_some_and(|until| until <= Instant::now()) {
            paused = None;
        }
        let seen = match wait(&service, &clients, paused) {
            Ok(seen) => seen,
            Err(error) => {
                if error != rustix::io::Errno::INTR {
                    log::debug!("{name}: {error}");
                    thread::sleep(PAUSE);
                }
                continue;
            }
        };
        let mut flags = seen.clients.into_iter();
        clients.list.retain_mut(|client| {
            let flags = flags.next().unwrap_or(PollFlags::empty());
            flags.is_empty() || turn(&mut service, client, flags, &bounds)
        });
        let finished = service.finished();
        let places = !finished.is_empty();
        for (number, answer) in finished {
            // It may have left meanwhile.
            if let Some(client) = clients.list.iter_mut().find(|one| one.number == number) {
                client.give(answer, T::ONE_ANSWER);
            }
        }
        if places {
            clients
                .list
                .retain_mut(|client| client.doing != Doing::Waiting || hear(&mut service, client));
        }
        for client in &mut clients.list {
            if client.doing == Doing::Asking
                && let Some(subscription) = &mut client.subscription
            {
                let news = service.news(subscription);
                if !news.is_empty() {
                    client.tell(news);
                }
            }
        }
        clients.greet_silent_ones();
        clients.let_late_ones_go();
        if seen.connections
            && let Err(error) = admit(&mut service, &mut clients)
        {
            // There is room again when somebody else has gone.
            if !(is_scarce(&error) && clients.let_one_go()) {
                log::warn!("{name}: no connection is taken for a moment: {error}");
                paused = Instant::now().checked_add(PAUSE);
            }
        }
    }
}

struct Seen {
    connections: bool,
    clients: Vec<PollFlags>,
}

/// Waits until there is something to do.
fn wait<T: Service>(
    service: &T,
    clients: &Clients<T::Stream, T::Peer>,
    paused: Option<Instant>,
) -> Result<Seen, rustix::io::Errno> {
    let until = match (clients.next_deadline(), paused) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    };
    // A moment more, so that it has come when it is looked at.
    let limit = until.map(|until| {
        let left = until.saturating_duration_since(Instant::now());
        left.saturating_add(Duration::from_millis(1))
    });
    let limit: Option<Timespec> = limit.and_then(|limit| limit.try_into().ok());
    let listener = service.listener();
    let wakers = service.wakers();
    let mut all: Vec<PollFd<'_>> = clients
        .list
        .iter()
        .map(|client| {
            let wanted = match client.doing {
                // Only whether it leaves.
                Doing::Asking if client.ended => PollFlags::empty(),
                Doing::Asking | Doing::Leaving => PollFlags::IN,
                Doing::Taking | Doing::Told => PollFlags::OUT,
                // Likewise.
                Doing::Waiting | Doing::Served => PollFlags::empty(),
            };
            PollFd::new(client.stream(), wanted)
        })
        .collect();
    if paused.is_none() {
        all.push(PollFd::from_borrowed_fd(listener, PollFlags::IN));
    }
    let wakers = wakers.into_iter();
    all.extend(wakers.map(|waker| PollFd::from_borrowed_fd(waker, PollFlags::IN)));
    pulse::during(pulse::Doing::Resting, || {
        rustix::event::poll(&mut all, limit.as_ref())
    })?;
    let flags: Vec<PollFlags> = all.iter().map(PollFd::revents).collect();
    let (of_clients, others) = flags.split_at(clients.list.len().min(flags.len()));
    Ok(Seen {
        connections: paused.is_none() && others.first().is_some_and(|flags| !flags.is_empty()),
        clients: of_clients.to_vec(),
    })
}

/// One turn with a client for which there is something to do; whether it
/// stays.
fn turn<T: Service>(
    service: &mut T,
    client: &mut Client<T::Stream, T::Peer>,
    flags: PollFlags,
    bounds: &Bounds,
) -> bool {
    let turn = match client.doing {
        Doing::Asking if client.ended => Turn::Gone,
        Doing::Asking | Doing::Leaving => client.read(bounds),
        Doing::Taking | Doing::Told => client.write(),
        Doing::Waiting | Doing::Served if flags.intersects(PollFlags::HUP | PollFlags::ERR) => {
            Turn::Gone
        }
        Doing::Waiting | Doing::Served => Turn::Same,
    };
    match turn {
        Turn::Same => true,
        Turn::Heard => hear(service, client),
        Turn::Gone => false,
    }
}

/// Looks at what a client has sent; whether it stays.
fn hear<T: Service>(service: &mut T, client: &mut Client<T::Stream, T::Peer>) -> bool {
    let heard = service.hear(client);
    follow(heard, client)
}

fn follow<S: Read + Write + AsFd, P: Copy>(heard: Heard, client: &mut Client<S, P>) -> bool {
    match heard {
        // Who has subscribed may have nothing more to say.
        Heard::More if client.ended && client.greeting.is_some() => {
            client.give(Vec::new(), true);
            true
        }
        Heard::More => !client.ended || client.subscription.is_some(),
        Heard::Served => {
            client.wait(Doing::Served);
            true
        }
        Heard::Waiting => {
            client.wait(Doing::Waiting);
            true
        }
        // It is sent when the next turn finds that it takes it.
        Heard::Answer(answer) => {
            client.give(answer, false);
            true
        }
        Heard::Last(answer) => {
            client.give(answer, true);
            true
        }
    }
}

/// Takes some of the connections in that wait.
fn admit<T: Service>(service: &mut T, clients: &mut Clients<T::Stream, T::Peer>) -> io::Result<()> {
    for _ in 0..AT_ONCE {
        let (stream, peer) = match service.accept() {
            Ok(accepted) => accepted,
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock => return Ok(()),
                // It has gone already.
                io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted => continue,
                _ => return Err(error),
            },
        };
        if !clients.admit(stream, peer, T::same) {
            log::debug!("a client is turned away: all have requests under way");
            continue;
        }
        if let Some(client) = clients.list.last_mut() {
            match service.greet(client.peer) {
                Greeting::None => {}
                Greeting::Line(line) => client.greeting = Some(line),
                Greeting::Last(line) => client.give(line, true),
            }
        }
    }
    Ok(())
}

fn is_scarce(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM)
    )
}
