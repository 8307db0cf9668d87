//! The control socket: takes requests line by line, and answers each. What is
//! said there is in [`protocol`](crate::protocol).
//!
//! One thread has all connections, and none of them keeps it waiting. Each
//! line is carried out on a thread of its own, as it may have to wait for a
//! file system: only so many at a time, of which those that answer from memory
//! have some for themselves, and no user has all.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use serde::Serialize;
use serde_json::value::RawValue;
use vhost_backend::Peer;

use super::clients::{Bounds, Client};
use super::events::{Events, Subscription};
use super::serving::{self, Greeting, Heard, Service};
use crate::host::feed::Listener;
use crate::host::sandbox::{self, Kind};
use crate::host::socket::{self, SocketError, SocketFile};
use crate::host::sys;
use crate::protocol::events::{Event, Subscribed};
use crate::protocol::failure::{Code, Failure};
use crate::protocol::hello::{HELLO, Hello};
use crate::protocol::requests::OfConnection;
use crate::protocol::rpc::{self, Call, Form, Line, Method};
use crate::protocol::schema;

pub use crate::protocol::client::ask;
pub use crate::protocol::{Answer, Request};

/// Longest request line in bytes, with its end.
pub const LINE_BYTES: usize = 4 << 10;

const BOUNDS: Bounds = Bounds {
    all: 160,
    each: 128,
    request: LINE_BYTES,
    answers: 16 << 20,
    // Forgotten ones need not be kept.
    asking: Duration::from_secs(300),
    taking: Duration::from_secs(10),
    leaving: Duration::from_secs(1),
    // Who asks at once in 0.1.0's form has no greeting.
    greeting: Duration::from_millis(250),
};

/// Requests under way of either kind: those that may wait for a file system,
/// and those that do not.
const UNDER_WAY: usize = 8;
/// And of one user.
const UNDER_WAY_EACH: usize = 6;

/// What carries out requests; called from several threads.
pub(crate) trait Controlled: Send + Sync + 'static {
    /// What it says when it has done so.
    type Done: Serialize;

    /// Carries out one request, of this user.
    fn carry_out(&self, request: Request, from: Caller) -> Answer<Self::Done>;
}

/// Who asks; where the kernel does not tell, nobody in particular.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Caller(Option<Peer>);

impl Caller {
    fn uid(self) -> Option<u32> {
        self.0.map(|peer| peer.uid)
    }

    /// Whether it may ask: the user that runs this process, and root.
    fn may_ask(self) -> bool {
        let own = rustix::process::geteuid().as_raw();
        self.uid().is_some_and(|uid| uid == own || uid == 0)
    }
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(peer) => peer.fmt(f),
            None => f.write_str("somebody unknown"),
        }
    }
}

/// Binds the control socket (mode 0600).
///
/// # Errors
/// As [`socket::bind`].
pub(crate) fn bind(path: &Path) -> Result<(UnixListener, SocketFile), SocketError> {
    socket::bind(path, "--control-path")
}

/// Serves the control socket on a thread of its own, for the life of the
/// process.
///
/// # Errors
/// The thread or what it needs cannot be made.
pub(crate) fn start(
    listener: UnixListener,
    target: Arc<impl Controlled>,
    events: Listener<Event>,
) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let control = Control {
        listener,
        target,
        events: Events::new(events),
        ends: Arc::new(Ends {
            answers: Mutex::default(),
            event: sys::event()?,
        }),
        under_way: Vec::new(),
    };
    thread::Builder::new()
        .name("control".to_owned())
        .spawn(move || {
            sandbox::enter(Kind::Control);
            serving::serve(control, BOUNDS, "control socket");
        })?;
    Ok(())
}

struct Control<C> {
    listener: UnixListener,
    target: Arc<C>,
    events: Events,
    ends: Arc<Ends>,
    under_way: Vec<UnderWay>,
}

/// A request that a thread carries out.
struct UnderWay {
    client: u64,
    uid: Option<u32>,
    brief: bool,
}

/// Answers to requests that have ended.
struct Ends {
    answers: Mutex<Vec<(u64, Vec<u8>)>>,
    /// Readable while there are some.
    event: OwnedFd,
}

impl<C: Controlled> Service for Control<C> {
    type Stream = UnixStream;
    type Peer = Caller;

    fn accept(&self) -> io::Result<(UnixStream, Caller)> {
        let (stream, _) = self.listener.accept()?;
        stream.set_nonblocking(true)?;
        let caller = Caller(Peer::of(&stream));
        Ok((stream, caller))
    }

    fn listener(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }

    fn same(one: Caller, other: Caller) -> bool {
        one.uid() == other.uid()
    }

    fn greet(&self, from: Caller) -> Greeting {
        if from.may_ask() {
            let hello = rpc::notification(HELLO, &Hello::own());
            return Greeting::Line(line_of(hello));
        }
        log::warn!(
            "control socket: refused: {from}: only the user of this process may ask, and root"
        );
        let line = format!("{from}: only the user that runs extentd may ask, and root");
        Greeting::Last(failure_line(Code::NotPermitted, line))
    }

    fn hear(&mut self, client: &mut Client<UnixStream, Caller>) -> Heard {
        let received = &client.received;
        let end = received.iter().position(|&byte| byte == b'\n');
        let length = match end {
            Some(at) => at.saturating_add(1),
            None if received.len() >= LINE_BYTES => {
                // Where the next request begins is unknown from here on.
                let line = format!("a line is longer than {LINE_BYTES} bytes");
                return Heard::Last(failure_line(Code::NotARequest, line));
            }
            // A last line without an end is still a request.
            None if client.ended && !received.is_empty() => received.len(),
            None => return Heard::More,
        };
        let line = rpc::read(received.get(..length).unwrap_or_default());
        if line.form == Form::Command {
            client.greeting = None;
        }
        let heard = self.begin(client, line);
        if !matches!(heard, Heard::Waiting) {
            client.received.drain(..length);
        }
        heard
    }

    fn wakers(&self) -> Vec<BorrowedFd<'_>> {
        vec![self.ends.event.as_fd(), self.events.event()]
    }

    fn news(&self, of: &mut Subscription) -> Vec<u8> {
        self.events.news(of)
    }

    fn finished(&mut self) -> Vec<(u64, Vec<u8>)> {
        self.events.gather();
        if !sys::event_take(&self.ends.event) {
            return Vec::new();
        }
        let mut answers = self
            .ends
            .answers
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let answers = std::mem::take(&mut *answers);
        self.under_way
            .retain(|one| answers.iter().all(|(client, _)| *client != one.client));
        answers
    }
}

impl<C: Controlled> Control<C> {
    /// Has a line carried out, if there is a place for it.
    fn begin(&mut self, client: &mut Client<UnixStream, Caller>, line: Line) -> Heard {
        let from = client.peer;
        let mut of_disk = line.calls.iter().filter_map(|call| match &call.method {
            Ok(Method::Disk(request)) => Some(request.is_brief()),
            _ => None,
        });
        let Some(first) = of_disk.next() else {
            let steps = self.steps(client, line.calls);
            return Heard::Answer(carry_out(&*self.target, steps, line.form, from));
        };
        let brief = first && of_disk.all(|brief| brief);
        let uid = from.uid();
        let of_kind = || self.under_way.iter().filter(|one| one.brief == brief);
        let mine = of_kind().filter(|one| one.uid == uid).count();
        if of_kind().count() >= UNDER_WAY || mine >= UNDER_WAY_EACH {
            return Heard::Waiting;
        }
        let (target, ends) = (Arc::clone(&self.target), Arc::clone(&self.ends));
        let (number, form) = (client.number, line.form);
        // For the case that there is no thread for it.
        let ids: Vec<_> = line.calls.iter().map(|call| call.id.clone()).collect();
        let steps = self.steps(client, line.calls);
        let started = thread::Builder::new()
            .name("control-conn".to_owned())
            .spawn(move || {
                let answer = carry_out(&*target, steps, form, from);
                ends.answers
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push((number, answer));
                sys::event_set(&ends.event);
            });
        match started {
            Ok(_) => {
                self.under_way.push(UnderWay {
                    client: number,
                    uid,
                    brief,
                });
                Heard::Served
            }
            Err(error) => {
                log::warn!("control socket: no thread for a request: {error}");
                let line = format!("no thread for this request: {error}: try again later");
                let failure = Failure::new(Code::Busy, line);
                let failed = |id: Box<_>| form.response::<()>(&id, Err(&failure));
                Heard::Answer(joined(form, ids.into_iter().flatten().map(failed)))
            }
        }
    }

    /// What is left to do for calls, once those have been done that concern
    /// the connection.
    fn steps(&self, client: &mut Client<UnixStream, Caller>, calls: Vec<Call>) -> Vec<Step> {
        let calls = calls.into_iter();
        let steps = calls.map(|Call { id, method }| {
            let todo = match method {
                Ok(Method::Disk(request)) => Todo::Ask(request),
                Ok(Method::Connection(OfConnection::Discover {})) => Todo::Describe,
                Ok(Method::Connection(OfConnection::Subscribe { kinds })) => {
                    let (subscription, subscribed) = self.events.subscribe(kinds);
                    client.subscription = subscription;
                    Todo::Subscribed(subscribed)
                }
                Err(failure) => Todo::Fail(failure),
            };
            Step { id, todo }
        });
        steps.collect()
    }
}

/// What is left to do for a call.
struct Step {
    id: Option<Box<RawValue>>,
    todo: Todo,
}

enum Todo {
    Ask(Request),
    Describe,
    Subscribed(Subscribed),
    Fail(Failure),
}

/// Carries out what a line asks for, one after the other, and answers it.
fn carry_out(target: &impl Controlled, steps: Vec<Step>, form: Form, from: Caller) -> Vec<u8> {
    let answers = steps
        .into_iter()
        .filter_map(|Step { id, todo }| match todo {
            Todo::Ask(request) => match target.carry_out(request, from) {
                Answer::Result(done) => Some(form.response(&id?, Ok(&done))),
                Answer::Error(failure) => Some(form.response::<()>(&id?, Err(&failure))),
            },
            Todo::Describe => Some(form.response(&id?, Ok(schema::document()))),
            Todo::Subscribed(subscribed) => Some(form.response(&id?, Ok(&subscribed))),
            Todo::Fail(failure) => Some(form.response::<()>(&id?, Err(&failure))),
        });
    joined(form, answers)
}

/// The answers to a line; nothing where there are none.
fn joined(form: Form, answers: impl Iterator<Item = String>) -> Vec<u8> {
    let answers: Vec<String> = answers.collect();
    match (answers.as_slice(), form) {
        ([], _) => Vec::new(),
        (all, Form::Batch) => line_of(format!("[{}]", all.join(","))),
        (all, Form::Call | Form::Command) => line_of(all.concat()),
    }
}

fn line_of(mut text: String) -> Vec<u8> {
    text.push('\n');
    text.into_bytes()
}

/// Why somebody is to leave.
fn failure_line(code: Code, line: String) -> Vec<u8> {
    let failure = Failure::new(code, line);
    line_of(rpc::response_to_nothing(&failure))
}

#[cfg(test)]
mod tests;
