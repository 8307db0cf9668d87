//! The guest of a storm: a thread for each queue, which lets go of its ring
//! whenever another process is to serve it.

use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use front_end::{GuestMemory, LIMIT, Like, Session, Wanted, codes::protocol};

use super::pace::Pace;
use crate::client::Client;
use crate::served::QUEUES;

/// How long a queue waits for a request before it lets others look.
const TURN: Duration = Duration::from_millis(20);
/// Requests that are told at once.
const TOLD: u64 = 32;

/// A queue of the guest.
struct Seat<'a> {
    /// Whoever wants the client holds this meanwhile, so that its own thread
    /// does not take it again first.
    gate: Mutex<()>,
    client: Mutex<Client<'a>>,
}

/// All queues of the guest.
pub struct Guests<'a> {
    seats: Vec<Seat<'a>>,
    memory: GuestMemory,
}

impl<'a> Guests<'a> {
    pub fn new(clients: Vec<Client<'a>>, memory: GuestMemory) -> Self {
        let seat = |client| Seat {
            gate: Mutex::new(()),
            client: Mutex::new(client),
        };
        Self {
            seats: clients.into_iter().map(seat).collect(),
            memory,
        }
    }

    /// Keeps a queue busy until `stop` says so.
    pub fn play(&self, queue: usize, pace: &Pace, stop: impl Fn() -> bool) {
        let seat = &self.seats[queue];
        let (mut told, mut last) = (0, Instant::now());
        while !stop() {
            drop(seat.gate.lock().unwrap());
            let mut client = seat.client.lock().unwrap();
            if client.step(TURN) {
                told += 1;
                last = Instant::now();
            }
            if !client.wrong.is_empty() {
                pace.end();
            }
            drop(client);
            assert!(last.elapsed() < LIMIT, "no request of queue {queue} ends");
            if told == TOLD {
                pace.ended(std::mem::take(&mut told));
            }
        }
    }

    /// Has the process that listens there serve the rings, going on where the
    /// one before it ended.
    pub fn move_to(&self, mut before: Session, path: &std::path::Path, like: Like) -> Session {
        let gates: Vec<_> = self
            .seats
            .iter()
            .map(|seat| seat.gate.lock().unwrap())
            .collect();
        let clients: Vec<_> = self.clients();
        let rings: Vec<_> = clients
            .iter()
            .map(|client| client.driver().ring())
            .collect();
        let wanted = Wanted {
            features: before.features,
            protocol: protocol::ALL,
            queues: u16::try_from(QUEUES).unwrap(),
        };
        let mut session = Session::open(path, like, wanted).unwrap();
        session.inflight = before.inflight.take();
        session.start(&self.memory, &rings).unwrap();
        drop((rings, gates));
        session
    }

    fn clients(&self) -> Vec<MutexGuard<'_, Client<'a>>> {
        self.seats
            .iter()
            .map(|seat| seat.client.lock().unwrap())
            .collect()
    }

    /// The queues, once nobody plays any more.
    pub fn into_clients(self) -> Vec<Client<'a>> {
        let client = |seat: Seat<'a>| seat.client.into_inner().unwrap();
        self.seats.into_iter().map(client).collect()
    }
}
