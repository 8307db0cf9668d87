//! `extentctl map --heat`: which windows of the map requests look up, in
//! several looks after each other.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use extentd::options::byte_range::ByteRange;
use extentd::protocol::Request;
use extentd::protocol::extents::Heat;

use crate::ask::{PATIENCE, ask, understand};
use crate::status::Failure;

/// Looks; a window that was in use in all of them is hot.
pub const LOOKS: u8 = 8;

/// Parts of the disk, and in how many looks they were in use; what was in none
/// is left out.
pub type Levels = Vec<(u64, u64, u8)>;

/// Watches for `time` in all.
///
/// # Errors
/// It is refused, or nobody answers.
pub fn watch(path: &Path, range: ByteRange, time: Duration) -> Result<Levels, Failure> {
    let during = time.as_millis() / u128::from(LOOKS);
    let during_ms = u32::try_from(during).unwrap_or(u32::MAX).max(1);
    let mut looks = Vec::new();
    for _ in 0..LOOKS {
        looks.extend(look(range, during_ms, |request| {
            understand(&ask(path, request, PATIENCE)?)
        })?);
    }
    Ok(levels(&looks))
}

/// What was in use in one look.
fn look(
    range: ByteRange,
    during_ms: u32,
    mut ask: impl FnMut(&Request) -> Result<Heat, Failure>,
) -> Result<Vec<(u64, u64)>, Failure> {
    let mut used = Vec::new();
    let (mut range, mut during_ms) = (range, during_ms);
    loop {
        let page = ask(&Request::Heat { range, during_ms })?;
        used.extend(page.used);
        let Some(next) = page.next else {
            return Ok(used);
        };
        // Another extentd might answer oddly; asking for ever is no answer.
        if next <= range.start {
            return Err("the answer leads nowhere".to_owned().into());
        }
        // The rest of the same look.
        (range.start, during_ms) = (next, 0);
    }
}

/// How many of the ranges lie over each part.
fn levels(ranges: &[(u64, u64)]) -> Levels {
    let mut changes: BTreeMap<u64, i64> = BTreeMap::new();
    for &(start, end) in ranges {
        *changes.entry(start).or_default() += 1;
        *changes.entry(end).or_default() -= 1;
    }
    let mut found: Levels = Vec::new();
    let (mut at, mut level) = (0, 0);
    for (place, change) in changes {
        let heat = u8::try_from(level).unwrap_or(u8::MAX);
        match found.last_mut() {
            Some(last) if last.1 == at && last.2 == heat => last.1 = place,
            _ if heat > 0 => found.push((at, place, heat)),
            _ => {}
        }
        (at, level) = (place, level + change);
    }
    found
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn levels_count_the_looks() {
        let looks = [(0, 8), (16, 24), (4, 8), (8, 12), (4, 6), (16, 24)];
        assert_eq!(
            levels(&looks),
            [(0, 4, 1), (4, 6, 3), (6, 8, 2), (8, 12, 1), (16, 24, 2)]
        );
        assert_eq!(levels(&[(0, 4), (4, 8)]), [(0, 8, 1)]);
        assert_eq!(levels(&[]), []);
    }

    #[test]
    fn a_look_is_taken_once_and_read_in_pages() {
        let mut asked = Vec::new();
        let used = look(ByteRange::ALL, 70, |request| {
            asked.push(request.clone());
            let next = (asked.len() < 3).then_some(asked.len() as u64 * 100);
            let at = asked.len() as u64 * 10;
            let page = json!({ "size_bytes": 1000, "window_bytes": 10, "used": [[at, at + 1]], "next": next });
            Ok(serde_json::from_value(page).unwrap())
        });
        assert_eq!(used.unwrap(), [(10, 11), (20, 21), (30, 31)]);
        let expected = [(0, 70), (100, 0), (200, 0)].map(|(start, during_ms)| Request::Heat {
            range: ByteRange { start, end: None },
            during_ms,
        });
        assert_eq!(asked, expected);
        let stuck = json!({ "size_bytes": 1, "window_bytes": 1, "used": [], "next": 0 });
        let error = look(ByteRange::ALL, 1, |_| {
            Ok(serde_json::from_value(stuck.clone()).unwrap())
        });
        assert_eq!(error.unwrap_err().line, "the answer leads nowhere");
    }
}
