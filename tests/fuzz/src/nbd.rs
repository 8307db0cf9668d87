//! The NBD protocol: options and requests, right and wrong, and then any bytes. Each is answered
//! as the protocol has it, data are those of the disk, and nothing else is sent.
#![no_main]

use arbitrary::Arbitrary;
use extentd::nbd::playing::{Disk, play};
use libfuzzer_sys::fuzz_target;

const MOST: u32 = 32 << 20;
const OPTION_BYTES: usize = 16 << 10;
const CONTEXTS: [&str; 2] = ["base:allocation", "qemu:dirty-bitmap:old"];

#[derive(Arbitrary, Debug)]
enum Asked<'a> {
    List,
    Structured,
    Go {
        name: u8,
        infos: Vec<u16>,
        go: bool,
    },
    Contexts {
        name: u8,
        queries: Vec<u8>,
        set: bool,
    },
    Any {
        option: u32,
        data: &'a [u8],
    },
    Long(u32),
}

#[derive(Arbitrary, Debug)]
struct Wanted {
    flags: u16,
    command: u8,
    cookie: u64,
    offset: u32,
    length: u32,
    small: bool,
}

#[derive(Arbitrary, Debug)]
struct Session<'a> {
    runs: [Vec<(u16, u8)>; 2],
    broken: u16,
    options: Vec<Asked<'a>>,
    requests: Vec<Wanted>,
    rest: &'a [u8],
}

/// A disk, its runs and bytes, as they were given.
struct Known {
    runs: [Vec<(u64, u32)>; 2],
    bytes: Vec<u8>,
    broken: usize,
}

fn known(session: &Session<'_>) -> Known {
    let one = |runs: &[(u16, u8)], mask: u8| -> Vec<(u64, u32)> {
        let some = runs.iter().take(40).filter(|(length, _)| *length > 0);
        some.map(|(length, flags)| (u64::from(*length), u32::from(flags & mask)))
            .collect()
    };
    let mut runs = [one(&session.runs[0], 3), one(&session.runs[1], 1)];
    let sizes = [0, 1].map(|which| runs[which].iter().map(|(length, _)| length).sum::<u64>());
    let size = sizes[0].max(sizes[1]);
    for (runs, had) in runs.iter_mut().zip(sizes) {
        if had < size {
            runs.push((size - had, 0));
        }
    }
    let mut bytes = Vec::new();
    for (length, flags) in &runs[0] {
        for _ in 0..*length {
            let data = (bytes.len() * 31) as u8 | 1;
            bytes.push(if flags & 2 != 0 { 0 } else { data });
        }
    }
    let broken = if session.broken & 1 == 0 {
        usize::MAX
    } else {
        usize::from(session.broken)
    };
    Known {
        runs,
        bytes,
        broken,
    }
}

fn name(number: u8) -> &'static str {
    ["", "disk", "other"][usize::from(number) % 3]
}

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u32).to_be_bytes()[..], text.as_bytes()].concat()
}

/// The option's number and data.
fn option(asked: &Asked<'_>) -> (u32, Vec<u8>) {
    match asked {
        Asked::List => (3, Vec::new()),
        Asked::Structured => (8, Vec::new()),
        Asked::Go {
            name: number,
            infos,
            go,
        } => {
            let infos: Vec<u16> = infos.iter().copied().take(20).collect();
            let mut data = text(name(*number));
            data.extend((infos.len() as u16).to_be_bytes());
            data.extend(infos.iter().flat_map(|info| info.to_be_bytes()));
            (if *go { 7 } else { 6 }, data)
        }
        Asked::Contexts {
            name: number,
            queries,
            set,
        } => {
            let queries: Vec<&str> = queries.iter().take(9).map(|one| query(*one)).collect();
            let mut data = text(name(*number));
            data.extend((queries.len() as u32).to_be_bytes());
            data.extend(queries.iter().flat_map(|query| text(query)));
            (if *set { 10 } else { 9 }, data)
        }
        // Those with data of their own are above; ending is for the rest.
        Asked::Any { option, data } => (option.saturating_add(11), data.to_vec()),
        Asked::Long(length) => (
            77,
            vec![1; (OPTION_BYTES + 1).max(*length as usize % 100_000)],
        ),
    }
}

fn query(number: u8) -> &'static str {
    [
        "base:allocation",
        "qemu:dirty-bitmap:old",
        "base:",
        "qemu:",
        "qemu:dirty-bitmap:",
        "x:y",
    ][usize::from(number) % 6]
}

/// What was sent, from the first byte on.
struct Sent<'a>(&'a [u8]);

impl<'a> Sent<'a> {
    fn take(&mut self, count: usize) -> &'a [u8] {
        let (taken, left) = self.0.split_at(count);
        self.0 = left;
        taken
    }

    fn number(&mut self, bytes: usize) -> u64 {
        self.take(bytes)
            .iter()
            .fold(0, |number, byte| number << 8 | u64::from(*byte))
    }

    fn option_reply(&mut self, option: u32) -> (u32, &'a [u8]) {
        assert_eq!(self.number(8), 0x0003_e889_0455_65a9);
        assert_eq!(self.number(4), u64::from(option));
        let kind = self.number(4) as u32;
        let length = self.number(4) as usize;
        (kind, self.take(length))
    }
}

/// What is agreed on.
#[derive(Default)]
struct Agreed {
    structured: bool,
    contexts: Vec<usize>,
    chosen_for: &'static str,
}

/// Answers to an option are right; whether it was the last one.
fn check_option(
    asked: &Asked<'_>,
    number: u32,
    sent: &mut Sent<'_>,
    agreed: &mut Agreed,
    size: u64,
) -> bool {
    let invalid = 0x8000_0003;
    let unknown = 0x8000_0006;
    match asked {
        Asked::List => {
            assert_eq!(sent.option_reply(number), (2, &text("disk")[..]));
            assert_eq!(sent.option_reply(number), (1, &[][..]));
        }
        Asked::Structured => {
            agreed.structured = true;
            assert_eq!(sent.option_reply(number), (1, &[][..]));
        }
        Asked::Go {
            name: of,
            infos,
            go,
        } => {
            if name(*of) == "other" {
                assert_eq!(sent.option_reply(number).0, unknown);
                return false;
            }
            let (kind, data) = sent.option_reply(number);
            let flags: u16 = if agreed.structured { 0x583 } else { 0x503 };
            let expected = [&[0, 0][..], &size.to_be_bytes(), &flags.to_be_bytes()].concat();
            assert_eq!((kind, data), (3, &expected[..]));
            assert_eq!(sent.option_reply(number).1[..2], [0, 3]);
            if infos.iter().take(20).any(|info| *info == 1) {
                assert_eq!(sent.option_reply(number).1, b"\0\x01disk");
            }
            assert_eq!(sent.option_reply(number), (1, &[][..]));
            if *go && agreed.chosen_for != name(*of) {
                agreed.contexts.clear();
            }
            return *go;
        }
        Asked::Contexts {
            name: of,
            queries,
            set,
        } => {
            if *set {
                agreed.contexts.clear();
            }
            if !agreed.structured {
                assert_eq!(sent.option_reply(number).0, invalid);
                return false;
            }
            if name(*of) == "other" {
                assert_eq!(sent.option_reply(number).0, unknown);
                return false;
            }
            let all: Vec<&str> = queries.iter().take(9).map(|one| query(*one)).collect();
            let names = |context: usize| -> Vec<&str> {
                match (context, *set) {
                    (_, true) => vec![CONTEXTS[context]],
                    (0, _) => vec![CONTEXTS[0], "base:"],
                    _ => vec![CONTEXTS[1], "qemu:", "qemu:dirty-bitmap:"],
                }
            };
            let mut chosen = Vec::new();
            for context in 0..2 {
                let meant = all.iter().any(|query| names(context).contains(query));
                if meant || (all.is_empty() && !set) {
                    chosen.push(context);
                    let id = (context as u32 + 1).to_be_bytes();
                    let expected = [&id[..], CONTEXTS[context].as_bytes()].concat();
                    assert_eq!(sent.option_reply(number), (4, &expected[..]));
                }
            }
            assert_eq!(sent.option_reply(number), (1, &[][..]));
            if *set {
                agreed.contexts = chosen;
                agreed.chosen_for = name(*of);
            }
        }
        Asked::Any { data, .. } => {
            let expected = if data.len() > OPTION_BYTES {
                0x8000_0009
            } else {
                0x8000_0001
            };
            assert_eq!(sent.option_reply(number).0, expected);
        }
        Asked::Long(_) => assert_eq!(sent.option_reply(number).0, 0x8000_0009),
    }
    false
}

/// The chunks of a reply: kind and payload; an error's number.
fn chunks<'a>(sent: &mut Sent<'a>, cookie: u64) -> (Vec<(u64, &'a [u8])>, u64) {
    let (mut all, mut error) = (Vec::new(), 0);
    loop {
        assert_eq!(sent.number(4), 0x668e_33ef);
        let flags = sent.number(2);
        let kind = sent.number(2);
        assert_eq!(sent.number(8), cookie);
        let length = sent.number(4) as usize;
        let payload = sent.take(length);
        if kind >= 1 << 15 {
            error = Sent(payload).number(4);
            assert!(error != 0 && flags == 1);
        } else {
            all.push((kind, payload));
        }
        if flags == 1 {
            return (all, error);
        }
        assert_eq!(flags, 0);
    }
}

/// Chunks have the bytes of a range, up to where they end.
fn check_content(
    all: &[(u64, &[u8])],
    known: &Known,
    start: usize,
    end: usize,
    whole: bool,
) -> usize {
    let mut at = start;
    for (kind, payload) in all {
        let mut fields = Sent(payload);
        match kind {
            0 => assert!(payload.is_empty()),
            1 => {
                assert_eq!(fields.number(8), at as u64);
                let next = at + fields.0.len();
                assert!(next > at && next <= end);
                if !whole || next <= known.broken {
                    assert_eq!(fields.0, &known.bytes[at..next]);
                }
                at = next;
            }
            2 => {
                assert_eq!(fields.number(8), at as u64);
                let next = at + fields.number(4) as usize;
                assert!(next > at && next <= end && fields.0.is_empty());
                assert!(known.bytes[at..next].iter().all(|byte| *byte == 0));
                at = next;
            }
            kind => panic!("a chunk of kind {kind}"),
        }
    }
    at
}

/// Runs of a context, from an offset on: lengths and flags, neighbours put together.
fn told(runs: &[(u64, u32)], start: u64, end: u64) -> Vec<(u64, u32)> {
    let (mut at, mut all) = (0, Vec::<(u64, u32)>::new());
    for (length, flags) in runs {
        let (from, to) = (start.max(at), end.min(at + length));
        at += length;
        if from < to {
            match all.last_mut() {
                Some(last) if last.1 == *flags => last.0 += to - from,
                _ => all.push((to - from, *flags)),
            }
        }
    }
    all
}

/// The answer is right; false where that ends the connection.
fn check_request(
    wanted: &Wanted,
    command: u16,
    offset: u64,
    length: u32,
    sent: &mut Sent<'_>,
    agreed: &Agreed,
    known: &Known,
) -> bool {
    let size = known.bytes.len() as u64;
    let end = offset + u64::from(length);
    let df = agreed.structured && wanted.flags == 4;
    let expected = match command {
        2 => return false,
        1 if length > MOST => return false,
        1 | 4 | 6 => 1,
        0 if end > size || length > MOST || !(wanted.flags == 0 || df) => 22,
        5 if end > size || wanted.flags != 0 => 22,
        7 if end > size
            || length == 0
            || agreed.contexts.is_empty()
            || ![0, 8].contains(&wanted.flags) =>
        {
            22
        }
        0 | 5 | 7 => 0,
        _ => 22,
    };
    let (start, stop) = (offset as usize, end as usize);
    // Data that lie there; zeros are known without a look.
    let unreadable = |at: usize| at >= known.broken && known.bytes[at] != 0;
    if !agreed.structured || (command == 5 && expected == 0) {
        assert_eq!(sent.number(4), 0x6744_6698);
        assert_eq!(sent.number(4), expected);
        assert_eq!(sent.number(8), wanted.cookie);
        if command == 0 && expected == 0 {
            if (start..stop).any(unreadable) {
                // What is left was sent before, and then the connection ends.
                assert!(sent.0.len() < stop - start);
                return false;
            }
            assert_eq!(sent.take(stop - start), &known.bytes[start..stop]);
        }
        return true;
    }
    let (all, error) = chunks(sent, wanted.cookie);
    if expected != 0 {
        assert!(error == expected && all.is_empty());
        return true;
    }
    if command == 7 {
        assert_eq!((error, all.len()), (0, agreed.contexts.len()));
        for ((kind, payload), context) in all.iter().zip(&agreed.contexts) {
            let mut fields = Sent(payload);
            assert_eq!((*kind, fields.number(4)), (5, *context as u64 + 1));
            let mut expected = told(&known.runs[*context], offset, end);
            if wanted.flags == 8 {
                expected.truncate(1);
            }
            for (length, flags) in expected {
                assert_eq!(
                    (fields.number(4), fields.number(4)),
                    (length, u64::from(flags))
                );
            }
            assert!(fields.0.is_empty());
        }
        return true;
    }
    let at = check_content(&all, known, start, stop, df);
    if (start..stop).any(unreadable) {
        assert_eq!(error, 5);
        assert!(if df { at == stop } else { at < stop });
    } else {
        assert_eq!((error, at), (0, stop));
    }
    true
}

fuzz_target!(|session: Session<'_>| {
    let known = known(&session);
    let size = known.bytes.len() as u64;
    let disk = Disk::new(
        "disk",
        known.bytes.clone(),
        known.runs.clone(),
        known.broken,
    );
    let mut received = vec![0, 0, 0, 3];
    let mut options: Vec<&Asked<'_>> = session.options.iter().take(20).collect();
    let last = Asked::Go {
        name: 0,
        infos: Vec::new(),
        go: true,
    };
    options.push(&last);
    for asked in &options {
        let (number, data) = option(asked);
        received.extend(0x4948_4156_454F_5054_u64.to_be_bytes());
        received.extend(number.to_be_bytes());
        received.extend((data.len() as u32).to_be_bytes());
        received.extend(data);
        if matches!(asked, Asked::Go { name: of, go: true, .. } if name(*of) != "other") {
            break;
        }
    }
    let place = |wanted: &Wanted| {
        let limit = if wanted.small { size + 2 } else { 1 << 32 };
        let offset = u64::from(wanted.offset) % limit.max(1);
        let length = u64::from(wanted.length) % limit.saturating_sub(offset).max(1);
        (u16::from(wanted.command % 9), offset, length as u32)
    };
    let requests: Vec<&Wanted> = session.requests.iter().take(12).collect();
    for wanted in &requests {
        let (command, offset, length) = place(wanted);
        received.extend(0x2560_9513_u32.to_be_bytes());
        received.extend(wanted.flags.to_be_bytes());
        received.extend(command.to_be_bytes());
        received.extend(wanted.cookie.to_be_bytes());
        received.extend(offset.to_be_bytes());
        received.extend(length.to_be_bytes());
        if command == 1 && length <= 1 << 20 {
            received.extend(vec![7; length as usize]);
        } else if command == 1 {
            break;
        }
    }
    received.extend(session.rest);
    let all = play(&received, &disk);
    let mut sent = Sent(&all);
    assert_eq!(sent.take(18), b"NBDMAGICIHAVEOPT\0\x03");
    let mut agreed = Agreed::default();
    for asked in &options {
        let (number, _) = option(asked);
        if check_option(asked, number, &mut sent, &mut agreed, size) {
            break;
        }
    }
    for wanted in &requests {
        let (command, offset, length) = place(wanted);
        // What follows may be taken for what is written.
        if command == 1 && length > 1 << 20 {
            return;
        }
        if !check_request(wanted, command, offset, length, &mut sent, &agreed, &known) {
            return;
        }
    }
    if session.rest.len() < 28 {
        assert!(sent.0.is_empty());
    }
});
