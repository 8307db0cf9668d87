//! Limits as people write them.

use vhost_backend::LimitKey;

use super::size;

/// Limits of one `--limit`, in the order given; 0 is none.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LimitList(pub Vec<(LimitKey, u64)>);

/// More per second is no limit on any disk.
const MOST: u64 = 1 << 40;

/// How QEMU and libvirt call what has another name here.
const OTHER_NAMES: [(&str, &str); 29] = [
    ("iops-total", "iops"),
    ("iops-rd", "read-iops"),
    ("iops-read", "read-iops"),
    ("iops-wr", "write-iops"),
    ("iops-write", "write-iops"),
    ("bps", "bytes"),
    ("bps-total", "bytes"),
    ("bps-rd", "read-bytes"),
    ("bps-read", "read-bytes"),
    ("bps-wr", "write-bytes"),
    ("bps-write", "write-bytes"),
    ("iops-max", "burst-iops"),
    ("iops-total-max", "burst-iops"),
    ("iops-rd-max", "burst-read-iops"),
    ("iops-read-max", "burst-read-iops"),
    ("iops-wr-max", "burst-write-iops"),
    ("iops-write-max", "burst-write-iops"),
    ("bps-max", "burst-bytes"),
    ("bps-total-max", "burst-bytes"),
    ("bps-rd-max", "burst-read-bytes"),
    ("bps-read-max", "burst-read-bytes"),
    ("bps-wr-max", "burst-write-bytes"),
    ("bps-write-max", "burst-write-bytes"),
    ("total-iops-sec", "iops"),
    ("read-iops-sec", "read-iops"),
    ("write-iops-sec", "write-iops"),
    ("total-bytes-sec", "bytes"),
    ("read-bytes-sec", "read-bytes"),
    ("write-bytes-sec", "write-bytes"),
];

/// Limits from `iops=1000,read-bytes=100M`.
///
/// # Errors
/// A key is not known, or its value is none; for people.
pub fn parse(text: &str) -> Result<LimitList, String> {
    let mut list: Vec<(LimitKey, u64)> = Vec::new();
    for part in text.split(',') {
        let Some((name, value)) = part.split_once('=') else {
            return Err(format!(
                "'{part}' is no limit: give KEY=VALUE, as in iops=1000"
            ));
        };
        let Some(key) = LimitKey::named(name) else {
            return Err(format!(
                "'{name}' is no limit: did you mean {}?",
                nearest(name)
            ));
        };
        if list.iter().any(|(known, _)| *known == key) {
            return Err(format!("{name} is given twice"));
        }
        let number = if key.is_bytes() { bytes } else { requests };
        let value = number(value).map_err(|error| format!("{name}: {error}"))?;
        list.push((key, value));
    }
    Ok(LimitList(list))
}

/// As it is typed: [`parse`] gives the same again.
pub fn display(list: &[(LimitKey, u64)]) -> String {
    let parts = list.iter().map(|(key, value)| match value {
        0 => format!("{}=none", key.name()),
        value => format!("{}={value}", key.name()),
    });
    parts.collect::<Vec<_>>().join(",")
}

/// A number of requests; 0 for `none`.
///
/// # Errors
/// It is something else; for people.
pub fn requests(text: &str) -> Result<u64, String> {
    bounded(text.parse().ok().or((text == "none").then_some(0)))
        .ok_or_else(|| format!("'{text}' is no number of requests: give 1 to {MOST}, or none"))
}

/// A number of bytes, also with a unit; 0 for `none`.
///
/// # Errors
/// It is something else; for people.
pub fn bytes(text: &str) -> Result<u64, String> {
    bounded(size::parse(text).ok().or((text == "none").then_some(0))).ok_or_else(|| {
        format!("'{text}' is no number of bytes: give up to 1T, also with K, M or G, or none")
    })
}

fn bounded(number: Option<u64>) -> Option<u64> {
    number.filter(|number| *number <= MOST)
}

/// The name of the limit that is probably meant.
fn nearest(name: &str) -> &'static str {
    // As libvirt and others write them.
    let name = name.to_lowercase().replace(['_', '.'], "-");
    let name = name.strip_prefix("throttling-").unwrap_or(&name);
    let other = OTHER_NAMES.iter().find(|(other, _)| *other == name);
    let closest = || {
        let names = LimitKey::all().map(LimitKey::name);
        names.min_by_key(|known| strsim::damerau_levenshtein(known, name))
    };
    other
        .map(|(_, own)| *own)
        .or_else(closest)
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use vhost_backend::Limited;

    use super::*;

    #[test]
    fn limits_are_read_and_written_alike() {
        let list = parse("iops=1000,read-bytes=100M,burst-iops=50,write-iops=none").unwrap();
        assert_eq!(
            list.0,
            [
                (LimitKey::Rate(Limited::Iops), 1000),
                (LimitKey::Rate(Limited::ReadBytes), 100 << 20),
                (LimitKey::Burst(Limited::Iops), 50),
                (LimitKey::Rate(Limited::WriteIops), 0),
            ]
        );
        assert_eq!(parse(&display(&list.0)), Ok(list));
    }

    #[test]
    fn what_is_no_limit_is_refused_with_what_may_be_meant() {
        for (wrong, line) in [
            ("", "'' is no limit: give KEY=VALUE, as in iops=1000"),
            (
                "iops",
                "'iops' is no limit: give KEY=VALUE, as in iops=1000",
            ),
            ("iosp=1", "'iosp' is no limit: did you mean iops?"),
            (
                "bps-read=1",
                "'bps-read' is no limit: did you mean read-bytes?",
            ),
            (
                "bps_wr_max=1",
                "'bps_wr_max' is no limit: did you mean burst-write-bytes?",
            ),
            (
                "throttling.iops-total=1",
                "'throttling.iops-total' is no limit: did you mean iops?",
            ),
            (
                "total_bytes_sec=1",
                "'total_bytes_sec' is no limit: did you mean bytes?",
            ),
            (
                "write-byte=1",
                "'write-byte' is no limit: did you mean write-bytes?",
            ),
            ("iops=1,iops=2", "iops is given twice"),
            (
                "iops=10K",
                "iops: '10K' is no number of requests: give 1 to 1099511627776, or none",
            ),
            (
                "iops=-1",
                "iops: '-1' is no number of requests: give 1 to 1099511627776, or none",
            ),
            (
                "bytes=2T",
                "bytes: '2T' is no number of bytes: give up to 1T, also with K, M or G, or none",
            ),
        ] {
            assert_eq!(parse(wrong).unwrap_err(), line);
        }
    }

    #[test]
    fn other_names_lead_to_those_that_are_known() {
        for (other, own) in OTHER_NAMES {
            assert!(LimitKey::named(own).is_some(), "{own}");
            assert!(LimitKey::named(other).is_none(), "{other}");
        }
    }
}
