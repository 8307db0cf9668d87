//! The examples do what they say, on real file systems.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr
)]

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use rig::file_systems::{EXT4, Mounted, XFS};
use rig::files::{fallocate, pattern};
use rig::program::run;

/// Cargo builds examples next to the tests, but not if asked for a single test (`--test examples`).
fn example(name: &str) -> Option<PathBuf> {
    let test = std::env::current_exe().unwrap();
    let path = test
        .parent()
        .unwrap()
        .parent()
        .unwrap()
        .join("examples")
        .join(name);
    if !path.exists() {
        eprintln!("skipped: {name} is not built: run cargo build --examples");
        return None;
    }
    Some(path)
}

#[test]
fn an_image_is_printed_and_copied_straight_from_the_disk() {
    let (Some(copy_by_map), Some(print_map)) = (example("copy_by_map"), example("print_map"))
    else {
        return;
    };
    for made in [EXT4, XFS] {
        let Some(fs) = Mounted::new(made) else {
            continue;
        };
        let image = fs.create("image");
        image.set_len((8 << 20) + 1000).unwrap();
        image.write_all_at(&pattern(5, 0, 1 << 20), 0).unwrap();
        image
            .write_all_at(&pattern(5, 5 << 20, 70_000), 5 << 20)
            .unwrap();
        image
            .write_all_at(&pattern(5, 8 << 20, 1000), 8 << 20)
            .unwrap();
        fallocate(&image, 0, 2 << 20, 1 << 20).unwrap();
        image.sync_all().unwrap();
        drop(image);
        let said = run(Command::new(&copy_by_map)
            .arg(fs.path("image"))
            .arg(fs.path("copy")))
        .unwrap();
        assert!(
            said.contains("the copy reads the same as the image"),
            "{said}"
        );
        assert!(said.contains(" 0 through the file"), "{said}");
        assert_eq!(
            std::fs::read(fs.path("image")).unwrap(),
            std::fs::read(fs.path("copy")).unwrap()
        );
        let printed = run(Command::new(&print_map).arg(fs.path("image"))).unwrap();
        assert!(printed.contains(fs.device()), "{printed}");
        for kind in ["written", "unwritten", "hole"] {
            assert!(
                printed
                    .lines()
                    .any(|line| line.ends_with(&format!("  {kind}"))),
                "{kind}: {printed}"
            );
        }
        // Somebody has the image open for writing: no lease, no copy, and a clear word.
        let _open = std::fs::OpenOptions::new()
            .write(true)
            .open(fs.path("image"))
            .unwrap();
        let refused = run(Command::new(&copy_by_map)
            .arg(fs.path("image"))
            .arg(fs.path("copy2")));
        assert!(
            refused
                .unwrap_err()
                .contains("somebody else has the image open")
        );
    }
}

/// A server of a file, ended when it goes out of use.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A connection to one.
struct Client(BufReader<UnixStream>);

impl Client {
    fn connect(socket: &Path) -> Client {
        loop {
            match UnixStream::connect(socket) {
                Ok(stream) => return Client(BufReader::new(stream)),
                // It does not listen yet.
                Err(_) => std::thread::sleep(std::time::Duration::from_millis(10)),
            }
        }
    }

    /// What it answers to a request with these data.
    fn ask(&mut self, request: &str, data: &[u8]) -> String {
        let mut stream = self.0.get_ref();
        stream.write_all(format!("{request}\n").as_bytes()).unwrap();
        stream.write_all(data).unwrap();
        let mut said = String::new();
        self.0.read_line(&mut said).unwrap();
        said.trim().to_owned()
    }

    fn read(&mut self, offset: usize, len: usize) -> Vec<u8> {
        assert_eq!(self.ask(&format!("read {offset} {len}"), &[]), "ok");
        let mut data = vec![0; len];
        self.0.read_exact(&mut data).unwrap();
        data
    }
}

/// Bytes of the file that is served, and of a request.
const SERVED: usize = 8 << 20;
const STEP: usize = 64 << 10;

#[test]
fn a_file_is_served_by_a_server_like_loop_whatever_others_do_with_it() {
    let Some(server) = example("loop_server") else {
        return;
    };
    for made in [EXT4, XFS] {
        let Some(fs) = Mounted::new(made) else {
            continue;
        };
        let mut model = vec![0; SERVED];
        model[..SERVED / 2].copy_from_slice(&pattern(1, 0, SERVED / 2));
        let image = fs.create("image");
        image.set_len(SERVED as u64).unwrap();
        image.write_all_at(&model[..SERVED / 2], 0).unwrap();
        image.sync_all().unwrap();
        drop(image);
        let socket = fs.path("socket");
        let _server = Server(
            Command::new(&server)
                .args([fs.path("image"), socket.clone()])
                .spawn()
                .unwrap(),
        );
        let mut clients = [Client::connect(&socket), Client::connect(&socket)];
        for round in 0..6_usize {
            for (at, offset) in (0..SERVED).step_by(STEP).enumerate() {
                let client = &mut clients[at % 2];
                let data = pattern(10 + round as u64, offset as u64, STEP);
                match (at + round) % 4 {
                    0 => {
                        assert_eq!(client.ask(&format!("discard {offset} {STEP}"), &[]), "ok");
                        model[offset..offset + STEP].fill(0);
                    }
                    1 => assert_eq!(client.read(offset, STEP), model[offset..offset + STEP]),
                    _ => {
                        assert_eq!(client.ask(&format!("write {offset} {STEP}"), &data), "ok");
                        model[offset..offset + STEP].copy_from_slice(&data);
                    }
                }
            }
            // A foreign reader gets the file, and what was written to it.
            assert_eq!(clients[0].ask("sync", &[]), "ok");
            assert!(
                std::fs::read(fs.path("image")).unwrap() == model,
                "round {round}"
            );
            assert!(clients[1].read(0, STEP) == model[..STEP]);
        }
        // Once the reader has gone the disk is used again.
        let inode = std::fs::metadata(fs.path("image")).unwrap().ino();
        let leased = || {
            let locks = std::fs::read_to_string("/proc/locks").unwrap();
            let of_image =
                |line: &str| line.contains("LEASE") && line.contains(&format!(":{inode} "));
            locks.lines().any(of_image)
        };
        while !leased() {
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        assert!(clients[0].read(0, STEP) == model[..STEP]);
        let end = format!("read {} {STEP}", SERVED - STEP / 2);
        assert_eq!(clients[0].ask(&end, &[]), "unexpected end of file");
    }
}

#[test]
fn pages_are_swapped_to_a_file_that_is_all_written_and_to_no_other() {
    let Some(swap) = example("swap_pages") else {
        return;
    };
    for made in [EXT4, XFS] {
        let Some(fs) = Mounted::new(made) else {
            continue;
        };
        let image = fs.create("image");
        image.write_all_at(&vec![1; SERVED], 0).unwrap();
        image.sync_all().unwrap();
        drop(image);
        let swap_to = |file: &str| run(Command::new(&swap).arg(fs.path(file)).arg("1000"));
        let said = swap_to("image").unwrap();
        assert!(
            said.contains("1000 pages went out and came back, 0 lookups missed"),
            "{said}"
        );
        assert!(said.contains("the map is fixed"), "{said}");

        let sparse = fs.create("sparse");
        sparse.set_len(SERVED as u64).unwrap();
        drop(sparse);
        let refused = swap_to("sparse").unwrap_err();
        assert!(refused.contains("holes: 8388608"), "{refused}");
    }
}
