//! What belongs to one process: interfaces, descriptors, programs that serve one guest.

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;

use super::*;

#[test]
fn a_copied_tap_is_busy_and_a_mapped_one_is_not() {
    let Some(qemu) = qemu_or_skip("a_copied_tap") else { return };
    let test = "a_copied_tap_is_busy";
    if !nix::unistd::geteuid().is_root() {
        return skip(test, "only root can make tap interfaces");
    }
    if std::fs::File::options().read(true).write(true).open("/dev/net/tun").is_err() {
        return skip(test, "/dev/net/tun cannot be opened");
    }
    // The name of an interface has 15 letters.
    let interface = |which: &str| format!("qm{}{which}", std::process::id() % 1_000_000);
    let (old, new) = (interface("a"), interface("b"));
    for netdev in [
        format!("tap,id=n,ifname={old},script=no,downscript=no"),
        format!(r#"{{"type":"tap","id":"n","ifname":"{old}","script":"no","downscript":"no"}}"#),
    ] {
        let options = ["-netdev", &netdev, "-device", "virtio-net-pci,netdev=n"];
        let source = Source::start(&qemu, &options);
        copy_dies(&source, "Device or resource busy");
        source.refuses(&[]).tells(&["is on no bridge", &old, &format!("--map {old}=NEW")]);
        source.refuses(&["--map", &format!("{old}x={new}")]).tells(&["--map", "nothing on the command line"]);
        let (_, destination) = moved(&source, &["--map", &format!("{old}={new}")]);
        assert!(words(destination).iter().any(|word| word.contains(&new)));
    }
}

#[test]
fn copied_descriptors_mean_nothing_and_are_refused() {
    let Some(qemu) = qemu_or_skip("copied_descriptors") else { return };
    let place = Place::new();
    let disk = place.at("disk.raw");
    std::fs::write(&disk, vec![0; 1 << 20]).unwrap();
    let qmp = format!("unix:{},server=on,wait=off", place.at("qmp").display());
    let line = shell_words::join([
        qemu.to_str().unwrap(),
        "-nodefaults",
        "-display",
        "none",
        "-accel",
        "tcg",
        "-m",
        "32",
        "-qmp",
        &qmp,
        "-add-fd",
        "fd=9,set=2",
        "-drive",
        "file=/dev/fdset/2,format=raw,if=none,readonly=on",
    ]);
    let line = format!("exec 9<{}; exec {line}", disk.display());
    let process = Process::start(Path::new("/bin/sh"), &["-c".into(), line.into()], place.at("source.log"));
    let source = Source { process, place };
    drop(source.monitor());
    copy_dies(&source, "fd=9,set=2");
    // Both of them, in one go.
    let said = source.refuses(&[]);
    said.tells(&["-add-fd fd=9,set=2", "/dev/fdset/2"]);
}

/// As little of a vhost-user program as QEMU starts with: it serves one QEMU, then no more.
fn serve_one(path: &Path) -> std::thread::JoinHandle<()> {
    const GET_FEATURES: u32 = 1;
    const GET_PROTOCOL_FEATURES: u32 = 15;
    let listener = UnixListener::bind(path).unwrap();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        drop(listener);
        let mut header = [0; 12];
        while stream.read_exact(&mut header).is_ok() {
            let word = |at: usize| u32::from_ne_bytes(header[at..at + 4].try_into().unwrap());
            let mut payload = vec![0; word(8).try_into().unwrap()];
            stream.read_exact(&mut payload).unwrap();
            // It logs what it writes, by a file that QEMU shares with it: without that there is no migration.
            let answer: u64 = match word(0) {
                GET_FEATURES => 1 << 26 | 1 << 30,
                GET_PROTOCOL_FEATURES => 1 << 1,
                _ => continue,
            };
            let mut reply = [word(0), 1 | 1 << 2, 8].map(u32::to_ne_bytes).concat();
            reply.extend(answer.to_ne_bytes());
            stream.write_all(&reply).unwrap();
        }
    })
}

#[test]
fn a_program_that_serves_one_guest_is_refused_a_second_and_a_mapped_one_serves_it() {
    let Some(qemu) = qemu_or_skip("a_program_that_serves_one_guest") else { return };
    let place = Place::new();
    let (old, new) = (place.at("old"), place.at("new"));
    let first = serve_one(&old);
    let chardev = format!("socket,id=b,path={}", old.display());
    let options = ["-chardev", &chardev, "-netdev", "vhost-user,id=v,chardev=b"];
    let source = Source { process: place.start(&qemu, "qmp", &options), place };
    copy_dies(&source, "Connection refused");
    source.refuses(&[]).tells(&["serves the source", "--map"]);
    let second = serve_one(&new);
    let (_, destination) = moved(&source, &["--map", &format!("{}={}", old.display(), new.display())]);
    first.join().unwrap();
    crate::lab::signal(destination, nix::sys::signal::Signal::SIGKILL);
    second.join().unwrap();
}
