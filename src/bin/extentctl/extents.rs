//! `extentctl map`: asks for the extents page by page, and lists them.

use std::fmt::Write;

use extentd::options::byte_range::ByteRange;
use extentd::options::size;
use extentd::protocol::Request;
use extentd::protocol::extents::{self, Page};

use crate::output::harmless;
use crate::status::Failure;
use crate::table::{align_right, columns, drawn};

/// Asks for the extents of `range`, at most `limit` of them in all, and shows
/// each page; where to go on, if there are more.
pub fn each_page(
    range: ByteRange,
    limit: Option<u32>,
    mut ask: impl FnMut(&Request) -> Result<Page, Failure>,
    mut show: impl FnMut(Page),
) -> Result<Option<u64>, Failure> {
    let mut at = range;
    let mut left = limit;
    loop {
        let most = left.unwrap_or(u32::MAX).min(extents::MOST);
        let page = ask(&Request::Map { range: at, most })?;
        let next = page.next;
        if let Some(left) = &mut left {
            *left = left.saturating_sub(u32::try_from(page.extents.len()).unwrap_or(u32::MAX));
        }
        show(page);
        let Some(next) = next else { return Ok(None) };
        if left == Some(0) {
            return Ok(Some(next));
        }
        // Another extentd might answer oddly; asking for ever is no answer.
        if next <= at.start {
            return Err("the answer leads nowhere".to_owned().into());
        }
        at.start = next;
    }
}

/// Adds a page to those before it.
pub fn append(all: &mut Option<Page>, page: Page) {
    match all {
        None => *all = Some(page),
        Some(all) => {
            all.extents.extend(page.extents);
            all.resident.extend(page.resident);
            all.next = page.next;
        }
    }
}

/// One line per extent, and a last one that sums up.
pub fn list(page: &Page) -> String {
    let mut rows = columns(["start", "length", "disk", "kind", "in memory"]);
    for number in 0..3 {
        align_right(&mut rows, number);
    }
    let (mut bytes, mut resident) = (0, 0);
    for extent in &page.extents {
        let place = extent
            .disk
            .map_or_else(|| "-".to_owned(), |disk| disk.to_string());
        let mut loaded = match extent.resident {
            0 => "no".to_owned(),
            loaded if loaded == extent.len => "yes".to_owned(),
            loaded => format!("{loaded} bytes"),
        };
        if let Some(reason) = &extent.reason {
            loaded = format!("{loaded}  ({})", harmless(reason));
        }
        let kind = harmless(extent.kind.as_str());
        let (start, len) = (extent.start.to_string(), extent.len.to_string());
        rows.add_row([start, len, place, kind, loaded]);
        bytes += extent.len;
        resident += extent.resident;
    }
    let mut text = drawn(rows);
    // Writing to a String does not fail.
    let _ = writeln!(
        text,
        "{} extents, {} of {}; {} in memory",
        page.extents.len(),
        size::display(bytes),
        size::display(page.size_bytes),
        size::display(resident)
    );
    if let Some(next) = page.next {
        let _ = writeln!(
            text,
            "there is more: go on with the range {next}.., or give a larger --limit"
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn piece(start: u64, disk: Option<u64>, kind: &str, resident: u64) -> Value {
        let reason = (kind == "opaque").then_some("encrypted");
        json!({
            "start": start, "len": 4096, "disk": disk, "kind": kind,
            "reason": reason, "resident": resident,
        })
    }

    /// As another extentd might answer.
    fn page(size_bytes: u64, extents: &[Value], next: Option<u64>) -> Page {
        let page = json!({
            "size_bytes": size_bytes, "extents": extents, "resident": [], "next": next,
        });
        serde_json::from_value(page).unwrap()
    }

    #[test]
    fn extents_are_lines_in_columns() {
        let extents = [
            piece(0, Some(1_048_576), "written", 4096),
            piece(4096, None, "hole", 0),
            piece(8192, None, "opaque", 512),
            piece(12288, None, "brand-new", 0),
        ];
        assert_eq!(
            list(&page(1 << 20, &extents, Some(16384))),
            "start  length     disk  kind       in memory
    0    4096  1048576  written    yes
 4096    4096        -  hole       no
 8192    4096        -  opaque     512 bytes  (encrypted)
12288    4096        -  brand-new  no
4 extents, 16 KiB of 1 MiB; 4.5 KiB in memory
there is more: go on with the range 16384.., or give a larger --limit
"
        );
    }

    /// A disk of pieces of 4 KiB.
    fn answer(request: &Request, pieces: u64) -> Page {
        let Request::Map { range, most } = request else {
            panic!("{request:?}");
        };
        let first = range.start / 4096;
        let last = pieces.min(first + u64::from(*most));
        let extents: Vec<_> = (first..last)
            .map(|at| piece(at * 4096, Some(at * 8192 + 4096), "written", 0))
            .collect();
        let next = (last < pieces).then_some(last * 4096);
        page(pieces * 4096, &extents, next)
    }

    #[test]
    fn pages_are_asked_for_until_the_limit_or_the_end() {
        for (limit, pieces, expected, next) in [
            (None, 10_000, 10_000, None),
            (Some(5000), 10_000, 5000, Some(5000 * 4096)),
            (Some(7), 7, 7, None),
        ] {
            let mut all = None;
            let more = each_page(
                ByteRange::ALL,
                limit,
                |request| Ok(answer(request, pieces)),
                |page| append(&mut all, page),
            );
            let all = all.unwrap();
            assert_eq!((more.unwrap(), all.next), (next, next));
            let starts: Vec<_> = all.extents.iter().map(|extent| extent.start).collect();
            let all: Vec<_> = (0..expected).map(|at| at * 4096).collect();
            assert_eq!(starts, all);
        }
    }

    #[test]
    fn an_answer_that_leads_nowhere_is_not_asked_for_again() {
        let stuck = page(4096, &[], Some(0));
        let error = each_page(ByteRange::ALL, None, |_| Ok(stuck.clone()), drop).unwrap_err();
        assert_eq!(error.line, "the answer leads nowhere");
    }
}
