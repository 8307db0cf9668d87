//! A control group with next to no memory, and what drives it into reclaim.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// The names of one version's files.
struct Names {
    root: &'static str,
    usage: &'static str,
    limit: &'static str,
    reclaim: (&'static str, &'static str),
}

const FIRST: Names = Names {
    root: "/sys/fs/cgroup/memory",
    usage: "memory.usage_in_bytes",
    limit: "memory.limit_in_bytes",
    reclaim: ("memory.force_empty", "0"),
};
const SECOND: Names = Names {
    root: "/sys/fs/cgroup",
    usage: "memory.current",
    limit: "memory.max",
    reclaim: ("memory.reclaim", "1G"),
};

/// A memory control group; removed when dropped, when its processes have
/// ended.
pub struct Group {
    path: PathBuf,
    names: &'static Names,
}

impl Group {
    /// `None`, with the reason printed, where there can be none.
    pub fn new(name: &str) -> Option<Self> {
        for names in [&FIRST, &SECOND] {
            let path = Path::new(names.root).join(format!("{name}-{}", std::process::id()));
            if fs::create_dir(&path).is_ok() {
                if path.join(names.limit).exists() {
                    return Some(Self { path, names });
                }
                fs::remove_dir(&path).unwrap();
            }
        }
        println!("SKIP: no memory control group can be made");
        None
    }

    /// A program that runs `binary` in this group, in the folder `directory`.
    pub fn runner(&self, directory: &Path, binary: &Path) -> PathBuf {
        let script = directory.join("in-group");
        let procs = self.path.join("cgroup.procs");
        let text = format!(
            "#!/bin/sh\necho $$ >{} || exit 1\nexec {} \"$@\"\n",
            procs.display(),
            binary.display()
        );
        fs::write(&script, text).unwrap();
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
        script
    }

    fn read(&self, name: &str) -> u64 {
        let text = fs::read_to_string(self.path.join(name)).unwrap();
        text.trim().parse().unwrap()
    }

    /// Has the kernel take what it can, and leaves `spare` bytes.
    pub fn squeeze(&self, spare: u64) {
        self.reclaim_once();
        let limit = self.read(self.names.usage) + spare;
        fs::write(self.path.join(self.names.limit), limit.to_string()).unwrap();
        println!("the group has {limit} bytes");
    }

    /// Has the kernel take what it can, once.
    pub fn reclaim_once(&self) {
        let (file, text) = self.names.reclaim;
        // Less than what was asked for counts as failure.
        let _ = fs::write(self.path.join(file), text);
    }

    /// Has the kernel take what it can, over and over, until that is dropped.
    pub fn reclaim(&self) -> Reclaim {
        let (file, text) = self.names.reclaim;
        let file = self.path.join(file);
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut rounds = 0;
            while !stopped.load(Ordering::Relaxed) {
                // Less than what was asked for counts as failure.
                let _ = fs::write(&file, text);
                rounds += 1;
                std::thread::sleep(Duration::from_millis(20));
            }
            println!("the group was reclaimed {rounds} times");
        });
        Reclaim(stop, Some(thread))
    }

    /// How many processes the kernel has ended for a lack of memory.
    pub fn kills(&self) -> u64 {
        let events = ["memory.oom_control", "memory.events"]
            .into_iter()
            .find_map(|name| fs::read_to_string(self.path.join(name)).ok())
            .unwrap();
        let line = events
            .lines()
            .find_map(|line| line.strip_prefix("oom_kill "));
        line.unwrap().parse().unwrap()
    }

    /// Something that takes all the memory of the group over and over, and that
    /// the kernel should end rather than others.
    pub fn hog(&self) -> Hog {
        let procs = self.path.join("cgroup.procs");
        let script = format!(
            "echo 1000 >/proc/self/oom_score_adj; while :; do \
             setpriv --pdeathsig KILL sh -c 'echo $$ >{}; exec tail /dev/zero'; sleep 1; done",
            procs.display()
        );
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "sh", "-c", &script])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Hog(child)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Processes that were ended take a moment to be gone.
        let start = Instant::now();
        while fs::remove_dir(&self.path).is_err() && start.elapsed() < Duration::from_secs(10) {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Reclaim under way.
pub struct Reclaim(Arc<AtomicBool>, Option<JoinHandle<()>>);

impl Drop for Reclaim {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
        if let Some(thread) = self.1.take() {
            thread.join().unwrap();
        }
    }
}

/// Ended when dropped.
pub struct Hog(Child);

impl Drop for Hog {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Major faults of a process so far.
pub fn major_faults(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<_> = text.rsplit_once(") ").unwrap().1.split(' ').collect();
    fields[9].parse().unwrap()
}
