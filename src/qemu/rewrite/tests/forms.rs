//! Each form of each option, and all that is refused.

use super::*;

#[test]
fn each_form_of_an_option_is_rewritten() {
    for (source, destination) in [
        (
            "-chardev id=c,backend=socket,path=/r/c,server=on",
            "-chardev id=c,backend=socket,path=PRIVATE/c,server=on,wait=off",
        ),
        ("-serial mon:unix:/r/s,server,nowait", "-serial mon:unix:PRIVATE/s,server,nowait"),
        ("-gdb unix:/r/g,server=on,wait=off", "-gdb unix:PRIVATE/g,server=on,wait=off"),
        ("-vnc unix:/r/v,,1,password=on", "-vnc unix:PRIVATE/v,,1,password=on"),
        ("-vnc vnc=unix:/r/v", "-vnc vnc=unix:PRIVATE/v"),
        ("-display vnc=unix:/r/v", "-display vnc=unix:PRIVATE/v"),
        (
            "-spice unix=on,addr=/r/p,disable-ticketing=on",
            "-spice unix=on,addr=PRIVATE/p,disable-ticketing=on",
        ),
        (
            "-netdev stream,id=n,server=on,addr.type=unix,addr.path=/r/n",
            "-netdev stream,id=n,server=on,addr.type=unix,addr.path=PRIVATE/n",
        ),
        (
            r#"-netdev '{"type":"stream","id":"n","server":true,"addr":{"type":"unix","path":"/r/n"}}'"#,
            r#"-netdev {"type":"stream","id":"n","server":true,"addr":{"type":"unix","path":"PRIVATE/n"}}"#,
        ),
        (
            "-netdev dgram,id=n,local.type=unix,local.path=/r/n,remote.type=unix,remote.path=/r/o",
            "-netdev dgram,id=n,local.type=unix,local.path=PRIVATE/n,remote.type=unix,remote.path=/r/o",
        ),
    ] {
        let made = rewritten(source).unwrap();
        assert_eq!(bare(&made), destination.replace("PRIVATE", "/r/.qmigrate-k3f9x2ab"), "{source}");
        assert_eq!(made.renames.len(), 1, "{source}");
    }
}

#[test]
fn a_port_that_is_taken_is_another_one_and_told() {
    for (source, destination, from, to) in [
        (
            "-qmp tcp:127.0.0.1:4444,server,nowait",
            "-qmp tcp:127.0.0.1:4450,server,nowait",
            "127.0.0.1:4444",
            "127.0.0.1:4450",
        ),
        (
            "-serial telnet:[::1]:4444,server=on",
            "-serial telnet:[::1]:4450,server=on,wait=off",
            "[::1]:4444",
            "[::1]:4450",
        ),
        (
            "-chardev socket,id=c,port=4444,host=h,server=on",
            "-chardev socket,id=c,port=4450,host=h,server=on,wait=off",
            "h:4444",
            "h:4450",
        ),
        ("-serial udp:far:9@:4444", "-serial udp:far:9@:4450", ":4444", ":4450"),
        (
            "-chardev udp,id=c,port=9,localport=4444",
            "-chardev udp,id=c,port=9,localport=4450",
            ":4444",
            ":4450",
        ),
        ("-s", "-gdb tcp::1301", ":1234", ":1301"),
        ("-gdb tcp::1234", "-gdb tcp::1301", ":1234", ":1301"),
        ("-vnc 127.0.0.1:7,password=on", "-vnc 127.0.0.1:8,password=on", "127.0.0.1:5907", "127.0.0.1:5908"),
        ("-spice port=4444", "-spice port=4450", ":4444", ":4450"),
        (
            "-netdev user,id=n,hostfwd=tcp::4444-:22",
            "-netdev user,id=n,hostfwd=tcp::4450-:22",
            ":4444",
            ":4450",
        ),
        ("-nic user,hostfwd=tcp::4444-:22", "-nic user,hostfwd=tcp::4450-:22", ":4444", ":4450"),
        ("-netdev socket,id=n,listen=:4444", "-netdev socket,id=n,listen=:4450", ":4444", ":4450"),
        (
            "-netdev stream,id=n,server=on,addr.type=inet,addr.host=h,addr.port=4444",
            "-netdev stream,id=n,server=on,addr.type=inet,addr.host=h,addr.port=4450",
            "h:4444",
            "h:4450",
        ),
        (
            "-netdev dgram,id=n,local.type=inet,local.host=h,local.port=4444,remote.type=inet,remote.port=4444",
            "-netdev dgram,id=n,local.type=inet,local.host=h,local.port=4450,remote.type=inet,remote.port=4444",
            "h:4444",
            "h:4450",
        ),
    ] {
        let made = rewritten(source).unwrap();
        assert_eq!(bare(&made), destination, "{source}");
        let moved =
            made.moved.iter().map(|moved| (moved.from.as_str(), moved.to.as_str())).collect::<Vec<_>>();
        assert_eq!(moved, [(from, to)], "{source}");
    }
    // No port is given away twice.
    let two = options("-netdev user,id=n,hostfwd=tcp::4444-:22,hostfwd=tcp::4445-:80 -vnc :0,websocket=on");
    assert!(two.contains("hostfwd=tcp::4450-:22,hostfwd=tcp::4451-:80 -vnc :1,websocket=on"), "{two}");
    for free in [
        "-qmp tcp:h:4444",
        "-qmp tcp:h:0,server=on,wait=off",
        "-netdev socket,id=n,mcast=230.0.0.1:4444",
        "-vnc none",
    ] {
        assert_eq!(bare(&rewritten(free).unwrap()), free);
    }
    assert_eq!(codes("-vnc full:1"), ["no-port"]);
    // Where somebody has said which, that one.
    assert_eq!(mapped("-vnc :1", &[":1=:7"]), "-vnc :7");
    let own = mapped("-qmp tcp:h:4444,server=on", &["h:4444=h:4445"]);
    assert_eq!(own, "-qmp tcp:h:4445,server=on,wait=off");
    // A name without a file cannot be renamed.
    let nameless = rewritten("-chardev socket,id=c,path=x,abstract=on,server=on").unwrap();
    assert_eq!(bare(&nameless), "-chardev socket,id=c,path=x.k3f9x2ab,abstract=on,server=on,wait=off");
    assert_eq!((nameless.moved.len(), nameless.renames.len()), (1, 0));
}

/// Files and network: the four places where a destination may be.
#[test]
fn two_questions_decide_what_is_rewritten() {
    use Sharing::{Other, Same};
    let source = "-qmp unix:/r/q,server=on,wait=off -vnc :7 -pidfile /r/p -D /l -netdev tap,id=n,ifname=t0 \
        -chardev socket,id=b,path=/r/b -netdev vhost-user,id=v,chardev=b";
    for (files, network, options, errors) in [
        (Same, Same, "", &["tap", "backend"][..]),
        (Same, Other, "", &["backend"]),
        (Other, Same, "", &["tap"]),
        (Other, Other, source, &[]),
    ] {
        let world = World::default();
        match rewritten_in(source, Shared { files, network }, &world, &[]) {
            Ok(made) => assert_eq!(bare(&made), options.split_whitespace().collect::<Vec<_>>().join(" ")),
            Err(found) => {
                assert_eq!(found.iter().map(word).collect::<Vec<_>>(), errors);
            }
        }
        let plain = "-qmp unix:/r/.qmigrate-00000000/q,server=on -vnc :7 -pidfile /r/p -D /l";
        let own = if files == Same {
            ("/r/.qmigrate-k3f9x2ab/q", "/r/.qmigrate-k3f9x2ab/p", "/l.k3f9x2ab")
        } else {
            ("/r/q", "/r/p", "/l")
        };
        let display = if network == Same { 8 } else { 7 };
        let made = rewritten_in(plain, Shared { files, network }, &world, &[]).unwrap();
        let expected =
            format!("-qmp unix:{},server=on,wait=off -vnc :{display} -pidfile {} -D {}", own.0, own.1, own.2);
        assert_eq!(bare(&made), expected, "{files:?} {network:?}");
        assert_eq!(made.renames.is_empty(), files == Other);
        assert_eq!(made.moved.is_empty(), network == Other);
        let shared = "-object memory-backend-file,id=m,mem-path=/x,share=on";
        let made = rewritten_in(shared, Shared { files, network }, &world, &[]).unwrap();
        assert_eq!(made.memory() == Memory::InPlace, files == Same);
    }
}

#[test]
fn what_one_process_alone_can_have_is_refused_unless_it_is_mapped() {
    for (source, code, map, destination) in [
        ("-netdev tap,id=n,ifname=t0,vhostfd=9", "tap", "t0=t1", "-netdev tap,id=n,ifname=t1"),
        ("-nic tap,ifname=t0", "tap", "t0=t1", "-nic tap,ifname=t1"),
        (
            r#"-netdev '{"type":"tap","id":"n","ifname":"t0"}'"#,
            "tap",
            "t0=t1",
            r#"-netdev {"type":"tap","id":"n","ifname":"t1"}"#,
        ),
        (
            "-device vfio-pci,host=0000:01:00.0,id=v",
            "host-device",
            "0000:01:00.0=0000:01:00.1",
            "-device vfio-pci,host=0000:01:00.1,id=v",
        ),
        (
            "-chardev socket,id=t,path=/tpm -tpmdev emulator,id=e,chardev=t",
            "backend",
            "/tpm=/other",
            "-chardev socket,id=t,path=/other -tpmdev emulator,id=e,chardev=t",
        ),
        (
            "-chardev socket,id=t,path=/fs -device vhost-user-fs-pci,chardev=t,tag=x",
            "backend",
            "/fs=/other",
            "-chardev socket,id=t,path=/other -device vhost-user-fs-pci,chardev=t,tag=x",
        ),
        ("-serial pipe:/p", "pipe", "/p=/other", "-serial pipe:/other"),
        (
            "-tpmdev passthrough,id=p,path=/dev/tpm0",
            "host-device",
            "/dev/tpm0=/dev/tpm1",
            "-tpmdev passthrough,id=p,path=/dev/tpm1",
        ),
    ] {
        assert_eq!(codes(source), [code], "{source}");
        assert!(rewritten(source).unwrap_err()[0].hint().contains("--map"), "{source}");
        assert_eq!(mapped(source, &[map]), destination);
    }
    for (source, code) in [
        ("-netdev tap,id=n,fd=23,vhostfd=24", "tap-descriptor"),
        ("-netdev tap,id=n,fds=23:24", "tap-descriptor"),
        ("-add-fd fd=9,set=2", "descriptor"),
        ("-drive file=/dev/fdset/2", "descriptor"),
        (r#"-blockdev '{"driver":"file","filename":"/dev/fdset/2","node-name":"f"}'"#, "descriptor"),
        ("-chardev socket,id=c,fd=7,server=on", "descriptor"),
        ("-object iommufd,id=i,fd=7", "descriptor"),
        ("-runas nobody -chroot /jail", "chroot"),
        ("-run-with chroot=/jail,user=nobody", "chroot"),
    ] {
        assert_eq!(codes(source), [code], "{source}");
        assert!(!rewritten(source).unwrap_err()[0].hint().is_empty());
    }
    assert_eq!(bare(&rewritten("-netdev tap,id=n,br=br0").unwrap()), "-netdev tap,id=n,br=br0");
}

#[test]
fn a_map_that_changes_nothing_and_one_that_is_none_are_told() {
    let unused = rewritten_in("-m 1G", Shared::SIDE_BY_SIDE, &World::default(), &["/a=/b"]).unwrap_err();
    assert_eq!(unused, [RewriteError::MapUnused("/a=/b".to_owned())]);
    assert!(matches!("9=/b".parse::<Map>(), Err(MapError::Number(_))));
    assert!(matches!("/a".parse::<Map>(), Err(MapError::NotAPair(_))));
    let memory = "-object memory-backend-file,id=m,mem-path=/a,share=on";
    assert!(mapped(memory, &["/a=/b"]).contains("mem-path=/b,share=on"));
    assert_eq!(mapped("-hda /a -drive file=/aa", &["/a=/b"]), "-hda /b -drive file=/aa");
}

#[test]
fn all_that_is_wrong_is_told_at_once() {
    let line = "-snapshot -add-fd fd=9,set=2 -netdev tap,id=n,ifname=t0 -serial pipe:/p -readconfig /none";
    assert_eq!(codes(line), ["readconfig", "snapshot", "descriptor", "tap", "pipe"]);
}

#[test]
fn terminals_and_windows_stay_with_the_source() {
    let socket = "unix:/run/qmigrate/k3f9x2ab/terminal0,server=on,wait=off";
    let long = "path=/run/qmigrate/k3f9x2ab/terminal0,server=on,wait=off";
    let screen = "-vnc unix:/run/qmigrate/k3f9x2ab/screen -display none";
    for (source, destination) in [
        ("-serial stdio", format!("-serial {socket}")),
        ("-serial mon:stdio", format!("-serial mon:{socket}")),
        ("-chardev stdio,id=s,mux=on,signal=off", format!("-chardev socket,id=s,mux=on,{long}")),
        ("-nographic -nodefaults", "-machine graphics=off -display none -nodefaults".to_owned()),
        ("-nographic", format!("-serial mon:{socket} -machine graphics=off -display none")),
        (
            "-nographic -monitor none",
            format!("-serial {socket} -machine graphics=off -display none -monitor none"),
        ),
        (
            "-nographic -serial null",
            format!("-monitor {socket} -machine graphics=off -display none -serial null"),
        ),
        ("-display gtk,gl=off", screen.to_owned()),
        ("-curses", screen.to_owned()),
        ("-display sdl -spice port=0", "-display none -spice port=0".to_owned()),
        ("-display none", "-display none".to_owned()),
    ] {
        let made = rewritten(source).unwrap();
        assert_eq!(bare(&made), destination, "{source}");
        let is_told = destination.contains("/run/qmigrate");
        assert_eq!(made.moved.len(), usize::from(is_told), "{source}");
    }
    let attach = rewritten("-serial stdio").unwrap().warnings[0].hint.clone().unwrap();
    assert_eq!(attach, "attach to it: socat -,rawer UNIX-CONNECT:/run/qmigrate/k3f9x2ab/terminal0");
    // On the next move it is a socket like any other.
    let again = rewritten("-serial unix:/run/qmigrate/00000000/terminal0,server=on,wait=off").unwrap();
    assert_eq!(again.renames[0].public, Path::new("/run/qmigrate/00000000/terminal0"));
}

#[test]
fn what_watches_one_process_or_ends_with_it_is_left_out() {
    for (source, destination) in [
        ("-preconfig -m 1G", "-m 1G"),
        ("-plugin /p.so,a=b -qtest unix:/q,server=on", ""),
        ("-run-with exit-with-parent=on", ""),
        ("-run-with exit-with-parent=on,async-teardown=on", "-run-with async-teardown=on"),
        ("-runas nobody", ""),
        ("-run-with user=nobody", ""),
        ("-chroot /jail", "-chroot /jail"),
        ("-trace enable=x,file=/t", "-trace enable=x,file=/t.k3f9x2ab"),
        ("-object filter-dump,id=f,netdev=n,file=/c", "-object filter-dump,id=f,netdev=n,file=/c.k3f9x2ab"),
        ("-chardev null,id=n,logfile=/l", "-chardev null,id=n,logfile=/l,logappend=on"),
        ("-D /l-%d", "-D /l-%d"),
        ("-D /dev/null", "-D /dev/null"),
        ("-audiodev wav,id=a,path=/w", "-audiodev wav,id=a,path=/w.k3f9x2ab"),
    ] {
        assert_eq!(bare(&rewritten(source).unwrap()), destination, "{source}");
    }
}

#[test]
fn an_option_that_nobody_knows_is_kept_and_told() {
    let made = rewritten("-warp 9 -m 1G").unwrap();
    assert_eq!((bare(&made).as_str(), warnings(&made)), ("-warp 9 -m 1G", vec!["unknown-option"]));
}

#[test]
fn a_configuration_file_is_rewritten_with_the_rest() {
    let configuration = "[chardev \"c\"]\n backend = \"socket\"\n path = \"/r/q\"\n server = \"on\"\n\
        [mon]\n chardev = \"c\"\n mode = \"control\"\n[memory]\n size = \"1G\"\n";
    let world = World { configuration: Some(configuration), ..World::default() };
    let made =
        rewritten_in("-nodefaults -readconfig vm.cfg", Shared::SIDE_BY_SIDE, &world, &["/r/q=/r/z"]).unwrap();
    assert_eq!(
        bare(&made),
        "-nodefaults -chardev socket,id=c,path=/r/.qmigrate-k3f9x2ab/z,server=on,wait=off -mon c,mode=control -m 1G"
    );
    assert_eq!(made.qmp, Path::new("/r/.qmigrate-k3f9x2ab/z"));
    let unsaid = World { configuration: Some("[vnc]\n vnc = \":1\"\n"), ..World::default() };
    let error = rewritten_in("-readconfig vm.cfg", Shared::SIDE_BY_SIDE, &unsaid, &[]).unwrap_err();
    assert!(error[0].to_string().contains("line 1, column 2"), "{error:?}");
    assert_eq!(codes("-readconfig /etc/vm.cfg"), ["readconfig"]);
}

#[test]
fn a_monitor_object_is_found_too() {
    let line = "-chardev socket,id=c,path=/r/q,server=on,wait=off -object monitor-qmp,id=m,chardev=c";
    assert_eq!(rewritten(line).unwrap().qmp, Path::new("/r/.qmigrate-k3f9x2ab/q"));
}

#[test]
fn after_daemonize_relative_paths_count_from_where_an_open_file_is() {
    let found = |line: &str, open: &[&str]| {
        let world = World { open_files: open.iter().map(PathBuf::from).collect(), ..World::default() };
        rewritten_in(&format!("-daemonize {line}"), Shared::SIDE_BY_SIDE, &world, &[])
    };
    let made =
        found("-cdrom ./img/disk.raw -qmp unix:q,server=on", &["/dev/null", "/srv/vm/img/disk.raw"]).unwrap();
    assert_eq!(made.working_directory, Path::new("/srv/vm"));
    assert_eq!(made.qmp, Path::new("/srv/vm/.qmigrate-k3f9x2ab/q"));
    assert_eq!(made.renames[0].public, Path::new("/srv/vm/q"));
    for (line, open) in [
        ("-qmp unix:vm.qmp,server", &[][..]),
        ("-hda disk.raw", &["/a/disk.raw", "/b/disk.raw"]),
        ("-hda a.raw -hdb b.raw", &["/a/a.raw", "/b/b.raw"]),
    ] {
        let errors = found(line, open).unwrap_err();
        assert!(matches!(&errors[..], [RewriteError::LostDirectory(_)]), "{line}: {errors:?}");
    }
    found("-qmp unix:/run/vm.qmp,server -hda nbd:localhost:1 -hdb null-co://", &[]).unwrap();
    for image in
        ["-hda disk.raw", "-drive file=disk.raw", "-blockdev file,filename=disk.raw,auto-read-only=on"]
    {
        let errors = found(image, &["/srv/disk.raw"]).unwrap_err();
        assert!(matches!(&errors[..], [RewriteError::RelativeImage(_)]), "{image}: {errors:?}");
    }
    found("-drive file=disk.raw,auto-read-only=off", &["/srv/disk.raw"]).unwrap();
    // Without -daemonize nothing is guessed.
    let world = World { open_files: vec!["/srv/disk.raw".into()], ..World::default() };
    let made = rewritten_in("-hda disk.raw", Shared::SIDE_BY_SIDE, &world, &[]).unwrap();
    assert_eq!(made.working_directory, Path::new("/lab"));
}
