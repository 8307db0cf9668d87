//! Sizes as people write them.

/// Why a text is no size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not a size: give bytes, or a number with K, M, G or T (powers of 1024)")]
pub struct SizeError(String);

const UNITS: [(&str, u64); 4] = [
    ("T", 1 << 40),
    ("G", 1 << 30),
    ("M", 1 << 20),
    ("K", 1 << 10),
];

/// Bytes from `4096`, `64K`, `20G` or `20GiB`; suffixes are powers of 1024.
///
/// # Errors
/// It is something else, or more than 64 bits hold.
pub fn parse(text: &str) -> Result<u64, SizeError> {
    let wrong = || SizeError(text.to_owned());
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, suffix) = text.split_at(digits);
    let suffix = suffix.to_ascii_uppercase();
    let unit = match suffix.strip_suffix("IB").unwrap_or(&suffix) {
        "" if suffix.is_empty() => 1,
        letter => {
            UNITS
                .iter()
                .find(|(name, _)| *name == letter)
                .ok_or_else(wrong)?
                .1
        }
    };
    number
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(unit))
        .ok_or_else(wrong)
}

/// The size in the largest unit that leaves at least 1, with one decimal
/// where it is not whole: `1.5 GiB`.
pub fn display(bytes: u64) -> String {
    match UNITS.iter().find(|(_, unit)| bytes >= *unit) {
        None => format!("{bytes} bytes"),
        Some((name, unit)) if bytes.is_multiple_of(*unit) => {
            let whole = bytes.checked_div(*unit).unwrap_or(bytes);
            format!("{whole} {name}iB")
        }
        Some((name, unit)) => {
            let tenths = u128::from(bytes).saturating_mul(10);
            let tenths = tenths.checked_div((*unit).into()).unwrap_or(tenths);
            format!("{}.{} {name}iB", tenths / 10, tenths % 10)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_and_suffixes_are_understood() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("64K", 64 << 10),
            ("3m", 3 << 20),
            ("20G", 20 << 30),
            ("20GiB", 20 << 30),
            ("2T", 2 << 40),
            ("18446744073709551615", u64::MAX),
        ] {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn anything_else_is_refused() {
        for text in [
            "",
            "G",
            "iB",
            "4iB",
            "-1",
            "+1",
            "1.5G",
            "10 G",
            "1GB",
            "1X",
            "18446744073709551616",
            "16777216T",
        ] {
            parse(text).unwrap_err();
        }
    }

    #[test]
    fn sizes_are_shown_short() {
        for (bytes, text) in [
            (0, "0 bytes"),
            (1023, "1023 bytes"),
            (1024, "1 KiB"),
            (1536 << 20, "1.5 GiB"),
            (20 << 30, "20 GiB"),
            (u64::MAX, "16777215.9 TiB"),
        ] {
            assert_eq!(display(bytes), text);
        }
    }
}
