//! The load generator itself, on the real process: what it verifies, and that
//! it finds what is wrong.

use std::os::unix::fs::FileExt;

use front_end::load::{Client, Extent, LoadError, Pattern, Plan, Waiting};

use crate::served::{Image, Way, binary, plan};

fn verified(pattern: Pattern, depth: u16) -> Plan {
    Plan {
        verify: Some(7),
        ..plan(pattern, depth)
    }
}

#[test]
fn every_pattern_that_writes_reads_back_what_it_wrote() {
    for way in [Way::File, Way::Disk] {
        let Some(image) = Image::new(way) else {
            continue;
        };
        let daemon = image.serve(&binary());
        let churn = |among| Plan {
            queues: 2,
            read_percent: Some(50),
            among,
            ..verified(Pattern::Churn, 4)
        };
        for load in [
            verified(Pattern::Randwrite, 32),
            verified(Pattern::Randrw, 32),
            Plan {
                size: 65536,
                waiting: Waiting::Call,
                ..verified(Pattern::Write, 4)
            },
            Plan {
                queues: 2,
                threads: 2,
                ..verified(Pattern::Randrw, 8)
            },
            churn(false),
            Plan {
                threads: 2,
                ..churn(true)
            },
        ] {
            let queues = if load.pattern == Pattern::Churn {
                1
            } else {
                u64::from(load.queues)
            };
            let what = format!("{way:?} {load:?}");
            let mut client = Client::connect(daemon.socket(), load).unwrap();
            let report = client
                .run()
                .unwrap_or_else(|error| panic!("{what}: {error}"));
            assert_eq!(report.requests, 2000 * queues, "{what}");
            assert!(report.verified > 0, "{what}");
            client.close().unwrap();
        }
    }
}

#[test]
fn a_block_that_was_changed_behind_its_back_is_found() {
    let image = Image::new(Way::File).unwrap();
    let daemon = image.serve(&binary());
    let load = Plan {
        size: 4096,
        extent: Extent::Requests(8192),
        ..verified(Pattern::Write, 32)
    };
    let mut client = Client::connect(daemon.socket(), load).unwrap();
    assert_eq!(client.run().unwrap().verified, 8192);
    let file = std::fs::File::options()
        .write(true)
        .open(&image.path)
        .unwrap();
    file.write_all_at(&[0; 16], 5 * 4096 + 512).unwrap();
    file.sync_all().unwrap();
    // Writes other blocks, and reads all back.
    client.set_extent(Extent::Requests(2));
    match client.run().unwrap_err() {
        LoadError::Content { offset, at, .. } => assert_eq!((offset, at), (5 * 4096, 512)),
        other => panic!("{other}"),
    }
}

#[test]
fn what_the_back_end_does_not_offer_is_refused() {
    let image = Image::new(Way::File).unwrap();
    let daemon = image.serve(&binary());
    let refused = |load| {
        Client::connect(daemon.socket(), load)
            .unwrap_err()
            .to_string()
    };
    let three = Plan {
        queues: 3,
        ..plan(Pattern::Randread, 1)
    };
    assert!(refused(three).contains("only 2 queues"));
    let beyond = Plan {
        range: Some(1 << 40),
        ..plan(Pattern::Randread, 1)
    };
    assert!(refused(beyond).contains("--range"));
}
