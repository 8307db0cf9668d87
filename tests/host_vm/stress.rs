//! What makes memory short: a process that uses more than there is, groups, and the kernel's
//! counters.

use crate::machine::HostVm;

/// The group whose memory the kernel takes last, and a folder of programs that are in its memory.
const SHELTER: &str = "extentd-shelter";
const FOLDER: &str = "/tmp/shelter";

impl HostVm {
    /// Makes a control group, with some of its files written.
    pub fn group(&mut self, name: &str, files: &[(&str, &str)]) {
        self.run(&format!("mkdir -p /sys/fs/cgroup/{name}"));
        for (file, text) in files {
            self.run(&format!("echo {text} >/sys/fs/cgroup/{name}/{file}"));
        }
    }

    /// Prepares a group for a front-end whose memory is to stay, its program too, so that what
    /// waits is the back-end or nobody. It is for commands of [`sheltered`].
    pub fn shelter(&mut self) {
        self.group(SHELTER, &[("memory.min", "64M")]);
        let libraries = ["libc.so.6", "libm.so.6", "libgcc_s.so.1"];
        let libraries = libraries.map(|name| format!("/lib/x86_64-linux-gnu/{name}"));
        let copy = format!("cp /tools/extentd-load {} {FOLDER}", libraries.join(" "));
        self.run(&format!("mkdir {FOLDER}; {}", within(SHELTER, &copy)));
    }

    /// A counter of /proc/vmstat.
    pub fn counter(&mut self, name: &str) -> u64 {
        self.number(&format!("sed -n 's/^{name} //p' /proc/vmstat"))
    }

    /// Has a process use `mebibytes` over and over and check them, until [`relax`](Self::relax).
    /// Memory is to be short, not processors: it gets what others leave.
    pub fn strain(&mut self, mebibytes: u64) {
        self.run(&format!(
            "verifier memory {mebibytes} 1000000 >/tmp/strain.log 2>&1 & echo $! >/tmp/strain.pid; renice -n 19 -p $!"
        ));
    }

    /// Waits until that many more pages went out to the machine's swap.
    pub fn wait_swapped(&mut self, pages: u64) {
        let until = self.counter("pswpout") + pages;
        self.wait_for(&format!(
            "[ $(sed -n 's/^pswpout //p' /proc/vmstat) -ge {until} ]"
        ));
    }

    /// Ends the process of [`strain`](Self::strain), which must have found all of its pages right.
    pub fn relax(&mut self) {
        self.run("kill $(cat /tmp/strain.pid)");
        self.wait_for("! kill -0 $(cat /tmp/strain.pid) 2>/dev/null");
        let log = self.run("cat /tmp/strain.log");
        assert!(!log.contains("verifier:"), "{log}");
    }

    /// Stops the machine when a thread waits for half a minute.
    pub fn watch_for_stalls(&mut self) {
        self.run("echo 1 >/proc/sys/kernel/hung_task_panic");
        self.run("echo 30 >/proc/sys/kernel/hung_task_timeout_secs");
    }
}

/// A program that runs another one in a group.
pub fn runner(group: &str) -> String {
    format!("sh -c 'echo $$ >/sys/fs/cgroup/{group}/cgroup.procs; exec \"$@\"' sh")
}

/// A command run in a group.
pub fn within(group: &str, command: &str) -> String {
    format!("{} {command}", runner(group))
}

/// An extentd-load command run in the group of [`HostVm::shelter`].
pub fn sheltered(command: &str) -> String {
    let environment = format!("env PATH={FOLDER}:$PATH LD_LIBRARY_PATH={FOLDER}");
    within(SHELTER, &format!("{environment} {command}"))
}
