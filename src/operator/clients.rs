//! Clients of a socket, and what each and all of them may have: connections,
//! bytes, time. None of them is ever waited for.

use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use super::events::Subscription;

/// What clients of a socket may have.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// Connections in all.
    pub all: usize,
    /// Connections of one peer.
    pub each: usize,
    /// Bytes of a request, with its end.
    pub request: usize,
    /// Bytes of answers that are not taken yet, in all.
    pub answers: usize,
    /// For sending one request.
    pub asking: Duration,
    /// For taking one answer.
    pub taking: Duration,
    /// For leaving after the last answer.
    pub leaving: Duration,
    /// How long who has connected may be silent before it is greeted.
    pub greeting: Duration,
}

/// What a client does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Doing {
    /// It sends a request.
    Asking,
    /// Its request waits for a place among those under way.
    Waiting,
    /// Its request is under way.
    Served,
    /// It takes its answer.
    Taking,
    /// It takes events, as fast or as slowly as it likes.
    Told,
    /// It has its last answer. What it still sends is read, as the kernel
    /// would else throw the answer away.
    Leaving,
}

/// What became of a turn with a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// Nothing changed.
    Same,
    /// It may have sent a request.
    Heard,
    /// It is to be let go.
    Gone,
}

/// One connection.
#[derive(Debug)]
pub(super) struct Client<S, P> {
    /// Not used for another one.
    pub number: u64,
    pub peer: P,
    pub doing: Doing,
    /// What it has sent, and is not answered yet.
    pub received: Vec<u8>,
    /// It sends no more.
    pub ended: bool,
    /// What it is told without asking.
    pub subscription: Option<Subscription>,
    /// Its greeting, which goes before all else that it is told.
    pub greeting: Option<Vec<u8>>,
    stream: S,
    /// Since when it does what it does.
    since: Instant,
    answer: Vec<u8>,
    sent: usize,
    last: bool,
}

/// What is read at once, in bytes.
const PIECE: usize = 4096;

impl<S: Read + Write + AsFd, P: Copy> Client<S, P> {
    pub(super) fn stream(&self) -> &S {
        &self.stream
    }

    fn begin(&mut self, doing: Doing) {
        self.doing = doing;
        self.since = Instant::now();
    }

    /// Its request is looked at by somebody who answers later, or waits for
    /// that.
    pub(super) fn wait(&mut self, doing: Doing) {
        if self.doing == Doing::Asking {
            self.begin(doing);
        } else {
            self.doing = doing;
        }
    }

    /// Gives it an answer, after the last of which it is to leave.
    pub(super) fn give(&mut self, answer: Vec<u8>, last: bool) {
        self.answer = self.greeting.take().unwrap_or_default();
        self.answer.extend_from_slice(&answer);
        self.sent = 0;
        self.last = last;
        self.begin(Doing::Taking);
    }

    /// Tells it something.
    pub(super) fn tell(&mut self, news: Vec<u8>) {
        self.give(news, false);
        self.doing = Doing::Told;
    }

    /// When it is to be greeted, if it asks for nothing until then.
    fn greeted_at(&self, bounds: &Bounds) -> Option<Instant> {
        let owed = self.doing == Doing::Asking && self.greeting.is_some();
        owed.then(|| self.since.checked_add(bounds.greeting))?
    }

    /// When it has taken too long for what it does; `None` where that is not
    /// its own fault, or harms nobody: it gives way to others all the same.
    fn deadline(&self, bounds: &Bounds) -> Option<Instant> {
        let limit = match self.doing {
            Doing::Asking if self.subscription.is_some() => return None,
            Doing::Asking => bounds.asking,
            Doing::Taking => bounds.taking,
            Doing::Leaving => bounds.leaving,
            Doing::Waiting | Doing::Served | Doing::Told => return None,
        };
        self.since.checked_add(limit)
    }

    /// Reads what is there, up to what a request may have.
    pub(super) fn read(&mut self, bounds: &Bounds) -> Turn {
        let mut piece = [0; PIECE];
        let room = match self.doing {
            Doing::Asking => bounds.request.saturating_sub(self.received.len()),
            _ => PIECE,
        };
        let into = piece.get_mut(..room.min(PIECE)).unwrap_or_default();
        let count = match self.stream.read(into) {
            Ok(count) => count,
            Err(error) if is_soon(&error) => return Turn::Same,
            Err(_) => return Turn::Gone,
        };
        match self.doing {
            Doing::Asking => {
                self.ended = count == 0;
                let read = into.get(..count).unwrap_or_default();
                self.received.extend_from_slice(read);
                Turn::Heard
            }
            Doing::Leaving if count == 0 => Turn::Gone,
            _ => Turn::Same,
        }
    }

    /// Sends what is left of the answer, as far as it takes it.
    pub(super) fn write(&mut self) -> Turn {
        while let Some(rest) = self.answer.get(self.sent..).filter(|rest| !rest.is_empty()) {
            match self.stream.write(rest) {
                Ok(count) => self.sent = self.sent.saturating_add(count),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if is_soon(&error) => return Turn::Same,
                Err(_) => return Turn::Gone,
            }
        }
        self.answer = Vec::new();
        self.sent = 0;
        if !self.last {
            self.begin(Doing::Asking);
            return Turn::Heard;
        }
        self.received = Vec::new();
        self.begin(Doing::Leaving);
        match rustix::net::shutdown(&self.stream, rustix::net::Shutdown::Write) {
            Ok(()) if !self.ended => Turn::Same,
            _ => Turn::Gone,
        }
    }
}

fn is_soon(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
    )
}

/// All connections of a socket.
#[derive(Debug)]
pub(super) struct Clients<S, P> {
    pub list: Vec<Client<S, P>>,
    pub bounds: Bounds,
    next: u64,
}

impl<S: Read + Write + AsFd, P: Copy> Clients<S, P> {
    pub(super) fn new(bounds: Bounds) -> Self {
        Self {
            list: Vec::new(),
            bounds,
            next: 0,
        }
    }

    /// Takes a connection in. Where it is one too many, another one has gone:
    /// of its own peer, if that has its share, or else of the one that has
    /// most; there the one that has been silent longest. `false` if there is
    /// none that could go.
    pub(super) fn admit(&mut self, stream: S, peer: P, same: impl Fn(P, P) -> bool) -> bool {
        let of = |list: &[Client<S, P>], peer| {
            let mine = list.iter().filter(|one| same(one.peer, peer));
            mine.count()
        };
        if of(&self.list, peer) >= self.bounds.each {
            if !self.let_go(|list| silent(list, |one| same(one.peer, peer))) {
                return false;
            }
        } else if self.list.len() >= self.bounds.all {
            let shares: Vec<usize> = self
                .list
                .iter()
                .map(|one| match one.doing {
                    Doing::Served => 0,
                    _ => of(&self.list, one.peer),
                })
                .collect();
            let most = shares.iter().copied().max().unwrap_or(0);
            let greedy = |list: &[Client<S, P>]| {
                let at = shares.iter().position(|&share| share == most)?;
                let peer = list.get(at)?.peer;
                silent(list, |one| same(one.peer, peer))
            };
            if !self.let_go(greedy) {
                return false;
            }
        }
        self.next = self.next.wrapping_add(1);
        self.list.push(Client {
            number: self.next,
            peer,
            doing: Doing::Asking,
            received: Vec::new(),
            ended: false,
            subscription: None,
            greeting: None,
            stream,
            since: Instant::now(),
            answer: Vec::new(),
            sent: 0,
            last: false,
        });
        true
    }

    fn let_go(&mut self, choose: impl Fn(&[Client<S, P>]) -> Option<usize>) -> bool {
        let Some(at) = choose(&self.list) else {
            return false;
        };
        log::debug!("a client that was silent longest is let go: another one waits");
        self.list.remove(at);
        true
    }

    /// Lets the one go that has been silent longest, for want of descriptors.
    pub(super) fn let_one_go(&mut self) -> bool {
        self.let_go(|list| silent(list, |_| true))
    }

    /// Lets those go whose time is over, and those that keep too much of
    /// answers waiting.
    pub(super) fn let_late_ones_go(&mut self) {
        let (bounds, now) = (self.bounds, Instant::now());
        self.list
            .retain(|one| one.deadline(&bounds).is_none_or(|end| end > now));
        let kept = |list: &[Client<S, P>]| -> usize {
            let sizes = list.iter().map(|one| one.answer.len());
            sizes.fold(0, usize::saturating_add)
        };
        while kept(&self.list) > bounds.answers
            && self.let_go(|list| silent(list, |one| one.doing == Doing::Taking))
        {}
    }

    /// Greets those who have been silent.
    pub(super) fn greet_silent_ones(&mut self) {
        let (bounds, now) = (self.bounds, Instant::now());
        for one in &mut self.list {
            if one.greeted_at(&bounds).is_some_and(|at| at <= now) {
                one.give(Vec::new(), false);
            }
        }
    }

    /// When the next one is to be greeted, or its time is over.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        let ends = self.list.iter().filter_map(|one| {
            let greeted = one.greeted_at(&self.bounds);
            greeted.or_else(|| one.deadline(&self.bounds))
        });
        ends.min()
    }
}

/// The one that has been silent longest, of those whose request is not under
/// way; those that leave come first.
fn silent<S, P>(list: &[Client<S, P>], among: impl Fn(&Client<S, P>) -> bool) -> Option<usize> {
    let idle = list
        .iter()
        .enumerate()
        .filter(|(_, one)| one.doing != Doing::Served && among(one));
    idle.min_by_key(|(_, one)| (one.doing != Doing::Leaving, one.since))
        .map(|(at, _)| at)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    const BOUNDS: Bounds = Bounds {
        all: 6,
        each: 4,
        request: 8,
        answers: 10,
        asking: Duration::from_secs(60),
        taking: Duration::from_secs(60),
        leaving: Duration::ZERO,
        greeting: Duration::ZERO,
    };

    type Us = Clients<UnixStream, u32>;

    fn admit(clients: &mut Us, peer: u32) -> bool {
        let (stream, _) = UnixStream::pair().unwrap();
        clients.admit(stream, peer, |one, other| one == other)
    }

    fn peers(clients: &Us) -> Vec<u32> {
        clients.list.iter().map(|one| one.peer).collect()
    }

    fn numbers(clients: &Us) -> Vec<u64> {
        clients.list.iter().map(|one| one.number).collect()
    }

    #[test]
    fn a_peer_that_has_its_share_makes_room_itself() {
        let mut clients = Us::new(BOUNDS);
        for peer in [7, 1, 1, 1, 1, 1] {
            assert!(admit(&mut clients, peer));
        }
        assert_eq!(numbers(&clients), [1, 3, 4, 5, 6]);
    }

    #[test]
    fn where_all_is_taken_the_one_with_most_gives_its_most_silent() {
        let mut clients = Us::new(BOUNDS);
        for peer in [7, 1, 1, 2, 1, 2] {
            assert!(admit(&mut clients, peer));
        }
        clients.list[1].wait(Doing::Served);
        assert!(admit(&mut clients, 8));
        assert_eq!(peers(&clients), [7, 1, 2, 1, 2, 8], "the third has gone");
        clients.list[1].give(Vec::new(), true);
        clients.list[1].write();
        assert!(admit(&mut clients, 9));
        assert_eq!(peers(&clients), [7, 2, 1, 2, 8, 9], "who leaves goes first");
    }

    #[test]
    fn who_is_served_never_gives_way() {
        let mut clients = Us::new(BOUNDS);
        for peer in [1, 1, 1, 1] {
            assert!(admit(&mut clients, peer));
        }
        for one in &mut clients.list {
            one.wait(Doing::Served);
        }
        assert!(!admit(&mut clients, 1));
        assert!(admit(&mut clients, 2));
        assert!(clients.let_one_go());
        assert!(!clients.let_one_go());
    }

    #[test]
    fn who_says_nothing_is_greeted_before_it_is_late() {
        let mut clients = Us::new(BOUNDS);
        assert!(admit(&mut clients, 1) && admit(&mut clients, 2));
        clients.list[0].greeting = Some(b"hello".to_vec());
        clients.greet_silent_ones();
        let doing: Vec<Doing> = clients.list.iter().map(|one| one.doing).collect();
        assert_eq!(doing, [Doing::Taking, Doing::Asking]);
        assert_eq!(clients.list[0].answer, b"hello");
        clients.list[0].give(b"more".to_vec(), false);
        assert_eq!(clients.list[0].answer, b"more", "once");
    }

    #[test]
    fn who_is_late_or_keeps_too_much_waiting_goes() {
        let mut clients = Us::new(BOUNDS);
        for peer in 0..4 {
            assert!(admit(&mut clients, peer));
        }
        for one in clients.list.iter_mut().take(3) {
            one.give(vec![0; 5], false);
        }
        clients.let_late_ones_go();
        assert_eq!(peers(&clients), [1, 2, 3]);
        assert!(clients.next_deadline().unwrap() > Instant::now());
        clients.list[2].begin(Doing::Leaving);
        clients.let_late_ones_go();
        assert_eq!(peers(&clients), [1, 2]);
    }
}
