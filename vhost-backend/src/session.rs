//! One front-end's connection: takes its messages one by one, and sends it
//! changes of the configuration.

pub(crate) mod admission;
pub(crate) mod areas;
pub(crate) mod back_channel;
pub(crate) mod channel;
pub(crate) mod config_space;
pub(crate) mod device_state;
pub(crate) mod features;
pub(crate) mod handler;
pub(crate) mod image;
pub(crate) mod keeping;
pub(crate) mod listener;
pub(crate) mod parcel;
pub(crate) mod poller;
pub(crate) mod requests;
mod resuming;
pub(crate) mod server;
pub(crate) mod vring;

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use epoll::Events;
use vhost::vhost_user::message::{FrontendReq, VhostUserProtocolFeatures};
use vhost::vhost_user::{BackendReqHandler, Error};

use self::admission::Terms;
use self::back_channel::BackChannel;
use self::channel::{Channel, Message, Next};
use self::handler::Handler;

use self::poller::Poller;
use crate::device::Device;
use crate::error::Refusal;
use crate::peer::Peer;
use crate::status::Connected;
use crate::sys;

/// How long a front-end may leave a message unfinished, or our replies
/// unread, before it is given up.
const PATIENCE: Duration = Duration::from_secs(10);

/// When to try again to tell a front-end that does not read.
const AGAIN: Duration = Duration::from_millis(250);

/// Messages served before other events are looked at.
const TURN: usize = 64;

/// Refusals that are logged as warnings, for each connection.
const LOUD_REFUSALS: u32 = 20;

pub(crate) type Shared<D> = Arc<Mutex<Handler<D>>>;

/// The handler; a panic elsewhere does not take it away.
pub(crate) fn lock<D: Device>(handler: &Shared<D>) -> MutexGuard<'_, Handler<D>> {
    handler.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether the connection goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// All messages are served; the poller tells when there are more.
    Waits,
    /// There may be more to do at once.
    Busy,
    /// The front-end has gone, or is given up.
    Over,
}

/// A connected front-end.
pub(crate) struct Session<D: Device> {
    handler: Shared<D>,
    channel: Channel,
    /// Decodes and answers messages, from one end of a socket pair.
    requests: BackendReqHandler<Mutex<Handler<D>>>,
    /// The other end: gives it one message at a time and takes its answer.
    feed: UnixStream,
    /// Its own end, to clear what it leaves of a message it gives up on.
    fed: UnixStream,
    back: Option<BackChannel>,
    /// A change of the configuration is not yet told; not before this.
    config_changed: Option<Instant>,
    /// Nothing goes on until the front-end does its part; since then.
    stalled: Option<Instant>,
    /// The crate has answered GET_FEATURES, without which it sends no
    /// acknowledgements.
    features_read: bool,
    refusals: u32,
    /// It has set something up, as a front-end does that has a guest.
    is_front_end: bool,
    /// The process that has connected; readable once that has ended.
    process: Option<OwnedFd>,
    /// Something has come since that may have changed what a next process needs.
    changes: bool,
    /// The request that was served last; `None` if nothing has ever come.
    last: Option<u32>,
    connected: Connected,
}

impl<D: Device> Session<D> {
    pub(crate) fn new(
        stream: UnixStream,
        handler: &Shared<D>,
        poller: &Poller,
        token: u64,
    ) -> io::Result<Self> {
        let peer = Peer::of(&stream);
        let process = sys::peer_process(&stream);
        if let Some(process) = &process {
            poller.add(process, token, Events::EPOLLIN | Events::EPOLLET)?;
        }
        // Nothing is read or written that would have to wait.
        stream.set_nonblocking(false)?;
        let edges = Events::EPOLLIN | Events::EPOLLOUT | Events::EPOLLRDHUP | Events::EPOLLET;
        poller.add(&stream, token, edges)?;
        let (feed, fed) = UnixStream::pair()?;
        lock(handler).front_end = Some(stream.try_clone()?);
        let requests = BackendReqHandler::from_stream(fed.try_clone()?, Arc::clone(handler));
        Ok(Self {
            handler: Arc::clone(handler),
            channel: Channel::new(stream),
            requests,
            feed,
            fed,
            back: None,
            config_changed: None,
            stalled: None,
            features_read: false,
            refusals: 0,
            is_front_end: false,
            process,
            changes: false,
            last: None,
            connected: Connected {
                peer,
                since: Instant::now(),
            },
        })
    }

    /// When [`serve`](Self::serve) has something to do without an event.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let patience = self.stalled.map(|since| since + PATIENCE);
        let news = self.config_changed.filter(|_| self.may_send_news());
        [patience, news].into_iter().flatten().min()
    }

    /// The front-end has gone, and all that it has sent was taken.
    pub(crate) fn has_hung_up(&self) -> bool {
        sys::has_sent(self.channel.stream()) == Some(false)
    }

    /// Who is at the other end.
    pub(crate) fn connected(&self) -> Connected {
        self.connected
    }

    /// It has to give way to another one: it has set nothing up, or left a
    /// message unfinished. Since when, and what it has done.
    pub(crate) fn gives_way(&self) -> Option<(Instant, &'static str)> {
        let since = self.connected.since;
        match (self.stalled, self.last) {
            (Some(since), _) => Some((since, "it has left a message or a reply lying")),
            (None, None) => Some((since, "it has sent nothing")),
            (None, Some(_)) if !self.is_front_end => Some((since, "it has set nothing up")),
            (None, Some(_)) => None,
        }
    }

    /// It has a back-end channel, and the kernel does not tell whether its
    /// process is there.
    pub(crate) fn may_be_orphaned(&self) -> bool {
        self.back.is_some() && self.process.is_none()
    }

    /// Lets the back-end channel go if the process that has connected is not
    /// there any more: it may have sent its end of this very connection, which
    /// would not end as long as we have that. Where the kernel does not tell of
    /// the process, one that `waits` decides.
    pub(crate) fn drop_orphaned_channel(&mut self, waits: bool) {
        if self.back.is_none() {
            return;
        }
        let gone = match &self.process {
            Some(process) => sys::is_readable(process),
            None => waits,
        };
        if gone {
            self.back = None;
            self.changes = true;
            log::info!(
                "the process that has connected is gone: its back-end channel is closed, and changes of the size are not told any more"
            );
        }
    }

    /// The capacity has changed; the front-end is told as soon as a ring runs
    /// (VU-15) and it has a channel for that.
    pub(crate) fn capacity_changed(&mut self) {
        self.config_changed = Some(Instant::now());
        self.changes = true;
    }

    /// Serves the messages that have come.
    pub(crate) fn serve(&mut self) -> Outcome {
        self.drop_orphaned_channel(false);
        let outcome = self.serve_messages().unwrap_or_else(|error| {
            log::warn!("the front-end is disconnected: {error}");
            Outcome::Over
        });
        if outcome != Outcome::Over {
            self.send_news();
        }
        outcome
    }

    fn serve_messages(&mut self) -> io::Result<Outcome> {
        for _ in 0..TURN {
            if !self.channel.is_writable()? {
                return self.stall("it does not read its replies");
            }
            match self.channel.next()? {
                Next::Message(message) => {
                    self.stalled = None;
                    self.serve_message(&message)?;
                }
                Next::Nothing => {
                    self.stalled = None;
                    return Ok(Outcome::Waits);
                }
                Next::Incomplete => {
                    self.last.get_or_insert(0);
                    return self.stall("it sent half a message");
                }
                Next::Gone => {
                    self.explain_leaving();
                    return Ok(Outcome::Over);
                }
                Next::Garbage => {
                    return Err(io::Error::other("it sent something that is no message"));
                }
            }
        }
        Ok(Outcome::Busy)
    }

    /// QEMU and cloud-hypervisor leave as soon as they hear of fewer queues
    /// than they are to have.
    fn explain_leaving(&self) {
        if self.last == Some(u32::from(FrontendReq::GET_QUEUE_NUM)) {
            log::warn!(
                "the front-end left when it was told that there are {} queues: give a larger --num-queues, or leave it out, or give the front-end fewer queues",
                lock(&self.handler).queues()
            );
        }
    }

    fn stall(&mut self, why: &'static str) -> io::Result<Outcome> {
        let since = *self.stalled.get_or_insert_with(Instant::now);
        if since.elapsed() >= PATIENCE {
            return Err(io::Error::new(io::ErrorKind::TimedOut, why));
        }
        Ok(Outcome::Waits)
    }

    fn serve_message(&mut self, message: &Message) -> io::Result<()> {
        let terms = lock(&self.handler).terms();
        self.last = Some(message.request);
        self.changes = true;
        let admitted = terms.admit(message, self.channel.payload(message));
        let admitted = admitted.and_then(|request| {
            let mut kinds = self.channel.kinds();
            kinds.try_for_each(|kind| admission::takes(request, kind))?;
            Ok(request)
        });
        if let Ok(request) = &admitted {
            self.is_front_end |= admission::is_of_front_end(*request);
        }
        match admitted {
            Ok(FrontendReq::SET_BACKEND_REQ_FD) => self.set_back_channel(message, &terms),
            Ok(FrontendReq::GET_INFLIGHT_FD) => self.get_inflight(message, &terms),
            Ok(FrontendReq::SET_INFLIGHT_FD) => self.set_inflight(message, &terms),
            Ok(FrontendReq::SET_LOG_BASE) => self.set_log_base(message),
            Ok(request) => self.pass_on(message, request),
            Err(refusal) => self.refuse(message, &terms, &refusal),
        }
    }

    /// Lets the crate decode and answer a message.
    fn pass_on(&mut self, message: &Message, request: FrontendReq) -> io::Result<()> {
        self.channel.forward(&self.feed)?;
        let failed = match self.requests.handle_request() {
            Ok(()) => false,
            Err(Error::SocketBroken(e) | Error::SocketError(e) | Error::SocketConnect(e)) => {
                return Err(e);
            }
            Err(error) => {
                channel::take_all(&self.fed)?;
                self.log_refusal(message, &error);
                true
            }
        };
        let refusal = lock(&self.handler).take_state_refusal();
        if let Some(refusal) = refusal {
            self.log_refusal(message, &refusal);
        }
        let answer = channel::take_all(&self.feed)?;
        if !answer.bytes.is_empty() {
            self.channel.relay(&answer)?;
        }
        self.features_read |= request == FrontendReq::GET_FEATURES;
        let acknowledged = lock(&self.handler).terms().reply_ack() && message.need_reply;
        if acknowledged && !self.features_read && !admission::always_answered(request) {
            self.channel
                .reply(message.request, &u64::from(failed).to_ne_bytes())?;
        }
        Ok(())
    }

    /// The crate would keep the channel's socket to itself.
    fn set_back_channel(&mut self, message: &Message, terms: &Terms) -> io::Result<()> {
        let fd = self.channel.take_fds().pop();
        let failed = match fd.map(BackChannel::new) {
            Some(Ok(channel)) => {
                self.back = Some(channel);
                false
            }
            Some(Err(error)) => {
                self.log_refusal(message, &error);
                true
            }
            None => true,
        };
        self.acknowledge(message, terms, failed)
    }

    fn acknowledge(&self, message: &Message, terms: &Terms, failed: bool) -> io::Result<()> {
        if message.need_reply && terms.reply_ack() {
            self.channel
                .reply(message.request, &u64::from(failed).to_ne_bytes())?;
        }
        Ok(())
    }

    fn refuse(&mut self, message: &Message, terms: &Terms, refusal: &Refusal) -> io::Result<()> {
        self.log_refusal(message, refusal);
        let payload = self.channel.payload(message);
        let reply = admission::refusal_reply(message, payload, terms);
        self.channel.discard();
        match reply {
            Some((request, reply)) => self.channel.reply(request, &reply),
            None => Ok(()),
        }
    }

    fn log_refusal(&mut self, message: &Message, why: &dyn std::fmt::Display) {
        self.refusals = self.refusals.saturating_add(1);
        let level = if self.refusals <= LOUD_REFUSALS {
            log::Level::Warn
        } else {
            log::Level::Debug
        };
        log::log!(
            level,
            "refused request {} of the front-end: {why}",
            message.request
        );
    }

    fn may_send_news(&self) -> bool {
        let handler = lock(&self.handler);
        let negotiated = handler.terms().negotiated;
        self.back.is_some()
            && handler.rings_running() > 0
            && negotiated.has_protocol(VhostUserProtocolFeatures::CONFIG)
    }

    fn send_news(&mut self) {
        let due = self.config_changed.is_some_and(|at| at <= Instant::now());
        let Some(back) = self.back.as_ref().filter(|_| due && self.may_send_news()) else {
            return;
        };
        match back.config_changed() {
            Ok(()) => {
                self.config_changed = None;
                self.changes = true;
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                self.config_changed = Some(Instant::now() + AGAIN);
            }
            Err(error) => {
                log::warn!("the back-end channel is lost: {error}");
                self.back = None;
                self.changes = true;
            }
        }
    }
}

impl Terms {
    /// The front-end may have more than one queue.
    pub(crate) fn multiqueue(&self) -> bool {
        self.negotiated.has_protocol(VhostUserProtocolFeatures::MQ)
    }

    /// Requests that ask for it are acknowledged.
    pub(crate) fn reply_ack(&self) -> bool {
        self.negotiated
            .has_protocol(VhostUserProtocolFeatures::REPLY_ACK)
    }
}
