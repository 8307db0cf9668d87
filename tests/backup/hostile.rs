//! Clients that mean no good: they end, and nobody else notices.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rig::file_systems::XFS;

use crate::client::{Client, OPTION, cmd, opt, request};
use crate::rig::{Served, image, mounted};

/// Clients at a time.
const MOST: usize = 64;

/// Bytes of memory that are its own.
fn memory(served: &Served) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", served.child.id())).unwrap();
    let line = status.lines().find(|line| line.starts_with("RssAnon:"));
    let kib: Vec<&str> = line.unwrap().split_whitespace().collect();
    kib[1].parse::<u64>().unwrap() << 10
}

fn is_served(served: &Served) {
    let mut client = Client::reading(&served.socket, true, &[]);
    assert_eq!(client.read(0, 0, 512).unwrap().len(), 512);
}

#[test]
fn nonsense_ends_the_connection_and_nothing_else() {
    let Some(mounted) = mounted(XFS) else { return };
    let served = Served::new(&image(&mounted), &[]);
    let option = |magic: u64, option: u32, length: u32| {
        let parts = [
            &magic.to_be_bytes()[..],
            &option.to_be_bytes(),
            &length.to_be_bytes(),
        ];
        parts.concat()
    };
    for bytes in [
        option(OPTION + 1, opt::GO, 0),
        option(OPTION, opt::GO, u32::MAX),
        option(OPTION, 99, (1 << 20) + 1),
    ] {
        let mut client = Client::new(&served.socket);
        client.send(&bytes);
        assert!(client.is_ended());
    }
    // Flags of no known protocol.
    let mut client = UnixStream::connect(&served.socket).unwrap();
    client.write_all(&[0x80, 0, 0, 3]).unwrap();
    let mut client = Client {
        stream: client,
        structured: false,
    };
    assert!(client.is_ended());
    for bytes in [
        vec![0; 28],
        request(0, cmd::WRITE, 0, 0, u32::MAX),
        request(0, cmd::WRITE, 0, 0, (32 << 20) + 1),
    ] {
        let mut client = Client::reading(&served.socket, true, &[]);
        client.send(&bytes);
        assert!(client.is_ended());
    }
    is_served(&served);
    served.stop();
}

#[test]
fn who_sends_half_of_something_is_let_go() {
    let Some(mounted) = mounted(XFS) else { return };
    let served = Served::new(&image(&mounted), &[]);
    let mut half = Client::reading(&served.socket, true, &[]);
    half.send(&request(0, cmd::READ, 0, 0, 512)[..27]);
    let mut unread = Client::reading(&served.socket, true, &[]);
    // More than sockets have room for, of which nothing is taken.
    for cookie in 0..64 {
        unread.send(&request(0, cmd::READ, cookie, 0, 1 << 20));
    }
    let mut write = Client::reading(&served.socket, true, &[]);
    write.send(&request(0, cmd::WRITE, 0, 0, 1 << 20));
    write.send(&[0; 1000]);
    let begun = Instant::now();
    is_served(&served);
    // Before anything is read of what was sent, which would let it go on.
    for _ in 0..3 {
        served.says("the client has kept it waiting");
    }
    assert!(half.is_ended() && write.is_ended() && unread.is_ended());
    // Not at once: a busy host may have stopped them for a moment.
    assert!(begun.elapsed() > Duration::from_secs(5));
    served.stop();
}

#[test]
fn a_crowd_of_silent_clients_keeps_nobody_away() {
    let Some(mounted) = mounted(XFS) else { return };
    let served = Served::new(&image(&mounted), &[]);
    is_served(&served);
    let few = memory(&served);
    let mut crowd: Vec<Client> = (0..MOST)
        .map(|_| Client::reading(&served.socket, true, &[]))
        .collect();
    let first = Instant::now();
    // Until the eldest have been silent long enough to give way.
    while UnixStream::connect(&served.socket).is_ok_and(|stream| {
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        let mut hello = [0; 18];
        std::io::Read::read_exact(&mut &stream, &mut hello).is_err()
    }) {
        assert!(first.elapsed() < Duration::from_secs(30));
    }
    let gone = crowd.iter_mut().filter_map(|client| {
        client.stream.set_nonblocking(true).unwrap();
        let read = std::io::Read::read(&mut client.stream, &mut [0]);
        (read.ok() == Some(0)).then_some(())
    });
    assert!((1..10).contains(&gone.count()));
    // Each has its buffers, and no more.
    let most = few + MOST as u64 * (512 << 10) + (8 << 20);
    assert!(memory(&served) < most, "{few} {}", memory(&served));
    drop(crowd);
    is_served(&served);
    served.stop();
}

#[test]
fn every_thread_that_clients_reach_is_in_the_sandbox_and_the_snapshot_is_open_for_reading_only() {
    let Some(mounted) = mounted(XFS) else { return };
    let image = image(&mounted);
    let served = Served::new(&image, &[]);
    let mut client = Client::reading(&served.socket, true, &[]);
    assert!(client.read(0, 0, 512).is_ok());
    let process = PathBuf::from(format!("/proc/{}", served.child.id()));
    let mut seen = Vec::new();
    for task in std::fs::read_dir(process.join("task")).unwrap() {
        let status = std::fs::read_to_string(task.unwrap().path().join("status")).unwrap();
        let field = |name: &str| {
            let line = status.lines().find(|line| line.starts_with(name)).unwrap();
            line.split_whitespace().last().unwrap().to_owned()
        };
        let name = field("Name:");
        if name != "keeper" {
            assert_eq!(field("CapEff:"), "0000000000000000", "{name}");
            assert_eq!(field("Seccomp:"), "2", "{name}");
            assert!(
                field("Seccomp_filters:").parse::<u32>().unwrap() > 3,
                "{name}"
            );
        }
        assert_eq!(field("NoNewPrivs:"), "1", "{name}");
        seen.push(name);
    }
    seen.sort();
    assert_eq!(seen, ["client", "extentd-nbd", "keeper", "log", "signals"]);
    let mut open = 0;
    for fd in std::fs::read_dir(process.join("fd")).unwrap() {
        let fd = fd.unwrap();
        if std::fs::read_link(fd.path()).unwrap() == image {
            let info = process.join("fdinfo").join(fd.file_name());
            let info = std::fs::read_to_string(info).unwrap();
            let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
            let flags = u32::from_str_radix(flags.unwrap().trim(), 8).unwrap();
            assert_eq!(flags & 3, 0, "{info}");
            open += 1;
        }
    }
    assert_eq!(open, 1);
    served.stop();
}
