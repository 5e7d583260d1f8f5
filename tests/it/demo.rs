//! The demo: it holds what it shows, on either accelerator, and says so where it cannot be had.

use qmigrate::guest::probe_kvm;

use crate::lab::{Ended, SOON, command, run};
use crate::support;

/// The demo's own line, of a demo in which everything held.
fn held(ended: &Ended) {
    assert_eq!(ended.code, 0, "{ended:?}");
    let findings = ended.entries("demo");
    for finding in ["live", "held", "memory_verified", "never_two"] {
        assert_eq!(findings[0][finding], true, "{finding}: {ended:?}");
    }
    assert_eq!(ended.result()["blackout"]["observed"]["by"], "heartbeats", "{ended:?}");
}

#[test]
fn every_pattern_and_content_is_moved_live_and_proven() {
    let Some(qemu) = support::qemu() else { return support::skip("demo_patterns", "there is no QEMU") };
    for (pattern, content) in [
        ("sweep", "incompressible"),
        ("uniform", "compressible"),
        ("hot-and-cold", "incompressible"),
        ("phased", "compressible"),
    ] {
        let mut demo =
            command(&["demo", "--accelerator", "tcg", "--working-set", "32MiB", "--json", "--qemu"]);
        demo.arg(&qemu).args(["--pattern", pattern, "--content", content]);
        held(&run(demo));
    }
}

#[test]
fn a_guest_that_writes_as_fast_as_it_can_is_moved_live_within_its_budget() {
    let Some(qemu) = support::qemu() else { return support::skip("demo_unlimited", "there is no QEMU") };
    let mut demo = command(&["demo", "--accelerator", "tcg", "--working-set", "64MiB", "--json", "--qemu"]);
    demo.arg(&qemu).args(["--dirty-rate", "unlimited", "--max-downtime", "5s"]);
    let ended = run(demo);
    held(&ended);
    let limits =
        ended.entries("sample").into_iter().map(|sample| sample["downtime_limit_ms"].as_u64().unwrap());
    assert!(limits.max().unwrap() <= 5000, "{ended:?}");
}

#[test]
fn under_kvm_too_where_it_runs_the_guest() {
    const TEST: &str = "demo_under_kvm";
    let Some(qemu) = support::qemu() else { return support::skip(TEST, "there is no QEMU") };
    let directory = tempfile::tempdir().unwrap();
    if let Err(error) = probe_kvm(&qemu, directory.path(), SOON) {
        return support::skip(TEST, &format!("KVM does not run the guest here: {error}"));
    }
    let mut demo = command(&["demo", "--accelerator", "kvm", "--working-set", "2MiB", "--json", "--qemu"]);
    demo.arg(&qemu).args(["--dirty-rate", "4MiB/s"]);
    held(&run(demo));
}

#[test]
fn without_any_qemu_it_is_one_clear_sentence() {
    let mut demo = command(&["demo"]);
    demo.env("PATH", "/nowhere");
    let ended = run(demo);
    assert_eq!(ended.code, 2, "{ended:?}");
    assert!(ended.stderr.starts_with("error: there is no qemu-system-x86_64"), "{ended:?}");
    assert!(ended.stderr.contains("\nhint: "), "{ended:?}");
}
