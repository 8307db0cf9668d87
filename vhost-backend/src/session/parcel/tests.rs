use std::io::{Read, Write};

use proptest::prelude::*;

use super::*;

fn contents(queues: u32) -> Contents {
    let pipe = || OwnedFd::from(std::io::pipe().unwrap().0);
    let setup = |request| Setup {
        request,
        payload: vec![7; usize::try_from(request).unwrap() % 50],
        fds: (0..request % 4).map(|_| pipe()).collect(),
    };
    Contents {
        identity: b"a disk".to_vec(),
        writeback: true,
        features_read: false,
        news: true,
        setups: (0..queues).map(setup).collect(),
    }
}

#[test]
fn what_is_packed_is_opened_with_all_its_descriptors() {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    // More descriptors than go at once.
    let sent = contents(200);
    let with = std::io::pipe().unwrap().0;
    let inode = |fd: BorrowedFd<'_>| rustix::fs::fstat(fd).unwrap().st_ino;
    let (parcel, seal) = pack(&ours, Some(with.as_fd()), &sent).unwrap();
    seal.set(true).unwrap();
    drop(ours);
    for _ in 0..2 {
        let companion = companion(&parcel).unwrap();
        assert_eq!(inode(companion.as_fd()), inode(with.as_fd()));
    }
    let (mut connection, got) = open(parcel).unwrap();
    connection.write_all(b"x").unwrap();
    theirs.read_exact(&mut [0]).unwrap();
    assert_eq!(got.identity, sent.identity);
    assert_eq!(
        (got.writeback, got.features_read, got.news),
        (true, false, true)
    );
    let outline = |contents: &Contents| -> Vec<_> {
        let setups = contents.setups.iter();
        setups
            .map(|one| (one.request, one.payload.clone(), one.fds.len()))
            .collect()
    };
    assert_eq!(outline(&got), outline(&sent));
    for (got, sent) in got.setups.iter().zip(&sent.setups) {
        for (got, sent) in got.fds.iter().zip(&sent.fds) {
            assert_eq!(inode(got.as_fd()), inode(sent.as_fd()));
        }
    }
}

#[test]
fn a_parcel_is_of_use_once_and_only_while_it_is_settled() {
    let (ours, _theirs) = UnixStream::pair().unwrap();
    let packed = |last: bool| {
        let (parcel, seal) = pack(&ours, None, &contents(3)).unwrap();
        for settled in [true, false, last] {
            seal.set(settled).unwrap();
        }
        parcel
    };
    let (parcel, _) = pack(&ours, None, &contents(3)).unwrap();
    open(parcel).unwrap_err();
    open(packed(false)).unwrap_err();
    let parcel = packed(true);
    let again = parcel.try_clone().unwrap();
    open(parcel).unwrap();
    open(again).unwrap_err();
}

#[test]
fn nothing_goes_with_a_session_whose_front_end_has_gone() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let with = std::io::pipe().unwrap().0;
    let (parcel, _) = pack(&ours, None, &contents(3)).unwrap();
    assert!(companion(&parcel).is_none());
    let (parcel, _) = pack(&ours, Some(with.as_fd()), &contents(3)).unwrap();
    assert!(companion(&parcel).is_some());
    drop(theirs);
    assert!(companion(&parcel).is_none());
    let other = OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
    assert!(companion(&other).is_none());
}

#[test]
fn what_is_short_by_a_descriptor_or_a_byte_is_no_parcel() {
    let bytes = encode(&contents(6)).unwrap();
    let fds = |count: usize| {
        let fds = (0..count).map(|_| OwnedFd::from(std::io::pipe().unwrap().0));
        fds.collect::<Vec<_>>().into_iter()
    };
    let all = contents(6).setups.iter().map(|one| one.fds.len()).sum();
    assert!(decode(&bytes, fds(all)).is_some());
    assert!(decode(&bytes, fds(all - 1)).is_none());
    assert!(decode(&bytes, fds(all + 1)).is_none());
    for short in 0..bytes.len() {
        assert!(decode(&bytes[..short], fds(all)).is_none(), "{short}");
    }
    open(OwnedFd::from(std::fs::File::open("/dev/null").unwrap())).unwrap_err();
}

proptest! {
    #[test]
    fn whatever_a_parcel_has_is_looked_at_within_bounds(
        changes in proptest::collection::vec((0_usize..400, any::<u8>()), 1..8),
    ) {
        let mut bytes = encode(&contents(6)).unwrap();
        for (at, value) in changes {
            let at = at % bytes.len();
            bytes[at] = value;
        }
        let _ = decode(&bytes, Vec::new().into_iter());
    }
}
