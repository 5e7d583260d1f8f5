//! What has to be done to a destination so that it has what the guest has now: edits of its command line, then commands
//! while it waits.
//!
//! Pure: from what the guest has and from a command line follows what is to be repeated, or all that cannot be. A guest
//! with nothing changed needs no command, and its line stays as it is. What was repeated by commands stands on no line
//! again, and is repeated at the next move in the same way.
//!
//! | what the guest has now | on the destination |
//! |---|---|
//! | a plugged device | what it stands on (objects, nodes, networks, character devices), then `device_add`: same id, bus, address |
//! | a plugged DIMM | its memory by the same id, then `pc-dimm` with its slot and address |
//! | a plugged processor | `device_add` at its socket, core and thread |
//! | a device of the line that was unplugged | off the line, with what it stood on where that is gone too; the others are told their places |
//! | a processor of the line that was unplugged | `-smp` begins with those before it, the others are plugged |
//! | another medium, or none | off the line, then `blockdev-change-medium` (the old file may be gone) |
//! | another top image | that one on the line |
//! | limits on a disk | `block_set_io_throttle` |
//!
//! All of these commands are taken in `inmigrate`, before the stream (run on 10.0 and 11.1). Devices come in the order of
//! their buses, then memory by slots and the others by name; what matters for the stream is the place of each, which is
//! said, and not the order. User networks alone have numbers by their order.
//!
//! A hub of USB that QEMU has put in by itself, since there were more devices than ports, is not repeated: where the last
//! of them was unplugged, the comparison finds it.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

/// What a device stands on: objects, networks, character devices, block nodes.
mod backends;
/// Media and top images.
mod drives;
/// What stands on a command line, and what is to be taken off it.
mod line;

use super::argv::{CommandLine, CommandOption};
use super::present::{Device, Present, WITH_ID, WITHOUT_ID};
use crate::record::Warning;

/// Where a command line comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whose {
    /// The source was started with it: what was plugged in since is not on it, whatever its id.
    Source,
    /// A template: somebody may have written there what was plugged in.
    Template,
}

/// A command of QMP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// `object-add`
    AddObject,
    /// `chardev-add`
    AddCharacterDevice,
    /// `blockdev-add`
    AddNode,
    /// `netdev_add`
    AddNetwork,
    /// `device_add`
    AddDevice,
    /// `blockdev-change-medium`
    ChangeMedium,
    /// `blockdev-open-tray`
    OpenTray,
    /// `blockdev-insert-medium`
    InsertMedium,
    /// `blockdev-close-tray`
    CloseTray,
    /// `eject`
    Eject,
    /// `block_set_io_throttle`
    Limit,
}

impl Verb {
    /// Its name in QMP.
    pub fn name(self) -> &'static str {
        match self {
            Self::AddObject => "object-add",
            Self::AddCharacterDevice => "chardev-add",
            Self::AddNode => "blockdev-add",
            Self::AddNetwork => "netdev_add",
            Self::AddDevice => "device_add",
            Self::ChangeMedium => "blockdev-change-medium",
            Self::OpenTray => "blockdev-open-tray",
            Self::InsertMedium => "blockdev-insert-medium",
            Self::CloseTray => "blockdev-close-tray",
            Self::Eject => "eject",
            Self::Limit => "block_set_io_throttle",
        }
    }
}

/// One command that gives the destination what the guest has.
#[derive(Debug, Clone, PartialEq)]
pub struct Repetition {
    /// For the sake of what, such as `the virtio-blk-pci "disk1"`.
    pub what: String,
    /// The command.
    pub verb: Verb,
    /// Its arguments.
    pub arguments: Map<String, Value>,
}

impl Repetition {
    /// The command as a line of QMP.
    pub fn line(&self) -> String {
        json!({ "execute": self.verb.name(), "arguments": self.arguments }).to_string()
    }
}

/// All that is to be repeated.
#[derive(Debug, Clone, PartialEq)]
pub struct Repetitions {
    /// The command line, without what is gone.
    pub line: CommandLine,
    /// What comes after the start, in order.
    pub commands: Vec<Repetition>,
    /// What is not repeated, but stops nothing.
    pub warnings: Vec<Warning>,
}

/// A part of a guest that may have changed since its start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// A device that was plugged in.
    PluggedDevice,
    /// The network that one stands on.
    PluggedNetwork,
    /// The character device that one stands on.
    PluggedCharacterDevice,
    /// An object that one stands on.
    PluggedObject,
    /// The disk that one stands on.
    PluggedDisk,
    /// Memory that was plugged in and is shared.
    SharedMemory,
    /// What was taken out.
    Unplugged,
    /// The top image of a disk.
    ChangedImage,
    /// What is in a drive.
    ChangedMedium,
    /// A job on a disk.
    BlockJob,
}

/// Something that the guest has and that cannot be repeated.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Unrepeatable {
    /// What it is.
    pub part: Part,
    /// One sentence.
    pub message: String,
    /// What to do about it.
    pub hint: &'static str,
}

/// What to do about something that was plugged in.
pub(super) const PLUGGED_HINT: &str = "take it out (device_del) while the guest moves, or write it into a template \
                                       (qmigrate template): --template FILE starts the destination with what stands there";

/// Kinds of devices that stand on something that only one QEMU can have; by how they begin.
const OF_ONE_PROCESS: [&str; 6] = ["vhost-", "vfio-", "usb-host", "usb-redir", "ivshmem", "tpm-"];

/// What a destination that is started with this line needs to have what the guest has, or all that cannot be repeated.
pub fn repetitions(
    present: &Present,
    line: &CommandLine,
    whose: Whose,
) -> Result<Repetitions, Vec<Unrepeatable>> {
    let mut work = Work {
        present,
        line: line.clone(),
        whose,
        commands: Vec::new(),
        warnings: Vec::new(),
        errors: Vec::new(),
        made: BTreeSet::new(),
    };
    work.jobs();
    work.told();
    work.unplugged();
    work.processors();
    let media = work.drives();
    work.gone();
    work.user_networks();
    work.plugged();
    work.commands.extend(media);
    work.limits();
    if work.errors.is_empty() {
        Ok(Repetitions { line: work.line, commands: work.commands, warnings: work.warnings })
    } else {
        Err(work.errors)
    }
}

struct Work<'a> {
    present: &'a Present,
    line: CommandLine,
    whose: Whose,
    commands: Vec<Repetition>,
    warnings: Vec<Warning>,
    errors: Vec<Unrepeatable>,
    /// What stands already on the line or is made by a command, as `kind id`.
    made: BTreeSet<String>,
}

impl<'a> Work<'a> {
    fn push(&mut self, what: &str, verb: Verb, arguments: Map<String, Value>) {
        self.commands.push(Repetition { what: what.to_owned(), verb, arguments });
    }

    fn refuse(&mut self, part: Part, message: String, hint: &'static str) {
        self.errors.push(Unrepeatable { part, message, hint });
    }

    fn warn(&mut self, code: &str, message: String, hint: Option<&str>) {
        self.warnings.push(Warning { code: code.to_owned(), message, hint: hint.map(str::to_owned) });
    }

    /// Whether a device was plugged in and does not stand on the line.
    fn is_plugged(&self, device: &Device) -> bool {
        let is_on_line = || device.id().is_some_and(|id| line::device(&self.line, id).is_some());
        device.hotplugged && !(self.whose == Whose::Template && is_on_line())
    }

    fn jobs(&mut self) {
        for job in &self.present.jobs {
            self.refuse(
                Part::BlockJob,
                format!(
                    "the block job \"{}\" ({}) runs, and would end with the source",
                    job.device, job.kind
                ),
                "let it come to its end (block-job-complete), or end it (block-job-cancel)",
            );
        }
    }

    /// What the destination will lack, and nobody but the user can give it.
    fn told(&mut self) {
        for export in &self.present.exports {
            self.warn(
                "export",
                format!(
                    "the source serves \"{}\" as {} export \"{}\": that ends with it",
                    export.node_name, export.kind, export.id
                ),
                Some("block-export-add on the destination serves it again"),
            );
        }
        let is_by_secret = self.line.values("vnc").any(|value| value.contains("password-secret="));
        if self.present.vnc.as_deref() == Some("vnc") && !is_by_secret {
            self.warn(
                "vnc-password",
                "no QEMU tells its VNC password: the destination lets nobody in until it is given one"
                    .to_owned(),
                Some("set_password vnc PASSWORD in the destination's monitor"),
            );
        }
    }

    /// Processors: those of the line that are gone, and those that came.
    fn processors(&mut self) {
        let present = self.present;
        let all = &present.processors;
        let is_hotplugged =
            |path: &str| present.devices.iter().any(|device| device.hotplugged && device.path == path);
        let is_cold = |path: &Option<String>| path.as_deref().is_some_and(|path| !is_hotplugged(path));
        let booted = line::processors(&self.line, all.len()).min(all.len());
        let first = all.iter().take_while(|place| is_cold(&place.qom_path)).count();
        let is_written = first >= booted || line::set_processors(&mut self.line, first, all.len());
        if !is_written {
            self.refuse(
                Part::Unplugged,
                "a processor was unplugged, and the command line cannot be written without it".to_owned(),
                PLUGGED_HINT,
            );
            return;
        }
        for (number, place) in all.iter().enumerate() {
            let Some(path) = &place.qom_path else { continue };
            if !is_hotplugged(path) && !(first..booted).contains(&number) {
                continue;
            }
            let device = present.devices.iter().find(|device| device.path == *path);
            if device.is_some_and(|device| !self.is_plugged(device)) {
                continue;
            }
            let mut arguments = place.props.clone();
            arguments.insert("driver".to_owned(), json!(place.kind));
            let id = device.and_then(Device::id);
            if let Some(id) = id {
                arguments.insert("id".to_owned(), json!(id));
            }
            let what =
                id.map_or_else(|| format!("processor {number}"), |id| format!("the processor \"{id}\""));
            self.push(&what, Verb::AddDevice, arguments);
        }
    }

    /// User networks that no line has, whether a device uses them or not, in the order in which they were made.
    ///
    /// Each has a state of its own in the stream, called `slirp` and numbered: one more than the last one there is as it is
    /// made. One number too few ends the stream when the source has stopped (`Unknown savevm section or instance 'slirp'
    /// 2`, run on 10.0). So a network of the line that is gone keeps its number by staying, without ports and without a card.
    /// One that came after that has its number on the source and the next one here: it begins anew, as if all its
    /// connections had been cut.
    fn user_networks(&mut self) {
        let present = self.present;
        for network in &present.user_networks {
            let owner = present.devices.iter().find(|device| device.uses(&network.id));
            let owner = owner.map_or_else(|| format!("the network \"{}\"", network.id), Device::name);
            self.network(&owner, &network.id);
        }
    }

    /// Devices that were plugged in, each after the one that it hangs on.
    fn plugged(&mut self) {
        let present = self.present;
        let processors: BTreeSet<&str> =
            present.processors.iter().filter_map(|place| place.qom_path.as_deref()).collect();
        let mut waiting: Vec<&Device> = present
            .devices
            .iter()
            .filter(|device| self.is_plugged(device) && !processors.contains(device.path.as_str()))
            .collect();
        waiting
            .sort_by_key(|device| device.properties.get("slot").and_then(Value::as_i64).unwrap_or(i64::MAX));
        while !waiting.is_empty() {
            let hangs = |device: &Device| {
                waiting.iter().any(|other| other.path != device.path && hangs_on(device, other))
            };
            let (later, ready): (Vec<&Device>, Vec<&Device>) =
                waiting.iter().copied().partition(|device| hangs(device));
            if ready.is_empty() {
                break;
            }
            for device in ready {
                self.device(device);
            }
            waiting = later;
        }
    }

    /// Plugs a device in, after what it stands on.
    fn device(&mut self, device: &'a Device) {
        let name = device.name();
        if OF_ONE_PROCESS.iter().any(|kind| device.kind.starts_with(kind))
            || device.properties.contains_key("failover_pair_id")
        {
            self.refuse(
                Part::PluggedDevice,
                format!("{name} was plugged in, and stands on something that only one QEMU can have"),
                PLUGGED_HINT,
            );
            return;
        }
        let mut arguments = device.properties.clone();
        self.drive(device, &mut arguments);
        for (property, value) in &device.properties {
            match (property.as_str(), value) {
                ("netdev", Value::String(id)) => self.network(&name, id),
                ("chardev", Value::String(id)) => self.character_device(&name, id),
                ("audiodev" | "fsdev" | "tpmdev" | "cryptodev", Value::String(id))
                    if !id.starts_with("/objects/") && !line::has(&self.line, property, id) =>
                {
                    self.refuse(
                        Part::PluggedDevice,
                        format!("{name} was plugged in, and its {property} \"{id}\" cannot be made anew"),
                        PLUGGED_HINT,
                    );
                }
                _ => {}
            }
        }
        for id in &self.present.objects {
            if device.uses(id) {
                self.object(&name, id);
            }
        }
        arguments.insert("driver".to_owned(), json!(device.kind));
        if let Some(id) = device.id() {
            arguments.insert("id".to_owned(), json!(id));
        }
        if let Some(bus) = device.bus_name() {
            arguments.insert("bus".to_owned(), json!(bus));
        }
        self.push(&name, Verb::AddDevice, arguments);
    }

    /// Takes devices off the line that are not there any more.
    fn unplugged(&mut self) {
        let devices = line::devices(&self.line);
        let mut cold: BTreeMap<usize, &Device> =
            self.present.devices.iter().filter(|device| !self.is_plugged(device)).enumerate().collect();
        let mut unmatched = Vec::new();
        let mut found = Vec::new();
        for device in devices {
            let by_id = device.id.as_deref().and_then(|id| {
                cold.iter().find(|(_, present)| present.id() == Some(id)).map(|(number, _)| *number)
            });
            match by_id {
                Some(number) => found.extend(cold.remove(&number).map(|present| (device.place, present))),
                None => unmatched.push(device),
            }
        }
        // A template may have other ids, or none.
        let may_match = |device: &line::LineDevice| device.id.is_none() || self.whose == Whose::Template;
        let mut gone = Vec::new();
        for device in &unmatched {
            let like = cold.iter().find(|(_, present)| may_match(device) && device.is_kind(&present.kind));
            match like.map(|(number, _)| *number) {
                Some(number) => found.extend(cold.remove(&number).map(|present| (device.place, present))),
                None => gone.push(device),
            }
        }
        let is_like = |one: &line::LineDevice, other: &line::LineDevice| one.driver == other.driver;
        for device in &gone {
            if device.id.is_none()
                && unmatched
                    .iter()
                    .any(|other| is_like(device, other) && !gone.iter().any(|gone| gone.place == other.place))
            {
                self.refuse(
                    Part::Unplugged,
                    format!("one of several {} without an id was unplugged, and QEMU does not tell which", device.driver),
                    "write a template without it (qmigrate template), and start the destination from that: --template FILE",
                );
                return;
            }
        }
        let places: Vec<usize> = gone.iter().map(|device| device.place).collect();
        if self.whose == Whose::Template {
            // On the source's own line it was there once; here somebody may have meant it.
            for device in &gone {
                let id = device.id.as_ref().map_or_else(String::new, |id| format!(" \"{id}\""));
                let message = format!(
                    "the template's {}{id} is left out: the guest has no such device now",
                    device.driver
                );
                self.warnings.push(Warning { code: "left-out".to_owned(), message, hint: None });
            }
        }
        if !places.is_empty() {
            // The others would move up.
            for (place, device) in found {
                line::pin(&mut self.line, place, device);
            }
        }
        line::remove(&mut self.line, &places);
    }

    /// Takes off the line what is not there any more and what nothing on it names. A user network that is gone stays, bare:
    /// see [`Work::user_networks`].
    fn gone(&mut self) {
        let present = self.present;
        let is_there = |option: &CommandOption, id: &str| match option.name.as_str() {
            "netdev" => present.networks.contains_key(id),
            "chardev" => present.character_devices.iter().any(|device| device.label == id),
            "object" => present.objects.iter().any(|known| known == id),
            "blockdev" => present.nodes.iter().any(|node| node.node_name == id),
            "drive" => present.drives.iter().any(|drive| drive.device == id),
            _ => true,
        };
        while let Some(place) = self.line.options.iter().enumerate().find_map(|(place, option)| {
            let id = line::backend(option)?;
            let is_left = line::is_user_network(option);
            (!is_left && !is_there(option, &id) && !line::names(&self.line, place, &id)).then_some(place)
        }) {
            line::remove(&mut self.line, &[place]);
        }
        for option in self.line.options.iter_mut().filter(|option| line::is_user_network(option)) {
            if let Some(id) = option.get("id").filter(|id| !present.networks.contains_key(id)) {
                *option = CommandOption::with_value("netdev", format!("user,id={id}"));
            }
        }
    }

    fn limits(&mut self) {
        for drive in &self.present.drives {
            let Some(inserted) = &drive.inserted else { continue };
            let is_limited = line::is_limited(&self.line, &drive.device);
            let mut limits = inserted.limits(is_limited);
            if limits.is_empty() {
                continue;
            }
            let (key, value) = drives::address(drive);
            let what = format!("the limits of the drive \"{value}\"");
            limits.insert(key.to_owned(), json!(value));
            self.push(&what, Verb::Limit, limits);
        }
    }
}

/// Whether a device is plugged into another one. A hub of USB has no bus of its own: what hangs on it has a port below
/// its port.
fn hangs_on(device: &Device, other: &Device) -> bool {
    let port = |device: &Device| device.properties.get("port").and_then(Value::as_str).map(str::to_owned);
    let is_below = |(device, other): (String, String)| {
        device.strip_prefix(&other).is_some_and(|rest| rest.starts_with('.'))
    };
    device.bus.as_deref().is_some_and(|bus| other.has(bus))
        || device.bus == other.bus && port(device).zip(port(other)).is_some_and(is_below)
}

/// The device of the user's that a path leads to, as its own path.
fn device_path(path: &str) -> Option<&str> {
    let below = [WITH_ID, WITHOUT_ID].into_iter().find(|place| path.starts_with(&format!("{place}/")))?;
    let end = path[below.len() + 1..].find('/').map_or(path.len(), |end| below.len() + 1 + end);
    path.get(..end)
}

#[cfg(test)]
#[path = "repetition/tests.rs"]
mod tests;
