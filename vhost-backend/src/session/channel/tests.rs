//! Messages whole, in pieces, malformed, and with descriptors.

use super::*;
use std::io::{Read, Write};

use rustix::event::{PollFd, PollFlags, poll};

fn pair() -> (Channel, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    (Channel::new(ours), theirs)
}

fn message(request: u32, flags: u32, payload: &[u8]) -> Vec<u8> {
    let size = u32::try_from(payload.len()).unwrap();
    let mut bytes: Vec<u8> = [request, flags, size]
        .iter()
        .flat_map(|w| w.to_ne_bytes())
        .collect();
    bytes.extend_from_slice(payload);
    bytes
}

fn expect(channel: &mut Channel) -> Message {
    match channel.next().unwrap() {
        Next::Message(message) => message,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_message_is_seen_whole_until_it_is_dealt_with() {
    let (mut channel, mut peer) = pair();
    assert_eq!(channel.next().unwrap(), Next::Nothing);
    peer.write_all(&message(8, 9, b"payload!")).unwrap();
    peer.write_all(&message(3, 1, b"")).unwrap();
    for _ in 0..2 {
        let first = expect(&mut channel);
        assert_eq!(
            first,
            Message {
                request: 8,
                need_reply: true,
                size: 8,
                fds: 0
            }
        );
        assert_eq!(channel.payload(&first), b"payload!");
    }
    channel.discard();
    assert_eq!(expect(&mut channel).request, 3);
}

#[test]
fn a_message_that_comes_in_pieces_is_incomplete_until_the_last() {
    let (mut channel, mut peer) = pair();
    let bytes = message(8, 1, b"payload!");
    for byte in &bytes[..bytes.len() - 1] {
        peer.write_all(&[*byte]).unwrap();
        assert_eq!(channel.next().unwrap(), Next::Incomplete);
    }
    peer.write_all(&bytes[bytes.len() - 1..]).unwrap();
    assert_eq!(expect(&mut channel).size, 8);
    drop(peer);
    assert_eq!(expect(&mut channel).size, 8);
    channel.discard();
    assert_eq!(channel.next().unwrap(), Next::Gone);
}

#[test]
fn vu_1_bad_headers_are_garbage() {
    let longest = vec![0; MAX_PAYLOAD];
    for (flags, size) in [
        (0, 0_u32),
        (2, 0),
        (3, 0),
        (5, 0),
        (0x11, 0),
        (1, 4097),
        (1, u32::MAX),
    ] {
        let (mut channel, mut peer) = pair();
        let header: Vec<u8> = [1, flags, size]
            .iter()
            .flat_map(|w| w.to_ne_bytes())
            .collect();
        peer.write_all(&header).unwrap();
        assert_eq!(channel.next().unwrap(), Next::Garbage, "{flags} {size}");
    }
    let (mut channel, mut peer) = pair();
    peer.write_all(&message(1, 1, &longest)).unwrap();
    assert_eq!(expect(&mut channel).size, MAX_PAYLOAD);
}

#[test]
fn a_connection_that_ends_within_a_message_is_gone() {
    for cut in [5, 12, 14] {
        let (mut channel, mut peer) = pair();
        peer.write_all(&message(8, 1, b"payload!")[..cut]).unwrap();
        assert_eq!(channel.next().unwrap(), Next::Incomplete);
        drop(peer);
        assert_eq!(channel.next().unwrap(), Next::Gone);
    }
}

/// Waits for the end of a pipe, which is closed by another thread.
fn ends(pipe: &mut std::io::PipeReader) {
    let limit = rustix::event::Timespec {
        tv_sec: 20,
        tv_nsec: 0,
    };
    let mut polls = [PollFd::new(&*pipe, PollFlags::IN)];
    assert_eq!(poll(&mut polls, Some(&limit)), Ok(1), "a descriptor leaks");
    assert_eq!(pipe.read(&mut [0]).unwrap(), 0);
}

#[test]
fn vu_49_descriptors_are_counted_taken_or_closed_and_never_leak() {
    let (mut channel, peer) = pair();
    let (mut end, pipe) = std::io::pipe().unwrap();
    let bytes = message(5, 1, b"12345678");
    for count in [0, 1, 33, 253] {
        peer.send_with_fds(&[&bytes[..]], &vec![pipe.as_raw_fd(); count])
            .unwrap();
        let found = expect(&mut channel);
        assert_eq!(found.fds, count);
        channel.discard();
    }
    peer.send_with_fds(&[&bytes[..5]], &[pipe.as_raw_fd(); 2])
        .unwrap();
    (&peer).write_all(&bytes[5..]).unwrap();
    let found = expect(&mut channel);
    assert_eq!((found.fds, channel.payload(&found)), (2, &b"12345678"[..]));
    assert_eq!(channel.take_fds().len(), 2);
    // The pipe ends only when no duplicate is open any more.
    drop(pipe);
    ends(&mut end);
}

#[test]
fn vu_49_descriptors_belong_to_the_message_they_came_with() {
    let (mut channel, peer) = pair();
    let (_end, pipe) = std::io::pipe().unwrap();
    let bytes = message(2, 1, b"12345678");
    (&peer).write_all(&bytes).unwrap();
    peer.send_with_fds(&[&bytes[..]], &[pipe.as_raw_fd()])
        .unwrap();
    (&peer).write_all(&bytes).unwrap();
    for fds in [0, 1, 0] {
        assert_eq!(expect(&mut channel).fds, fds);
        channel.discard();
    }
}

#[test]
fn a_message_is_forwarded_with_its_descriptors_and_the_answer_relayed() {
    let (mut channel, peer) = pair();
    let (ours, theirs) = UnixStream::pair().unwrap();
    let (_end, pipe) = std::io::pipe().unwrap();
    let bytes = message(21, 1, b"12345678");
    peer.send_with_fds(&[&bytes[..]], &[pipe.as_raw_fd(); 3])
        .unwrap();
    assert_eq!(expect(&mut channel).fds, 3);
    channel.forward(&ours).unwrap();
    assert_eq!(channel.next().unwrap(), Next::Nothing);
    let taken = take_all(&theirs).unwrap();
    assert_eq!((taken.bytes.as_slice(), taken.fds.len()), (&bytes[..], 3));
    channel.relay(&taken).unwrap();
    let back = take_all(&peer).unwrap();
    assert_eq!((back.bytes.as_slice(), back.fds.len()), (&bytes[..], 3));
}

#[test]
fn replies_never_wait() {
    let (channel, mut peer) = pair();
    channel.reply(15, &7_u64.to_ne_bytes()).unwrap();
    let mut reply = [0; 20];
    peer.read_exact(&mut reply).unwrap();
    assert_eq!(reply[..], message(15, 5, &7_u64.to_ne_bytes()));
    let mut replies = 0;
    while channel.is_writable().unwrap() {
        channel.reply(15, &[0; 256]).unwrap();
        replies += 1;
    }
    assert!(replies > 10);
    while channel.reply(15, &[0; 256]).is_ok() {}
}
