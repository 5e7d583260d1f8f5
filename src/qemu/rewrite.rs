//! The destination's command line, made from the source's.
//!
//! Source and destination run side by side for a while. What only one of them can have is decided resource by resource
//! ([`Shared`](crate::qemu::rewrite::Shared)): do both see the same files, are both on the same network? On the same
//! files whatever listens or is locked gets a name of the destination's own
//! ([`Rename`](crate::qemu::rewrite::Rename)): a unix socket copied as it stands would be unlinked and bound anew by the
//! destination, and the source's monitor would be out of reach. The new name stands in a private directory *beside* the
//! old one, `.qmigrate-ID`, since a bound socket can be renamed only within its file system; once the source has gone, the
//! old name is taken over by a rename. A guest that is moved a second time shows such a directory on its command line,
//! and the name without it is what its users know.
//!
//! First the options that a configuration file (`-readconfig`) holds stand in its place, and `--map OLD=NEW` gives the
//! destination resources of its own. Then each option goes through the rules, all others being copied. What cannot be
//! carried over is refused, all of it at once.
//!
//! The table is that of the rules ([`table`](crate::qemu::rewrite::table)), and a test holds the two together.
//!
//! | option | on the destination | why |
//! |---|---|---|
//! | `-incoming`, its `-S`, `-loadvm`, `-daemonize`, `-preconfig`, `-writeconfig` | dropped, then `-S -incoming` ours | the destination waits, held, and is known by its process |
//! | `-S` of the guest's own | kept | its template has it |
//! | `-snapshot` | refused | the overlay is a private temporary file of the source |
//! | `-drive snapshot=on` | refused | the same |
//! | `tap` by `fd=`, `fds=` | refused | numbers mean nothing in another process |
//! | `tap` (or `af-xdp`, `netmap`) by `ifname=` | refused on the same network, but for one by `--map` | `Device or resource busy`: one process holds it |
//! | its `vhostfd=`, `vhostfds=` | dropped | QEMU opens the vhost device itself |
//! | `-add-fd`, `fd=`, `fd:`, `/dev/fdset/` | refused | what was handed over as a descriptor has no name |
//! | `vfio-*`, `vhost-vdpa`, `tpmdev passthrough` | refused, but for another device by `--map` | a device of the host has one guest |
//! | the socket of a `vhost-user`, virtiofs or TPM backend | refused on the same files, but for one by `--map` | such a program serves one guest |
//! | the QMP socket of an earlier move | dropped, then one of this move | it is in that move's directory |
//! | unix sockets that listen | on the same files a name of its own, taken over later | the destination unlinks and binds the path: the source's monitor is out of reach (run on 5.2 to 11.1) |
//! | TCP sockets that listen, `-gdb` | on the same network the next port that is free, told | `Failed to find an available port: Address already in use` |
//! | `-s` | as `-gdb tcp::1234` | it is that |
//! | UDP with a port of its own | the same | the same |
//! | `file:` character devices | the same file, `append=on` | QEMU cuts the file to zero as it opens it |
//! | `logfile=` of a character device | the same file, `logappend=on` | the same |
//! | `pipe:` character devices | refused on the same files, but for one by `--map` | each byte comes out once, at either of the two |
//! | `stdio`, `mon:stdio` | a unix socket, told with how to attach | the terminal stays with the source |
//! | `pty` | kept, with a warning | each QEMU gets a new one |
//! | `-nographic` | `-display none`, `-machine graphics=off`, and a unix socket for what was on the terminal | the terminal stays with the source |
//! | `-display gtk`, `sdl`, `curses` | `-display none`, and VNC on a unix socket where nothing else shows the guest | the window stays with the source |
//! | `-vnc` | as other sockets | a unix socket is stolen, a port is taken |
//! | `-spice` | as other sockets | the same |
//! | `hostfwd=`; `socket`, `stream`, `dgram` that listen | as other sockets | `Could not set up host forwarding rule`; 7.2 starts a `stream` on a taken port without a word |
//! | `-pidfile` | as unix sockets | `Cannot lock pid file` |
//! | `-D` | on the same files a log of its own | both would write it |
//! | `-trace file=` | a file of its own | the same |
//! | `-object filter-dump`, `-audiodev wav` | a file of its own | QEMU cuts the file to zero as it opens it |
//! | `-plugin`, `-qtest` | dropped, with a warning | what they write and talk to is the source's |
//! | `memory-backend-file` with `share=on` | on the same files left in its place (`x-ignore-shared` on both sides), or refused | the destination would write stale pages into the running guest (proved on 10.0) |
//! | `-machine pc`, `q35` or none | the versioned type that the source has | aliases differ between QEMUs |
//! | `-runas`, `-run-with user=` | dropped | the destination is started as that user, who may not become anybody |
//! | `-chroot` with another user | refused | only root can enter another root directory |
//! | `-run-with exit-with-parent=on` | dropped | the destination would end with the engine (10.2) |
//! | the same `-L` once more | dropped | a wrapper adds it anew |
//! | the engine's own `-global` | dropped | each move adds its own |
//! | any that is not known | kept, with a warning | never dropped |

use std::path::{Path, PathBuf};

use super::argv::configuration::flatten;
use super::argv::{CommandLine, CommandOption, KeyValues, Scalar};
use crate::record::{MigrationId, Moved, Warning};

/// Character devices, in the long form and in the short one.
mod characters;
/// What relative paths count from, where QEMU has left its directory.
mod directory;
/// What of a command line cannot be carried over.
mod error;
/// `--map OLD=NEW`: another resource on the destination than on the source.
mod maps;
/// Guest memory in a file that both QEMUs would map.
mod memory;
/// Names for what only one of two QEMUs can have.
mod names;
/// Ports and interfaces.
mod network;
/// The rules: one row for each kind of option.
mod rules;
/// The sockets on which a QEMU with a command line listens.
mod sockets;
/// What the rewriting asks of the host.
mod surroundings;
/// A tap in the place of another one.
mod tap;
/// Terminals and windows.
mod terminal;

pub use error::RewriteError;
pub use maps::{Map, MapError};
pub use names::{Rename, private_directory_name, public_name};
pub(super) use names::{is_engine_made, public_log_name};
pub use rules::table;
pub(super) use sockets::listening_sockets;
pub use sockets::{human_monitors, qmp_sockets};
pub use surroundings::{Protocol, Surroundings, ThisHost};
pub use tap::{TapChange, TapName, taps};

/// What character devices are called that stand for `file:`, before their number.
pub(super) const DEVICE_PREFIX: &str = "qmigrate";
/// How the engine's own `-global` begins: in the long form, which tells it from a user's.
const OWN_GLOBAL: &str = "driver=migration,property=";

/// Options whose value is a character device in the short form (`unix:...`, `file:...`, `stdio`).
pub(super) const CHARACTER_DEVICES: [&str; 7] =
    ["qmp", "qmp-pretty", "monitor", "serial", "parallel", "debugcon", "virtioconsole"];

/// Whether both QEMUs have a resource, or each its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    /// One for both.
    Same,
    /// Each has its own.
    Other,
}

/// What source and destination have together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shared {
    /// Whether a path names the same file at both.
    pub files: Sharing,
    /// Whether a port is the same one at both.
    pub network: Sharing,
}

impl Shared {
    /// Side by side, in one host's files and network.
    pub const SIDE_BY_SIDE: Self = Self { files: Sharing::Same, network: Sharing::Same };
}

/// What the rewriting needs to know besides the command line.
#[derive(Debug, Clone)]
pub struct Setting<'a> {
    /// The migration, which names what is made.
    pub id: &'a MigrationId,
    /// What both have together.
    pub shared: Shared,
    /// The host of the source.
    pub surroundings: &'a dyn Surroundings,
    /// What is to be another resource on the destination.
    pub maps: &'a [Map],
    /// The source's working directory, in which the destination starts too, unless that is not the one that relative paths
    /// count from.
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

/// How the guest's memory comes to the destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Memory {
    /// All of it in the stream.
    Sent,
    /// What is in a file that both map stays there, and the stream must be told so: `x-ignore-shared` on both sides.
    InPlace,
}

/// A destination's command line, and what has to be done around it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rewritten {
    /// The command line.
    pub line: CommandLine,
    /// Where the destination starts.
    pub working_directory: PathBuf,
    /// The destination's QMP socket.
    pub qmp: PathBuf,
    /// Directories to be made, private to the source's user, before the destination starts.
    pub directories: Vec<PathBuf>,
    /// What takes over the source's names at the end.
    pub renames: Vec<Rename>,
    /// What has another name for good.
    pub moved: Vec<Moved>,
    /// The ids of the memory that stays in its place, in files that both map.
    pub in_place: Vec<String>,
    /// What could not be carried over, but stops nothing.
    pub warnings: Vec<Warning>,
}

impl Rewritten {
    /// How its memory comes to it.
    pub fn memory(&self) -> Memory {
        if self.in_place.is_empty() { Memory::Sent } else { Memory::InPlace }
    }
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
    let mut errors = Vec::new();
    let open = setting.surroundings.open_files();
    let has_left = source.has("daemonize");
    let start = start_of(source, setting.surroundings, setting.working_directory);
    let mut source = expanded_in(source, setting.surroundings, &start, &mut errors);
    let mut maps = maps::Maps::new(setting.maps);
    for option in &mut source.options {
        maps.apply(option);
        if let Some(own) = tap::with_new_tap(option, setting.taps) {
            *option = own;
        }
    }
    errors.extend(maps.unused());
    let found = directory::found(&source, open).filter(|_| has_left);
    let relative = directory::relative_paths(&source);
    let held = directory::held_images(&source);
    if has_left && found.is_none() && !relative.is_empty() {
        errors.push(RewriteError::LostDirectory(relative.join(", ")));
    } else if has_left && !held.is_empty() {
        errors.push(RewriteError::RelativeImage(held.join(", ")));
    }
    let mut work = Work::new(&source, setting, maps, found.unwrap_or(start), errors);
    for option in &source.options {
        let option =
            rules::RULES.iter().try_fold(option.clone(), |option, rule| rule.apply(&mut work, option));
        if let Some(option) = option {
            work.push(option);
        }
    }
    work.finish()
}

/// Where a source was started, as far as that is known.
fn start_of(source: &CommandLine, surroundings: &dyn Surroundings, working_directory: &Path) -> PathBuf {
    let found = directory::found(source, surroundings.open_files()).filter(|_| source.has("daemonize"));
    found.unwrap_or_else(|| working_directory.to_owned())
}

/// A command line with what stands in its configuration files in their place: what is read there is the guest's too.
pub fn expanded(
    source: &CommandLine,
    surroundings: &dyn Surroundings,
    working_directory: &Path,
) -> Result<CommandLine, Vec<RewriteError>> {
    let mut errors = Vec::new();
    let start = start_of(source, surroundings, working_directory);
    let line = expanded_in(source, surroundings, &start, &mut errors);
    if errors.is_empty() { Ok(line) } else { Err(errors) }
}

fn expanded_in(
    source: &CommandLine,
    surroundings: &dyn Surroundings,
    directory: &Path,
    errors: &mut Vec<RewriteError>,
) -> CommandLine {
    let mut options = Vec::new();
    for option in &source.options {
        let Some(file) = option.value.as_deref().filter(|_| option.name == "readconfig") else {
            options.push(option.clone());
            continue;
        };
        let read = surroundings.configuration(&directory.join(file));
        let flattened = read.map_err(|error| format!("that file cannot be read: {error}")).and_then(|text| {
            flatten(&text, source.defaults()).map_err(|error| format!("options cannot say the same: {error}"))
        });
        match flattened {
            Ok(flattened) => options.extend(flattened),
            Err(problem) => {
                errors.push(RewriteError::Configuration { file: file.to_owned(), problem });
            }
        }
    }
    CommandLine { options, ..source.clone() }
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
    let key = match value.0.first() {
        Some((key, _)) if key == "type" => key.clone(),
        _ => String::new(),
    };
    // The last one counts.
    value.0.retain(|(key, _)| !key.is_empty() && key != "type");
    value.0.insert(0, (key, machine.to_owned()));
    value.render()
}

/// An option with a property set; as it was where that has no place.
fn changed(mut option: CommandOption, path: &str, value: impl Into<Scalar>) -> CommandOption {
    if let Some(mut properties) = option.properties()
        && properties.set(path, value).is_ok()
    {
        option.set_properties(&properties);
    }
    option
}

/// A rewriting on its way.
struct Work<'a> {
    source: &'a CommandLine,
    setting: &'a Setting<'a>,
    maps: maps::Maps<'a>,
    /// What relative paths count from.
    directory: PathBuf,
    rewritten: Rewritten,
    errors: Vec<RewriteError>,
    /// Character devices added so far; their ids count on from here.
    devices: usize,
    /// So many terminals have become sockets.
    terminals: usize,
    /// Ports that have been given away.
    ports: Vec<u16>,
    /// So many `-S` that come now are the guest's own.
    stops: usize,
}

impl<'a> Work<'a> {
    fn new(
        source: &'a CommandLine,
        setting: &'a Setting<'a>,
        maps: maps::Maps<'a>,
        directory: PathBuf,
        errors: Vec<RewriteError>,
    ) -> Self {
        let (launcher, program) = match setting.qemu {
            Some(qemu) => (Vec::new(), qemu.to_string_lossy().into_owned()),
            None => (source.launcher.clone(), source.program.clone()),
        };
        let rewritten = Rewritten {
            line: CommandLine { launcher, program, options: Vec::new() },
            working_directory: directory.clone(),
            qmp: PathBuf::new(),
            directories: Vec::new(),
            renames: Vec::new(),
            moved: Vec::new(),
            in_place: Vec::new(),
            warnings: Vec::new(),
        };
        Self {
            source,
            setting,
            maps,
            directory,
            rewritten,
            errors,
            devices: 0,
            terminals: 0,
            ports: Vec::new(),
            stops: own_stops(source),
        }
    }

    fn push(&mut self, option: CommandOption) {
        self.rewritten.line.options.push(option);
    }

    /// Adds what every destination has, unless something cannot be carried over.
    fn finish(mut self) -> Result<Rewritten, Vec<RewriteError>> {
        if let (Some(machine), false) =
            (self.setting.machine, self.source.has("machine") || self.source.has("M"))
        {
            self.push(CommandOption::with_value("machine", machine));
        }
        if !self.errors.is_empty() {
            return Err(self.errors);
        }
        self.choose_qmp();
        self.push(CommandOption::flag("S"));
        for global in self.setting.globals {
            self.push(CommandOption::with_value("global", global));
        }
        self.push(CommandOption::with_value("incoming", self.setting.incoming));
        Ok(self.rewritten)
    }

    /// Finds the QMP socket by which the engine talks to the destination, or adds one.
    fn choose_qmp(&mut self) {
        if let Some(path) = qmp_sockets(&self.rewritten.line).next() {
            self.rewritten.qmp = self.directory.join(path);
            return;
        }
        let path = self.setting.runtime_directory.join("qmp");
        self.push(CommandOption::with_value("qmp", format!("unix:{},server=on,wait=off", path.display())));
        self.rewritten.qmp = path;
    }

    /// The socket of a program that serves this one guest, and what needs it; none that is the destination's own.
    fn backend(&self, chardev: &CommandOption) -> Option<(String, String)> {
        let (id, path) = (chardev.get("id")?, chardev.get("path")?);
        let serves = |option: &&CommandOption| {
            let get = |key| option.get(key).unwrap_or_default();
            let is_backend = match option.name.as_str() {
                "device" => get("driver").starts_with("vhost-user-"),
                "netdev" => get("type") == "vhost-user",
                "tpmdev" => get("type") == "emulator",
                "object" => get("qom-type").contains("vhost-user"),
                _ => false,
            };
            is_backend && get("chardev") == id
        };
        let user = self.source.options.iter().find(serves)?;
        let is_free = self.setting.shared.files == Sharing::Other || self.maps.has_given(&path);
        (!is_free).then(|| (path, format!("-{} {}", user.name, user.shown().unwrap_or_default())))
    }

    /// Whether the source began as root and went on as somebody else.
    fn changes_user(&self) -> bool {
        self.source.has("runas") || self.source.merged(&["run-with"], "user").is_some()
    }

    fn warn(&mut self, code: &str, message: &str, hint: Option<&str>) {
        self.rewritten.warnings.push(Warning {
            code: code.to_owned(),
            message: message.to_owned(),
            hint: hint.map(str::to_owned),
        });
    }
}

#[cfg(test)]
mod tests;
