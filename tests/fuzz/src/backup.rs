//! Backups: any bytes, and some that are right but for what was changed. What is read is within the
//! disk, in order and not too much at a time; and whatever is read was written so.
#![no_main]

use arbitrary::Arbitrary;
use extentd::backup::contents;
use libfuzzer_sys::fuzz_target;
use sha2::{Digest, Sha256};

const HEAD: usize = 396;

#[derive(Arbitrary, Debug)]
struct Written<'a> {
    size: u32,
    records: Vec<(u8, u32, u16)>,
    kind: u32,
    base: [u8; 32],
    name: &'a [u8],
    /// Bytes that are others then.
    changes: Vec<(u16, u8)>,
    cut: Option<u16>,
}

fn sum(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

/// A backup with all sums right.
fn write(written: &Written<'_>) -> Vec<u8> {
    let name = &written.name[..written.name.len().min(255)];
    let mut all = b"extentd backup\r\n".to_vec();
    all.extend(1_u32.to_le_bytes());
    all.extend((written.kind % 3).to_le_bytes());
    all.extend(u64::from(written.size).to_le_bytes());
    all.extend(5_u64.to_le_bytes());
    all.extend([9; 32]);
    all.extend(written.base);
    all.extend((name.len() as u32).to_le_bytes());
    all.extend(name);
    all.resize(HEAD - 32, 0);
    let head = sum(&all);
    all.extend(head);
    let mut whole = Sha256::new();
    whole.update(&all);
    let (mut count, mut bytes) = (0_u64, 0_u64);
    for (kind, start, length) in written.records.iter().take(50) {
        let data = vec![*kind; usize::from(*length)];
        let kind = u64::from(kind % 2) + 1;
        let mut record = kind.to_le_bytes().to_vec();
        record.extend(u64::from(*start).to_le_bytes());
        record.extend(u64::from(*length).to_le_bytes());
        record.extend(if kind == 1 { sum(&data) } else { [0; 32] });
        whole.update(&record);
        all.extend(record);
        count += 1;
        if kind == 1 {
            bytes += data.len() as u64;
            all.extend(data);
        }
    }
    all.extend(3_u64.to_le_bytes());
    all.extend(count.to_le_bytes());
    all.extend(bytes.to_le_bytes());
    all.extend(whole.finalize());
    all
}

fuzz_target!(|written: Written<'_>| {
    let good = write(&written);
    let mut bytes = good.clone();
    for (at, byte) in written.changes.iter().take(4) {
        let at = usize::from(*at) % bytes.len();
        bytes[at] ^= byte;
    }
    bytes.truncate(written.cut.map_or(bytes.len(), usize::from));
    let Ok((size, all)) = contents(&bytes) else {
        return;
    };
    // No change gets through, whatever else is.
    assert_eq!(bytes, good);
    assert_eq!(size, u64::from(written.size));
    let mut last = 0;
    assert_eq!(all.len(), written.records.len().min(50));
    for ((range, data), (kind, start, length)) in all.iter().zip(&written.records) {
        assert!(range.start >= last && range.end <= size && range.start < range.end);
        assert_eq!(range.start, u64::from(*start));
        assert_eq!(range.end, range.start + u64::from(*length));
        assert_eq!(data.is_some(), kind % 2 == 0);
        assert!(
            data.as_ref()
                .is_none_or(|data| data.iter().all(|byte| byte == kind))
        );
        last = range.end;
    }
});
