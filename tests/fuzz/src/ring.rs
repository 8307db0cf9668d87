//! A hostile driver: any bytes in guest memory and any order of events, against a model of what a
//! device may do about them. Nothing outside of what the driver gave to be written is ever
//! written, and every head that names a chain is answered exactly once.
#![no_main]

mod driver;
mod model;
mod rules;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use model::Model;
use rules::Disk;

#[derive(Arbitrary, Debug)]
struct Input {
    disk: Disk,
    setup: Setup,
    events: Vec<Event>,
}

#[derive(Arbitrary, Debug)]
pub struct Setup {
    /// log2 of the entries.
    size: u8,
    event_idx: bool,
    next_avail: u8,
    place: Where,
}

#[derive(Arbitrary, Debug)]
enum Where {
    Usual,
    /// Steps of 16 bytes.
    Near([u8; 3]),
    Any([u64; 3]),
}

impl Where {
    fn addresses(&self) -> [u64; 3] {
        let usual = [0x1000, 0x1800, 0x1c00];
        match *self {
            Where::Usual => usual,
            Where::Near(steps) => steps.map(|step| u64::from(step) * 0x90),
            Where::Any(any) => any,
        }
    }
}

#[derive(Arbitrary, Debug)]
enum Event {
    Start(Setup),
    Stop,
    Settle,
    /// Another memory table.
    Share(u8),
    Move(Where),
    Enable(bool),
    /// A request that could be one.
    Request {
        first: u8,
        kind: u8,
        sector: u8,
        split: u8,
        data: Vec<Buffer>,
        fetched: bool,
    },
    Describe {
        /// In the ring's table, or in what could be an indirect one.
        indirect: bool,
        index: u8,
        addr: Address,
        len: u32,
        flags: u8,
        next: u8,
    },
    Write(u16, Vec<u8>),
    Offer(u16),
    AvailIdx(u16),
    Fetch(u8),
    End(u8, u8),
    Publish,
    Arm,
}

#[derive(Arbitrary, Debug)]
struct Buffer {
    at: Address,
    len: Len,
    writable: bool,
}

#[derive(Arbitrary, Debug)]
enum Len {
    Sectors(u8),
    Few(u8),
    Any(u32),
}

impl Len {
    fn value(&self) -> u32 {
        match *self {
            Len::Sectors(n) => u32::from(n % 5) * 512,
            Len::Few(n) => n.into(),
            Len::Any(n) => n,
        }
    }
}

#[derive(Arbitrary, Debug, Clone, Copy)]
enum Address {
    /// Where there is room for data.
    Data(u8),
    Low(u16),
    High(u16),
    Top(u16),
    Any(u64),
}

impl Address {
    fn value(self) -> u64 {
        match self {
            Address::Data(step) => 0x2000 + 0x20 * u64::from(step),
            Address::Low(at) => at.into(),
            Address::High(at) => 0x1_0000 + u64::from(at),
            Address::Top(at) => u64::MAX - u64::from(at),
            Address::Any(at) => at,
        }
    }
}

fn start(model: &mut Model, setup: &Setup) {
    model.start(
        1 << (setup.size % 6),
        setup.place.addresses(),
        setup.next_avail.into(),
        setup.event_idx,
    );
}

/// Where indirect tables are written.
const INDIRECT: usize = 0x2000;

fn descriptor(addr: u64, len: u32, flags: u16, next: u16) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(16);
    bytes.extend(addr.to_le_bytes());
    bytes.extend(len.to_le_bytes());
    bytes.extend(flags.to_le_bytes());
    bytes.extend(next.to_le_bytes());
    bytes
}

/// Whether the run can go on.
fn happen(model: &mut Model, event: &Event) -> bool {
    match event {
        Event::Start(setup) => start(model, setup),
        Event::Stop => model.stop(),
        Event::Settle => model.settle(),
        Event::Share(table) => model.share(usize::from(*table)),
        Event::Move(place) => model.relocate(place.addresses()),
        Event::Enable(on) => model.enable(*on),
        Event::Request {
            first,
            kind,
            sector,
            split,
            data,
            fetched,
        } => {
            let size = model.size();
            let first = usize::from(*first) % size;
            let header = 0x3000 + 0x20 * first as u16;
            let mut bytes = u32::from(kind % 16).to_le_bytes().to_vec();
            bytes.extend([0; 4]);
            bytes.extend(u64::from(*sector).to_le_bytes());
            model.write(header.into(), &bytes);
            let cut = u32::from(split % 17);
            let mut buffers = vec![
                (u64::from(header), cut, 0),
                (u64::from(header) + u64::from(cut), 16 - cut, 0),
            ];
            let of_data = |one: &Buffer| {
                let flags = if one.writable { 2 } else { 0 };
                (one.at.value(), one.len.value(), flags)
            };
            buffers.extend(data.iter().map(of_data));
            buffers.push((u64::from(header) + 0x18, 1, 2));
            let last = buffers.len() - 1;
            for (at, (addr, len, flags)) in buffers.into_iter().enumerate() {
                let (index, next) = ((first + at) % size, (first + at + 1) % size);
                let more = u16::from(at != last);
                let bytes = descriptor(addr, len, flags | more, next as u16);
                model.describe(index, &bytes);
            }
            model.offer(first as u16);
            if *fetched {
                return model.fetch();
            }
        }
        Event::Describe {
            indirect,
            index,
            addr,
            len,
            flags,
            next,
        } => {
            let bytes = descriptor(addr.value(), *len, (*flags).into(), (*next).into());
            if *indirect {
                model.write(INDIRECT + 16 * usize::from(index % 64), &bytes);
            } else {
                model.describe(usize::from(index % 32), &bytes);
            }
        }
        Event::Write(at, bytes) => model.write((*at).into(), bytes),
        Event::Offer(head) => model.offer(*head),
        Event::AvailIdx(index) => model.set_avail(*index),
        Event::Fetch(count) => return (0..=count % 8).all(|_| model.fetch()),
        Event::End(which, status) => model.end((*which).into(), *status),
        Event::Publish => model.publish(),
        Event::Arm => model.arm(),
    }
    true
}

fuzz_target!(|input: Input| {
    let mut model = Model::new(input.disk);
    start(&mut model, &input.setup);
    let mut events = input.events.iter().take(100);
    if events.all(|event| happen(&mut model, event)) {
        model.finish();
    }
});
