//! What becomes of the process that serves: it is stopped, killed, replaced,
//! and told to change the disk's length.

use std::fs::File;
use std::io;
use std::time::{Duration, Instant};

use extentd::operator::control::{self, Answer, Request};
use front_end::{LIMIT, Like, Session, wait_readable};
use rig::model::SECTOR;
use rig::random::Random;

use super::disturber::{Did, Storm};
use super::guest::Guests;
use super::ioctls::Mapped;
use super::{LEAST, MOST, blocks};
use crate::served::Served;

/// A storm this long also stops the process for longer than the kernel waits
/// for a lease.
pub const LONG: Duration = Duration::from_secs(30);

/// The process, and what was said to it.
pub struct Process<'a, 'b> {
    pub served: Served,
    pub session: Option<Session>,
    storm: &'a Storm,
    guests: &'a Guests<'b>,
    arguments: Vec<&'static str>,
    variables: Vec<(&'static str, &'static str)>,
    /// The sectors of which its length must be a multiple.
    grain: usize,
    /// Who has had the image mapped since before the process began.
    mapped: Option<Mapped>,
}

/// Goes on when this is dropped.
struct Stopped<'a>(&'a Served);

impl Drop for Stopped<'_> {
    fn drop(&mut self) {
        let _ = self.0.daemon.signal(libc::SIGCONT);
    }
}

/// What is done to it.
#[derive(Debug, Clone, Copy)]
enum Duty {
    Resize,
    Pause,
    Kill,
    HandOver,
    LongPause,
}

impl Duty {
    fn name(self) -> &'static str {
        match self {
            Duty::Resize => RESIZES,
            Duty::Pause => "pause",
            Duty::Kill => KILLS,
            Duty::HandOver => HAND_OVERS,
            Duty::LongPause => "long pause",
        }
    }
}

pub const RESIZES: &str = "resize";
pub const KILLS: &str = "kill";
pub const HAND_OVERS: &str = "hand over";

impl<'a, 'b> Process<'a, 'b> {
    pub fn new(
        (served, session): (Served, Session),
        storm: &'a Storm,
        guests: &'a Guests<'b>,
        arguments: Vec<&'static str>,
        variables: Vec<(&'static str, &'static str)>,
        mapped: Mapped,
    ) -> Self {
        Self {
            served,
            session: Some(session),
            storm,
            guests,
            arguments,
            variables,
            grain: 1,
            mapped: Some(mapped),
        }
    }

    /// Everything once, then at random until it is over. On the thread that
    /// lives longest: with the one that starts it, a process ends.
    pub fn disturb(&mut self, fixed: bool, long: bool, seed: u64) {
        let mut random = Random(seed);
        let mut usual = vec![Duty::Pause, Duty::Kill, Duty::HandOver];
        if !fixed {
            usual.extend([Duty::Resize; 6]);
        }
        let mut first = usual.clone();
        if long {
            first.push(Duty::LongPause);
        }
        self.use_mapped();
        loop {
            // Everything once, however slow the host is.
            let due = if first.is_empty() {
                self.storm.pace.begin()
            } else {
                self.storm.pace.rest()
            };
            if !due {
                break;
            }
            let duty = match first.len() {
                0 if long && random.below(200) == 0 => Duty::LongPause,
                0 => usual[random.below(usual.len())],
                left => first.swap_remove(random.below(left)),
            };
            let since = Instant::now();
            let among = self.storm.disturbing.read().unwrap();
            let did = match duty {
                Duty::Resize => self.resize(&mut random),
                Duty::Pause => self.pause(&mut random),
                Duty::Kill => self.kill(&mut random),
                Duty::HandOver => self.hand_over(&mut random),
                Duty::LongPause => self.pause_long(&mut random),
            };
            drop(among);
            self.storm.note(duty.name(), since, &did);
            self.use_mapped();
        }
    }

    /// Lets the guest work while the image is mapped, and unmaps it.
    fn use_mapped(&mut self) {
        if let Some(mapped) = self.mapped.take() {
            mapped.touch(4096);
            self.storm.pace.await_requests(100);
            mapped.touch(4096);
        }
    }

    /// Another length, with an end anywhere that is possible.
    fn resize(&mut self, random: &mut Random) -> Did {
        let grain = [1, 8, 128][random.below(3)].max(self.grain);
        let sectors = (LEAST + random.below(MOST - LEAST)) / SECTOR / grain * grain;
        self.resize_to(sectors)
    }

    fn resize_to(&mut self, sectors: usize) -> Did {
        let mut did = Ok(());
        self.storm.length.change(sectors, |before| {
            // So that requests are on their way to what comes or goes.
            self.storm.pace.await_requests(64);
            let bytes = (sectors * SECTOR) as u64;
            let request = Request::Resize { bytes };
            match control::ask(self.served.control(), &request, LIMIT).unwrap() {
                Answer::Result(_) => sectors,
                Answer::Error(error) => {
                    // Else it is for the size itself.
                    if !error.message.contains("snapshot") {
                        self.grain = 8;
                    }
                    did = Err(io::Error::other(error));
                    before
                }
            }
        });
        did
    }

    /// A process that finds an image which shares blocks offers whole blocks
    /// only (XFS then takes no smaller direct I/O), so that the end is one.
    fn even(&mut self) -> Did {
        match self.storm.length.sectors() {
            ragged if ragged % 8 > 0 => self.resize_to(ragged / 8 * 8),
            _ => Ok(()),
        }
    }

    fn stop(&self) -> Stopped<'_> {
        self.served.daemon.signal(libc::SIGSTOP).unwrap();
        Stopped(&self.served)
    }

    /// Stops it for a moment.
    fn pause(&mut self, random: &mut Random) -> Did {
        let _stopped = self.stop();
        // The subject is the time.
        std::thread::sleep(Duration::from_millis(20 + random.below(200) as u64));
        Ok(())
    }

    /// Stops it until the kernel has taken the lease away, and has others take
    /// blocks of the image.
    fn pause_long(&mut self, random: &mut Random) -> Did {
        let _stopped = self.stop();
        drop(File::open(&self.storm.image)?);
        for _ in 0..8 {
            let moved = if self.storm.host.is_ext4() {
                blocks::move_blocks(self.storm, random)
            } else {
                blocks::clone_in(self.storm, random)
            };
            self.storm.note("move in a pause", Instant::now(), &moved);
            let mut neighbours = self.storm.neighbours.lock().unwrap();
            let made = neighbours.make(&self.storm.host, random);
            self.storm.note("other files", Instant::now(), &made);
        }
        Ok(())
    }

    /// Kills it with requests in flight; another goes on.
    fn kill(&mut self, random: &mut Random) -> Did {
        self.even()?;
        let _named = self.storm.names.read().unwrap();
        let _ended = self.storm.pace.bury(|| self.served.info());
        self.served.daemon.signal(libc::SIGKILL).unwrap();
        if random.below(2) == 0 {
            self.mapped = Some(Mapped::new(&self.storm.image, LEAST)?);
        }
        self.served
            .restart(&self.storm.image, &self.arguments, &self.variables);
        self.reconnect(random);
        Ok(())
    }

    /// Has it become another, as an upgrade does.
    fn hand_over(&mut self, random: &mut Random) -> Did {
        self.even()?;
        let _named = self.storm.names.read().unwrap();
        let _ended = self.storm.pace.bury(|| self.served.info());
        self.served.daemon.signal(libc::SIGUSR2).unwrap();
        let session = self.session.as_ref().unwrap();
        wait_readable(session.connection.stream(), LIMIT).unwrap();
        self.reconnect(random);
        Ok(())
    }

    /// The process and its session, for a last look.
    pub fn end(self) -> (Served, Session) {
        (self.served, self.session.unwrap())
    }

    fn reconnect(&mut self, random: &mut Random) {
        let like = [Like::Qemu, Like::CloudHypervisor][random.below(2)];
        let session = self.session.take().unwrap();
        self.session = Some(self.guests.move_to(session, &self.served.socket, like));
    }
}
