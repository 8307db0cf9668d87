//! Reads and looks at random places, compared with the file and with what is
//! known of it.

use rig::file_systems::{BTRFS, XFS};
use rig::files::read_direct;
use rig::random::Random;

use crate::client::{Client, cmd, go, opt, queries};
use crate::rig::{SIZE, Served, change, image, mounted, snapshot};

/// Most bytes of a request.
const MOST: u32 = 32 << 20;
const INVALID: u32 = 22;
const FORBIDDEN: u32 = 1;
const CONTEXTS: [&str; 2] = ["base:allocation", "qemu:dirty-bitmap:monday"];

/// A place, mostly within the disk.
fn place(random: &mut Random) -> (u64, u32) {
    let unit = [1, 512, 4096][random.below(3)];
    let offset = random.number(SIZE / unit + 2) * unit;
    let most = [2000, 100_000, 3 << 20][random.below(3)];
    let length = random.number(most) / unit * unit;
    (offset, u32::try_from(length).unwrap())
}

#[test]
fn every_read_has_the_bytes_of_the_file_in_each_form() {
    for made in [XFS, BTRFS] {
        let Some(mounted) = mounted(made) else { return };
        image(&mounted);
        let monday = snapshot(&mounted, "monday");
        change(&mounted, 7);
        let tuesday = snapshot(&mounted, "tuesday");
        let (old, new) = (read_direct(&monday), read_direct(&tuesday));
        let served = Served::new(&tuesday, &[&monday]);
        let mut plain = Client::reading(&served.socket, false, &[]);
        let mut chunked = Client::reading(&served.socket, true, &CONTEXTS);
        let mut random = Random::seeded(11);
        for _ in 0..300 {
            let (offset, length) = place(&mut random);
            let start = usize::try_from(offset).unwrap();
            let end = start + usize::try_from(length).unwrap();
            let expected = new.get(start..end).map(<[u8]>::to_vec).ok_or(INVALID);
            assert_eq!(plain.read(0, offset, length), expected);
            assert_eq!(chunked.read(0, offset, length), expected);
            if length > 0 {
                let whole = chunked.read(4, offset, length);
                assert_eq!(whole, expected);
            }
            if expected.is_err() || length == 0 {
                let refused = chunked.ask(0, cmd::STATUS, offset, length);
                assert_eq!(refused.error, INVALID);
                continue;
            }
            looks_right(&mut chunked, offset, length, &old, &new);
        }
        served.stop();
    }
}

/// What reads otherwise than the older one is told as changed, and what is
/// told as zeros reads as zeros.
fn looks_right(client: &mut Client, offset: u64, length: u32, old: &[u8], new: &[u8]) {
    let all = client.status(0, offset, length);
    let one = client.status(8, offset, length);
    assert_eq!(all.len(), 2);
    for ((number, runs), (_, first)) in all.iter().zip(&one) {
        let mut at = usize::try_from(offset).unwrap();
        assert_eq!(runs[..1], first[..]);
        let mut before = None;
        for &(bytes, flags) in runs {
            let end = at + usize::try_from(bytes).unwrap();
            assert!(bytes > 0 && before != Some(flags));
            before = Some(flags);
            match (number, flags) {
                (1, 0) => {}
                (1, 2 | 3) => assert!(new[at..end].iter().all(|byte| *byte == 0)),
                (2, 0) => assert!(new[at..end] == old[at..end]),
                (2, 1) => {}
                other => panic!("{other:?}"),
            }
            at = end;
        }
        // There are fewer runs than one answer has room for.
        assert_eq!(at as u64, offset + u64::from(length));
    }
}

#[test]
fn what_may_not_be_is_refused_and_the_connection_goes_on() {
    let Some(mounted) = mounted(XFS) else { return };
    let image = image(&mounted);
    let before = read_direct(&image);
    let served = Served::new(&image, &[]);
    for structured in [false, true] {
        let mut client = Client::reading(&served.socket, structured, &[]);
        client.send(&crate::client::request(0, cmd::WRITE, 7, 0, 4096));
        client.send(&[9; 4096]);
        assert_eq!(client.reply(7, cmd::WRITE, 0).error, FORBIDDEN);
        for command in [cmd::TRIM, cmd::ZEROES] {
            assert_eq!(client.ask(0, command, 0, 4096).error, FORBIDDEN);
        }
        for (flags, command, offset, length) in [
            (0, cmd::FLUSH, 0, 0),
            (0, 99, 0, 0),
            (1, cmd::READ, 0, 512),
            (0, cmd::READ, 0, MOST + 1),
            (0, cmd::READ, SIZE, 1),
            (0, cmd::READ, u64::MAX, u32::MAX),
            (0, cmd::CACHE, SIZE - 1, 2),
            (4, cmd::STATUS, 0, 512),
            // No context was chosen.
            (0, cmd::STATUS, 0, 512),
        ] {
            let refused = client.ask(flags, command, offset, length);
            assert_eq!(
                refused.error, INVALID,
                "{command} {flags} {offset} {length}"
            );
        }
        assert_eq!(client.ask(0, cmd::CACHE, 0, 1 << 20).error, 0);
        assert_eq!(client.read(0, 0, 512).unwrap(), before[..512]);
        client.send(&crate::client::request(0, cmd::DISC, 0, 0, 0));
        assert!(client.is_ended());
    }
    assert!(read_direct(&image) == before);
    served.stop();
}

#[test]
fn options_are_answered_as_the_protocol_has_it() {
    let Some(mounted) = mounted(XFS) else { return };
    image(&mounted);
    let monday = snapshot(&mounted, "monday");
    let served = Served::new(&monday, &[]);
    let (unsupported, invalid, unknown, long) =
        (1 << 31 | 1, 1 << 31 | 3, 1 << 31 | 6, 1 << 31 | 9);
    let mut client = Client::new(&served.socket);
    let listed = client.option(opt::LIST, &[]);
    assert_eq!(listed[0], (2, crate::client::text("monday")));
    let mut last = |option, data: &[u8]| client.option(option, data).pop().unwrap().0;
    assert_eq!(last(opt::LIST, &[0]), invalid);
    assert_eq!(last(opt::STRUCTURED, &[0]), invalid);
    assert_eq!(last(5, &[]), unsupported);
    assert_eq!(last(77, &[1, 2, 3]), unsupported);
    assert_eq!(last(77, &vec![0; 300_000]), long);
    assert_eq!(last(opt::GO, &[0, 0]), invalid);
    assert_eq!(last(opt::GO, &go("tuesday", &[])), unknown);
    assert_eq!(last(opt::INFO, &go("tuesday", &[])), unknown);
    assert_eq!(
        last(opt::SET_CONTEXTS, &queries("", &["base:allocation"])),
        invalid
    );
    assert_eq!(last(opt::STRUCTURED, &[]), 1);
    assert_eq!(
        last(opt::SET_CONTEXTS, &queries("tuesday", &["base:allocation"])),
        unknown
    );
    assert_eq!(last(opt::INFO, &go("monday", &[1, 3])), 1);
    let told = client.option(opt::LIST_CONTEXTS, &queries("", &[]));
    assert_eq!(
        told[0],
        (4, [&[0, 0, 0, 1], &b"base:allocation"[..]].concat())
    );
    // What was chosen for one name is not for another.
    client.option(opt::SET_CONTEXTS, &queries("monday", &["base:allocation"]));
    assert_eq!(client.option(opt::GO, &go("", &[])).pop().unwrap().0, 1);
    client.structured = true;
    assert_eq!(client.ask(0, cmd::STATUS, 0, 512).error, INVALID);

    let mut client = Client::new(&served.socket);
    assert_eq!(client.option(opt::ABORT, &[]), [(1, Vec::new())]);
    assert!(client.is_ended());
    // The oldest way to choose.
    let mut client = Client::new(&served.socket);
    let old = |name: &str| {
        let head = [
            &crate::client::OPTION.to_be_bytes()[..],
            &opt::EXPORT_NAME.to_be_bytes(),
        ];
        [&head.concat()[..], &crate::client::text(name)].concat()
    };
    client.send(&old("monday"));
    assert_eq!(client.number(8), SIZE);
    assert_eq!(client.number(2), 0b101_0000_0011);
    assert_eq!(client.read(0, 0, 512).unwrap(), read_direct(&monday)[..512]);
    let mut client = Client::new(&served.socket);
    client.send(&old("tuesday"));
    assert!(client.is_ended());
    served.stop();
}
