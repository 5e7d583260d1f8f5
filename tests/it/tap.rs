//! Guests with a tap: two QEMUs cannot hold the same, and the destination gets one of its own on the same bridge.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use qmigrate::host::{command_line, held_taps};
use qmigrate::record::MigrationId;

use crate::host_programs::no_taps;
use crate::small_qemu::{Monitor, Place, Said, Source, command, migrate, qemu_or_skip, run, wait_for};
use crate::support::skip;

/// The address of every first card of a QEMU.
const MAC: &str = "52:54:00:12:34:56";
const CARD: &str = "virtio-net-pci,netdev=n,romfile=";

fn ip(words: &str) {
    let output = Command::new("ip").args(words.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {words}: {output:?}");
}

fn exists(interface: &str) -> bool {
    Path::new("/sys/class/net").join(interface).exists()
}

/// A bridge with a tap of the user's, until this goes.
struct Network {
    bridge: String,
    tap: String,
}

impl Network {
    /// A loud skip where there can be none.
    fn make(test: &str) -> Option<Self> {
        if let Some(reason) = no_taps() {
            skip(test, reason);
            return None;
        }
        // An interface's name has 15 letters at most.
        let id = MigrationId::new();
        let network = Self { bridge: format!("qb{id}"), tap: format!("qt{id}") };
        ip(&format!("link add {} type bridge", network.bridge));
        ip(&format!("link set {} up", network.bridge));
        ip(&format!("tuntap add dev {} mode tap", network.tap));
        ip(&format!("link set {} mtu 1400 master {} up", network.tap, network.bridge));
        Some(network)
    }

    fn options(&self) -> [String; 4] {
        let netdev = format!("tap,id=n,ifname={},script=no,downscript=no", self.tap);
        ["-netdev".to_owned(), netdev, "-device".to_owned(), CARD.to_owned()]
    }

    fn start(&self, qemu: &Path) -> Source {
        let options = self.options();
        Source::start(qemu, &options.each_ref().map(String::as_str))
    }

    /// What is on the bridge besides the user's own tap.
    fn others(&self) -> BTreeSet<String> {
        let ports = std::fs::read_dir(format!("/sys/class/net/{}/brif", self.bridge)).unwrap();
        let ports = ports.map(|port| port.unwrap().file_name().into_string().unwrap());
        ports.filter(|port| *port != self.tap).collect()
    }

    fn only_other(&self) -> String {
        let others = self.others();
        assert_eq!(others.len(), 1, "{others:?}");
        others.into_iter().next().unwrap()
    }

    /// Waits until the bridge has heard the guest there.
    fn hears_the_guest_at(&self, port: &str) {
        wait_for("an announcement", || {
            let heard = Command::new("bridge").args(["fdb", "show", "br", &self.bridge]).output().unwrap();
            let heard = String::from_utf8(heard.stdout).unwrap();
            heard.lines().any(|line| line.starts_with(&format!("{MAC} dev {port} "))).then_some(())
        });
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for port in self.others().iter().chain([&self.tap, &self.bridge]) {
            Command::new("ip").args(["link", "del", port]).status().ok();
        }
    }
}

/// The tap that the QEMU holds that has the guest now.
fn tap_of(source: &Source) -> String {
    let qemus = source.place.qemus();
    assert_eq!(qemus.len(), 1, "{qemus:?}");
    held_taps(qemus[0]).into_values().next().unwrap()
}

fn moved(source: &Source) -> Said {
    let said = migrate(source.qmp().to_str().unwrap(), &[]);
    assert_eq!(said.code, Some(0), "{said:?}");
    said
}

#[test]
fn a_guest_with_a_tap_is_moved_to_another_one_on_the_same_bridge() {
    const TEST: &str = "a_guest_with_a_tap_is_moved_to_another_one_on_the_same_bridge";
    let Some(network) = Network::make(TEST) else { return };
    let Some(qemu) = qemu_or_skip(TEST) else { return };
    let source = network.start(&qemu);

    // A copy of its command line does not start.
    let place = Place::new();
    let options = network.options();
    let copy = place.start_without_monitor(&qemu, "copy", &options.each_ref().map(String::as_str));
    wait_for("what the copy says", || copy.log().contains("Device or resource busy").then_some(()));
    drop(copy);

    let isolated = format!("/sys/class/net/{}/brport/isolated", network.tap);
    std::fs::write(&isolated, "1").unwrap();
    let said = moved(&source);
    let first = network.only_other();
    assert!(first.starts_with("qm-"), "{first}");
    assert_eq!(tap_of(&source), first);
    said.tells(&["tap", &network.tap, &first, "nftables"]);
    let of_port = |what: &str| std::fs::read_to_string(format!("/sys/class/net/{first}/{what}")).unwrap();
    assert_eq!((of_port("mtu").trim(), of_port("brport/isolated").trim()), ("1400", "1"));
    network.hears_the_guest_at(&first);
    assert!(exists(&network.tap), "the user's own tap stays");

    // A tap that was made for one move goes with the next one.
    moved(&source);
    let second = network.only_other();
    assert!(second.starts_with("qm-") && second != first, "{first} {second}");
    assert_eq!(tap_of(&source), second);
    network.hears_the_guest_at(&second);
}

#[test]
fn a_tap_that_was_handed_over_as_a_descriptor_is_found() {
    const TEST: &str = "a_tap_that_was_handed_over_as_a_descriptor_is_found";
    let Some(network) = Network::make(TEST) else { return };
    let Some(qemu) = qemu_or_skip(TEST) else { return };
    let place = Place::new();
    let qmp = format!("unix:{},server=on,wait=off", place.at("qmp").display());
    let tap = open_tap(&network.tap);
    let mut source = Command::new(&qemu);
    source.args([
        "-nodefaults",
        "-display",
        "none",
        "-machine",
        "pc",
        "-accel",
        "tcg",
        "-m",
        "32",
        "-qmp",
        &qmp,
    ]);
    source.args(["-netdev", "tap,id=n,fd=9", "-device", CARD]).stdin(Stdio::null());
    let (descriptor, number) = (tap.as_raw_fd(), 9);
    // SAFETY: one system call between fork and exec.
    unsafe {
        source.pre_exec(move || match nix::libc::dup2(descriptor, number) {
            -1 => Err(std::io::Error::last_os_error()),
            _ => Ok(()),
        });
    }
    let mut source = source.spawn().unwrap();
    drop(tap);
    drop(Monitor::connect(&place.at("qmp")));
    let said = migrate(place.at("qmp").to_str().unwrap(), &[]);
    assert_eq!(said.code, Some(0), "{said:?}");
    source.wait().unwrap();
    let new = network.only_other();
    let words = command_line(place.qemus()[0]).unwrap();
    let netdev = format!("tap,id=n,ifname={new},script=no,downscript=no,vnet_hdr=off");
    assert!(words.contains(&OsString::from(&netdev)), "{words:?}");
    network.hears_the_guest_at(&new);
}

/// A tap that this process holds, whose packets have no header.
fn open_tap(name: &str) -> std::fs::File {
    const TUNSETIFF: nix::libc::Ioctl = 0x4004_54ca;
    let tun = std::fs::File::options().read(true).write(true).open("/dev/net/tun").unwrap();
    // SAFETY: all of it may be zero.
    let mut request: nix::libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags = i16::try_from(nix::libc::IFF_TAP | nix::libc::IFF_NO_PI).unwrap();
    // SAFETY: the kernel reads and writes the one structure, which lives.
    let result = unsafe { nix::libc::ioctl(tun.as_raw_fd(), TUNSETIFF, &raw mut request) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    tun
}

#[test]
fn a_tap_that_qemu_has_made_and_somebody_has_put_on_a_bridge_is_found() {
    const TEST: &str = "a_tap_that_qemu_has_made_and_somebody_has_put_on_a_bridge_is_found";
    let Some(network) = Network::make(TEST) else { return };
    let Some(qemu) = qemu_or_skip(TEST) else { return };
    let source = Source::start(&qemu, &["-netdev", "tap,id=n,script=no,downscript=no", "-device", CARD]);
    drop(source.monitor());
    let made = tap_of(&source);
    ip(&format!("link set {made} master {} up", network.bridge));
    moved(&source);
    // The first one went with its QEMU.
    let new = network.only_other();
    assert!(new != made && tap_of(&source) == new, "{made} {new}");
    network.hears_the_guest_at(&new);
}

#[test]
fn a_tap_with_several_queues_gets_one_with_as_many() {
    const TEST: &str = "a_tap_with_several_queues_gets_one_with_as_many";
    let Some(mut network) = Network::make(TEST) else { return };
    let Some(qemu) = qemu_or_skip(TEST) else { return };
    ip(&format!("link del {}", network.tap));
    network.tap.push('q');
    ip(&format!("tuntap add dev {} mode tap multi_queue vnet_hdr", network.tap));
    ip(&format!("link set {} master {} up", network.tap, network.bridge));
    let mut options = network.options();
    options[1].push_str(",queues=2");
    options[3].push_str(",mq=on,vectors=6");
    let source = Source::start(&qemu, &options.each_ref().map(String::as_str));
    moved(&source);
    assert_eq!(held_taps(source.place.qemus()[0]).len(), 2);
    network.hears_the_guest_at(&network.only_other());
}

#[test]
fn nothing_is_left_of_a_tap_whose_destination_fails() {
    const TEST: &str = "nothing_is_left_of_a_tap_whose_destination_fails";
    let Some(network) = Network::make(TEST) else { return };
    let Some(qemu) = qemu_or_skip(TEST) else { return };
    let source = network.start(&qemu);
    let program = source.place.at("qemu-system-x86_64.log");
    let seen = source.place.at("seen.log");
    // Asked what it is, it answers; as a destination it fails.
    let lines = format!(
        "#!/bin/sh\ncase \"$*\" in *-incoming*) ls /sys/class/net/{}/brif > {}; exit 7;; *) exec {} \"$@\";; esac\n",
        network.bridge,
        seen.display(),
        qemu.display()
    );
    std::fs::write(&program, lines).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    source.refuses(&["--qemu", program.to_str().unwrap()]).tells(&["exit status: 7"]);
    assert!(std::fs::read_to_string(seen).unwrap().contains("qm-"), "it was there meanwhile");
    assert_eq!(network.others(), BTreeSet::new());
    moved(&source);
    assert_eq!(tap_of(&source), network.only_other());
}

#[test]
fn recover_removes_the_tap_of_an_engine_that_was_killed() {
    const TEST: &str = "recover_removes_the_tap_of_an_engine_that_was_killed";
    let Some(network) = Network::make(TEST) else { return };
    let Some(qemu) = qemu_or_skip(TEST) else { return };
    let source = network.start(&qemu);
    let (id, hold): (MigrationId, PathBuf) = (MigrationId::new(), source.place.at("hold"));
    let listener = UnixListener::bind(&hold).unwrap();
    let mut engine = command();
    engine.arg("migrate").arg(source.qmp()).args(["--detached", id.as_str()]);
    engine.env("QMIGRATE_HOLD", format!("destination={}", hold.display()));
    let mut engine = engine.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    listener.set_nonblocking(true).unwrap();
    let _held = wait_for("the hold point", || listener.accept().ok());
    assert_eq!(network.only_other(), format!("qm-{id}"));
    engine.kill().unwrap();
    engine.wait().unwrap();
    assert_eq!(network.only_other(), format!("qm-{id}"));
    let mut recover = command();
    recover.args(["recover", id.as_str()]);
    let output = run(recover);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert_eq!(network.others(), BTreeSet::new());
    moved(&source);
    assert_eq!(tap_of(&source), network.only_other());
}

#[test]
fn a_tap_that_can_have_no_second_one_beside_it_is_told_with_what_to_do() {
    const TEST: &str = "a_tap_that_can_have_no_second_one_beside_it_is_told_with_what_to_do";
    let Some(network) = Network::make(TEST) else { return };
    let Some(qemu) = qemu_or_skip(TEST) else { return };
    let source = network.start(&qemu);
    let hint = format!("--map {}=NEW", network.tap);

    ip(&format!("link set {} nomaster", network.tap));
    source.refuses(&[]).tells(&[&network.tap, "is on no bridge", &hint]);
    ip(&format!("link set {} master {}", network.tap, network.bridge));

    let filtering = format!("/sys/class/net/{}/bridge/vlan_filtering", network.bridge);
    if std::fs::write(&filtering, "1").is_ok() {
        source.refuses(&[]).tells(&["tells virtual networks apart", &hint]);
        std::fs::write(&filtering, "0").unwrap();
    } else {
        skip(TEST, "this kernel has no VLANs on bridges");
    }

    let mut without = Command::new("setpriv");
    without.args([
        "--bounding-set",
        "-net_admin",
        "--inh-caps",
        "-net_admin",
        env!("CARGO_BIN_EXE_qmigrate"),
    ]);
    without.arg("migrate").arg(source.qmp()).stdin(Stdio::null());
    let said = Said::of(&run(without));
    said.is_refusal();
    said.tells(&["this user may make no second one", &hint]);
    assert_eq!(network.others(), BTreeSet::new());
    moved(&source);
}
