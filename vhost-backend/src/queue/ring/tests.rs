use super::*;
use crate::testing::guest::{Driver, Guest};

fn rig(size: u16, event_idx: bool) -> (Driver, Ring) {
    let guest = Guest::new(&[(0, 0x10_0000)]);
    let driver = Driver::new(&guest, 0x1000, size);
    let ring = Ring::new(&guest.memory, size, driver.at, 0, event_idx).unwrap();
    (driver, ring)
}

#[test]
fn ring_01_sizes_are_powers_of_two() {
    let guest = Guest::new(&[(0, 0x10_0000)]);
    for (size, good) in [
        (0, false),
        (1, true),
        (3, false),
        (6, false),
        (256, true),
        (300, false),
    ] {
        let at = Driver::new(&guest, 0x1000, 512).at;
        assert_eq!(
            Ring::new(&guest.memory, size, at, 0, false).is_some(),
            good,
            "{size}"
        );
    }
}

#[test]
fn ring_02_parts_are_aligned_and_in_one_region() {
    // The first two regions meet.
    let guest = Guest::new(&[(0, 0x1_0000), (0x1_0000, 0x1_0000), (0x10_0000, 0x1000)]);
    let good = Driver::new(&guest, 0x1000, 256).at;
    let build = |at| Ring::new(&guest.memory, 256, at, 0, true);
    assert!(build(good).is_some());
    for bad in [
        RingAddresses {
            descriptors: good.descriptors + 8,
            ..good
        },
        RingAddresses {
            avail: good.avail + 1,
            ..good
        },
        RingAddresses {
            used: good.used + 2,
            ..good
        },
        RingAddresses {
            descriptors: 0xf800,
            ..good
        },
        RingAddresses {
            avail: 0xfff0,
            ..good
        },
        RingAddresses {
            used: 0xfff0,
            ..good
        },
        RingAddresses {
            descriptors: 0x2_0000,
            ..good
        },
        RingAddresses {
            avail: u64::MAX - 1,
            ..good
        },
        RingAddresses {
            used: 0x10_0800,
            ..good
        },
    ] {
        assert!(build(bad).is_none(), "{bad:?}");
    }
}

#[test]
fn ring_02_without_event_idx_the_event_fields_need_not_exist() {
    let guest = Guest::new(&[(0, 0x1000)]);
    let at = RingAddresses {
        descriptors: 0,
        avail: 0x100,
        used: 0x1000 - 4 - 8 * 8,
    };
    assert!(Ring::new(&guest.memory, 8, at, 0, false).is_some());
    assert!(Ring::new(&guest.memory, 8, at, 0, true).is_none());
}

#[test]
fn vu_16_the_used_index_comes_from_guest_memory() {
    let guest = Guest::new(&[(0, 0x10_0000)]);
    let mut driver = Driver::new(&guest, 0x1000, 4);
    driver.used_idx().store(0xfffe, Ordering::Relaxed);
    driver.used = 0xfffe;
    driver.avail = 0xffff;
    let mut ring = Ring::new(&guest.memory, 4, driver.at, 0xffff, false).unwrap();
    for head in [2, 1] {
        driver.offer(head);
        assert_eq!(ring.pop(), Popped::Head(head));
        ring.answer(head, 7);
    }
    assert_eq!(driver.take_used(), []);
    ring.publish();
    assert_eq!(driver.take_used(), [(2, 7), (1, 7)]);
    assert_eq!(driver.used_idx().load(Ordering::Relaxed), 0);
    assert_eq!(ring.end(), 1);
}

#[test]
fn ring_04_an_index_too_far_breaks_the_ring_for_good() {
    let (driver, mut ring) = rig(8, false);
    driver.avail_idx().store(8, Ordering::Relaxed);
    for _ in 0..8 {
        assert_eq!(ring.pop(), Popped::Head(0));
    }
    driver.avail_idx().store(17, Ordering::Relaxed);
    assert_eq!(ring.pop(), Popped::Broken);
    driver.avail_idx().store(9, Ordering::Relaxed);
    assert_eq!(ring.pop(), Popped::Empty);
    assert!(ring.broken());
    assert!(!ring.arm());
    assert_eq!(ring.end(), 8);
}

#[test]
fn ring_04_an_index_that_goes_back_breaks_the_ring() {
    let (driver, mut ring) = rig(8, false);
    driver.avail_idx().store(u16::MAX, Ordering::Relaxed);
    assert_eq!(ring.pop(), Popped::Broken);
}

#[test]
fn ring_05_a_head_beyond_the_table_is_told_apart() {
    let (mut driver, mut ring) = rig(8, false);
    driver.offer(8);
    driver.offer(7);
    assert_eq!(ring.pop(), Popped::OutOfRange(8));
    assert_eq!(ring.pop(), Popped::Head(7));
    assert_eq!(ring.pop(), Popped::Empty);
}

#[test]
fn ring_13_without_event_idx_the_flag_decides() {
    let (driver, mut ring) = rig(8, false);
    driver.used_event().store(0, Ordering::Relaxed);
    for (flags, interrupt) in [(0, true), (1, false), (2, true), (3, false)] {
        driver.avail_flags().store(flags, Ordering::Relaxed);
        ring.answer(0, 1);
        assert_eq!(ring.publish(), interrupt, "{flags}");
        assert!(!ring.publish(), "there is nothing new");
    }
}

#[test]
fn ring_14_an_interrupt_exactly_when_used_event_is_crossed() {
    for start in [0u16, 5, 0xfffc] {
        for batch in 1..=8u16 {
            for ahead in 0..20u16 {
                let guest = Guest::new(&[(0, 0x10_0000)]);
                let driver = Driver::new(&guest, 0x1000, 8);
                driver.used_idx().store(start, Ordering::Relaxed);
                driver.avail_flags().store(1, Ordering::Relaxed);
                let mut ring = Ring::new(&guest.memory, 8, driver.at, start, true).unwrap();
                let event = start.wrapping_add(ahead).wrapping_sub(4);
                driver.used_event().store(event, Ordering::Relaxed);
                for head in 0..batch {
                    ring.answer(head, 0);
                }
                let crossed = (0..batch).any(|i| start.wrapping_add(i) == event);
                assert_eq!(ring.publish(), crossed, "{start} {batch} {event}");
            }
        }
    }
}

#[test]
fn ring_14_with_event_idx_flags_stay_zero_and_avail_event_asks_for_kicks() {
    let (mut driver, mut ring) = rig(8, true);
    driver.used_flags().store(1, Ordering::Relaxed);
    assert!(!ring.arm());
    assert_eq!(driver.avail_event().load(Ordering::Relaxed), 0);
    driver.offer(0);
    assert!(ring.arm());
    ring.pop();
    ring.disarm();
    assert_eq!(driver.used_flags().load(Ordering::Relaxed), 0);
    assert!(!ring.arm());
    assert_eq!(driver.avail_event().load(Ordering::Relaxed), 1);
}

#[test]
fn ring_15_without_event_idx_used_flags_ask_for_kicks() {
    let (driver, mut ring) = rig(8, false);
    ring.arm();
    assert_eq!(driver.used_flags().load(Ordering::Relaxed), 0);
    ring.disarm();
    assert_eq!(driver.used_flags().load(Ordering::Relaxed), 1);
    ring.end();
    assert_eq!(
        driver.used_flags().load(Ordering::Relaxed),
        0,
        "the next owner has to hear of kicks"
    );
}

#[test]
fn a_ring_that_left_memory_keeps_its_answers() {
    let (mut driver, mut ring) = rig(8, false);
    driver.offer(3);
    driver.offer(4);
    ring.pop();
    let elsewhere = Guest::new(&[(0x100_0000, 0x1000)]);
    let at = ring.addresses();
    assert!(!ring.relocate(&elsewhere.memory, at));
    ring.answer(3, 9);
    assert!(!ring.publish());
    assert_eq!(ring.pop(), Popped::Empty);
    assert!(!ring.arm());
    assert_eq!(driver.take_used(), []);

    assert!(ring.relocate(&driver.guest.memory, at));
    assert!(ring.publish());
    assert_eq!(driver.take_used(), [(3, 9)]);
    assert_eq!(ring.pop(), Popped::Head(4));
}

/// A driver thread that kicks only when it is asked to, and a device thread
/// that sleeps until it is kicked: each would wait for ever for a wake-up that
/// got lost.
fn ping_pong(event_idx: bool) {
    use std::sync::mpsc::channel;
    use std::time::Duration;
    const ROUNDS: u16 = 60_000;
    let (mut driver, _) = rig(4, event_idx);
    let (guest, at) = (driver.guest.clone(), driver.at);
    let (kick, kicked) = channel();
    let (call, called) = channel();
    let patience = Duration::from_secs(20);
    let device = std::thread::spawn(move || {
        let mut ring = Ring::new(&guest.memory, 4, at, 0, event_idx).unwrap();
        let mut served = 0;
        while served < ROUNDS {
            match ring.pop() {
                Popped::Head(head) => {
                    ring.disarm();
                    ring.answer(head, 0);
                    served += 1;
                    if ring.publish() {
                        call.send(()).unwrap();
                    }
                }
                Popped::Empty if ring.arm() => {}
                Popped::Empty => kicked.recv_timeout(patience).expect("a kick got lost"),
                other => panic!("{other:?}"),
            }
        }
    });
    for round in 0..ROUNDS {
        driver.offer(round % 4);
        fence(Ordering::SeqCst);
        let wanted = if event_idx {
            driver.avail_event().load(Ordering::Relaxed) == round
        } else {
            driver.used_flags().load(Ordering::Relaxed) == 0
        };
        if wanted {
            kick.send(()).unwrap();
        }
        // The used element is looked for before and after interrupts are
        // asked for, as a driver does.
        while driver.take_used().is_empty() {
            driver.used_event().store(round, Ordering::Relaxed);
            driver.avail_flags().store(0, Ordering::Relaxed);
            fence(Ordering::SeqCst);
            if driver.used_idx().load(Ordering::Acquire) == driver.used {
                called
                    .recv_timeout(patience)
                    .expect("an interrupt got lost");
            }
        }
        driver.avail_flags().store(1, Ordering::Relaxed);
    }
    device.join().unwrap();
}

#[test]
fn ring_16_no_wake_up_is_lost_with_event_idx() {
    ping_pong(true);
}

#[test]
fn ring_16_no_wake_up_is_lost_with_flags() {
    ping_pong(false);
}

/// The driver is asked late; what it has seen itself by then needs no
/// interrupt, and what it sleeps for does.
#[test]
fn ring_14_what_was_shown_can_be_told_later() {
    let (driver, mut ring) = rig(8, true);
    driver.used_event().store(0, Ordering::Relaxed);
    ring.answer(1, 0);
    ring.show();
    ring.answer(2, 0);
    ring.show();
    assert_eq!(ring.untold(), 2);
    driver.used_event().store(2, Ordering::Relaxed);
    assert!(!ring.wants_interrupt(), "it has seen both");
    ring.answer(3, 0);
    ring.show();
    ring.answer(4, 0);
    ring.show();
    assert!(ring.wants_interrupt(), "it slept when it had seen two");
    assert!(!ring.wants_interrupt(), "it was told");
}
