use std::sync::atomic::Ordering;

use virtio_bindings::virtio_blk::{VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_IN};

use super::*;
use crate::command::RingSetup;
use crate::device::Status;
use crate::error::Error;
use crate::testing::fake::{FakeDisk, Io};
use crate::testing::guest::{Driver, Guest, WRITE, header};

pub(super) const SIZE: u16 = 16;

/// A driver with its eventfds.
pub(super) struct Client {
    pub(super) driver: Driver,
    queue: usize,
    kick: EventFd,
    call: EventFd,
}

pub(super) struct Rig {
    pub(super) workers: Workers,
    guest: Guest,
    pub(super) io: Arc<Io>,
}

pub(super) fn options(queues: u16, workers: usize) -> Options {
    Options {
        queues,
        queue_size: SIZE,
        workers,
        cpus: Vec::new(),
        poll: crate::PollTime::Never,
    }
}

/// Workers with guest memory of 1 MiB.
pub(super) fn rig(queues: u16, workers: usize, instant: bool) -> Rig {
    rig_of(&options(queues, workers), instant)
}

fn spawn(disk: Arc<FakeDisk>, options: &Options) -> Result<Workers, Error> {
    let (mode, limits, held) = Default::default();
    Workers::spawn(disk, mode, &limits, &held, options)
}

pub(super) fn rig_of(options: &Options, instant: bool) -> Rig {
    let disk = Arc::new(FakeDisk::new(instant));
    let io = Arc::clone(&disk.io);
    let workers = spawn(disk, options).unwrap();
    let guest = Guest::new(&[(0, 0x10_0000)]);
    let rig = Rig { workers, guest, io };
    rig.remember(false);
    rig
}

impl Rig {
    fn tell(&self, queue: usize, command: Command) -> Answer {
        self.workers.tell(queue, command, &ForWhom::Us)
    }

    fn remember(&self, retire: bool) {
        let order = || Command::Memory {
            memory: Arc::clone(&self.guest.memory),
            retire,
        };
        self.workers.tell_all(order, &ForWhom::Us);
    }

    pub(super) fn client(&self, queue: usize) -> Client {
        self.client_of(queue, SIZE)
    }

    pub(super) fn client_of(&self, queue: usize, entries: u16) -> Client {
        let driver = Driver::new(&self.guest, 0x1_0000 * (queue as u64 + 1), entries);
        let [kick, call] = [0; 2].map(|_| EventFd::new(EFD_NONBLOCK).unwrap());
        let fd = Some(call.try_clone().unwrap());
        assert_eq!(self.tell(queue, Command::Call { queue, fd }), Answer::Done);
        Client {
            driver,
            queue,
            kick,
            call,
        }
    }

    pub(super) fn start(
        &self,
        client: &Client,
        event_idx: bool,
        polled: bool,
        enabled: bool,
    ) -> Answer {
        let setup = RingSetup {
            size: client.driver.size,
            addresses: client.driver.at,
            next_avail: client.driver.avail,
            inflight: None,
            used_log: None,
            event_idx,
            kick: (!polled).then(|| client.kick.try_clone().unwrap()),
            enabled,
        };
        self.tell(
            client.queue,
            Command::Start {
                queue: client.queue,
                setup,
            },
        )
    }

    fn stop(&self, queue: usize) -> Answer {
        self.tell(queue, Command::Stop { queue, leave: true })
    }
}

impl Client {
    /// Offers a request of kind IN or FLUSH at descriptor 3 * `i`.
    pub(super) fn offer(&mut self, i: u16, kind: u32) {
        let at = 0x1_0000 * (self.queue as u64 + 1) + 0x1000 + 0x400 * u64::from(i);
        let sector = u64::from(3 * i) + u64::from(SIZE) * self.queue as u64;
        self.driver.guest.write(at, &header(kind, sector));
        self.driver.guest.fill(at + 0x300, 1, 0xff);
        if kind == VIRTIO_BLK_T_FLUSH {
            self.driver
                .chain(3 * i, &[(at, 16, 0), (at + 0x300, 1, WRITE)]);
        } else {
            self.driver.chain(
                3 * i,
                &[
                    (at, 16, 0),
                    (at + 0x100, 512, WRITE),
                    (at + 0x300, 1, WRITE),
                ],
            );
        }
        self.driver.offer(3 * i);
    }

    pub(super) fn kick(&self) {
        self.kick.write(1).unwrap();
    }

    /// Waits for interrupts until this many elements were used.
    pub(super) fn wait_used(&mut self, count: usize) -> Vec<(u32, u32)> {
        let mut used = self.driver.take_used();
        while used.len() < count {
            self.wait_call();
            used.extend(self.driver.take_used());
        }
        used
    }

    fn wait_call(&self) {
        assert!(readable(&self.call, 20_000), "no interrupt came");
        self.call.read().unwrap();
    }
}

fn readable(fd: &EventFd, milliseconds: i32) -> bool {
    let mut events = [epoll::Event { events: 0, data: 0 }];
    let set = epoll::create(true).unwrap();
    let event = epoll::Event::new(epoll::Events::EPOLLIN, 0);
    epoll::ctl(
        set,
        epoll::ControlOptions::EPOLL_CTL_ADD,
        std::os::fd::AsRawFd::as_raw_fd(fd),
        event,
    )
    .unwrap();
    let count = epoll::wait(set, milliseconds, &mut events).unwrap();
    epoll::close(set).unwrap();
    count > 0
}

#[test]
fn several_queues_on_several_workers_are_served() {
    for (queues, workers) in [(1, 1), (4, 1), (4, 3), (4, 4)] {
        for event_idx in [false, true] {
            let rig = rig(queues, workers, true);
            let mut clients: Vec<_> = (0..usize::from(queues))
                .map(|queue| rig.client(queue))
                .collect();
            for client in &clients {
                assert_eq!(rig.start(client, event_idx, false, true), Answer::Done);
            }
            for round in 0..200u16 {
                for client in &mut clients {
                    let i = round % 5;
                    client.driver.used_event().store(round, Ordering::SeqCst);
                    client.offer(i, VIRTIO_BLK_T_IN);
                    client.kick();
                }
                for client in &mut clients {
                    assert_eq!(client.wait_used(1), [(u32::from(3 * (round % 5)), 513)]);
                }
            }
            for (queue, client) in clients.iter().enumerate() {
                assert_eq!(rig.stop(queue), Answer::Stopped(Some(200)));
                assert_eq!(client.driver.used_idx().load(Ordering::Acquire), 200);
            }
        }
    }
}

#[test]
fn vu_12_a_ring_without_kick_is_polled() {
    let rig = rig(1, 1, true);
    let mut client = rig.client(0);
    rig.start(&client, false, true, true);
    for _ in 0..3 {
        client.offer(0, VIRTIO_BLK_T_FLUSH);
        assert_eq!(client.wait_used(1), [(0, 1)]);
    }
    // Kicks again.
    let fd = Some(client.kick.try_clone().unwrap());
    rig.tell(0, Command::Kick { queue: 0, fd });
    client.offer(0, VIRTIO_BLK_T_FLUSH);
    client.kick();
    assert_eq!(client.wait_used(1), [(0, 1)]);
}

#[test]
fn vu_12_a_kick_that_hangs_up_does_not_stop_the_ring() {
    use std::os::fd::{FromRawFd, IntoRawFd};
    let rig = rig(1, 1, true);
    let mut client = rig.client(0);
    rig.start(&client, false, false, true);
    let (reader, writer) = std::io::pipe().unwrap();
    #[allow(unsafe_code)]
    // SAFETY: the descriptor was owned by the reader, which gave it up.
    let fd = Some(unsafe { EventFd::from_raw_fd(reader.into_raw_fd()) });
    rig.tell(0, Command::Kick { queue: 0, fd });
    drop(writer);
    client.offer(0, VIRTIO_BLK_T_FLUSH);
    assert_eq!(client.wait_used(1), [(0, 1)]);
}

#[test]
fn ring_17_a_kick_of_a_disabled_ring_is_not_lost() {
    let rig = rig(1, 1, true);
    let mut client = rig.client(0);
    rig.start(&client, false, false, false);
    client.kick();
    client.offer(0, VIRTIO_BLK_T_FLUSH);
    client.kick();
    // Answered in order: the kick was there before.
    assert_eq!(
        rig.tell(
            0,
            Command::Enable {
                queue: 0,
                on: false
            }
        ),
        Answer::Done
    );
    assert_eq!(client.driver.used_idx().load(Ordering::Acquire), 0);
    assert_eq!(
        rig.tell(0, Command::Enable { queue: 0, on: true }),
        Answer::Done
    );
    assert_eq!(client.wait_used(1), [(0, 1)]);
    for _ in 0..5 {
        client.kick();
    }
    client.offer(1, VIRTIO_BLK_T_FLUSH);
    client.kick();
    assert_eq!(client.wait_used(1), [(3, 1)]);
}

#[test]
fn vu_12_without_a_call_the_worker_stays_silent() {
    let rig = rig(1, 1, true);
    let mut client = rig.client(0);
    rig.tell(0, Command::Call { queue: 0, fd: None });
    rig.start(&client, false, false, true);
    client.offer(0, VIRTIO_BLK_T_FLUSH);
    client.kick();
    while client.driver.take_used().is_empty() {
        std::thread::yield_now();
    }
    assert_eq!(client.call.read().unwrap(), 1, "when it was given");
    let fd = Some(client.call.try_clone().unwrap());
    rig.tell(0, Command::Call { queue: 0, fd });
    assert_eq!(client.call.read().unwrap(), 1);
    client.offer(0, VIRTIO_BLK_T_FLUSH);
    client.kick();
    assert_eq!(client.wait_used(1), [(0, 1)]);
}

#[test]
fn vu_14_a_stop_waits_for_its_requests_while_other_queues_go_on() {
    let rig = rig(2, 1, false);
    let mut clients = [rig.client(0), rig.client(1)];
    for client in &mut clients {
        rig.start(client, false, false, true);
        client.offer(0, VIRTIO_BLK_T_IN);
        client.kick();
    }
    rig.io.wait_pending(2);
    std::thread::scope(|scope| {
        let stopped = scope.spawn(|| rig.stop(0));
        // Queue 1 is served meanwhile, and queue 0 is not.
        let [stopping, other] = &mut clients;
        stopping.offer(1, VIRTIO_BLK_T_IN);
        rig.io.end(rig.io.wait_read_of(16), Status::Ok);
        assert_eq!(other.wait_used(1), [(0, 513)]);
        other.offer(1, VIRTIO_BLK_T_IN);
        other.kick();
        rig.io.wait_read_of(19);
        assert!(!stopped.is_finished());
        rig.io.end(rig.io.wait_read_of(0), Status::Ok);
        // The second was offered after the stop or fetched before it.
        let next = loop {
            if stopped.is_finished() {
                break stopped.join().unwrap();
            }
            if let Some(tag) = rig.io.read_of(3) {
                rig.io.end(tag, Status::Ok);
            }
            std::thread::yield_now();
        };
        let done = stopping.driver.used_idx().load(Ordering::Acquire);
        assert_eq!(next, Answer::Stopped(Some(done)));
        rig.io.end(rig.io.wait_read_of(19), Status::Ok);
    });
    assert_eq!(rig.stop(0), Answer::Stopped(None));
}

#[test]
fn vu_24_retiring_memory_waits_for_its_requests() {
    let mut rig = rig(1, 1, false);
    let mut client = rig.client(0);
    rig.start(&client, false, false, true);
    client.offer(0, VIRTIO_BLK_T_IN);
    client.kick();
    rig.io.wait_pending(1);
    let old = std::mem::replace(&mut rig.guest, Guest::new(&[(0, 0x10_0000)]));
    rig.guest.write(0, &old.read(0, 0x10_0000));
    client.driver.guest = rig.guest.clone();
    rig.remember(false);
    std::thread::scope(|scope| {
        let retired = scope.spawn(|| rig.remember(true));
        client.offer(1, VIRTIO_BLK_T_IN);
        client.kick();
        rig.io.wait_pending(2);
        assert!(!retired.is_finished());
        rig.io.end(rig.io.wait_read_of(0), Status::Ok);
        // The second may have been fetched before or after the last table.
        rig.io.end(rig.io.wait_read_of(3), Status::Ok);
        retired.join().unwrap();
    });
    assert_eq!(client.wait_used(2).len(), 2);
    drop(client);
    assert_eq!(Arc::strong_count(&old.memory), 1);
}

#[test]
fn ring_04_a_broken_ring_is_reported_and_does_not_spin() {
    let rig = rig(1, 1, true);
    let client = rig.client(0);
    let err = EventFd::new(EFD_NONBLOCK).unwrap();
    rig.tell(
        0,
        Command::Err {
            queue: 0,
            fd: Some(err.try_clone().unwrap()),
        },
    );
    rig.start(&client, false, false, true);
    client.driver.avail_idx().store(1000, Ordering::Release);
    client.kick();
    assert!(readable(&err, 20_000));
    assert_eq!(rig.stop(0), Answer::Stopped(Some(0)));
}

#[test]
fn a_ring_that_cannot_be_served_is_refused() {
    let rig = rig(1, 1, true);
    let mut client = rig.client(0);
    client.driver.at.used = 0x10_0000;
    assert_eq!(rig.start(&client, false, false, true), Answer::Refused);
    let queue = 0;
    assert_eq!(
        rig.tell(9, Command::Enable { queue: 9, on: true }),
        Answer::Refused
    );
    assert_eq!(
        rig.tell(
            queue,
            Command::Move {
                queue,
                addresses: client.driver.at,
                used_log: None,
            }
        ),
        Answer::Done
    );
}

#[test]
fn vu_17_a_running_ring_can_move() {
    let rig = rig(1, 1, true);
    let mut client = rig.client(0);
    rig.start(&client, false, false, true);
    client.offer(0, VIRTIO_BLK_T_FLUSH);
    client.kick();
    client.wait_used(1);
    let old = client.driver.at;
    let copy = rig.guest.read(old.descriptors, 0x800);
    rig.guest.write(0x8_0000, &copy);
    client.driver = Driver {
        avail: 1,
        used: 1,
        ..Driver::new(&rig.guest, 0x8_0000, SIZE)
    };
    let addresses = client.driver.at;
    assert_eq!(
        rig.tell(
            0,
            Command::Move {
                queue: 0,
                addresses,
                used_log: None,
            }
        ),
        Answer::Done
    );
    client.offer(0, VIRTIO_BLK_T_FLUSH);
    client.kick();
    assert_eq!(client.wait_used(1), [(0, 1)]);
}

#[test]
fn dropping_the_workers_answers_what_is_in_flight() {
    let rig = rig(2, 2, false);
    let mut client = rig.client(1);
    rig.start(&client, false, false, true);
    client.offer(0, VIRTIO_BLK_T_IN);
    client.kick();
    rig.io.wait_pending(1);
    let Rig { workers, io, .. } = rig;
    let dropped = std::thread::spawn(move || drop(workers));
    io.end(io.wait_read_of(16), Status::Ok);
    dropped.join().unwrap();
    assert_eq!(client.driver.take_used(), [(0, 513)]);
}

#[test]
fn a_disk_that_cannot_be_opened_is_told() {
    let disk = FakeDisk {
        broken: true,
        ..FakeDisk::new(true)
    };
    let error = spawn(Arc::new(disk), &options(2, 2)).unwrap_err();
    assert_eq!(error.to_string(), "cannot start worker 0: no such disk");
}

#[test]
fn workers_are_pinned_and_named() {
    let mut options = options(1, 1);
    options.cpus = vec![0];
    let workers = spawn(Arc::new(FakeDisk::new(true)), &options).unwrap();
    assert_eq!(
        workers.handles[0].thread.as_ref().unwrap().thread().name(),
        Some("worker-0")
    );
    options.cpus = vec![100_000];
    spawn(Arc::new(FakeDisk::new(true)), &options).unwrap_err();
}

#[test]
fn an_idle_worker_sleeps() {
    let rig = rig(1, 1, true);
    let mut client = rig.client(0);
    rig.start(&client, false, false, true);
    client.offer(0, VIRTIO_BLK_T_FLUSH);
    client.kick();
    client.wait_used(1);
    rig.remember(true);
    // The interrupt, which may come after what it tells of.
    let _ = client.call.read();
    let waits = rig.io.waits();
    // A span in which a worker that spins would have gone round often.
    assert!(!readable(&client.call, 100));
    assert!(
        rig.io.waits() - waits <= 3,
        "{} wake-ups",
        rig.io.waits() - waits
    );
}

impl Rig {
    pub(super) fn log(&self, log: &Arc<crate::memory::dirty::Log>, data: bool) {
        let order = || Command::Log {
            logging: Logging {
                log: Some(Arc::clone(log)),
                data,
            },
        };
        self.workers.tell_all(order, &ForWhom::Us);
    }
}

#[test]
fn vu_37_turning_the_log_on_waits_for_requests_that_were_not_noted() {
    use crate::memory::dirty::tests::{log, take_pages};
    let rig = rig(1, 1, false);
    let mut client = rig.client(0);
    rig.start(&client, false, false, true);
    client.offer(0, VIRTIO_BLK_T_IN);
    client.kick();
    rig.io.wait_pending(1);
    let (log, file) = log(64);
    rig.log(&log, false);
    std::thread::scope(|scope| {
        let logged = scope.spawn(|| rig.log(&log, true));
        // Others are served meanwhile.
        client.offer(1, VIRTIO_BLK_T_IN);
        client.kick();
        rig.io.wait_pending(2);
        rig.io.end(rig.io.wait_read_of(3), Status::Ok);
        assert_eq!(client.wait_used(1), [(3, 513)]);
        let early = logged.is_finished();
        rig.io.end(rig.io.wait_read_of(0), Status::Ok);
        logged.join().unwrap();
        assert!(!early, "a request is in flight that was not noted");
    });
    take_pages(&file);
    client.offer(1, VIRTIO_BLK_T_IN);
    client.kick();
    rig.io.wait_read_of(3);
    // Turned off and on again: those in flight are waited for once more.
    rig.log(&log, false);
    std::thread::scope(|scope| {
        let logged = scope.spawn(|| rig.log(&log, true));
        rig.io.end(rig.io.wait_read_of(3), Status::Ok);
        logged.join().unwrap();
    });
    assert!(take_pages(&file).is_empty());
    client.offer(1, VIRTIO_BLK_T_IN);
    client.kick();
    rig.io.wait_read_of(3);
    rig.io.end(rig.io.wait_read_of(3), Status::Ok);
    client.wait_used(3);
    assert_eq!(take_pages(&file), [0x11]);
}
