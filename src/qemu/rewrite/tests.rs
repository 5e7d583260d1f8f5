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

    fn is_mapped(&self, path: &Path) -> bool {
        path != Path::new("/another")
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
        taps: &[],
    };
    rewrite(&line(&format!("qemu-system-x86_64 {text}")), &setting)
}

/// The codes of all that stands in the way.
fn codes(text: &str) -> Vec<&'static str> {
    rewritten(text).unwrap_err().iter().map(word).collect()
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

/// What an error is about.
fn word(error: &RewriteError) -> &'static str {
    match error {
        RewriteError::SharedMemory { .. } => "shared-memory",
        RewriteError::Configuration { .. } => "readconfig",
        RewriteError::LostDirectory(_) => "relative-path",
        RewriteError::RelativeImage(_) => "relative-image",
        RewriteError::Snapshot(_) => "snapshot",
        RewriteError::Tap { .. } => "tap",
        RewriteError::TapDescriptors { .. } => "tap-descriptor",
        RewriteError::Descriptor(_) => "descriptor",
        RewriteError::Backend { .. } => "backend",
        RewriteError::HostDevice { .. } => "host-device",
        RewriteError::Pipe(_) => "pipe",
        RewriteError::Chroot(_) => "chroot",
        RewriteError::NoFreePort { .. } => "no-port",
        RewriteError::MapUnused(_) => "map-unused",
    }
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
    // The last type counts, wherever it stands.
    let late = options("-machine accel=kvm,type=pc -qmp unix:q,server");
    assert!(late.contains("-machine pc-i440fx-10.0,accel=kvm ") && !late.contains("type="), "{late}");
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
    assert!(
        options("-debugcon file:/l")
            .starts_with("-chardev file,id=debugcon,path=/l,append=on -debugcon chardev:debugcon ")
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
        "-object memory-backend-file,id=m,mem-path=/another,share=on",
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
        taps: &[],
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

/// Each form of each option, and all that is refused.
mod forms;
