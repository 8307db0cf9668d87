//! Processes that a test has started.

use std::process::{Child, Command, ExitStatus};
use std::sync::mpsc;

use front_end::LIMIT;

use crate::program::run;

/// Waits for the end of `child`, which is killed when that takes too long.
pub fn wait_exit(mut child: Child) -> ExitStatus {
    let pid = child.id();
    let (sender, receiver) = mpsc::channel();
    let waiter = std::thread::spawn(move || sender.send(child.wait()));
    let Ok(status) = receiver.recv_timeout(LIMIT) else {
        signal(pid, "KILL");
        waiter.join().unwrap().unwrap();
        panic!("process {pid} did not end");
    };
    waiter.join().unwrap().unwrap();
    status.unwrap()
}

/// Sends a signal to a process of ours that was not waited for yet.
pub fn signal(pid: u32, name: &str) {
    run(Command::new("kill").args(["-s", name, &pid.to_string()])).unwrap();
}
