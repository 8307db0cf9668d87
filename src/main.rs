//! extentd.

fn main() {}
