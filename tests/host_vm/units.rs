//! The units of the package and of the documentation, under a real systemd.

use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use front_end::load::{Client, Extent, Pattern, Plan};
use front_end::{LIMIT, Session, wait_readable};
use rig::lanes::Lanes;
use rig::model::SECTOR;
use rig::operator;
use rig::place::{connect, guest};
use rig::program::run;
use serde_json::Value;

use crate::inside::{self, Stage};
use crate::mapped::IMAGE;
use crate::system;

/// Where the units have their images.
pub const IMAGES: &str = "/var/lib/extentd";
const PROGRAM: &str = "/usr/bin/extentd";
/// The user of the swap unit, and the group of disks.
pub const EXTENTD: u32 = 990;
const DISK: u32 = 6;

#[test]
fn the_units_serve_restart_reload_and_recover_under_systemd() {
    let Some(mut vm) = system::boot() else {
        return;
    };
    let data = vm.device("data");
    vm.run(&format!("mount -t ext4 {data} {IMAGES}"));
    let devices = [data, String::new()];
    inside::play_one(&mut vm, "units", &devices);
    inside::play_one(&mut vm, "swap unit", &devices);
    inside::play_one(&mut vm, "snapshot unit", &devices);
    vm.power_off();
}

/// `systemctl`, which must succeed; what it prints.
pub fn systemctl(arguments: &[&str]) -> String {
    let result = run(Command::new("systemctl").args(arguments));
    result.unwrap_or_else(|error| {
        let log = run(Command::new("journalctl").args(["--no-pager", "-n", "40"]));
        panic!("{error}\n{}", log.unwrap_or_default())
    })
}

pub fn property(unit: &str, name: &str) -> String {
    let text = systemctl(&["show", "--value", "--property", name, unit]);
    text.trim().to_owned()
}

/// What a unit and its process have said, for whoever wants to see it.
pub fn print_log(unit: &str) {
    let log = run(Command::new("journalctl").args(["-o", "cat", "--no-pager", "-u", unit]));
    println!("{}", log.unwrap());
}

pub fn pid(unit: &str) -> String {
    property(unit, "MainPID")
}

/// The file that a process runs.
fn runs(pid: &str) -> u64 {
    fs::metadata(format!("/proc/{pid}/exe")).unwrap().ino()
}

fn info(control: &str) -> Value {
    operator::info(Path::new(control))
}

/// Waits for what no event tells.
pub fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < LIMIT, "{what}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// A front-end of a unit, with its guest.
struct Attached {
    socket: PathBuf,
    session: Session,
    lanes: Lanes,
}

impl Attached {
    fn new(socket: &str) -> Self {
        let socket = PathBuf::from(socket);
        let lanes = Lanes::new(guest(), &vec![0; IMAGE / SECTOR], 7);
        let mut session = connect(&socket);
        lanes.start(&mut session).unwrap();
        Self {
            socket,
            session,
            lanes,
        }
    }

    /// Keeps the load up while something happens that it is not to notice.
    fn not_notice(&mut self, happened: impl Fn() -> bool) {
        let start = Instant::now();
        while !happened() {
            assert!(start.elapsed() < LIMIT, "it does not happen");
            self.lanes
                .run_until(Instant::now() + Duration::from_millis(20));
            assert!(self.lanes.sound(), "{:?}", self.lanes.wrong);
        }
        self.lanes.proceed();
        let noticed = wait_readable(self.session.connection.stream(), Duration::ZERO);
        assert!(noticed.is_err(), "the connection has ended");
    }

    /// Keeps the load up until the process has gone, and goes on with the next.
    fn outlive(&mut self) {
        while wait_readable(self.session.connection.stream(), Duration::ZERO).is_err() {
            self.lanes
                .run_until(Instant::now() + Duration::from_millis(1));
            assert!(self.lanes.sound(), "{:?}", self.lanes.wrong);
        }
        let inflight = self.session.inflight.take();
        self.session = connect(&self.socket);
        self.session.inflight = inflight;
        self.lanes.start(&mut self.session).unwrap();
        self.lanes.proceed();
    }
}

/// The process is no root, its threads have what they need and no more, and it writes to one image.
fn confined(pid: &str, image: &Path, control: &str) {
    let process = PathBuf::from("/proc").join(pid);
    for task in fs::read_dir(process.join("task")).unwrap() {
        let status = fs::read_to_string(task.unwrap().path().join("status")).unwrap();
        let value = |key: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(key));
            line.unwrap().trim().to_owned()
        };
        assert_ne!(value("Uid:").split('\t').next(), Some("0"));
        assert_eq!((&*value("NoNewPrivs:"), &*value("Seccomp:")), ("1", "2"));
        let lease = if value("Name:") == "guard" {
            1 << 28
        } else {
            0
        };
        if value("Name:") != "keeper" {
            let kept = u64::from_str_radix(&value("CapEff:"), 16).unwrap();
            assert_eq!(kept, lease, "{}", value("Name:"));
        }
    }
    let mounts = fs::read_to_string(process.join("mountinfo")).unwrap();
    let options = |path: &Path| {
        let path = path.to_str().unwrap();
        let mut lines = mounts.lines().rev().map(|line| line.split(' '));
        let line = lines.find(|line| line.clone().nth(4) == Some(path));
        line.unwrap().nth(5).unwrap().to_owned()
    };
    assert!(options(image).starts_with("rw"), "{mounts}");
    assert!(options(Path::new(IMAGES)).starts_with("ro"), "{mounts}");
    let sandbox = &info(control)["sandbox"];
    assert_eq!(sandbox["seccomp"], true, "{sandbox}");
    assert_eq!(sandbox["denied_calls"], 0, "{sandbox}");
}

/// A longer disk, and the one that it was.
fn resized(image: &Path, control: &str, attached: &mut Attached) {
    for size in [IMAGE + (1 << 20), IMAGE] {
        let size = size.to_string();
        run(Command::new("extentctl").args(["--control-path", control, "resize", &size])).unwrap();
        assert_eq!(fs::metadata(image).unwrap().len().to_string(), size);
        attached.lanes.proceed();
    }
}

/// A file system that nothing is in use of.
fn mounted_anew(folder: &str) {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let mut mounts = mounts.lines().map(|line| line.split(' '));
    let mut mount = mounts
        .find(|line| line.clone().nth(1) == Some(folder))
        .unwrap();
    let device = mount.next().unwrap();
    run(Command::new("umount").arg(folder)).unwrap();
    run(Command::new("mount").args(["-t", "ext4", device, folder])).unwrap();
}

/// Puts a new file where the program is; which one it was.
fn install_again() -> u64 {
    let old = fs::metadata(PROGRAM).unwrap().ino();
    let part = format!("{PROGRAM}.part");
    fs::copy(PROGRAM, &part).unwrap();
    fs::rename(&part, PROGRAM).unwrap();
    old
}

/// What the package does when a newer one is installed: the guest does not notice it, and a disk
/// that is held still stays as it is.
fn upgraded_by_the_package(service: &'static str, control: &str, attached: &mut Attached) {
    let configure = || {
        let script = format!("/{}", system::POSTINST);
        run(Command::new("sh").args([&*script, "configure", "0.1.0-1"])).unwrap()
    };
    let operator = |words: &[&str]| {
        let command = ["--control-path", control];
        run(Command::new("extentctl").args(command).args(words)).unwrap()
    };
    let before = pid(service);
    let old = install_again();
    operator(&["quiesce", "--for", "600"]);
    configure();
    assert_eq!(
        pid(service),
        before,
        "a disk was restarted that is held still"
    );
    operator(&["resume"]);
    attached.lanes.proceed();
    let upgrade = thread::spawn(configure);
    attached.not_notice(|| upgrade.is_finished());
    upgrade.join().unwrap();
    assert_ne!(runs(&pid(service)), old, "it is what it was");
}

pub fn serve_restart_reload_and_recover(_stage: &Stage) {
    let (service, socket) = ("extentd@vm.service", "extentd@vm.socket");
    fs::create_dir_all("/etc/extentd").unwrap();
    fs::write("/etc/extentd/vm.conf", "EXTENTD_OPTIONS=--num-queues 4\n").unwrap();
    let image = Path::new(IMAGES).join("vm.img");
    fs::write(&image, vec![0; IMAGE]).unwrap();
    fs::File::open(&image).unwrap().sync_all().unwrap();

    systemctl(&["start", socket]);
    assert_eq!(property(service, "ActiveState"), "inactive");
    let mut attached = Attached::new("/run/extentd/vm.sock");
    attached.lanes.proceed();
    wait_until("it is not ready", || {
        property(service, "ActiveState") == "active"
    });
    let control = "/run/extentd/vm.control";
    wait_until("requests do not go by the disk", || {
        attached.lanes.proceed();
        info(control)["disk"]["path"] == "disk"
    });

    confined(&pid(service), &image, control);
    resized(&image, control, &mut attached);

    let before = pid(service);
    let restart = thread::spawn(move || systemctl(&["restart", service]));
    attached.not_notice(|| restart.is_finished());
    restart.join().unwrap();
    assert_ne!(pid(service), before);

    upgraded_by_the_package(service, control, &mut attached);

    let before = pid(service);
    let old = install_again();
    systemctl(&["reload", service]);
    attached.outlive();
    assert_eq!(pid(service), before);
    assert_ne!(runs(&before), old, "it is what it was");
    assert_eq!(property(service, "ActiveState"), "active");
    confined(&before, &image, control);

    wait_until("its session is not kept", || {
        property(service, "NFileDescriptorStore") == "1"
    });
    run(Command::new("kill").args(["-9", &before])).unwrap();
    attached.not_notice(|| {
        property(service, "NRestarts") == "1" && property(service, "ActiveState") == "active"
    });
    assert_ne!(pid(service), before);

    assert_eq!(attached.lanes.settle(&mut attached.session), 0);
    systemctl(&["stop", service, socket]);
    mounted_anew(IMAGES);
    // What is kept is closed with the service.
    let connection = &attached.session.connection;
    wait_readable(connection.stream(), LIMIT).unwrap();
    connection.receive().unwrap_err();
    assert_eq!(property(service, "Result"), "success");
    assert_eq!(property(service, "ExecMainStatus"), "0");
    print_log(service);
    assert!(!attached.socket.exists());
    attached.lanes.check(&fs::read(&image).unwrap());
    assert_eq!(
        (attached.lanes.repeated, &attached.lanes.wrong[..]),
        (0, &[][..])
    );
}

/// Every property holds, as `extentctl selftest` finds.
fn wait_swap_grade(control: &str) {
    let mut said = String::new();
    let start = Instant::now();
    loop {
        let output = Command::new("extentctl")
            .args(["--control-path", control, "selftest"])
            .output()
            .unwrap();
        if output.status.success() {
            return;
        }
        let text = [output.stdout, output.stderr].concat();
        said.clear();
        said.push_str(&String::from_utf8_lossy(&text));
        assert!(start.elapsed() < LIMIT, "{said}");
    }
}

fn load(socket: &str) {
    let plan = Plan {
        pattern: Pattern::Randrw,
        depth: 8,
        verify: Some(7),
        extent: Extent::Requests(2000),
        ..Plan::default()
    };
    let mut client = Client::connect(Path::new(socket), plan).unwrap();
    assert!(client.run().unwrap().verified > 0);
    client.close().unwrap();
}

pub fn serve_a_swap_device(stage: &Stage) {
    let service = "extentd-swap@swap.service";
    let (socket, control) = ("/run/extentd/swap.sock", "/run/extentd/swap.ctl");
    // As udev does, which is not there.
    chown(&stage.devices[0], Some(0), Some(DISK)).unwrap();
    run(Command::new("chmod").args(["660", &stage.devices[0]])).unwrap();
    let image = Path::new(IMAGES).join("swap.img");
    fs::File::create(&image).unwrap().set_len(64 << 20).unwrap();
    chown(&image, Some(EXTENTD), Some(EXTENTD)).unwrap();

    systemctl(&["start", service]);
    assert_eq!(property(service, "ActiveState"), "active");
    let status = fs::read_to_string(format!("/proc/{}/status", pid(service))).unwrap();
    assert!(status.contains(&format!("Uid:\t{EXTENTD}\t")), "{status}");
    wait_swap_grade(control);
    load(socket);
    wait_swap_grade(control);

    systemctl(&["restart", service]);
    load(socket);
    wait_swap_grade(control);

    let before = pid(service);
    run(Command::new("kill").args(["-9", &before])).unwrap();
    wait_until("it is not started again", || {
        property(service, "ActiveState") == "active" && pid(service) != before
    });
    load(socket);
    wait_swap_grade(control);
    assert_eq!(info(control)["swap"]["mode"], "demanded");
    systemctl(&["stop", service]);
    assert_eq!(property(service, "Result"), "success");
    print_log(service);
}
