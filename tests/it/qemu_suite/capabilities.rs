//! Capabilities that somebody has set on the source: they fit on the destination, or are off for the time, and are in
//! the end as they were.

use qapi_qmp as words;
use qmigrate::qmp::Client;

use crate::case::{ALL, Case, NEW, OLD, Version, set, switched_on};
use crate::lab::{Lab, SOON, settings};

/// Channels, as somebody may have set them up.
async fn set_channels(client: &Client) {
    set(client, &["multifd"], true).await;
    let parameters = words::MigrateSetParameters {
        multifd_channels: Some(4),
        multifd_compression: Some(words::MultiFDCompression::zlib),
        ..words::MigrateSetParameters::default()
    };
    client.call(&words::migrate_set_parameters(parameters), SOON).await.unwrap();
}

/// Moves a guest whose source has these on; the QEMU that has it then has them on too, and nothing else.
async fn move_with(lab: &Lab, version: Version, names: &[&str], arguments: &[&str]) -> Option<String> {
    let somebody = lab.somebody().await;
    let known = settings(&somebody).await.0.to_string();
    if !names.iter().all(|name| known.contains(&format!("\"{name}\""))) {
        return None;
    }
    set(&somebody, names, true).await;
    drop(somebody);
    let ended = lab.migrate(&[&["--max-downtime", "20s"], version.mode, arguments].concat());
    assert_eq!(ended.code, 0, "{names:?} on {version:?}: {ended:?}");
    lab.prove().await;
    let somebody = lab.somebody().await;
    assert_eq!(switched_on(&somebody).await, names, "{version:?}: {ended:?}");
    set(&somebody, names, false).await;
    Some(ended.stderr)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_source_has_on_fits_on_its_destination() {
    const TEST: &str = "what_the_source_has_on_fits_on_its_destination";
    for version in ALL {
        let Some(lab) = version.guest(TEST).await else { continue };
        for names in [
            &["multifd"][..],
            &["compress"],
            &["xbzrle", "release-ram", "dirty-bitmaps", "postcopy-blocktime", "validate-uuid"],
        ] {
            for incoming in ["defer", "tcp:127.0.0.1:0"] {
                let said = move_with(&lab, version, names, &["--incoming", incoming]).await;
                assert!(said.is_none_or(|said| !said.contains("off for this migration")), "{names:?}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn channels_are_alike_at_both_sides_by_defer_and_by_literal() {
    const TEST: &str = "channels_are_alike_at_both_sides";
    for version in ALL {
        let Some(lab) = version.guest(TEST).await else { continue };
        set_channels(&lab.somebody().await).await;
        for incoming in ["defer", "tcp:127.0.0.1:0"] {
            move_with(&lab, version, &["multifd"], &["--incoming", incoming]).await.unwrap();
            let parameters = settings(&lab.somebody().await).await.1;
            assert_eq!(parameters["multifd-channels"], 4, "{version:?}");
            assert_eq!(parameters["multifd-compression"], "zlib", "{version:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_would_keep_the_guest_or_slow_it_down_is_off_for_the_time_and_said_to_be() {
    const TEST: &str = "what_would_keep_the_guest_is_off_for_the_time";
    for version in ALL {
        let Some(lab) = version.guest(TEST).await else { continue };
        for name in [
            "pause-before-switchover",
            "postcopy-ram",
            "auto-converge",
            "x-ignore-shared",
            "mapped-ram",
            "background-snapshot",
        ] {
            let Some(said) = move_with(&lab, version, &[name], &[]).await else { continue };
            assert!(said.contains(&format!("'{name}' is off for this migration")), "{version:?}: {said}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_off_for_the_time_is_on_again_when_the_guest_goes_back() {
    const TEST: &str = "what_was_off_for_the_time_is_on_again";
    let Some(lab) = NEW.guest(TEST).await else { return };
    set(&lab.somebody().await, &["pause-before-switchover", "multifd"], true).await;
    let mut case = Case::of(lab, "streaming", &["--max-bandwidth", "2MiB/s"]).await;
    let hold = case.engine.wait();
    assert!(!switched_on(&case.somebody).await.contains(&"pause-before-switchover".to_owned()));
    case.interrupt().await;
    drop(hold);
    case.goes_back().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_destination_that_listens_already_takes_what_it_expects_or_is_refused() {
    const TEST: &str = "a_destination_that_listens_already";
    const TCP: [&str; 2] = ["-incoming", "tcp:127.0.0.1:0"];
    for version in [OLD, NEW] {
        let Some(lab) = version.guest(TEST).await else { continue };
        let before = settings(&lab.somebody().await).await;
        let to = |qmp: &std::path::Path| {
            lab.migrate(&[version.mode, &["--destination-qmp", qmp.to_str().unwrap()]].concat())
        };
        let channels = [&TCP[..], &["-global", "migration.x-multifd=on"]].concat();
        let (_expects_channels, qmp) = lab.by_hand(None, &channels).await;
        let refused = to(&qmp);
        assert_eq!(refused.code, 2, "{version:?}: {refused:?}");
        assert!(refused.stderr.contains("'multifd' is not there as it is on the source"), "{refused:?}");
        assert!(refused.stderr.contains("hint: start it with -incoming defer"), "{refused:?}");
        assert_eq!(settings(&lab.somebody().await).await, before, "{version:?}");
        set_channels(&lab.somebody().await).await;
        assert_eq!(to(&qmp).code, 2, "its channels are others");
        let harmless = [&TCP[..], &["-global", "migration.x-auto-converge=on"]].concat();
        let (process, qmp) = lab.by_hand(None, &harmless).await;
        let ended = to(&qmp);
        assert_eq!(ended.code, 0, "{version:?}: {ended:?}");
        assert!(ended.stderr.contains("'multifd' is off for this migration"), "{ended:?}");
        lab.never_two(lab.source(), process.pid());
    }
}
