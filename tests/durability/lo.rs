//! What a block device has done.

use std::path::Path;

/// How many flushes a block device has carried out (Documentation/block/stat).
pub fn flushes(device: &str) -> u64 {
    let name = Path::new(device).file_name().unwrap().to_str().unwrap();
    let stat = std::fs::read_to_string(format!("/sys/block/{name}/stat")).unwrap();
    let field = stat.split_whitespace().nth(15);
    field.unwrap().parse().unwrap()
}
