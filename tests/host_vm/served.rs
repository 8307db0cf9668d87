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
    /// Has extentd serve a disk, under a name of its own; `before` comes before the command, as
    /// variables or a program that runs it.
    pub fn start(vm: &mut HostVm, name: &str, before: &str, image: &str, arguments: &str) -> Self {
        Self::try_start(vm, name, before, image, arguments)
            .unwrap_or_else(|output| panic!("{name} ended at its start: {output}"))
    }

    /// As [`start`](Self::start); what it said if it ended at its start.
    pub fn try_start(
        vm: &mut HostVm,
        name: &str,
        before: &str,
        image: &str,
        arguments: &str,
    ) -> Result<Self, String> {
        let command = format!(
            "{before} extentd --socket-path /tmp/{name}.sock --control-path /tmp/{name}.ctl --blk-file {image} {arguments}"
        );
        Self::run(vm, name, &command)
    }

    /// Runs a back-end that listens at /tmp/NAME.sock.
    pub fn run(vm: &mut HostVm, name: &str, command: &str) -> Result<Self, String> {
        let (socket, log) = (format!("/tmp/{name}.sock"), format!("/tmp/{name}.log"));
        let status = format!("/tmp/{name}.status");
        let quoted = command.replace('\'', r"'\''");
        let pid = vm.number(&format!(
            "rm -f {socket} {status} /tmp/{name}.pid; (sh -c 'echo $$ >/tmp/{name}.pid; exec env {quoted}'; echo $? >{status}) >{log} 2>&1 & until [ -s /tmp/{name}.pid ]; do sleep 0.02; done; cat /tmp/{name}.pid"
        ));
        // A connect() would count as a front-end.
        let listens = format!("grep -q ' 00010000 .* {socket}$' /proc/net/unix");
        let (failed, output) = vm.try_run(&format!(
            "until {listens}; do [ ! -e {status} ] || {{ cat {log}; exit 1; }}; sleep 0.02; done"
        ));
        if failed != 0 {
            return Err(output);
        }
        Ok(Self {
            name: name.to_owned(),
            pid: pid.try_into().unwrap(),
            socket,
        })
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

    /// Whether a property of swap-grade mode holds; its detail is printed.
    pub fn holds(&self, vm: &mut HostVm, name: &str) -> bool {
        let property = self.ask(vm, "info")["swap"]["properties"][name].clone();
        println!("{}: {name}: {property}", self.name);
        property["held"].as_bool().unwrap()
    }

    /// Major faults so far.
    pub fn major_faults(&self, vm: &mut HostVm) -> u64 {
        vm.number(&format!(
            "sed 's/.*) //' /proc/{}/stat | cut -d' ' -f10",
            self.pid
        ))
    }

    /// Whether it has not ended.
    pub fn lives(&self, vm: &mut HostVm) -> bool {
        vm.try_run(&format!("kill -0 {}", self.pid)).0 == 0
    }

    /// Ends it with SIGTERM; it must end well.
    pub fn terminate(self, vm: &mut HostVm) {
        let status = format!("/tmp/{}.status", self.name);
        vm.run(&format!("kill {}", self.pid));
        vm.wait_for(&format!("[ -s {status} ]"));
        assert_eq!(vm.run(&format!("cat {status}")), "0");
    }
}
