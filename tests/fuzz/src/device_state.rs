//! Saved states: what is taken for one is saved again as it was, but for what a later version
//! added.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vhost_backend::fuzzing::device_state;

fuzz_target!(|bytes: &[u8]| {
    // So that not all ends at the first check.
    let named = [&b"extentd\0\x01\0"[..], bytes].concat();
    for bytes in [bytes, &named] {
        let Some(again) = device_state(bytes) else {
            continue;
        };
        assert!(again.len() <= bytes.len());
        assert_eq!(
            device_state(&again).as_ref(),
            Some(&again),
            "it stays as it is"
        );
        assert_eq!(again[12..14], bytes[12..14], "as many rings");
        assert_eq!(again[16..44], bytes[16..44], "capacity and serial");
        let rings = again.len() - 48;
        assert_eq!(again[48..], bytes[bytes.len() - rings..]);
    }
});
