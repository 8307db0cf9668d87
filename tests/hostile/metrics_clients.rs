//! HTTP clients that keep a place, send half, never read or never stop.

use std::io::Write;
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::looked_after::{GET, LookedAfter};

#[test]
fn half_sent_heads_keep_no_correct_scrape_waiting() {
    let one = LookedAfter::start(&[]);
    let before = one.open_files();
    let heads = [
        &b""[..],
        b"G",
        b"GET /metrics HTTP/1.1\r\nHost: x\r\n",
        b"GET /metrics HTTP/1.1\r\nX: \xff\0\x1b",
        &[b'\r'; 500],
    ];
    let mut held = Vec::new();
    for head in heads.iter().cycle().take(300) {
        let mut stream = TcpStream::connect(one.metrics).unwrap();
        // It may have had to go already.
        let _ = stream.write_all(head);
        held.push(stream);
        if held.len() % 20 == 0 {
            one.assert_scraped();
        }
    }
    assert!(one.open_files() < before + 140, "{}", one.open_files());
    one.assert_all_served();
}

#[test]
fn connects_in_a_loop_and_answers_that_nobody_reads_keep_no_scrape_out() {
    let one = LookedAfter::start(&[]);
    let ends = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for number in 0..3 {
            let (ends, address) = (&ends, one.metrics);
            scope.spawn(move || {
                let mut held = Vec::new();
                while !ends.load(Ordering::Relaxed) {
                    let Ok(mut stream) = TcpStream::connect(address) else {
                        continue;
                    };
                    let _ = match number {
                        0 => Ok(()),
                        1 => stream.write_all(GET),
                        _ => stream.write_all(&[b'x'; 20_000]),
                    };
                    // Some stay, and read nothing.
                    held.push(stream);
                    if held.len() > 50 {
                        held.clear();
                    }
                }
            });
        }
        for _ in 0..20 {
            one.assert_scraped();
        }
        ends.store(true, Ordering::Relaxed);
    });
    one.assert_all_served();
}
