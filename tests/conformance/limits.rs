//! Limits of the process: what fails for them says which one it was.

use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use front_end::{Daemon, Like, Session, Wanted};

use crate::disk::{Attached, binary, content, scratch};

/// Bytes of the image.
const IMAGE: usize = 32768;

#[test]
fn at_the_limit_on_open_files_every_line_names_it_and_the_process_serves_on() {
    let files = scratch();
    let (image, socket) = (files.path().join("image"), files.path().join("socket"));
    std::fs::write(&image, content(0, IMAGE)).unwrap();
    let limited = files.path().join("limited");
    let (mut named, mut served) = (0, 0);
    for most in 10..40 {
        let program = format!(
            "#!/bin/sh\nulimit -n {most}\nexec '{}' \"$@\"\n",
            binary().display()
        );
        std::fs::write(&limited, program).unwrap();
        std::fs::set_permissions(&limited, std::fs::Permissions::from_mode(0o755)).unwrap();
        let daemon = match Daemon::start(&limited, &socket, &image, &[]) {
            Ok(daemon) => daemon,
            Err(_) => {
                // It has ended by itself, and does so again.
                let mut again = Command::new(&limited);
                again
                    .arg("--socket-path")
                    .arg(&socket)
                    .arg("--blk-file")
                    .arg(&image);
                let said = String::from_utf8(again.output().unwrap().stderr).unwrap();
                assert!(said.contains("open files"), "{most}: {said}");
                continue;
            }
        };
        // Until it is served, or told why not: some wait for a descriptor that will not come.
        let front_end = std::thread::spawn({
            let socket = socket.clone();
            move || {
                let mut session = Session::open(&socket, Like::Qemu, Wanted::default())?;
                session.start_one(1 << 20, 64).map(|ring| (session, ring))
            }
        });
        let names_it = |line: &str| line.contains("LimitNOFILE=");
        while !front_end.is_finished() && !daemon.stderr().iter().any(|line| names_it(line)) {
            std::thread::yield_now();
        }
        let ended = front_end
            .is_finished()
            .then(|| front_end.join().unwrap().is_ok());
        if ended == Some(false) {
            // Its connection may end before the line is read.
            daemon.wait_stderr(names_it).unwrap();
        }
        let said = daemon.stderr();
        // A start may still fail once the socket is there; nothing ends a process that serves.
        let fails = said
            .iter()
            .any(|line| line.contains("cannot create an epoll instance"));
        let status = daemon.terminate().unwrap();
        assert!(status.success() || fails, "{most}: {status}, {said:?}");
        served += usize::from(ended == Some(true));
        for line in said.iter().filter(|line| line.contains("files")) {
            named += 1;
            assert!(line.contains("LimitNOFILE="), "{most}: {line}");
        }
        assert!(
            !said.iter().any(|line| line.contains("os error 24")),
            "{most}: {said:?}"
        );
    }
    assert!(named > 0 && served > 0, "{named} lines, {served} served");
    // With room again all is as ever.
    let _daemon = Daemon::start(&binary(), &socket, &image, &[]).unwrap();
    let mut attached = Attached::new(&socket, Like::Qemu, Wanted::default());
    assert_eq!(attached.read(0, 512), content(0, 512));
}
