use std::sync::atomic::{AtomicU64, Ordering};

use proptest::prelude::*;

use super::*;

const START: u64 = 5 * SECOND;

/// A bucket that has saved nothing up.
fn bucket(rate: u64, burst: u64) -> (Bucket, AtomicU64) {
    let bucket = Bucket::default();
    assert!(bucket.set(rate, burst, START));
    (bucket, AtomicU64::new(START))
}

/// Uses all that it may from one moment to another, looking whenever something
/// is due, `late`; how many tokens that were.
fn use_up(
    bucket: &Bucket,
    owner: Owner<'_>,
    (from, to): (u64, u64),
    costs: &mut dyn FnMut() -> u64,
    late: u64,
) -> u64 {
    let (mut now, mut used) = (from, 0);
    while now < to {
        match bucket.open(owner, now) {
            Ok(()) => {
                let cost = costs();
                bucket.charge(cost);
                used += cost;
            }
            Err(due) => {
                assert!(due > now, "no busy waiting");
                now = due + late;
            }
        }
    }
    used
}

proptest! {
    /// What is used in a time is what the rate brings in it, exactly but for
    /// what may be saved up and one request on credit.
    #[test]
    fn the_rate_is_kept_whatever_requests_cost(
        rate in 1_u64..2_000_000_000,
        costs in prop::collection::vec(1_u64..2_000_000, 1..50),
        seconds in 2_u64..20,
        late in 0_u64..15_000_000,
    ) {
        let (bucket, until) = bucket(rate, 0);
        // Small enough that the model ends soon.
        let largest = *costs.iter().max().unwrap();
        let mut costs = costs.iter().cycle().map(|cost| (*cost).max(rate / 20_000));
        let largest = largest.max(rate / 20_000);
        let end = START + seconds * SECOND;
        let used = use_up(
            &bucket,
            Owner::Alone(&until),
            (START, end),
            &mut || costs.next().unwrap(),
            late,
        );
        let exact = u128::from(rate) * u128::from(seconds);
        let slack = u128::from(largest) + 2 * u128::from(grant(rate))
            + u128::from(rate) * u128::from(late) / u128::from(SECOND);
        let used = u128::from(used);
        prop_assert!(used <= exact + slack, "{used} of {exact}");
        // A request that was owed may reach beyond the end.
        prop_assert!(used + slack >= exact, "{used} of {exact}");
    }

    /// Whatever others write into a group's time, a member waits for a bounded
    /// time and then goes on.
    #[test]
    fn nobody_in_a_group_is_held_for_ever(
        rate in 1_u64..1_000_000,
        written in prop::collection::vec(any::<u64>(), 1..20),
        burst in any::<u64>(),
    ) {
        let (bucket, until) = bucket(rate, burst);
        let bound = time_of(grant(rate), rate) * (MOST_AHEAD + 1) + 2 * SECOND;
        let mut now = START;
        for word in written {
            until.store(word, Ordering::Relaxed);
            if let Err(due) = bucket.open(Owner::Group(&until), now) {
                prop_assert!(due - now <= bound, "{} ms", (due - now) / 1_000_000);
                now = due;
                until.store(word, Ordering::Relaxed);
                prop_assert_eq!(bucket.open(Owner::Group(&until), now), Ok(()));
            }
            bucket.charge(grant(rate));
        }
    }
}

#[test]
fn no_limit_is_always_open_and_costs_nothing() {
    let bucket = Bucket::default();
    let until = AtomicU64::new(0);
    bucket.charge(u64::MAX);
    assert_eq!(bucket.open(Owner::Alone(&until), 0), Ok(()));
    assert_eq!(until.load(Ordering::Relaxed), 0);
}

#[test]
fn what_was_not_used_is_saved_up_to_the_burst_and_no_further() {
    for (burst, most) in [(0, 1000 * LEAST_BURST_MS / 1000), (500, 500), (3, 40)] {
        let (bucket, until) = bucket(1000, burst);
        let owner = Owner::Alone(&until);
        let later = START + 3600 * SECOND;
        let mut used = 0;
        while bucket.open(owner, later).is_ok() {
            bucket.charge(1);
            used += 1;
        }
        // The grant that begins now comes besides.
        assert_eq!(used, most + grant(1000), "burst {burst}");
    }
}

#[test]
fn a_request_beyond_the_burst_passes_and_is_paid_for() {
    let (bucket, until) = bucket(1_000_000, 0);
    let owner = Owner::Alone(&until);
    assert_eq!(bucket.open(owner, START), Ok(()));
    bucket.charge(32 << 20);
    let due = bucket.open(owner, START).unwrap_err();
    // 33.55 s for it, less the grant that it began with.
    assert_eq!(due, START + (32 << 20) * 1000);
    assert_eq!(bucket.open(owner, due - 1), Err(due));
    assert_eq!(bucket.open(owner, due), Ok(()));
}

#[test]
fn another_limit_is_in_force_within_a_grant_and_the_same_one_changes_nothing() {
    let (bucket, until) = bucket(1, 0);
    let owner = Owner::Alone(&until);
    assert_eq!(bucket.open(owner, START), Ok(()));
    bucket.charge(7);
    let due = bucket.open(owner, START).unwrap_err();
    assert_eq!(due, START + 7 * SECOND);
    assert!(!bucket.set(1, 0, START));
    assert_eq!(bucket.open(owner, START), Err(due));
    assert!(bucket.set(10_000, 0, START));
    until.fetch_min(START, Ordering::Relaxed);
    assert_eq!(bucket.open(owner, START), Err(START + GRANT));
    assert!(bucket.set(0, 0, START));
    assert_eq!(bucket.open(owner, START), Ok(()));
}

/// Members take turns, however much each request costs and however many
/// members there are.
#[test]
fn members_of_a_group_have_equal_shares() {
    for costs in [[1, 1, 1], [4096, 65536, 1 << 20]] {
        let rate = 50_000_000;
        let until = AtomicU64::new(START);
        let members = costs.map(|cost| {
            let bucket = Bucket::default();
            bucket.set(rate, 0, START);
            (bucket, cost.max(512))
        });
        let (mut used, mut now) = ([0; 3], START);
        while now < START + 10 * SECOND {
            let mut next = u64::MAX;
            for ((bucket, cost), used) in members.iter().zip(&mut used) {
                loop {
                    match bucket.open(Owner::Group(&until), now) {
                        Ok(()) => {
                            bucket.charge(*cost);
                            *used += *cost;
                        }
                        Err(due) => {
                            next = next.min(due);
                            break;
                        }
                    }
                }
            }
            now = next;
        }
        let all: u64 = used.iter().sum();
        assert!(all.abs_diff(10 * rate) < rate / 20, "{used:?}");
        for part in used {
            assert!(part.abs_diff(all / 3) < all / 60, "{used:?}");
        }
    }
}

/// Several threads never get more than the rate, whatever they do at once.
#[test]
fn threads_of_a_process_share_a_bucket() {
    let (bucket, until) = bucket(1_000_000, 0);
    let clock = AtomicU64::new(START);
    let used: u64 = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    let mut used = 0;
                    loop {
                        let now = clock.fetch_add(1000, Ordering::Relaxed);
                        if now > START + SECOND {
                            return used;
                        }
                        if bucket.open(Owner::Alone(&until), now).is_ok() {
                            bucket.charge(3);
                            used += 3;
                        }
                    }
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .sum()
    });
    assert!(used <= 1_000_000 + 2 * grant(1_000_000) + 12, "{used}");
    assert!(used >= 990_000, "{used}");
}
