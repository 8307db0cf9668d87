//! One guest: QEMU, its console, and a serial port on which it runs commands.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use front_end::{Daemon, LIMIT};
use serde_json::json;

use crate::process::wait_exit;
use crate::qemu::boot::BootFiles;
use crate::qemu::qmp::Qmp;
use crate::scratch::Scratch;

/// How often a machine is started that stands still at its boot.
const BOOTS: usize = 3;
/// What a kernel says then.
const STOPPED: &str = "detected stalls on CPUs";

/// How long a command may take whose guest lives.
const SLOWEST: Duration = Duration::from_secs(1200);

/// What to boot.
pub struct Machine {
    arguments: Vec<String>,
    kernel_arguments: &'static str,
}

impl Machine {
    /// `cpus` virtual CPUs and `memory` MiB that back-ends can map.
    pub fn new(cpus: u32, memory: u32) -> Self {
        Self {
            arguments: Vec::new(),
            kernel_arguments: "",
        }
        .with(["-smp".to_owned(), cpus.to_string()])
        .with(["-m".to_owned(), format!("{memory}M,slots=4,maxmem=2G")])
        .with([
            "-object".to_owned(),
            format!("memory-backend-memfd,id=mem,size={memory}M,share=on"),
        ])
    }

    /// Gives QEMU these arguments besides.
    pub fn with<T: Into<String>>(mut self, arguments: impl IntoIterator<Item = T>) -> Self {
        self.arguments.extend(arguments.into_iter().map(Into::into));
        self
    }

    /// The guest's memory is there from the start.
    pub fn preallocated(mut self) -> Self {
        for argument in &mut self.arguments {
            if argument.starts_with("memory-backend-memfd,id=mem,") {
                argument.push_str(",prealloc=on");
            }
        }
        self
    }

    /// Gives the kernel these arguments besides.
    pub fn kernel_arguments(mut self, arguments: &'static str) -> Self {
        self.kernel_arguments = arguments;
        self
    }

    /// A disk that is there from the start.
    pub fn disk(self, daemon: &Daemon, id: &str, queues: u32) -> Self {
        self.disk_at(daemon.socket(), id, queues)
    }

    /// As [`Machine::disk`], whoever serves it on that socket.
    pub fn disk_at(self, socket: &Path, id: &str, queues: u32) -> Self {
        self.disk_with(socket, id, &format!(",num-queues={queues}"))
    }

    /// As [`Machine::disk_at`], with these properties of the device and no others.
    pub fn disk_with(self, socket: &Path, id: &str, properties: &str) -> Self {
        self.with([
            "-chardev".to_owned(),
            format!(
                "socket,id=c-{id},path={},reconnect-ms=100",
                socket.display()
            ),
        ])
        .with([
            "-device".to_owned(),
            format!("vhost-user-blk-pci,id={id},chardev=c-{id}{properties}"),
        ])
    }

    /// A port to plug a disk into.
    pub fn root_port(self) -> Self {
        self.with(["-device", "pcie-root-port,id=root-port,chassis=1,slot=1"])
    }

    /// Boots it and waits until it takes commands. An emulated machine whose
    /// clock stops at its boot is started again.
    pub fn boot(self, files: &BootFiles, scratch: &Scratch) -> Guest {
        for _ in 1..BOOTS {
            let mut guest = self.launch(files, scratch);
            if !guest.stands_still() {
                return guest;
            }
            println!("the emulated machine stood still at its boot and is started again");
        }
        let mut guest = self.launch(files, scratch);
        guest.wait_ready();
        guest
    }

    /// Starts it empty, for a guest that will migrate there.
    pub fn await_guest(self, files: &BootFiles, scratch: &Scratch) -> Guest {
        self.with(["-incoming", "defer"]).launch(files, scratch)
    }

    fn launch(&self, files: &BootFiles, scratch: &Scratch) -> Guest {
        let (agent, control) = (scratch.path("agent"), scratch.path("qmp"));
        for old in [&agent, &control] {
            let _ = std::fs::remove_file(old);
        }
        let listeners = (
            UnixListener::bind(&agent).unwrap(),
            UnixListener::bind(&control).unwrap(),
        );
        let append = format!(
            "console=ttyS0 quiet panic=-1 extentd.agent=ttyS1 {}",
            self.kernel_arguments
        );
        let mut qemu = self.qemu(scratch);
        qemu.args([
            "-chardev".to_owned(),
            format!("socket,id=agent,path={}", agent.display()),
        ])
        .args(["-serial", "chardev:agent"])
        .args(["-qmp".to_owned(), format!("unix:{}", control.display())])
        .arg("-kernel")
        .arg(&files.kernel)
        .arg("-initrd")
        .arg(&files.initramfs)
        .args(["-append", &append]);
        let mut child = Running(Some(qemu.spawn().unwrap()));
        let agent = child.accept(&listeners.0);
        agent.set_read_timeout(Some(LIMIT)).unwrap();
        let qmp = Qmp::new(child.accept(&listeners.1));
        Guest {
            qemu: child,
            agent: BufReader::new(agent),
            qmp,
            console: scratch.path("console"),
        }
    }

    /// Lets the firmware boot from the first disk, until QEMU ends; its exit status and the
    /// console.
    pub fn run_firmware(self, scratch: &Scratch) -> (ExitStatus, String) {
        let status = wait_exit(self.qemu(scratch).spawn().unwrap());
        let console = std::fs::read(scratch.path("console")).unwrap();
        (status, String::from_utf8_lossy(&console).into_owned())
    }

    fn qemu(&self, scratch: &Scratch) -> Command {
        // setpriv, so that it never outlives the test that started it.
        let mut qemu = Command::new("setpriv");
        qemu.args(["--pdeathsig", "KILL", "qemu-system-x86_64"])
            .args(["-machine", "q35,memory-backend=mem,accel=tcg"])
            .args(["-nodefaults", "-no-user-config", "-display", "none"])
            .args(&self.arguments)
            .arg("-serial")
            .arg(format!("file:{}", scratch.path("console").display()))
            .stdin(Stdio::null());
        qemu
    }
}

/// QEMU, killed when dropped.
struct Running(Option<Child>);

impl Running {
    /// QEMU's connection to one of our sockets.
    fn accept(&mut self, listener: &UnixListener) -> UnixStream {
        listener.set_nonblocking(true).unwrap();
        let start = Instant::now();
        loop {
            if let Ok((stream, _)) = listener.accept() {
                stream.set_nonblocking(false).unwrap();
                return stream;
            }
            assert_eq!(
                self.0.as_mut().unwrap().try_wait().unwrap(),
                None,
                "QEMU ended at its start"
            );
            assert!(start.elapsed() < LIMIT, "QEMU does not connect");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Running {
    /// How it has ended, which its closed connections have told.
    fn ended(&mut self) -> String {
        let status = self.0.take().map(|mut child| child.wait());
        format!("QEMU ended: {status:?}")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A booted guest.
pub struct Guest {
    qemu: Running,
    agent: BufReader<UnixStream>,
    /// QEMU itself.
    pub qmp: Qmp,
    console: PathBuf,
}

impl Guest {
    /// Waits for the guest's first word, or until its kernel finds that one of
    /// its CPUs has stopped, which does not end.
    fn stands_still(&mut self) -> bool {
        let (mut line, start) = (Vec::new(), Instant::now());
        self.set_patience(Duration::from_secs(2));
        loop {
            match self.agent.read_until(b'\n', &mut line) {
                Ok(length) if length > 0 => {
                    if line.trim_ascii_end() == b"@ready" {
                        self.set_patience(LIMIT);
                        return false;
                    }
                    line.clear();
                }
                Ok(_) => panic!("{}\n{}", self.qemu.ended(), self.console()),
                Err(error) if start.elapsed() > LIMIT => {
                    panic!("the guest is silent: {error}\n{}", self.console())
                }
                Err(_) if self.console().contains(STOPPED) => return true,
                Err(_) => {}
            }
        }
    }

    fn set_patience(&self, patience: Duration) {
        self.agent
            .get_ref()
            .set_read_timeout(Some(patience))
            .unwrap();
    }

    /// Waits for the guest's first word after a boot.
    pub fn wait_ready(&mut self) {
        while self.line() != "@ready" {}
    }

    /// Runs a shell command that must succeed; its trimmed output.
    pub fn run(&mut self, command: &str) -> String {
        let (status, output) = self.try_run(command);
        assert_eq!(
            status,
            0,
            "the guest's `{command}` failed: {output}\n{}",
            self.console()
        );
        output
    }

    /// Runs a shell command; its exit status and trimmed output. It may be as slow as a busy
    /// machine makes it while the guest says that it lives.
    pub fn try_run(&mut self, command: &str) -> (i32, String) {
        self.send(command);
        let (mut output, start) = (String::new(), Instant::now());
        loop {
            let line = self.line();
            if line == "@alive" {
                assert!(
                    start.elapsed() < SLOWEST,
                    "the guest's `{command}` does not end\n{}",
                    self.console()
                );
                continue;
            }
            if let Some(status) = line.strip_prefix("@status ") {
                return (status.parse().unwrap(), output.trim().to_owned());
            }
            output.push_str(&line);
            output.push('\n');
        }
    }

    /// Starts a shell command in the background under a name for [`Guest::join`].
    pub fn spawn(&mut self, name: &str, command: &str) {
        let status = format!("echo $? >/tmp/{name}.part; mv /tmp/{name}.part /tmp/{name}.status");
        self.run(&format!("( {command}; {status} ) >/tmp/{name}.log 2>&1 &"));
    }

    /// Waits for a command in the background, which must succeed; its output.
    pub fn join(&mut self, name: &str) -> String {
        self.wait_for(&format!("[ -e /tmp/{name}.status ]"));
        let output = self.run(&format!("cat /tmp/{name}.log"));
        let status = self.run(&format!("cat /tmp/{name}.status"));
        assert_eq!(
            status,
            "0",
            "the guest's {name} failed: {output}\n{}",
            self.console()
        );
        output
    }

    /// Waits in the guest until a shell condition holds.
    pub fn wait_for(&mut self, condition: &str) {
        self.run(&format!("until {condition}; do sleep 0.05; done"));
    }

    /// Sends a command that gets no answer.
    pub fn send(&mut self, command: &str) {
        let line = format!("{}\n", command.replace('\n', "; "));
        self.agent.get_mut().write_all(line.as_bytes()).unwrap();
    }

    /// Migrates it to a QEMU that awaits it, over a socket at `path`; how long
    /// it stood still, in milliseconds.
    pub fn migrate(&mut self, to: &mut Guest, path: &Path) -> u64 {
        let uri = json!({ "uri": format!("unix:{}", path.display()) });
        self.tell_migration();
        to.tell_migration();
        to.qmp.execute("migrate-incoming", &uri);
        self.qmp.execute("migrate", &uri);
        self.wait_migrated();
        to.wait_migrated();
        let result = self.qmp.execute("query-migrate", &json!({}));
        result["downtime"].as_u64().unwrap()
    }

    /// Stops it, and saves its memory and devices to a new file at `path`; it
    /// stays stopped.
    pub fn save(&mut self, path: &Path) {
        self.tell_migration();
        self.qmp.execute("stop", &json!({}));
        let uri = json!({ "uri": format!("file:{}", path.display()) });
        self.qmp.execute("migrate", &uri);
        self.wait_migrated();
        // It tells of no event when it may go on again.
        let start = Instant::now();
        while self.qmp.execute("query-status", &json!({}))["status"] != "postmigrate" {
            assert!(start.elapsed() < LIMIT, "it is not finalized");
        }
    }

    /// Takes what [`save`](Self::save) has saved into a QEMU that awaits it,
    /// and lets it go on.
    pub fn restore(&mut self, path: &Path) {
        self.tell_migration();
        let uri = json!({ "uri": format!("file:{}", path.display()) });
        self.qmp.execute("migrate-incoming", &uri);
        self.wait_migrated();
        self.go_on();
    }

    /// Lets it go on that was stopped.
    pub fn go_on(&mut self) {
        self.qmp.execute("cont", &json!({}));
    }

    fn tell_migration(&mut self) {
        let events = json!([{ "capability": "events", "state": true }]);
        self.qmp.execute(
            "migrate-set-capabilities",
            &json!({ "capabilities": events }),
        );
    }

    /// Until a migration that was begun has ended, which must be well.
    fn wait_migrated(&mut self) {
        loop {
            let event = self.qmp.wait_event("MIGRATION");
            match event["data"]["status"].as_str().unwrap() {
                "completed" => return,
                "failed" | "cancelled" => {
                    panic!("{}", self.qmp.execute("query-migrate", &json!({})))
                }
                _ => {}
            }
        }
    }

    /// Ends a QEMU whose guest has migrated away.
    pub fn quit(mut self) {
        self.qmp.execute("quit", &json!({}));
        let status = wait_exit(self.qemu.0.take().unwrap());
        assert!(status.success(), "QEMU: {status}");
    }

    /// Shuts it down from within; QEMU must end well.
    pub fn power_off(mut self) {
        self.send("sync; poweroff -f");
        let status = wait_exit(self.qemu.0.take().unwrap());
        assert!(status.success(), "QEMU: {status}\n{}", self.console());
    }

    fn line(&mut self) -> String {
        let mut bytes = Vec::new();
        match self.agent.read_until(b'\n', &mut bytes) {
            Ok(length) if length > 0 => String::from_utf8_lossy(&bytes).trim_end().to_owned(),
            Ok(_) => panic!("{}\n{}", self.qemu.ended(), self.console()),
            Err(error) => {
                // Where its CPUs are tells a guest that waits from one that spins or stands.
                let registers = self.qmp.execute(
                    "human-monitor-command",
                    &json!({ "command-line": "info registers -a" }),
                );
                panic!(
                    "the guest is silent: {error}\n{registers}\n{}",
                    self.console()
                )
            }
        }
    }

    /// What the guest's kernel said, for messages.
    fn console(&self) -> String {
        let bytes = std::fs::read(&self.console).unwrap_or_default();
        format!("--- console:\n{}", String::from_utf8_lossy(&bytes))
    }
}
