//! Images and devices of the host that the source holds: what a second QEMU cannot open, and what guards nothing.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::{Blocker, Code, Findings};
use crate::host::{ProcessView, as_user};

/// Block drivers that open a file of the host by its name.
const FILE_DRIVERS: [&str; 3] = ["file", "host_device", "host_cdrom"];
/// What QEMU calls the temporary files of its own (`get_tmp_filename`), which have their own blockers.
const TEMPORARY: &str = "vl.";

/// A file that the source has open as an image.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Image {
    driver: String,
    path: PathBuf,
    is_read_only: bool,
}

/// All about the images and the devices of the host, from the answers to `query-named-block-nodes`, `query-block` and
/// `qom-list`.
pub fn images(view: &ProcessView, nodes: &Value, block: &Value, devices: &[(String, String)]) -> Findings {
    let mut findings = Findings::default();
    let place = |file: &str| place_of(view.pid, &view.working_directory, file);
    for image in images_of(nodes, place) {
        if image.driver == "host_cdrom" {
            findings.block(host_cdrom(&image.path, block));
            continue;
        }
        if let Err(why) = can_be_opened(&image, view) {
            findings.block(Blocker::new(
                Code::ImageGone,
                format!("the image {} cannot be opened by a second QEMU: {why}", image.path.display()),
                match why.kind() {
                    std::io::ErrorKind::NotFound => {
                        "put it back where it was, or let the guest have it by a name that leads there"
                            .to_owned()
                    }
                    _ => format!("give user {} the right to open it", view.credentials.user),
                },
            ));
        } else if is_another(view.pid, &image.path) {
            findings.block(Blocker::new(
                Code::ImageGone,
                format!(
                    "in the place of the image {} there is another file now than the guest has",
                    image.path.display()
                ),
                "put the guest's back where it was, or let the guest have it by a name that leads there",
            ));
        } else if !image.is_read_only && !is_locked(view.pid, &image.path) {
            findings.warn(Blocker::new(
                Code::NoImageLock,
                format!(
                    "no lock holds on the image {}: nothing but qmigrate keeps two QEMUs from writing to it",
                    image.path.display()
                ),
                "see that nothing else starts this guest (file.locking=off, nolock and some network file systems do it)",
            ));
        }
    }
    findings.blockers.extend(devices.iter().filter(|(_, kind)| kind == "child<usb-host>").map(host_usb));
    findings
}

/// The files behind a guest's block nodes, each once.
fn images_of(nodes: &Value, place: impl Fn(&str) -> PathBuf) -> Vec<Image> {
    let text = |node: &Value, key: &str| node.get(key).and_then(Value::as_str).map(str::to_owned);
    let image = |node: &Value| {
        let driver = text(node, "drv").filter(|driver| FILE_DRIVERS.contains(&driver.as_str()))?;
        let file = text(node, "file")?;
        // By parts, or by a descriptor's number: there is no name to look at.
        if file.starts_with("json:") || file.starts_with("/dev/fdset/") {
            return None;
        }
        let file = file.strip_prefix("file:").unwrap_or(&file);
        let is_read_only = node.get("ro").and_then(Value::as_bool).unwrap_or(false);
        let is_temporary = Path::new(file).file_name()?.to_str()?.starts_with(TEMPORARY);
        (!is_temporary).then(|| Image { driver, path: place(file), is_read_only })
    };
    let mut all: Vec<Image> = Vec::new();
    for image in nodes.as_array().into_iter().flatten().filter_map(image) {
        match all.iter_mut().find(|known| known.path == image.path) {
            Some(known) => known.is_read_only &= image.is_read_only,
            None => all.push(image),
        }
    }
    all
}

/// Where a file is that the source calls so. After `-daemonize` its working directory is not the one any more that a
/// relative name counts from (N10); what it has open still has a whole name.
fn place_of(pid: i32, working_directory: &Path, file: &str) -> PathBuf {
    let place = working_directory.join(file);
    if Path::new(file).is_absolute() || place.exists() {
        return place;
    }
    let entries = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let mut open = entries.filter_map(|entry| std::fs::read_link(entry.path()).ok());
    open.find(|path| path.ends_with(file.trim_start_matches("./"))).unwrap_or(place)
}

/// As the source has it open: one that may be written to is not, where nothing writes (`auto-read-only`, which each
/// `-drive` has).
fn can_be_opened(image: &Image, view: &ProcessView) -> Result<(), std::io::Error> {
    let is_written = !image.is_read_only
        && descriptors(view.pid, &image.path)
            .is_none_or(|open| open.is_empty() || open.iter().any(|open| open.is_written));
    as_user(&view.credentials, || File::options().read(true).write(is_written).open(&image.path)).map(drop)
}

/// A descriptor of a file, as `/proc/PID/fdinfo` shows it.
struct Open {
    is_written: bool,
    is_locked: bool,
}

/// The descriptors that a process has of a file; nothing where that cannot be seen.
fn descriptors(pid: i32, path: &Path) -> Option<Vec<Open>> {
    /// `O_ACCMODE`, in which 1 is for writing and 2 for both.
    const ACCESS: u32 = 0o3;
    let meant = path.metadata().ok()?;
    let process = Path::new("/proc").join(pid.to_string());
    let open = |entry: std::fs::DirEntry| {
        let file = entry.path().metadata().ok()?;
        if (file.dev(), file.ino()) != (meant.dev(), meant.ino()) {
            return None;
        }
        let info = std::fs::read_to_string(process.join("fdinfo").join(entry.file_name())).ok()?;
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
        let flags = flags.and_then(|flags| u32::from_str_radix(flags.trim(), 8).ok());
        Some(Open {
            is_written: flags.is_none_or(|flags| flags & ACCESS != 0),
            is_locked: info.lines().any(|line| line.starts_with("lock:")),
        })
    };
    Some(std::fs::read_dir(process.join("fd")).ok()?.flatten().filter_map(open).collect())
}

/// Whether the source, whose open files can be seen, has none of this identity open.
fn is_another(pid: i32, path: &Path) -> bool {
    let Ok(meant) = path.metadata() else { return false };
    let Ok(entries) = std::fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
    let open: Vec<_> = entries.flatten().filter_map(|entry| entry.path().metadata().ok()).collect();
    !open.is_empty() && open.iter().all(|file| (file.dev(), file.ino()) != (meant.dev(), meant.ino()))
}

/// Whether the source holds a lock on a file: of all its descriptors for it, one with an OFD lock, as
/// `/proc/PID/fdinfo` shows them.
fn is_locked(pid: i32, path: &Path) -> bool {
    // One that it has closed since guards itself.
    descriptors(pid, path).is_none_or(|open| open.is_empty() || open.iter().any(|open| open.is_locked))
}

fn host_cdrom(path: &Path, block: &Value) -> Blocker {
    let is_it = |entry: &&Value| {
        entry.pointer("/inserted/file").and_then(Value::as_str).is_some_and(|file| Path::new(file) == path)
    };
    let entry = block.as_array().into_iter().flatten().find(is_it);
    let name = |key: &str| entry.and_then(|entry| entry.get(key)?.as_str()).filter(|name| !name.is_empty());
    let arguments = match (name("qdev"), name("device")) {
        (Some(id), _) => json!({ "id": id, "force": true }),
        (None, Some(device)) => json!({ "device": device, "force": true }),
        (None, None) => json!({ "id": "ID", "force": true }),
    };
    Blocker::new(
        Code::HostCdrom,
        format!(
            "the guest has the host's own CD-ROM drive {}, which two QEMUs would pull at",
            path.display()
        ),
        format!("end that on the source's monitor: {}", line("eject", &arguments)),
    )
}

fn host_usb((id, _): &(String, String)) -> Blocker {
    Blocker::new(
        Code::HostUsb,
        format!("the guest has a USB device of the host ({id}), which only one QEMU can have"),
        format!("end that on the source's monitor: {}", line("device_del", &json!({ "id": id }))),
    )
}

/// A QMP command as one types it.
fn line(command: &str, arguments: &Value) -> String {
    format!(r#"{{"execute":"{command}","arguments":{arguments}}}"#)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_found_once_and_by_name() {
        let nodes = json!([
            {"drv": "raw", "file": "/srv/a", "ro": false},
            {"drv": "file", "file": "a", "ro": true},
            {"drv": "file", "file": "/srv/a", "ro": false},
            {"drv": "file", "file": "/var/tmp/vl.Nz9Bqd", "ro": false},
            {"drv": "file", "file": "json:{}", "ro": false},
            {"drv": "file", "file": "/dev/fdset/1", "ro": false},
            {"drv": "nbd", "file": "nbd://x", "ro": false},
            {"drv": "host_device", "file": "/dev/vg/b", "ro": true},
            {"drv": 7},
        ]);
        let images = images_of(&nodes, |file| Path::new("/srv").join(file));
        let found: Vec<_> =
            images.iter().map(|image| (image.path.to_str().unwrap(), image.is_read_only)).collect();
        assert_eq!(found, [("/srv/a", false), ("/dev/vg/b", true)]);
        assert_eq!(images_of(&Value::Null, |file| PathBuf::from(file)), []);
    }

    #[test]
    fn a_relative_name_is_found_by_what_is_open() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("image");
        let _open = File::create(&path).unwrap();
        let own = i32::try_from(std::process::id()).unwrap();
        let part = directory.path().file_name().unwrap().to_str().unwrap();
        for name in [format!("{part}/image"), format!("./{part}/image")] {
            assert_eq!(place_of(own, Path::new("/"), &name), path.canonicalize().unwrap());
        }
        assert_eq!(place_of(own, directory.path(), "image"), path);
        assert_eq!(place_of(own, Path::new("/"), "no/such"), Path::new("/no/such"));
    }

    #[test]
    fn a_device_of_the_host_is_named_with_the_line_that_ends_it() {
        let block = json!([{"device": "", "qdev": "ide0-cd0", "inserted": {"file": "/dev/sr0"}}]);
        let blocker = host_cdrom(Path::new("/dev/sr0"), &block);
        let words = r#"{"execute":"eject","arguments":{"force":true,"id":"ide0-cd0"}}"#;
        assert!(blocker.hint.unwrap().ends_with(words));
        let blocker =
            host_cdrom(Path::new("/dev/sr0"), &json!([{"device": "cd", "inserted": {"file": "/dev/sr0"}}]));
        assert!(blocker.hint.unwrap().contains(r#""device":"cd""#));
        let blocker = host_usb(&("stick".to_owned(), "child<usb-host>".to_owned()));
        assert!(blocker.hint.unwrap().ends_with(r#"{"execute":"device_del","arguments":{"id":"stick"}}"#));
    }

    #[test]
    fn a_lock_is_seen_as_it_is() {
        use nix::fcntl::{FcntlArg, fcntl};
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("image");
        let own = i32::try_from(std::process::id()).unwrap();
        assert!(is_locked(own, &path), "what is not there is told otherwise");
        std::fs::write(&path, "x").unwrap();
        assert!(is_locked(own, &path), "what is not open needs none");
        let file = File::options().read(true).write(true).open(&path).unwrap();
        assert!(!is_locked(own, &path));
        let lock = nix::libc::flock {
            l_type: i16::try_from(nix::libc::F_RDLCK).unwrap(),
            l_whence: i16::try_from(nix::libc::SEEK_SET).unwrap(),
            l_start: 100,
            l_len: 1,
            l_pid: 0,
        };
        fcntl(&file, FcntlArg::F_OFD_SETLK(&lock)).unwrap();
        assert!(is_locked(own, &path));
    }
}
