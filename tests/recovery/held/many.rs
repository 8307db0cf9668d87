//! Many requests that are held, of several queues and workers, and what an
//! operator does about them by `extentctl` and by the file of options.

use std::process::Command;

use rig::program::run;

use super::*;

const QUEUES: usize = 4;
/// Of each queue.
const REQUESTS: usize = 250;

/// The blocks of a queue: every fourth one.
fn of(queue: usize) -> impl Iterator<Item = usize> {
    holes(QUEUES * REQUESTS).skip(queue).step_by(QUEUES)
}

#[test]
fn a_thousand_requests_of_four_queues_are_held_over_a_kill_and_land() {
    let Some(small) = Small::new() else { return };
    let files = folder("held");
    let control = files.path().join("control");
    let mut arguments = vec!["--threads", "2", "--num-queues", "4"];
    arguments.extend(["--control-path", control.to_str().unwrap()]);
    let start = || {
        let socket = files.path().join("socket");
        Daemon::start(&rig::extentd!(), &socket, &small.image, &arguments).unwrap()
    };
    let memory = GuestMemory::flat(MEMORY).unwrap();
    let setup = Setup {
        size: 256,
        features: feature::ALL,
        indirect: 16,
    };
    let mut base = 0_u64;
    let mut drivers: Vec<Driver> = (0..QUEUES)
        .map(|_| {
            let driver = Driver::new(&memory, base, setup).unwrap();
            base = driver.end().next_multiple_of(4096);
            driver
        })
        .collect();
    assert!(base <= DATA);
    let attach = |daemon: &Daemon, drivers: &[Driver], inflight| {
        let wanted = Wanted {
            queues: QUEUES.try_into().unwrap(),
            ..Wanted::default()
        };
        let mut session = Session::open(daemon.socket(), Like::Qemu, wanted).unwrap();
        session.inflight = inflight;
        let rings: Vec<_> = drivers.iter().map(Driver::ring).collect();
        session.start(&memory, &rings).unwrap();
        session
    };
    let held = |count: usize| {
        wait_info(&control, "held requests", |info| {
            info["disk"]["held_requests"] == count
        });
    };
    let daemon = start();
    let session = attach(&daemon, &drivers, None);
    small.fill();
    for (queue, driver) in drivers.iter_mut().enumerate() {
        for number in of(queue) {
            let (sector, at) = Guest::at(number);
            let bytes = content(9, sector..sector + BLOCK / SECTOR);
            memory.write(at, &bytes).unwrap();
            let data = [Buffer::readable(at, LENGTH)];
            assert!(driver.submit(Op::Write, sector as u64, &data, number as u64));
        }
        driver.publish().unwrap();
    }
    held(QUEUES * REQUESTS);
    daemon.kill().unwrap();
    let daemon = start();
    let session = attach(&daemon, &drivers, session.inflight);
    held(QUEUES * REQUESTS);
    for driver in &mut drivers {
        assert_eq!(driver.pop().unwrap(), None);
        let done = driver.read(8, DATA, LENGTH).unwrap();
        assert_eq!(done.status, status::OK);
    }
    small.make_room();
    for (queue, driver) in drivers.iter_mut().enumerate() {
        let one = |_| {
            let done = driver.wait(limit()).unwrap();
            assert_eq!(done.status, status::OK);
            usize::try_from(done.tag).unwrap()
        };
        let mut ended: Vec<_> = (0..REQUESTS).map(one).collect();
        ended.sort_unstable();
        assert_eq!(ended, of(queue).collect::<Vec<_>>());
    }
    held(0);
    drop(session);
    assert!(daemon.terminate().unwrap().success());
    landed(&small.image, holes(QUEUES * REQUESTS));
}

#[test]
fn what_is_held_follows_extentctl_and_the_file_of_options() {
    let Some(small) = Small::new() else { return };
    let options = folder("options");
    let file = options.path().join("disk.toml");
    let write = |text: &str| {
        let new = options.path().join("new");
        std::fs::write(&new, text).unwrap();
        std::fs::rename(&new, &file).unwrap();
    };
    write("on-enospc = \"hold\"\n");
    let mut guest = Guest::new(&small.image, true, &["--config", file.to_str().unwrap()]);
    let control = guest.control.clone();
    let extentctl = |words: &[&str]| {
        let mut command = Command::new(rig::extentctl!());
        command.arg("--control-path").arg(&control).args(words);
        run(&mut command).unwrap()
    };
    small.fill();
    guest.write(holes(20));
    guest.wait_held(20);
    assert_eq!(extentctl(&["retry"]), "20 requests are tried again\n");
    guest.nothing();
    write("on-enospc = \"report\"\n");
    guest.daemon().signal(libc::SIGHUP).unwrap();
    guest.end(20, status::IOERR);
    guest
        .daemon()
        .wait_stderr(|line| line.contains("on-enospc is report now, and was hold"))
        .unwrap();
    guest.write(holes(1));
    guest.end(1, status::IOERR);
    extentctl(&["on-error", "--enospc", "hold"]);
    guest.write(holes(20));
    guest.wait_held(20);
    extentctl(&["on-error", "--enospc", "report"]);
    guest.end(20, status::IOERR);
    let shown = extentctl(&["info", "--config"]);
    assert!(shown.contains("on-enospc = \"report\""), "{shown}");
    assert_eq!(extentctl(&["retry"]), "no request is held\n");
    extentctl(&["on-error", "--enospc", "hold"]);
    guest.write(holes(20));
    guest.wait_held(20);
    small.make_room();
    assert_eq!(guest.end(20, status::OK), holes(20).collect::<Vec<_>>());
    guest.finish();
}
