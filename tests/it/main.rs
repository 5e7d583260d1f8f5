//! The tests that need more than this crate: real QEMUs, and the built command.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

// The embedded guest on real QEMUs: does it boot, beat, write as asked, and verify?
mod guest_boots;
// What the tests share: QEMU, skips, processes that end with their owner.
mod support;
