//! Command lines: understood, or refused in one line that no terminal obeys.
#![no_main]

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use arbitrary::Arbitrary;
use extentd::fuzzing::command_line;
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
enum Word<'a> {
    Option(u8),
    Value(u8),
    Number(i64),
    Bytes(&'a [u8]),
    /// An option and its value in one.
    Both(u8, &'a [u8]),
}

const OPTIONS: [&str; 24] = [
    "--socket-path",
    "--fd",
    "--blk-file",
    "--read-only",
    "--num-queues",
    "--queue-size",
    "--threads",
    "--cpus",
    "--io-path",
    "--pin-guest-memory",
    "--poll-us",
    "--map-budget",
    "--pin-reserve",
    "--swap",
    "--serial",
    "--logical-block-size",
    "--lock",
    "--control-path",
    "--metrics-listen",
    "--print-capabilities",
    "--help",
    "--version",
    "--",
    "--sandbox",
];
const VALUES: [&str; 16] = [
    "a", "0", "1", "2", "256", "auto", "file", "disk", "on", "off", "0-3,6", "64M", "16T",
    "demanded", "[::1]:1", "4096",
];

fn word(word: &Word<'_>) -> OsString {
    let named = |list: &[&str], number: u8| list[usize::from(number) % list.len()].to_owned();
    OsString::from_vec(match *word {
        Word::Option(number) => named(&OPTIONS, number).into(),
        Word::Value(number) => named(&VALUES, number).into(),
        Word::Number(number) => number.to_string().into(),
        Word::Bytes(bytes) => bytes.to_vec(),
        Word::Both(number, bytes) => {
            let option = named(&OPTIONS, number);
            [option.as_bytes(), b"=", bytes].concat()
        }
    })
}

fuzz_target!(|words: Vec<Word<'_>>| {
    let words = words.iter().take(12).map(word);
    match command_line(
        [OsString::from("extentd")]
            .into_iter()
            .chain(words)
            .collect(),
    ) {
        Ok(config) => {
            assert!((1..=256).contains(&config.server.queues));
            assert!(config.server.queue_size.is_power_of_two() && config.server.queue_size >= 16);
            assert!(config.server.workers >= 1);
            assert!(config.server.workers <= usize::from(config.server.queues));
            assert!(
                config
                    .disk
                    .serial
                    .iter()
                    .all(|byte| *byte == 0 || (32..127).contains(byte))
            );
        }
        Err(None) => {}
        Err(Some(line)) => {
            assert!(
                !line.is_empty() && !line.contains(char::is_control),
                "{line:?}"
            );
        }
    }
});
