//! The embedded guest on every version of QEMU, and between versions with one versioned machine type: live where that
//! keeps every write, refused with the reason where it does not, and then moved while it stands.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use qmigrate::guest::{Accelerator, probe_kvm};
use qmigrate::lab::subject::{Board, qemu_version};

use crate::back_and_forth::{BackAndForth, Move};
use crate::lab::{Lab, SOON, settings};
use crate::support;

/// From one QEMU to another, on a machine that both have.
#[derive(Debug, Clone, Copy)]
struct Route {
    from: &'static str,
    to: &'static str,
    machine: &'static str,
}

/// Every version, and the pairs of neighbours there and back.
const ROUTES: [Route; 8] = [
    Route { from: "5.2", to: "5.2", machine: "pc-i440fx-5.2" },
    Route { from: "7.2", to: "7.2", machine: "pc-i440fx-7.2" },
    Route { from: "10.0", to: "10.0", machine: "pc-i440fx-10.0" },
    Route { from: "11.1", to: "11.1", machine: "pc-i440fx-11.1" },
    Route { from: "7.2", to: "10.0", machine: "pc-i440fx-7.2" },
    Route { from: "10.0", to: "7.2", machine: "pc-i440fx-7.2" },
    Route { from: "10.0", to: "11.1", machine: "pc-i440fx-10.0" },
    Route { from: "11.1", to: "10.0", machine: "pc-i440fx-10.0" },
];

impl Route {
    fn qemus(self, test: &str) -> Option<(PathBuf, PathBuf)> {
        let test = format!("{test} {} to {}", self.from, self.to);
        Some((support::qemu_version(&test, self.from)?, support::qemu_version(&test, self.to)?))
    }

    /// Moves the guest to the other QEMU and proves that all of it is there.
    async fn travel(self, lab: &Lab, to: &Path, arguments: &[&str]) {
        let source = lab.source();
        let mut all = vec!["--qemu", to.to_str().unwrap()];
        all.extend(arguments);
        let ended = lab.migrate(&all);
        assert_eq!(ended.code, 0, "{self:?}: {ended:?}");
        let party = ended.entries("destination")[0];
        let arrived = party["qemu_version"].as_str().unwrap();
        assert!(arrived.starts_with(self.to), "{self:?}: {party}");
        assert_eq!(party["machine"], self.machine, "{self:?}");
        let destination = lab.destination();
        lab.beats_on(destination);
        lab.never_two(source, destination);
        lab.prove().await;
        assert_eq!(lab.left_behind(), [] as [PathBuf; 0], "{self:?}");
    }
}

async fn under_tcg(route: Route) {
    let Some((from, to)) = route.qemus("a guest under TCG from") else { return };
    let board = Board { machine: route.machine, ..Board::newest(Accelerator::Tcg) };
    let lab = Lab::start_on(&from, board, 32, Some("20MiB/s")).await;
    if qemu_version(&from).unwrap() >= (9, 0) {
        return route.travel(&lab, &to, &[]).await;
    }
    let before = settings(&lab.somebody().await).await;
    let refused = lab.migrate(&["--qemu", to.to_str().unwrap()]);
    assert_eq!(refused.code, 2, "{route:?}: {refused:?}");
    assert!(refused.stderr.contains("loses writes of the guest in a live migration"), "{refused:?}");
    assert!(refused.stderr.contains("\nhint: --non-live"), "{refused:?}");
    assert_eq!(settings(&lab.somebody().await).await, before, "{route:?}");
    lab.beats_on(lab.source());
    route.travel(&lab, &to, &["--non-live"]).await;
}

macro_rules! under_tcg {
    ($($name:ident: $number:literal),+ $(,)?) => {
        $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            under_tcg(ROUTES[$number]).await;
        })+

        #[test]
        fn no_route_is_left_out() {
            assert_eq!([$($number),+], std::array::from_fn::<_, { ROUTES.len() }, _>(|number| number));
        }
    };
}

under_tcg! {
    a_guest_of_5_2_is_moved_while_it_stands: 0,
    a_guest_of_7_2_is_moved_while_it_stands: 1,
    a_guest_of_10_0_is_moved_live: 2,
    a_guest_of_11_1_is_moved_live: 3,
    a_guest_of_7_2_is_moved_to_10_0_while_it_stands: 4,
    a_guest_of_10_0_is_moved_live_to_7_2: 5,
    a_guest_of_10_0_is_moved_live_to_11_1: 6,
    a_guest_of_11_1_is_moved_live_to_10_0: 7,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_kvm_every_version_moves_its_guest_live() {
    const TEST: &str = "a guest under KVM from";
    let mut proven = BTreeSet::new();
    for route in ROUTES {
        let Some((from, to)) = route.qemus(TEST) else { continue };
        for qemu in [&from, &to] {
            if !proven.insert(qemu.clone()) {
                continue;
            }
            let directory = tempfile::tempdir().unwrap();
            if let Err(error) = probe_kvm(qemu, directory.path(), SOON) {
                return support::skip(TEST, &format!("KVM does not run the guest here: {error}"));
            }
        }
        let board = Board { machine: route.machine, ..Board::newest(Accelerator::Kvm) };
        // Where KVM itself is emulated a guest fills its memory at a few mebibytes per second.
        let lab = Lab::start_on(&from, board, 2, Some("4MiB/s")).await;
        route.travel(&lab, &to, &[]).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn back_and_forth_between_10_0_and_11_1_nothing_is_lost() {
    const ROUTE: Route = ROUTES[6];
    let Some((old, new)) = ROUTE.qemus("back and forth from") else { return };
    let board = Board { machine: ROUTE.machine, ..Board::newest(Accelerator::Tcg) };
    let lab = Lab::start_on(&old, board, 32, Some("20MiB/s")).await;
    let monitor = lab.subject.monitor.path().unwrap();
    let prove = async |done: &Move| {
        lab.never_two(done.source, done.destination);
        lab.prove().await;
        assert_eq!(lab.left_behind(), [] as [PathBuf; 0], "after move {}", done.number);
    };
    BackAndForth::of(monitor).between(&[&old, &new]).run(prove).await;
}
