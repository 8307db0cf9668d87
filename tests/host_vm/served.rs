//! A process of ours that runs in the machine.

use serde_json::Value;

use crate::machine::HostVm;

/// A process that listens. It ends with the machine, or by [`terminate`](Self::terminate).
#[derive(Debug)]
pub struct Served {
    name: String,
    pub pid: u32,
    pub socket: String,
}

impl Served {
    /// Has extentd serve a disk, under a name of its own; `before` is shell text before the command, as
    /// variables or a program that runs it.
    pub fn start(vm: &mut HostVm, name: &str, before: &str, image: &str, arguments: &str) -> Self {
        let (socket, log) = (format!("/tmp/{name}.sock"), format!("/tmp/{name}.log"));
        let status = format!("/tmp/{name}.status");
        let command = format!(
            "{before} extentd --socket-path {socket} --control-path /tmp/{name}.ctl --blk-file {image} {arguments}"
        );
        let pid = vm.number(&format!(
            "rm -f {socket} {status} /tmp/{name}.pid; (sh -c 'echo $$ >/tmp/{name}.pid; exec env {command}'; echo $? >{status}) >{log} 2>&1 & until [ -s /tmp/{name}.pid ]; do sleep 0.02; done; cat /tmp/{name}.pid"
        ));
        // A connect() would count as a front-end.
        let listens = format!("grep -q ' 00010000 .* {socket}$' /proc/net/unix");
        let (failed, output) = vm.try_run(&format!(
            "until {listens}; do [ ! -e {status} ] || {{ cat {log}; exit 1; }}; sleep 0.02; done"
        ));
        assert_eq!(failed, 0, "{name} ended at its start: {output}");
        Self {
            name: name.to_owned(),
            pid: pid.try_into().unwrap(),
            socket,
        }
    }

    /// What `extentctl --json COMMAND` answers.
    pub fn ask(&self, vm: &mut HostVm, command: &str) -> Value {
        let text = vm.run(&format!(
            "extentctl --control-path /tmp/{}.ctl --json {command}",
            self.name
        ));
        serde_json::from_str(&text).unwrap()
    }

    /// Runs extentd-load on it; its report, with the figures that a verified load has.
    pub fn load(&self, vm: &mut HostVm, options: &str) -> Value {
        let text = vm.run(&self.load_command(options));
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    /// The command that [`load`](Self::load) runs.
    pub fn load_command(&self, options: &str) -> String {
        format!(
            "extentd-load --socket-path {} --json {options}",
            self.socket
        )
    }

    /// Ends it with SIGTERM; it must end well.
    pub fn terminate(self, vm: &mut HostVm) {
        let status = format!("/tmp/{}.status", self.name);
        vm.run(&format!("kill {}", self.pid));
        vm.wait_for(&format!("[ -s {status} ]"));
        assert_eq!(vm.run(&format!("cat {status}")), "0");
    }
}
