//! A destination with the source's `-uuid`, another one, or none, on every version of QEMU; named as QEMU names them.

use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::case::{ALL, Version, arrives_with};
use crate::lab::{Lab, lives, settings};

const ONE: &str = "11111111-1111-1111-1111-111111111111";
const OTHER: &str = "22222222-2222-2222-2222-222222222222";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn validate_uuid() {
    moves("validate_uuid", Some(ONE), Some(ONE)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn validate_uuid_src_not_set() {
    moves("validate_uuid_src_not_set", None, Some(OTHER)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn validate_uuid_dst_not_set() {
    moves("validate_uuid_dst_not_set", Some(ONE), None).await;
}

/// Refused before anything is changed; and by the destination itself, where somebody insists.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn validate_uuid_error() {
    const TEST: &str = "validate_uuid_error";
    for version in ALL {
        let Some((place, lab)) = guest(TEST, version, Some(ONE)).await else { continue };
        let before = settings(&lab.somebody().await).await;
        let (other, qmp) = lab.by_hand(Some(OTHER), &["-incoming", "defer"]).await;
        let refused = lab.migrate(&[version.mode, &["--destination-qmp", qmp.to_str().unwrap()]].concat());
        assert_eq!(refused.code, 2, "{version:?}: {refused:?}");
        assert!(refused.stderr.contains("the uuid is 11111111"), "{refused:?}");
        assert!(lives(other.pid()), "{version:?}");
        drop(other);

        let qemu = with_uuid(&version.qemu(TEST).unwrap(), &place.path().join("other"), OTHER);
        let back = lab.migrate(&[version.mode, &["--unsafe", "--qemu", qemu.to_str().unwrap()]].concat());
        let result = back.result();
        assert_eq!((back.code, &result["guest"]), (1, &"running_on_source".into()), "{version:?}: {back:?}");
        assert!(result["message"].as_str().unwrap().contains("UUID received is 1111"), "{back:?}");
        assert_eq!(settings(&lab.somebody().await).await, before, "{version:?}");
        lab.beats_on(lab.source());
        arrives_with(&lab, version.mode).await;
    }
}

/// The guest is taken, on every version.
async fn moves(test: &str, source: Option<&str>, destination: Option<&str>) {
    for version in ALL {
        let Some((_place, lab)) = guest(test, version, source).await else { continue };
        let (process, qmp) = lab.by_hand(destination, &["-incoming", "defer"]).await;
        let ended = lab.migrate(&[version.mode, &["--destination-qmp", qmp.to_str().unwrap()]].concat());
        assert_eq!(ended.code, 0, "{version:?}: {ended:?}");
        lab.never_two(lab.source(), process.pid());
        lab.beats_on(process.pid());
    }
}

/// A guest with this `-uuid` or none.
async fn guest(test: &str, version: Version, uuid: Option<&str>) -> Option<(TempDir, Lab)> {
    let qemu = version.qemu(test)?;
    let place = tempfile::Builder::new().prefix("qmu").tempdir().unwrap();
    let qemu = uuid.map_or(qemu.clone(), |uuid| with_uuid(&qemu, &place.path().join("source"), uuid));
    let lab = version.guest_of(&qemu).await;
    Some((place, lab))
}

/// A QEMU that has this `-uuid`, whatever else it is told.
fn with_uuid(qemu: &Path, path: &Path, uuid: &str) -> PathBuf {
    use std::os::unix::fs::PermissionsExt;
    std::fs::write(path, format!("#!/bin/sh\nexec '{}' \"$@\" -uuid {uuid}\n", qemu.display())).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path.to_owned()
}
