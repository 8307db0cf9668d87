//! A control group with next to no memory, and what drives it into reclaim.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
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
        let (file, text) = self.names.reclaim;
        // Less than what was asked for counts as failure.
        let _ = fs::write(self.path.join(file), text);
        let limit = self.read(self.names.usage) + spare;
        fs::write(self.path.join(self.names.limit), limit.to_string()).unwrap();
        println!("the group has {limit} bytes");
    }

    /// Something that takes all the memory of the group over and over, and is
    /// the first that the kernel ends.
    pub fn hog(&self) -> Hog {
        let procs = self.path.join("cgroup.procs");
        let script = format!(
            "echo 1000 >/proc/self/oom_score_adj; while :; do \
             setpriv --pdeathsig KILL sh -c 'echo $$ >{}; exec tail /dev/zero'; sleep 0.2; done",
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

    /// How often the group has hit its limit.
    pub fn hits(&self) -> u64 {
        if self.path.join("memory.failcnt").exists() {
            return self.read("memory.failcnt");
        }
        let events = fs::read_to_string(self.path.join("memory.events")).unwrap();
        let line = events.lines().find_map(|line| line.strip_prefix("max "));
        line.unwrap().parse().unwrap()
    }

    /// Waits until the group has hit its limit so many times more.
    pub fn wait_hits(&self, more: u64) {
        let until = self.hits() + more;
        let start = Instant::now();
        while self.hits() < until {
            assert!(start.elapsed() < front_end::LIMIT, "there is no pressure");
            std::thread::sleep(Duration::from_millis(10));
        }
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
