//! Sockets and ports on which both would listen.

use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixDatagram;

use super::*;

/// Unix sockets on which a QEMU listens; each takes `SOCKET`.
const LISTENERS: [&[&str]; 6] = [
    &["-chardev", "id=c,backend=socket,path=SOCKET,server=on,wait=off", "-mon", "c,mode=readline"],
    &["-serial", "unix:SOCKET,server,nowait"],
    &["-vnc", "unix:SOCKET"],
    &["-gdb", "unix:SOCKET,server=on,wait=off"],
    &["-qtest", "unix:SOCKET,server=on,wait=off"],
    &["-netdev", "stream,id=n,server=on,addr.type=unix,addr.path=SOCKET"],
];

#[test]
fn a_copied_monitor_steals_its_sources_and_a_rewritten_one_does_not() {
    let Some(qemu) = qemu_or_skip("a_copied_monitor") else { return };
    let robbed = Source::start(&qemu, &[]);
    let thief = exact_copy(&robbed);
    wait_for("the theft", || (listening_process(&robbed.qmp()) == Some(thief.pid())).then_some(()));
    assert!(lives(robbed.process.pid()), "the source lives, and nobody can speak to it");

    let source = Source::start(&qemu, &[]);
    moved_beside(&source);
    assert_eq!(listening_process(&source.qmp()), Some(source.process.pid()));
    source.monitor().ask("query-status");
}

#[test]
fn copied_sockets_are_stolen_and_rewritten_ones_are_not() {
    let Some(qemu) = qemu_or_skip("copied_sockets") else { return };
    for listener in LISTENERS {
        let start = || {
            let place = Place::new();
            let socket = place.at("socket");
            let options: Vec<String> =
                listener.iter().map(|word| word.replace("SOCKET", socket.to_str().unwrap())).collect();
            let options: Vec<&str> = options.iter().map(String::as_str).collect();
            let source = Source { process: place.start(&qemu, "qmp", &options), place };
            let own = source.process.pid();
            wait_for("its socket", || (listening_process(&socket) == Some(own)).then_some(()));
            (source, socket)
        };
        let (robbed, socket) = start();
        let thief = copy_waits(&robbed);
        wait_for("the theft", || (listening_process(&socket) == Some(thief.pid())).then_some(()));

        let (source, socket) = start();
        moved_beside(&source);
        assert_eq!(listening_process(&socket), Some(source.process.pid()), "{listener:?}");

        let (source, socket) = start();
        let (_, destination) = moved(&source, &[]);
        let heir = (listener[0] != "-qtest").then_some(destination);
        assert_eq!(listening_process(&socket), heir, "{listener:?}");
    }
}

#[test]
fn a_copied_datagram_socket_is_stolen_and_a_rewritten_one_is_taken_over() {
    let Some(qemu) = qemu_or_skip("a_copied_datagram_socket") else { return };
    let start = || {
        let place = Place::new();
        let (socket, peer) = (place.at("socket"), place.at("peer"));
        let (own, other) = (socket.display(), peer.display());
        let ends =
            format!("dgram,id=n,local.type=unix,local.path={own},remote.type=unix,remote.path={other}");
        let source = Source { process: place.start(&qemu, "qmp", &["-netdev", &ends]), place };
        let inode = wait_for("its socket", || std::fs::symlink_metadata(&socket).ok()).ino();
        (source, socket, inode)
    };
    let inode_of = |socket: &Path| std::fs::symlink_metadata(socket).unwrap().ino();
    let (robbed, socket, inode) = start();
    let _thief = copy_waits(&robbed);
    assert_ne!(inode_of(&socket), inode, "another one stands in its place");

    let (source, socket, inode) = start();
    moved_beside(&source);
    assert_eq!(inode_of(&socket), inode);

    let (source, socket, inode) = start();
    moved(&source, &[]);
    assert_ne!(inode_of(&socket), inode);
    UnixDatagram::unbound().unwrap().send_to(&[0; 64], &socket).expect("the destination reads it");
}

/// Ports on which a QEMU listens; each takes `PORT`, or `DISPLAY`.
const PORTS: [(&[&str], &str); 7] = [
    (&["-qmp", "tcp:127.0.0.1:PORT,server=on,wait=off"], "Address already in use"),
    (&["-gdb", "tcp:127.0.0.1:PORT"], "Address already in use"),
    (&["-vnc", "127.0.0.1:DISPLAY"], "Address already in use"),
    (&["-chardev", "socket,id=c,host=127.0.0.1,port=PORT,server=on,wait=off"], "Address already in use"),
    (&["-netdev", "user,id=n,hostfwd=tcp:127.0.0.1:PORT-:22"], "Could not set up host forwarding rule"),
    (&["-netdev", "socket,id=n,listen=127.0.0.1:PORT"], "can't bind"),
    (
        &["-netdev", r#"{"type":"user","id":"n","hostfwd":[{"str":"tcp:127.0.0.1:PORT-:22"}]}"#],
        "Could not set up host forwarding rule",
    ),
];

#[test]
fn copied_ports_are_taken_and_rewritten_ones_are_free_and_told() {
    let Some(qemu) = qemu_or_skip("copied_ports") else { return };
    for (listener, refusal) in PORTS {
        let port = port();
        let options: Vec<String> = listener
            .iter()
            .map(|word| {
                word.replace("PORT", &port.to_string()).replace("DISPLAY", &(port - 5900).to_string())
            })
            .collect();
        let options: Vec<&str> = options.iter().map(String::as_str).collect();
        let source = Source::start(&qemu, &options);
        copy_dies(&source, refusal);
        let (said, destination) = moved(&source, &[]);
        said.tells(&[&format!("127.0.0.1:{port}"), "127.0.0.1:"]);
        assert!(!words(destination).contains(&options[1].to_owned()), "{options:?}");
    }
}

/// By a QEMU that has it (7.2 of those here), whose guest is moved standing still under TCG.
#[test]
fn a_copied_spice_server_is_in_the_way_and_a_rewritten_one_is_taken_over_or_told() {
    let Some(qemu) = qemu_version("a_copied_spice_server", "7.2") else { return };
    let port = port();
    let source =
        Source::start(&qemu, &["-spice", &format!("addr=127.0.0.1,port={port},disable-ticketing=on")]);
    copy_dies(&source, "failed to initialize spice server");
    let (said, destination) = moved(&source, &["--non-live"]);
    let own = super::words(destination).into_iter().find(|word| word.contains("disable-ticketing")).unwrap();
    assert!(!own.contains(&format!("port={port},")), "{own}");
    assert!(said.text.contains("spice"), "where it is now is told: {said:?}");

    let start = || {
        let place = Place::new();
        let socket = place.at("socket");
        let spice = format!("unix=on,addr={},disable-ticketing=on", socket.display());
        let source = Source { process: place.start(&qemu, "qmp", &["-spice", &spice]), place };
        wait_for("its socket", || (listening_process(&socket) == Some(source.process.pid())).then_some(()));
        (source, socket)
    };
    let (robbed, socket) = start();
    let thief = copy_waits(&robbed);
    wait_for("the theft", || (listening_process(&socket) == Some(thief.pid())).then_some(()));
    let (source, socket) = start();
    let (_, destination) = moved(&source, &["--non-live"]);
    assert_eq!(listening_process(&socket), Some(destination));
}
