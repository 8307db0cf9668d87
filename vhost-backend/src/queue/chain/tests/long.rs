//! Chains that are as long as they may be, and longer.

use super::*;

#[test]
fn ring_06_the_longest_indirect_table() {
    let mut rig = Rig::new();
    let guest = Guest::new(&[(0, 0x20_0000)]);
    rig.driver = Driver::new(&guest, 0x1000, SIZE);
    rig.ring = Ring::new(&guest.memory, SIZE, rig.driver.at, 0, false).unwrap();
    let table = |last: u16| {
        let one = |i| match i {
            0 => descriptor(DATA, 16, NEXT, 1),
            i if i == last => descriptor(DATA + 0x100, 1, WRITE, 0),
            _ => descriptor(DATA + 0x200, 512, NEXT | WRITE, i + 1),
        };
        (0..=last).map(one).collect::<Vec<_>>()
    };
    // Whoever offers more is not read to the end.
    for last in [65534, MAX_DESCRIPTORS] {
        let found = rig.indirect(0x1_0000, &table(last));
        assert_eq!(found, Found::Bad { status: None }, "{last}");
        assert_eq!(rig.scratch.steps, STEPS - u32::from(MAX_DESCRIPTORS) - 1);
        rig.scratch.begin_turn();
    }
    let last = MAX_DESCRIPTORS - 1;
    assert_eq!(
        rig.indirect(0x1_0000, &table(last)),
        rig.good(16, u64::from(last - 1) * 512, DATA + 0x100)
    );
    let Walked::Good(chain, _) = rig.scratch.walk(&guest.memory, &rig.ring, 0) else {
        panic!()
    };
    assert!(
        chain.writable_pieces().is_none(),
        "more pieces than a request may have"
    );
    assert!(rig.scratch.writable.pieces.len() <= MAX_SEGMENTS + 1);
}

/// Each buffer spans all regions: they are looked up for no more of them than
/// a request may have pieces.
#[test]
fn ring_11_buffers_over_many_regions_are_not_looked_for_once_there_are_too_many() {
    let mut rig = Rig::new();
    let regions: Vec<_> = (0..500_u64).map(|i| (i * 0x1000, 0x1000)).collect();
    let guest = Guest::new(&[&regions[..], &[(1 << 32, 0x20_0000)]].concat());
    rig.driver = Driver::new(&guest, 1 << 32, SIZE);
    rig.ring = Ring::new(&guest.memory, SIZE, rig.driver.at, 0, false).unwrap();
    let (table, all) = ((1 << 32) + 0x1_0000, 500 * 0x1000);
    for (lead, sound) in [(NEXT | WRITE, true), (NEXT, true)] {
        let mut descriptors = vec![descriptor(table - 16, 16, NEXT, 1)];
        let spans = (1..100).map(|next| descriptor(0, all, lead, next + 1));
        descriptors.extend(spans);
        descriptors.push(descriptor(table - 17, 1, WRITE, 0));
        let status = rig.at(table - 17);
        match rig.indirect(table, &descriptors) {
            Found::Good { status: at, .. } => assert!(sound && at == status),
            Found::Bad { status: at } => assert!(!sound && at == Some(status)),
        }
        for buffers in [&rig.scratch.readable, &rig.scratch.writable] {
            assert!(buffers.pieces.len() <= MAX_SEGMENTS + MAX_REGIONS);
            assert_eq!(buffers.pieces.capacity(), MAX_SEGMENTS + MAX_REGIONS);
        }
    }
}

#[test]
fn ring_06_as_many_pieces_as_a_request_may_have() {
    let mut rig = Rig::new();
    let pieces = u16::try_from(MAX_SEGMENTS).unwrap();
    let guest = Guest::new(&[(0, 0x20_0000)]);
    rig.driver = Driver::new(&guest, 0x1000, SIZE);
    rig.ring = Ring::new(&guest.memory, SIZE, rig.driver.at, 0, false).unwrap();
    let data = |i: u16| descriptor(DATA + 0x200, 512, NEXT | WRITE, i + 1);
    for (count, fits) in [(pieces - 1, true), (pieces, false)] {
        let mut table = vec![descriptor(DATA, 16, NEXT, 1)];
        table.extend((1..=count).map(data));
        table.push(descriptor(DATA + 0x100, 1, WRITE, 0));
        assert_eq!(
            rig.indirect(0x1_0000, &table),
            rig.good(16, 512 * u64::from(count), DATA + 0x100)
        );
        let Walked::Good(chain, _) = rig.scratch.walk(&guest.memory, &rig.ring, 0) else {
            panic!()
        };
        assert_eq!(
            chain.writable_pieces().map(<[_]>::len),
            fits.then_some(usize::from(count))
        );
    }
}
