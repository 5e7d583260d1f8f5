//! The destination's command line, made from the source's.
//!
//! Both QEMUs run side by side on one host for a while, so whatever only one of them can have gets a name of the
//! destination's own ([`Rename`](crate::qemu::rewrite::Rename)): a unix socket copied as it stands would be unlinked and bound anew by the
//! destination, and the source's monitor would be out of reach (run on 5.2 to 11.1). The new
//! name stands in a private directory *beside* the old one, `.qmigrate-ID`, since a bound socket can be renamed only
//! within its file system; once the source has gone, the old name is taken over by a rename. A guest that is moved a
//! second time shows such a directory on its command line, and the name without it is what its users know.
//!
//! | option | on the destination | why |
//! |---|---|---|
//! | `-incoming`, its `-S`, `-loadvm`, `-daemonize` | dropped, then `-S -incoming` ours | the destination waits, held |
//! | `-pidfile`, unix sockets that listen | a name of its own, taken over later | stolen or locked otherwise |
//! | `file:` character devices | the same file, `append=on` | QEMU cuts the file to zero as it opens it |
//! | `-D` | a log of its own | the same |
//! | `-gdb`, `-s` | dropped, with a warning | a debugger's port cannot be listened on twice |
//! | `-machine pc`, `q35` or none | the versioned type that the source has | aliases differ between QEMUs |
//! | the same `-L`, the engine's own `-global` once more | dropped | a wrapper, or each move, adds them anew |
//! | `-readconfig` | refused | what stands in the file would have to be rewritten too |
//! | relative paths with `-daemonize` | refused | the directory that they were relative to is not known any more |
//! | `-snapshot`, `snapshot=on` | refused | the overlay is a private temporary file of the source |
//! | shared memory in a file | refused | the destination would write into the running guest (proved on 10.0) |

use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::argv::{CommandLine, CommandOption, KeyValues};
use crate::record::{MigrationId, Moved, Warning};

/// A tap in the place of another one.
mod tap;

pub use tap::{TapChange, TapName, taps};

/// The longest path of a unix socket: `sun_path` less its NUL (QEMU: "Path must be less than 108 bytes", N13).
const LONGEST_SOCKET_PATH: usize = 107;
/// What the private directories beside the user's own files are called, before the id.
const PRIVATE_PREFIX: &str = ".qmigrate-";

/// What character devices are called that stand for `file:`, before their number.
pub(super) const DEVICE_PREFIX: &str = "qmigrate";
/// How the engine's own `-global` begins: in the long form, which tells it from a user's.
const OWN_GLOBAL: &str = "driver=migration,property=";

/// Options whose value is a character device in the short form (`unix:...`, `file:...`, `stdio`).
pub(super) const CHARACTER_DEVICES: [&str; 7] =
    ["qmp", "qmp-pretty", "monitor", "serial", "parallel", "debugcon", "virtioconsole"];

/// What the rewriting needs to know besides the command line.
#[derive(Debug, Clone)]
pub struct Setting<'a> {
    /// The migration, which names what is made.
    pub id: &'a MigrationId,
    /// The source's working directory, in which the destination starts too.
    pub working_directory: &'a Path,
    /// The migration's own directory below the runtime directory, for what fits nowhere else.
    pub runtime_directory: &'a Path,
    /// The source's versioned machine type, if it could be asked.
    pub machine: Option<&'a str>,
    /// The value of `-incoming`.
    pub incoming: &'a str,
    /// Another QEMU for the destination.
    pub qemu: Option<&'a Path>,
    /// `-global` values to add.
    pub globals: &'a [String],
    /// The taps of its own that the destination has.
    pub taps: &'a [TapChange],
}

/// Something that the destination has under another name until the source has gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rename {
    /// The option that it comes from, such as `qmp`.
    pub what: String,
    /// Its name while both live.
    pub temporary: PathBuf,
    /// The name that the user knows.
    pub public: PathBuf,
}

/// A destination's command line, and what has to be done around it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rewritten {
    /// The command line.
    pub line: CommandLine,
    /// The destination's QMP socket.
    pub qmp: PathBuf,
    /// Directories to be made, private to the source's user, before the destination starts.
    pub directories: Vec<PathBuf>,
    /// What takes over the source's names at the end.
    pub renames: Vec<Rename>,
    /// What has another name for good.
    pub moved: Vec<Moved>,
    /// What could not be carried over, but stops nothing.
    pub warnings: Vec<Warning>,
}

/// Something on the command line that cannot be carried over.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RewriteError {
    /// Guest memory in a file that both would share.
    #[error(
        "guest memory is shared through a file ({0}): a destination on this host would write into the running guest"
    )]
    SharedMemory(String),
    /// Options in a file, which this version does not read.
    #[error("the guest was started with -readconfig {0}, and what stands in that file cannot be rewritten")]
    ConfigurationFile(String),
    /// A relative path whose directory is not known any more.
    #[error(
        "the guest was started with -daemonize and the relative path {0}: what it is relative to is not known any more"
    )]
    LostDirectory(String),
    /// Disks whose writes go to a private temporary file.
    #[error("the source runs with {0}: what it wrote is in a temporary file that no second QEMU can open")]
    Snapshot(String),
}

/// A `-global` value that sets a destination up which listens from its start: there is no time to tell it then.
pub fn own_global(property: &str, value: &str) -> String {
    format!("{OWN_GLOBAL}{property},value={value}")
}

/// Whether a `-global` is the engine's.
pub(super) fn is_own_global(value: &str) -> bool {
    value.starts_with(OWN_GLOBAL)
}

/// Makes the destination's command line, or says all that cannot be carried over.
pub fn rewrite(source: &CommandLine, setting: &Setting<'_>) -> Result<Rewritten, Vec<RewriteError>> {
    let mut work = Work {
        setting,
        rewritten: Rewritten {
            line: CommandLine {
                launcher: source.launcher.clone(),
                program: source.program.clone(),
                options: Vec::new(),
            },
            qmp: PathBuf::new(),
            directories: Vec::new(),
            renames: Vec::new(),
            moved: Vec::new(),
            warnings: Vec::new(),
        },
        devices: 0,
        stops: own_stops(source),
        relative: None,
    };
    let mut errors = Vec::new();
    if let Some(qemu) = setting.qemu {
        work.rewritten.line.launcher.clear();
        work.rewritten.line.program = qemu.to_string_lossy().into_owned();
    }
    for option in &source.options {
        errors.extend(work.option(option).err());
    }
    if let (Some(machine), false) = (setting.machine, source.has("machine") || source.has("M")) {
        work.push(CommandOption::with_value("machine", machine));
    }
    if let (true, Some(path)) = (source.has("daemonize"), work.relative.take()) {
        errors.push(RewriteError::LostDirectory(path));
    }
    if !errors.is_empty() {
        return Err(errors);
    }
    work.choose_qmp();
    work.push(CommandOption::flag("S"));
    for global in setting.globals {
        work.push(CommandOption::with_value("global", global));
    }
    work.push(CommandOption::with_value("incoming", setting.incoming));
    Ok(work.rewritten)
}

/// How many `-S` of a command line are the guest's own: the last one is there for the `-incoming`, if it has that. A
/// guest that was started with it keeps it, so that its template does.
pub(super) fn own_stops(line: &CommandLine) -> usize {
    let stops = line.options.iter().filter(|option| option.name == "S").count();
    stops.saturating_sub(usize::from(line.has("incoming")))
}

/// The value of a `-machine` with the versioned type in the place of an alias.
pub(super) fn resolved(value: &str, machine: &str) -> String {
    let mut value = KeyValues::parse(value);
    match value.0.first_mut() {
        Some((key, first)) if key.is_empty() || key == "type" => machine.clone_into(first),
        _ => value.0.insert(0, (String::new(), machine.to_owned())),
    }
    value.render()
}

/// What a migration's directories beside the user's own files are called.
pub fn private_directory_name(id: &MigrationId) -> String {
    format!("{PRIVATE_PREFIX}{id}")
}

/// The name that the user knows: without the private directory of an earlier migration.
pub fn public_name(path: &Path) -> PathBuf {
    path.components().filter(|part| !is_private_part(&part.as_os_str().to_string_lossy())).collect()
}

fn is_private_part(part: &str) -> bool {
    part.strip_prefix(PRIVATE_PREFIX).is_some_and(|id| MigrationId::from_str(id).is_ok())
}

struct Work<'a> {
    setting: &'a Setting<'a>,
    rewritten: Rewritten,
    /// Character devices added so far; their ids count on from here.
    devices: usize,
    /// So many `-S` that come now are the guest's own.
    stops: usize,
    /// A path that was relative, if there was one.
    relative: Option<String>,
}

impl Work<'_> {
    fn push(&mut self, option: CommandOption) {
        self.rewritten.line.options.push(option);
    }

    fn option(&mut self, option: &CommandOption) -> Result<(), RewriteError> {
        let value = option.value.as_deref().unwrap_or_default();
        match option.name.as_str() {
            "S" if self.stops > 0 => {
                self.stops -= 1;
                self.push(option.clone());
            }
            "S" | "incoming" | "loadvm" | "daemonize" => {}
            "snapshot" => return Err(RewriteError::Snapshot("-snapshot".to_owned())),
            "readconfig" => return Err(RewriteError::ConfigurationFile(value.to_owned())),
            "vnc" if value.starts_with("unix:") => {
                let (path, rest) = value.split_once(',').map_or((value, ""), |(path, rest)| (path, rest));
                let own = self.own_name("vnc", Path::new(path.trim_start_matches("unix:")));
                let comma = if rest.is_empty() { "" } else { "," };
                self.push(CommandOption::with_value("vnc", format!("unix:{}{comma}{rest}", own.display())));
            }
            "s" | "gdb" => self.warn(
                "gdb-dropped",
                "the gdb stub is not carried over: its port cannot be listened on twice",
                Some("gdbserver: open one on the destination with the monitor's command 'gdbserver'"),
            ),
            "L" if self.rewritten.line.options.contains(option) => {}
            "global" if is_own_global(value) => {}
            "pidfile" => {
                let path = self.own_name("pidfile", Path::new(value));
                self.push(CommandOption::with_value("pidfile", path.to_string_lossy()));
            }
            "D" => {
                let path = log_name(value, self.setting.id);
                self.warn("log-moved", &format!("the log of the destination goes to {path}"), None);
                self.push(CommandOption::with_value("D", path));
            }
            "chardev" => {
                let value = self.chardev(value);
                self.push(CommandOption::with_value("chardev", value));
            }
            name if CHARACTER_DEVICES.contains(&name) => {
                if let Some(value) = self.character_device(name, value) {
                    self.push(CommandOption::with_value(name, value));
                }
            }
            "machine" | "M" => self.machine(value),
            "drive" if KeyValues::parse(value).is_on("snapshot") => {
                let shown = option.shown().unwrap_or_default();
                return Err(RewriteError::Snapshot(format!("-drive {shown}")));
            }
            "object" if shares_memory(value) => {
                return Err(RewriteError::SharedMemory(format!("-object {value}")));
            }
            _ => {
                let option = tap::with_new_tap(option, self.setting.taps).unwrap_or_else(|| option.clone());
                self.push(option);
            }
        }
        Ok(())
    }

    /// A `-machine` whose alias is resolved.
    fn machine(&mut self, value: &str) {
        let value = self.setting.machine.map_or_else(|| value.to_owned(), |machine| resolved(value, machine));
        self.push(CommandOption::with_value("machine", value));
    }

    /// A `-chardev`.
    fn chardev(&mut self, text: &str) -> String {
        let mut value = KeyValues::parse(text);
        match value.implied() {
            Some("socket") if value.is_on("server") => {
                if let Some(path) = value.get("path").map(PathBuf::from) {
                    let what = format!("chardev {}", value.get("id").unwrap_or_default());
                    let own = self.own_name(&what, &path);
                    value.set("path", &own.to_string_lossy());
                }
            }
            // Right behind the kind of device, where no user writes it and a template knows it again.
            Some("file") if value.get("append").is_none() => {
                value.0.insert(1, ("append".to_owned(), "on".to_owned()));
            }
            Some("file") => value.set("append", "on"),
            Some("stdio") => self.warn_console(&format!("-chardev {text}")),
            _ => return text.to_owned(),
        }
        value.render()
    }

    /// A character device in its short form; `None` when it is one of the engine's own.
    fn character_device(&mut self, option: &str, text: &str) -> Option<String> {
        let (mux, device) = text.strip_prefix("mon:").map_or(("", text), |device| ("mon:", device));
        if let Some(rest) = device.strip_prefix("unix:") {
            let mut value = KeyValues::parse(rest);
            let path = PathBuf::from(value.implied().unwrap_or_default());
            if is_engine_made(&path, self.setting.runtime_directory.parent()) {
                return None;
            }
            if value.is_on("server") {
                let own = self.own_name(option, &path);
                if let Some((_, first)) = value.0.first_mut() {
                    *first = own.to_string_lossy().into_owned();
                }
            }
            return Some(format!("{mux}unix:{}", value.render()));
        }
        if let Some(path) = device.strip_prefix("file:") {
            // The short form cannot say `append`; the long one can, and a device that names it is the same device.
            let id = format!("{DEVICE_PREFIX}{}", self.devices);
            self.devices += 1;
            let chardev = format!("file,id={id},path={},append=on", path.replace(',', ",,"));
            self.push(CommandOption::with_value("chardev", chardev));
            return Some(format!("{mux}chardev:{id}"));
        }
        if device == "stdio" {
            self.warn_console(&format!("-{option} {text}"));
        }
        Some(text.to_owned())
    }

    /// A name of the destination's own for a file or socket that only one QEMU can have.
    fn own_name(&mut self, what: &str, path: &Path) -> PathBuf {
        let public = public_name(path);
        if public.is_relative() {
            self.relative = Some(public.display().to_string());
        }
        let name = public.file_name().map_or_else(|| PathBuf::from(what), PathBuf::from);
        let beside = public.parent().unwrap_or(Path::new("")).join(private_directory_name(self.setting.id));
        let absolute = self.setting.working_directory.join(beside.join(&name));
        if absolute.as_os_str().len() <= LONGEST_SOCKET_PATH {
            let directory = self.setting.working_directory.join(&beside);
            if !self.rewritten.directories.contains(&directory) {
                self.rewritten.directories.push(directory);
            }
            self.rewritten.renames.push(Rename {
                what: what.to_owned(),
                temporary: absolute,
                public: self.setting.working_directory.join(public),
            });
            return beside.join(name);
        }
        // Two of them may have the same name in different directories.
        let number = self.rewritten.moved.len();
        let own = self.setting.runtime_directory.join(format!("{number}-{}", name.display()));
        let (from, to) = (public.display().to_string(), own.display().to_string());
        let message = format!("{from} becomes {to}: beside it the path would be too long for a socket");
        self.warn("socket-moved", &message, None);
        self.rewritten.moved.push(Moved { what: what.to_owned(), from, to });
        own
    }

    /// Finds the QMP socket by which the engine talks to the destination, or adds one.
    fn choose_qmp(&mut self) {
        if let Some(path) = qmp_sockets(&self.rewritten.line).next() {
            self.rewritten.qmp = self.setting.working_directory.join(path);
            return;
        }
        let path = self.setting.runtime_directory.join("qmp");
        self.push(CommandOption::with_value("qmp", format!("unix:{},server=on,wait=off", path.display())));
        self.rewritten.qmp = path;
    }

    fn warn_console(&mut self, device: &str) {
        let message = format!(
            "{device}: the terminal stays with the source; the destination's output goes to its log in {}",
            self.setting.runtime_directory.display()
        );
        self.warn(
            "console",
            &message,
            Some("start guests with the console on a socket: -serial unix:PATH,server=on,wait=off"),
        );
    }

    fn warn(&mut self, code: &str, message: &str, hint: Option<&str>) {
        self.rewritten.warnings.push(Warning {
            code: code.to_owned(),
            message: message.to_owned(),
            hint: hint.map(str::to_owned),
        });
    }
}

/// Whether this is a QMP socket that [`Work::choose_qmp`] added in an earlier migration; `runtime` is where migrations
/// have their directories.
pub(super) fn is_engine_made(path: &Path, runtime: Option<&Path>) -> bool {
    let directory = path.parent();
    let is_id = directory
        .and_then(Path::file_name)
        .and_then(|name| name.to_str())
        .is_some_and(|name| MigrationId::from_str(name).is_ok());
    is_id && directory.and_then(Path::parent) == runtime && path.ends_with("qmp")
}

/// All unix sockets on which a QEMU with this command line listens. It unlinks whatever has their names.
pub(super) fn listening_sockets(line: &CommandLine) -> Vec<PathBuf> {
    let sockets = line.options.iter().filter_map(|option| {
        let value = option.value.as_deref()?;
        match option.name.as_str() {
            "vnc" => KeyValues::parse(value)
                .implied()
                .and_then(|place| place.strip_prefix("unix:").map(PathBuf::from)),
            "chardev" => listening_chardev(&KeyValues::parse(value)),
            name if CHARACTER_DEVICES.contains(&name) => {
                unix_server(value.strip_prefix("mon:").unwrap_or(value))
            }
            _ => None,
        }
    });
    sockets.collect()
}

/// The unix sockets on which a QEMU with this command line speaks QMP, in order.
pub fn qmp_sockets(line: &CommandLine) -> impl Iterator<Item = PathBuf> {
    monitors(line, MonitorKind::Machine)
}

/// The unix sockets on which a QEMU with this command line has a monitor for people.
pub fn human_monitors(line: &CommandLine) -> impl Iterator<Item = PathBuf> {
    monitors(line, MonitorKind::Human)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum MonitorKind {
    Machine,
    Human,
}

fn monitors(line: &CommandLine, kind: MonitorKind) -> impl Iterator<Item = PathBuf> {
    line.options.iter().filter_map(move |option| {
        let value = option.value.as_deref()?;
        match (option.name.as_str(), kind) {
            ("qmp" | "qmp-pretty", MonitorKind::Machine) | ("monitor", MonitorKind::Human) => {
                unix_server(value)
            }
            ("mon", _) => {
                let value = KeyValues::parse(value);
                let is_machine = value.get("mode") == Some("control");
                let id = value.get("chardev").or(value.implied())?;
                if is_machine == (kind == MonitorKind::Machine) { chardev_socket(line, id) } else { None }
            }
            _ => None,
        }
    })
}

fn unix_server(device: &str) -> Option<PathBuf> {
    let value = KeyValues::parse(device.strip_prefix("unix:")?);
    value.is_on("server").then(|| value.implied().map(PathBuf::from)).flatten()
}

fn chardev_socket(line: &CommandLine, id: &str) -> Option<PathBuf> {
    let devices = line.values("chardev").map(KeyValues::parse);
    devices.filter(|value| value.get("id") == Some(id)).find_map(|value| listening_chardev(&value))
}

fn listening_chardev(value: &KeyValues) -> Option<PathBuf> {
    let listens = value.implied() == Some("socket") && value.is_on("server");
    listens.then(|| value.get("path").map(PathBuf::from)).flatten()
}

/// Whether a `-object` is guest memory in a file that two QEMUs would share.
fn shares_memory(value: &str) -> bool {
    if let Ok(json) = serde_json::from_str::<serde_json::Value>(value) {
        return json["qom-type"] == "memory-backend-file" && json["share"] == true;
    }
    let value = KeyValues::parse(value);
    let kind = value.implied().or(value.get("qom-type"));
    kind == Some("memory-backend-file") && value.is_on("share")
}

/// A log beside the old one: `vm.log` becomes `vm.log.ID`, and again for a guest that was moved before.
fn log_name(path: &str, id: &MigrationId) -> String {
    format!("{}.{id}", public_log_name(path))
}

/// The log that the user knows: without the id of an earlier migration.
pub(super) fn public_log_name(path: &str) -> &str {
    match path.rsplit_once('.') {
        Some((bare, last)) if MigrationId::from_str(last).is_ok() => bare,
        _ => path,
    }
}

#[cfg(test)]
#[path = "rewrite_tests.rs"]
mod tests;
