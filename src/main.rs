//! The command `qmigrate`.
fn main() {}
