//! The rules of `rewrite`, row by row.

use super::*;
use std::io;

/// A host that is made up: ports up to 1300 and from 4444 to 4449 are taken, and `/huge` is a directory.
#[derive(Debug, Default)]
struct World {
    configuration: Option<&'static str>,
    open_files: Vec<PathBuf>,
}

impl Surroundings for World {
    fn configuration(&self, _: &Path) -> io::Result<String> {
        self.configuration.map(str::to_owned).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn is_directory(&self, path: &Path) -> bool {
        path == Path::new("/huge")
    }

    fn open_files(&self) -> &[PathBuf] {
        &self.open_files
    }

    fn free_port(&self, _: Protocol, host: &str, above: u16) -> Option<u16> {
        let is_free = |port: u16| port > 1300 && !(4444..4450).contains(&port);
        (above + 1..u16::MAX).find(|&port| is_free(port)).filter(|_| host != "full")
    }
}

fn id() -> MigrationId {
    "k3f9x2ab".parse().unwrap()
}

fn line(text: &str) -> CommandLine {
    let words: Vec<_> = shell_words::split(text).unwrap().into_iter().map(Into::into).collect();
    CommandLine::parse(&words).unwrap()
}

fn rewritten(text: &str) -> Result<Rewritten, Vec<RewriteError>> {
    rewritten_in(text, Shared::SIDE_BY_SIDE, &World::default(), &[])
}

fn rewritten_in(
    text: &str,
    shared: Shared,
    world: &World,
    maps: &[&str],
) -> Result<Rewritten, Vec<RewriteError>> {
    let maps: Vec<Map> = maps.iter().map(|map| map.parse().unwrap()).collect();
    let setting = Setting {
        id: &id(),
        shared,
        surroundings: world,
        maps: &maps,
        working_directory: Path::new("/lab"),
        runtime_directory: Path::new("/run/qmigrate/k3f9x2ab"),
        machine: Some("pc-i440fx-10.0"),
        incoming: "defer",
        qemu: None,
        globals: &[],
    };
    rewrite(&line(&format!("qemu-system-x86_64 {text}")), &setting)
}

/// The codes of all that stands in the way.
fn codes(text: &str) -> Vec<&'static str> {
    rewritten(text).unwrap_err().iter().map(RewriteError::code).collect()
}

/// The same line with these maps, without what is always added.
fn mapped(text: &str, maps: &[&str]) -> String {
    bare(&rewritten_in(text, Shared::SIDE_BY_SIDE, &World::default(), maps).unwrap())
}

/// The codes of the warnings.
fn warnings(made: &Rewritten) -> Vec<&str> {
    made.warnings.iter().map(|warning| warning.code.as_str()).collect()
}

/// The options without what is always added.
fn bare(made: &Rewritten) -> String {
    let all = spaced(&made.line).strip_prefix("qemu-system-x86_64").unwrap().to_owned();
    let end = " -S -incoming defer";
    let all = all.strip_suffix(end).unwrap();
    let all = all.strip_suffix(" -qmp unix:/run/qmigrate/k3f9x2ab/qmp,server=on,wait=off").unwrap_or(all);
    all.strip_suffix(" -machine pc-i440fx-10.0").unwrap_or(all).trim_start().to_owned()
}

fn spaced(line: &CommandLine) -> String {
    line.render().join(std::ffi::OsStr::new(" ")).into_string().unwrap()
}

/// The destination's options for a source's, without what is always added.
fn options(text: &str) -> String {
    spaced(&rewritten(text).unwrap().line).strip_prefix("qemu-system-x86_64 ").unwrap().to_owned()
}

#[test]
fn the_destination_is_held_and_waits_on_the_versioned_machine() {
    assert_eq!(
        options(
            "-S -daemonize -loadvm x -incoming tcp:0:4444 -qmp unix:/run/vm.qmp,server=on,wait=off -m 1G"
        ),
        "-qmp unix:/run/.qmigrate-k3f9x2ab/vm.qmp,server=on,wait=off -m 1G -machine pc-i440fx-10.0 -S -incoming defer"
    );
    for machine in ["-machine pc,accel=kvm", "-M pc,accel=kvm", "-machine type=pc,accel=kvm"] {
        let options = options(&format!("{machine} -qmp unix:q,server"));
        assert!(options.contains("pc-i440fx-10.0,accel=kvm"), "{options}");
    }
    assert!(options("-machine accel=tcg").starts_with("-machine pc-i440fx-10.0,accel=tcg "));
}

#[test]
fn whatever_listens_gets_a_name_of_its_own_beside_the_old_one() {
    let made =
        rewritten("-qmp unix:vm.qmp,server,nowait -pidfile /p/vm.pid -serial unix:/p/s,server=on").unwrap();
    assert_eq!(made.qmp, Path::new("/lab/.qmigrate-k3f9x2ab/vm.qmp"));
    assert_eq!(made.directories, [Path::new("/lab/.qmigrate-k3f9x2ab"), Path::new("/p/.qmigrate-k3f9x2ab")]);
    let publics: Vec<_> = made.renames.iter().map(|rename| rename.public.to_str().unwrap()).collect();
    assert_eq!(publics, ["/lab/vm.qmp", "/p/vm.pid", "/p/s"]);
}

#[test]
fn a_guest_that_was_moved_before_keeps_the_name_that_its_users_know() {
    let made = rewritten("-qmp unix:/run/.qmigrate-00000000/vm.qmp,server=on,wait=off").unwrap();
    assert_eq!(made.qmp, Path::new("/run/.qmigrate-k3f9x2ab/vm.qmp"));
    assert_eq!(made.renames[0].public, Path::new("/run/vm.qmp"));
}

#[test]
fn a_long_form_monitor_is_found_and_renamed() {
    let made = rewritten(
        "-chardev socket,id=mon0,path=/r/m,server=on,wait=off -mon chardev=mon0,mode=control \
         -chardev socket,id=h,path=/r/h,server=on,wait=off -mon chardev=h,mode=readline",
    )
    .unwrap();
    assert_eq!(made.qmp, Path::new("/r/.qmigrate-k3f9x2ab/m"));
    let humans: Vec<_> = human_monitors(&made.line).collect();
    assert_eq!(humans, [Path::new("/r/.qmigrate-k3f9x2ab/h")]);
}

#[test]
fn a_source_without_a_qmp_socket_gives_a_destination_with_one_and_not_two_the_next_time() {
    let made = rewritten("-qmp tcp:127.0.0.1:4444,server=on").unwrap();
    assert_eq!(made.qmp, Path::new("/run/qmigrate/k3f9x2ab/qmp"));
    let again = rewritten("-qmp unix:/run/qmigrate/00000000/qmp,server=on,wait=off").unwrap();
    assert_eq!(again.line.values("qmp").count(), 1);
    assert_eq!(again.qmp, Path::new("/run/qmigrate/k3f9x2ab/qmp"));
}

#[test]
fn files_are_appended_to_and_not_cut() {
    assert!(
        options("-serial file:/l/a,b")
            .starts_with("-chardev file,id=qmigrate0,path=/l/a,,b,append=on -serial chardev:qmigrate0 ")
    );
    assert!(options("-chardev file,id=x,path=/l").starts_with("-chardev file,append=on,id=x,path=/l "));
    assert!(
        options("-chardev file,id=x,append=off,path=/l").starts_with("-chardev file,id=x,append=on,path=/l ")
    );
    assert!(options("-D /l/q.log").starts_with("-D /l/q.log.k3f9x2ab "));
    assert!(options("-D /l/q.log.00000000").starts_with("-D /l/q.log.k3f9x2ab "));
}

#[test]
fn a_client_socket_stays_as_it_is() {
    let heartbeat = "-chardev socket,id=heartbeat,path=/r/beats ";
    assert!(options(heartbeat).starts_with(heartbeat));
}

#[test]
fn what_would_hurt_the_running_guest_is_refused() {
    for private in ["-snapshot", "-drive file=a,snapshot=on"] {
        assert_eq!(codes(private), ["snapshot"], "{private}");
    }
}

#[test]
fn shared_memory_in_a_file_stays_where_it_is() {
    for (object, expected) in [
        ("memory-backend-file,id=m,size=1G,mem-path=/dev/shm/x,share=on", Memory::InPlace),
        (r#"'{"qom-type":"memory-backend-file","id":"m","mem-path":"/x","share":true}'"#, Memory::InPlace),
        ("memory-backend-file,id=m,size=1G,mem-path=/dev/shm/x,share=off", Memory::Sent),
        ("memory-backend-file,id=m,size=1G,mem-path=/huge,share=on", Memory::Sent),
        ("memory-backend-memfd,id=m,size=1G", Memory::Sent),
    ] {
        assert_eq!(rewritten(&format!("-object {object}")).unwrap().memory(), expected, "{object}");
    }
    let preallocated = options("-object memory-backend-file,id=m,mem-path=/x,share=on,prealloc=on");
    assert!(preallocated.contains("share=on,prealloc=off "), "{preallocated}");
    for line in [
        "-object memory-backend-file,id=m,mem-path=/x,share=on,discard-data=on",
        "-object memory-backend-file,id=m,mem-path=/x,share=on -object memory-backend-memfd,id=n",
        "-object memory-backend-file,id=m,mem-path=/x,share=on -object memory-backend-file,id=n,mem-path=/huge,share=on",
    ] {
        assert_eq!(codes(line), ["shared-memory"], "{line}");
    }
}

#[test]
fn a_socket_path_that_would_grow_too_long_moves_to_the_runtime_directory() {
    let long = format!("/{}/q", "d".repeat(95));
    let made = rewritten(&format!("-qmp unix:{long},server=on")).unwrap();
    assert_eq!(made.qmp, Path::new("/run/qmigrate/k3f9x2ab/0-q"));
    assert_eq!(made.moved[0].from, long);
    assert_eq!(made.warnings[0].code, "socket-moved");
}

#[test]
fn what_each_move_would_add_anew_does_not_pile_up() {
    let own = "-global driver=migration,property=x-events,value=on";
    let moved = options(&format!("-L /a -L /b -m 1G -L /a {own} -S -incoming tcp:0:4444"));
    assert!(moved.starts_with("-L /a -L /b -m 1G -machine"), "{moved}");
    assert!(!moved.contains("x-events"), "{moved}");
    // The one that the guest was started with stays, however often it is moved.
    for own in ["-S -m 1G", "-S -m 1G -S -incoming defer"] {
        let moved = options(own);
        assert!(moved.starts_with("-S -m 1G -machine") && moved.ends_with(" -S -incoming defer"), "{moved}");
        assert_eq!(moved.matches("-S").count(), 2, "{moved}");
    }
}

#[test]
fn another_qemu_replaces_loader_and_program() {
    let setting = Setting {
        id: &id(),
        shared: Shared::SIDE_BY_SIDE,
        surroundings: &World::default(),
        maps: &[],
        working_directory: Path::new("/"),
        runtime_directory: Path::new("/run/qmigrate/k3f9x2ab"),
        machine: None,
        incoming: "tcp:0:4444",
        qemu: Some(Path::new("/new/qemu-system-x86_64")),
        globals: &[own_global("x-events", "on")],
    };
    let made = rewrite(&line("/q/ld.so --library-path /l /q/qemu-system-x86_64 -m 1G"), &setting).unwrap();
    assert_eq!(
        spaced(&made.line),
        "/new/qemu-system-x86_64 -m 1G -qmp unix:/run/qmigrate/k3f9x2ab/qmp,server=on,wait=off -S \
         -global driver=migration,property=x-events,value=on -incoming tcp:0:4444"
    );
}

#[test]
fn a_vnc_socket_is_not_stolen() {
    assert!(
        options("-vnc unix:/run/vnc,password=on")
            .starts_with("-vnc unix:/run/.qmigrate-k3f9x2ab/vnc,password=on ")
    );
}

#[test]
fn the_documentation_has_the_table_of_the_rules() {
    let rows = |text: &str, mark: &str| -> Vec<String> {
        let rows = text.lines().filter_map(|line| line.strip_prefix(mark));
        rows.filter(|line| line.starts_with('|')).map(str::to_owned).collect()
    };
    assert_eq!(rows(include_str!("../rewrite.rs"), "//! "), rows(&table(), ""), "it should be:\n{}", table());
}

#[test]
fn each_form_of_an_option_is_rewritten() {
    for (source, destination) in [
        (
            "-chardev id=c,backend=socket,path=/r/c,server=on",
            "-chardev id=c,backend=socket,path=PRIVATE/c,server=on",
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
            "-serial telnet:[::1]:4450,server=on",
            "[::1]:4444",
            "[::1]:4450",
        ),
        (
            "-chardev socket,id=c,port=4444,host=h,server=on",
            "-chardev socket,id=c,port=4450,host=h,server=on",
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
    for free in
        ["-qmp tcp:h:4444", "-qmp tcp:h:0,server=on", "-netdev socket,id=n,mcast=230.0.0.1:4444", "-vnc none"]
    {
        assert_eq!(bare(&rewritten(free).unwrap()), free);
    }
    assert_eq!(codes("-vnc full:1"), ["no-port"]);
}

/// Files and network: the four places where a destination may be.
#[test]
fn two_questions_decide_what_is_rewritten() {
    use Sharing::{Other, Same};
    let source = "-qmp unix:/r/q,server=on -vnc :7 -pidfile /r/p -D /l -netdev tap,id=n,ifname=t0 \
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
                assert_eq!(found.iter().map(RewriteError::code).collect::<Vec<_>>(), errors);
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
            format!("-qmp unix:{},server=on -vnc :{display} -pidfile {} -D {}", own.0, own.1, own.2);
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
        "-nodefaults -chardev socket,id=c,path=/r/.qmigrate-k3f9x2ab/z,server=on -mon c,mode=control -m 1G"
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
