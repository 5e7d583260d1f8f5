//! Options with which QEMU runs other programs: an engine of root's runs none unless it is told to.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nix::unistd::geteuid;

use crate::small_qemu::{Place, Source, migrate, qemu_or_skip, wait_for};
use crate::support::skip;

/// A program that leaves a line in a file each time that it is run.
struct Witness {
    program: PathBuf,
    file: PathBuf,
}

impl Witness {
    fn write(place: &Place) -> Self {
        let (program, file) = (place.at("program.log"), place.at("witness.log"));
        std::fs::write(&program, format!("#!/bin/sh\necho run >> {}\n", file.display())).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        Self { program, file }
    }

    fn runs(&self) -> usize {
        std::fs::read_to_string(&self.file).map_or(0, |text| text.lines().count())
    }
}

/// Why a tap cannot be made here.
pub(crate) fn no_taps() -> Option<&'static str> {
    if !geteuid().is_root() {
        return Some("only root may make a tap");
    }
    let tun = std::fs::File::options().read(true).write(true).open("/dev/net/tun");
    tun.is_err().then_some("there is no /dev/net/tun")
}

#[test]
fn root_runs_the_programs_of_a_command_line_only_when_told_to() {
    const TEST: &str = "root_runs_the_programs_of_a_command_line_only_when_told_to";
    if let Some(reason) = no_taps() {
        return skip(TEST, reason);
    }
    let Some(qemu) = qemu_or_skip(TEST) else { return };
    let place = Place::new();
    let witness = Witness::write(&place);
    let program = witness.program.to_str().unwrap();
    let options = [
        format!("tap,id=first,script={program},downscript=no"),
        format!("user,id=second,guestfwd=tcp:10.0.2.100:1-cmd:{program}"),
    ];
    let words: Vec<&str> = options.iter().flat_map(|option| ["-netdev", option]).collect();
    let process = place.start(&qemu, "qmp", &words);
    let source = Source { process, place };
    wait_for("the source's own run", || (witness.runs() == 1).then_some(()));

    let said = source.refuses(&[]);
    assert_eq!(said.text.matches("runs a program of the host").count(), 2, "{said:?}");
    for option in &options {
        said.tells(&[option]);
    }
    said.tells(&["--allow-host-programs"]);
    source.refuses(&["--dry-run"]);
    assert_eq!(witness.runs(), 1);

    let said = migrate(path(&source.qmp()), &["--allow-host-programs"]);
    assert_eq!((said.code, witness.runs()), (Some(0), 2), "{said:?}");
}

#[test]
fn what_a_destination_of_ones_own_runs_is_ones_own_affair() {
    const TEST: &str = "what_a_destination_of_ones_own_runs_is_ones_own_affair";
    let Some(qemu) = qemu_or_skip(TEST) else { return };
    let options = ["-netdev", "user,id=n,guestfwd=tcp:10.0.2.100:1-cmd:/bin/false"];
    let source = Source::start(&qemu, &options);
    let mine = source.place.start(&qemu, "mine", &[&options[..], &["-incoming", "defer"]].concat());
    let said = migrate(path(&source.qmp()), &["--destination-qmp", path(&source.place.at("mine"))]);
    assert_eq!(said.code, Some(0), "{said:?}");
    assert_eq!(source.place.qemus(), [mine.pid()]);
}

#[test]
fn a_template_is_no_way_around_that() {
    const TEST: &str = "a_template_is_no_way_around_that";
    if !geteuid().is_root() {
        return skip(TEST, "only an engine of root's refuses");
    }
    let Some(qemu) = qemu_or_skip(TEST) else { return };
    let source = Source::start(&qemu, &["-netdev", "user,id=n"]);
    let shown = crate::small_qemu::command().args(["template"]).arg(source.qmp()).output().unwrap();
    let text = String::from_utf8(shown.stdout).unwrap();
    let changed = text.replace("user,id=n", "bridge,id=n,br=qmigrate,helper=/bin/false");
    assert_ne!(changed, text);
    let file = source.place.at("template.log");
    std::fs::write(&file, changed).unwrap();
    let said = source.refuses(&["--template", path(&file)]);
    said.tells(&["the helper /bin/false", "--allow-host-programs"]);
    std::fs::write(&file, text).unwrap();
    let said = migrate(path(&source.qmp()), &["--template", path(&file)]);
    assert_eq!(said.code, Some(0), "{said:?}");
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}
