//! What a storm is made of: everybody who disturbs, when, and how often it
//! was done.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::time::Instant;

use rig::file_systems::Mounted;
use rig::random::Random;

use super::neighbours::Neighbours;
use super::pace::Pace;
use super::{blocks, hosts, names, opens, snapshots};
use crate::disturb::Others;
use crate::length::Length;

/// What became of a disturbance. Many are attempts: they may find no room, an
/// image with another name, or a file system that cannot do it.
pub type Did = io::Result<()>;

/// Where it makes sense.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Where {
    Both,
    Ext4,
    Xfs,
    /// Where the process has a folder for them.
    Snapshots,
}

/// In what company it is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// Keeps requests from the disk path for a while: when that has been used
    /// enough.
    Paced,
    /// As `Paced`, with nobody else disturbing.
    Alone,
    /// Requests go on by the disk meanwhile.
    Quiet,
}

/// Somebody who disturbs.
struct Disturber {
    name: &'static str,
    place: Where,
    manner: Manner,
    /// How often, compared with others.
    weight: usize,
    act: fn(&Storm, &mut Random) -> Did,
}

const fn disturber(
    name: &'static str,
    place: Where,
    manner: Manner,
    weight: usize,
    act: fn(&Storm, &mut Random) -> Did,
) -> Disturber {
    Disturber {
        name,
        place,
        manner,
        weight,
        act,
    }
}

const ALL: &[Disturber] = {
    use Manner::{Alone, Paced, Quiet};
    use Where::{Both, Ext4, Snapshots, Xfs};
    &[
        disturber("burst of opens", Both, Paced, 4, opens::burst),
        disturber("open by descriptor", Both, Paced, 4, opens::by_descriptor),
        disturber("open without waiting", Both, Paced, 4, opens::impatient),
        disturber("destroy", Both, Alone, 3, opens::destroy),
        disturber("map", Both, Paced, 3, opens::map),
        disturber("read", Both, Paced, 2, opens::read),
        disturber("hint", Both, Paced, 3, opens::hint),
        disturber("compare", Both, Paced, 2, opens::compare),
        disturber("share", Xfs, Paced, 2, blocks::share),
        disturber("share briefly", Xfs, Paced, 3, blocks::share_briefly),
        disturber("clone out", Xfs, Paced, 4, blocks::clone_out),
        disturber("clone in", Xfs, Paced, 6, blocks::clone_in),
        disturber("dedupe", Xfs, Paced, 6, blocks::dedupe),
        disturber("dedupe changing", Xfs, Paced, 3, blocks::dedupe_changing),
        disturber("unshare", Xfs, Paced, 4, blocks::unshare),
        disturber("exchange", Xfs, Paced, 2, blocks::exchange),
        disturber("snapshot", Snapshots, Paced, 10, snapshots::take),
        disturber("cancel a snapshot", Snapshots, Quiet, 1, snapshots::cancel),
        disturber(
            "unshare what is served",
            Snapshots,
            Quiet,
            4,
            snapshots::unshare,
        ),
        disturber(
            "end unsharing",
            Snapshots,
            Quiet,
            1,
            snapshots::end_unsharing,
        ),
        disturber("move blocks", Ext4, Paced, 16, blocks::move_blocks),
        disturber("allocate", Both, Paced, 2, blocks::allocate),
        disturber("defragment", Both, Paced, 1, blocks::defragment),
        disturber("remount", Both, Paced, 3, hosts::remount),
        disturber("no barriers", Ext4, Paced, 1, hosts::without_barriers),
        disturber("freeze", Both, Paced, 2, hosts::freeze),
        disturber("grow", Both, Paced, 1, hosts::grow),
        disturber("fill", Both, Paced, 2, hosts::fill),
        disturber("link", Both, Paced, 3, names::link),
        disturber("chattr", Both, Paced, 2, names::change_flags),
        disturber("extent size", Xfs, Paced, 3, names::set_extent_size),
        disturber("attributes", Both, Quiet, 3, names::set_flags),
        disturber("rename", Both, Quiet, 1, names::rename),
        disturber("touch", Both, Quiet, 3, names::touch),
        disturber("trim", Both, Quiet, 1, hosts::trim),
    ]
};

/// What some hosts, file systems and versions of them never do: they lack the
/// privilege (`grow` on ext4 takes CAP_SYS_RESOURCE), the feature, or respect
/// for a lock; or what it is about is over too soon.
const ATTEMPTS: [&str; 6] = [
    "grow",
    "exchange",
    "move blocks",
    "defragment",
    "cancel a snapshot",
    "end unsharing",
];

/// Copies that share blocks with the image.
#[derive(Default)]
pub struct Copies {
    pub files: Others,
    pub names: Vec<PathBuf>,
    pub made: usize,
}

/// How often something was done, and tried.
#[derive(Debug, Clone, Default)]
struct Times {
    done: usize,
    tried: usize,
    /// Why it was not done the last time that it was not.
    failed: Option<String>,
}

/// Disturbances that are remembered.
const REMEMBERED: usize = 40;

/// Everything that the threads of a storm share.
pub struct Storm {
    pub host: Mounted,
    pub image: PathBuf,
    /// What the first bytes of the image hold for ever.
    pub still: Vec<u8>,
    /// Bytes of a block of the file system.
    pub block: u64,
    pub guarded: bool,
    /// Where the process keeps snapshots, and its control socket.
    pub snapshots: Option<(PathBuf, PathBuf)>,
    pub pace: Pace,
    pub length: Arc<Length>,
    /// The file system may be full.
    pub full: AtomicBool,
    /// How often the disk was made larger.
    pub growths: AtomicUsize,
    /// Held while the image has its name and the file system can be used.
    pub names: RwLock<()>,
    /// Held by whoever disturbs; wholly by who wants to be alone.
    pub disturbing: RwLock<()>,
    pub copies: Mutex<Copies>,
    pub neighbours: Mutex<Neighbours>,
    /// What must not have been possible.
    pub violations: Mutex<Vec<String>>,
    times: Mutex<BTreeMap<&'static str, Times>>,
    latest: Mutex<VecDeque<String>>,
    busy: Vec<AtomicBool>,
    start: Instant,
}

/// What a storm begins with.
pub struct Scene {
    pub host: Mounted,
    pub image: PathBuf,
    pub still: Vec<u8>,
    pub block: u64,
    pub guarded: bool,
    pub snapshots: Option<(PathBuf, PathBuf)>,
    pub pace: Pace,
    pub length: Arc<Length>,
    pub copies: Copies,
}

impl Storm {
    pub fn new(scene: Scene) -> Storm {
        Storm {
            host: scene.host,
            image: scene.image,
            still: scene.still,
            block: scene.block,
            pace: scene.pace,
            length: scene.length,
            copies: Mutex::new(scene.copies),
            // Without the guard requests may fail for any reason.
            full: AtomicBool::new(!scene.guarded),
            guarded: scene.guarded,
            snapshots: scene.snapshots,
            growths: AtomicUsize::new(0),
            names: RwLock::new(()),
            disturbing: RwLock::new(()),
            neighbours: Mutex::default(),
            violations: Mutex::default(),
            times: Mutex::default(),
            latest: Mutex::default(),
            busy: ALL.iter().map(|_| AtomicBool::new(false)).collect(),
            start: Instant::now(),
        }
    }

    /// A file whose first bytes are those that never change in the image.
    pub fn twin(&self) -> PathBuf {
        self.host.path("still")
    }

    /// Something that must not have been possible.
    pub fn violated(&self, what: String) {
        self.violations.lock().unwrap().push(what);
        self.pace.end();
    }

    /// Counts and remembers what was done, and when.
    pub fn note(&self, name: &'static str, since: Instant, did: &Did) {
        let mut times = self.times.lock().unwrap();
        let times = times.entry(name).or_default();
        times.tried += 1;
        match did {
            Ok(()) => times.done += 1,
            Err(error) => times.failed = Some(error.to_string()),
        }
        let mut latest = self.latest.lock().unwrap();
        if latest.len() == REMEMBERED {
            latest.pop_front();
        }
        let end = match did {
            Ok(()) => String::new(),
            Err(error) => format!(": {error}"),
        };
        latest.push_back(format!(
            "{:.3?} to {:.3?} {name}{end}",
            since - self.start,
            self.start.elapsed()
        ));
    }

    /// How often this was done.
    pub fn times(&self, name: &str) -> usize {
        let times = self.times.lock().unwrap();
        times.get(name).map_or(0, |times| times.done)
    }

    /// Who has never done what he wanted, but for those who may never be able
    /// to here.
    pub fn idle(&self) -> Vec<&'static str> {
        let idle = |disturber: &&Disturber| {
            let wanted = self.fits(disturber, disturber.manner == Manner::Quiet);
            wanted && !ATTEMPTS.contains(&disturber.name) && self.times(disturber.name) == 0
        };
        ALL.iter()
            .filter(idle)
            .map(|disturber| disturber.name)
            .collect()
    }

    /// How often everything was done, in a line each.
    pub fn counts(&self) -> String {
        let times = self.times.lock().unwrap();
        let one = |(name, times): (&&str, &Times)| {
            let failed = times.failed.as_deref().map(|text| format!(", else {text}"));
            let failed = failed.unwrap_or_default();
            format!("  {name}: {} of {}{failed}", times.done, times.tried)
        };
        times.iter().map(one).collect::<Vec<_>>().join("\n")
    }

    /// The last things that were done.
    pub fn latest(&self) -> Vec<String> {
        self.latest.lock().unwrap().iter().cloned().collect()
    }

    fn fits(&self, disturber: &Disturber, quiet: bool) -> bool {
        let here = match disturber.place {
            Where::Both => true,
            Where::Ext4 => self.host.is_ext4(),
            Where::Xfs => !self.host.is_ext4(),
            Where::Snapshots => self.snapshots.is_some(),
        };
        // Nothing keeps the image from being destroyed there.
        let safe = self.guarded || disturber.manner != Manner::Alone;
        here && safe && quiet == (disturber.manner == Manner::Quiet)
    }

    fn choose(&self, quiet: bool, random: &mut Random) -> usize {
        let fit: Vec<_> = (0..ALL.len())
            .filter(|&one| self.fits(&ALL[one], quiet))
            .collect();
        let all: usize = fit.iter().map(|&one| ALL[one].weight).sum();
        let mut number = random.below(all);
        for one in fit {
            if number < ALL[one].weight {
                return one;
            }
            number -= ALL[one].weight;
        }
        unreachable!("the number is below the sum of weights");
    }

    /// Disturbs until it is over.
    pub fn disturb(&self, quiet: bool, seed: u64) {
        let mut random = Random(seed);
        loop {
            let due = if quiet {
                self.pace.await_requests(300)
            } else {
                self.pace.begin()
            };
            if !due {
                return;
            }
            let one = self.choose(quiet, &mut random);
            if self.busy[one].swap(true, Ordering::SeqCst) {
                continue;
            }
            let disturber = &ALL[one];
            let alone =
                (disturber.manner == Manner::Alone).then(|| self.disturbing.write().unwrap());
            let among = alone.is_none().then(|| self.disturbing.read().unwrap());
            let since = Instant::now();
            let did = (disturber.act)(self, &mut random);
            drop((alone, among));
            self.note(disturber.name, since, &did);
            self.busy[one].store(false, Ordering::SeqCst);
        }
    }

    /// Lets other files come and go until it is over.
    pub fn stir(&self, seed: u64) {
        let mut random = Random(seed);
        while self.pace.await_requests(100) {
            let since = Instant::now();
            let mut neighbours = self.neighbours.lock().unwrap();
            let did = neighbours.stir(&self.host, &mut random);
            let spoilt = !neighbours.spoilt.is_empty();
            drop(neighbours);
            self.note("other files", since, &did);
            if spoilt {
                self.pace.end();
            }
        }
    }
}
