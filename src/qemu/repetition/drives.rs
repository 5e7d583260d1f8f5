//! Media and top images: what is in a drive that stands on the command line, and what the line says.
//!
//! The old medium is taken off the line, since its file may be gone; the new one comes by `blockdev-change-medium`. A top
//! image that a block job has changed goes onto the line, where the device finds it as it is made. QEMU shows a file by the
//! name that it was opened by; where an image has options of its own it shows `json:` with the name in it, and a protocol
//! it may write in another way: such names are taken for the same as long as both have them.

use serde_json::{Map, Value, json};

use super::{Part, Repetition, Verb, Work, device_path, line};
use crate::qemu::argv::{CommandOption, Properties};
use crate::qemu::present::{Device, Drive, Inserted, WITH_ID, WITHOUT_ID};

const IMAGE_HINT: &str = "write a template with the image that it has now (qmigrate template), and start the destination from that: --template FILE";

/// Options for a drive that have no id, and the `-drive` that is the same without a medium.
const SHORT_DRIVES: [(&str, &str); 3] =
    [("cdrom", "index=2,media=cdrom"), ("fda", "if=floppy,index=0"), ("fdb", "if=floppy,index=1")];

/// How a drive is named to QEMU. A path among the devices of the board is another one in each version.
pub(super) fn address(drive: &Drive) -> (&'static str, &str) {
    match drive.qdev.as_deref() {
        Some(qdev) if drive.device.is_empty() || !qdev.contains("/unattached/") => ("id", qdev),
        _ => ("device", &drive.device),
    }
}

impl Work<'_> {
    /// Compares each drive with the line, which is edited; gives what is to be done when all devices are there.
    pub(super) fn drives(&mut self) -> Vec<Repetition> {
        let mut after = Vec::new();
        let present = self.present;
        if self.line.has("snapshot") {
            // What is in a drive then is a private file of the source, which nothing can repeat.
            return after;
        }
        for drive in &present.drives {
            let owner = drive.qdev.as_deref().and_then(|qdev| {
                let path = device_path(qdev).map_or_else(|| format!("{WITH_ID}/{qdev}"), str::to_owned);
                present.devices.iter().find(|device| device.path == path)
            });
            match owner {
                Some(device) if self.is_plugged(device) => self.medium_of_plugged(drive, &mut after),
                _ if drive.device.is_empty() => self.drive_on_node(drive, &mut after),
                _ => self.drive_with_name(drive, &mut after),
            }
        }
        after
    }

    /// A drive made by `-drive`, `-cdrom` and the like.
    fn drive_with_name(&mut self, drive: &Drive, after: &mut Vec<Repetition>) {
        let with_id =
            self.line.options.iter().position(|option| {
                option.name == "drive" && option.get("id").as_deref() == Some(&drive.device)
            });
        let place = match with_id {
            Some(place) => {
                if is_as_said(self.line.options.get(place), drive.inserted.as_ref()) {
                    return;
                }
                Some(place)
            }
            None => match self.drive_without_id(drive) {
                Found::AsSaid => return,
                Found::At(place) => place,
            },
        };
        let edited = place.is_some_and(|place| self.edit_drive(place, drive));
        match (&drive.inserted, drive.removable) {
            (Some(inserted), true) => self.change_medium(drive, inserted, after),
            _ if edited => {}
            (None, true) => {
                let arguments = json!({ "device": drive.device, "force": true });
                after.push(repetition(drive, Verb::Eject, arguments));
            }
            (inserted, false) => {
                let image = inserted.as_ref().map_or("nothing", |inserted| inserted.file.as_str());
                let message = format!(
                    "the drive \"{}\" has {image} now, which is not on the command line",
                    drive.device
                );
                self.refuse(Part::ChangedImage, message, IMAGE_HINT);
            }
        }
    }

    /// Which option has made a drive that has a name of QEMU's own.
    fn drive_without_id(&self, drive: &Drive) -> Found {
        let is_candidate = |option: &CommandOption| {
            let is_drive = option.name == "drive" && option.get("id").is_none();
            if drive.removable {
                let removable = SHORT_DRIVES.iter().any(|(name, _)| option.name == *name);
                let media = || option.get("media").as_deref() == Some("cdrom");
                removable || is_drive && (media() || option.get("if").as_deref() == Some("floppy"))
            } else {
                is_drive
                    || matches!(
                        option.name.as_str(),
                        "" | "hda" | "hdb" | "hdc" | "hdd" | "pflash" | "sd" | "mtdblock"
                    )
            }
        };
        let candidates: Vec<(usize, &CommandOption)> =
            self.line.options.iter().enumerate().filter(|(_, option)| is_candidate(option)).collect();
        let as_said = |option: &CommandOption| is_as_said(Some(option), drive.inserted.as_ref());
        let is_default = candidates.is_empty() && (drive.inserted.is_none() || !drive.removable);
        if is_default || drive.inserted.is_some() && candidates.iter().any(|(_, option)| as_said(option)) {
            return Found::AsSaid;
        }
        let others: Vec<&Inserted> = self
            .present
            .drives
            .iter()
            .filter(|other| other.device != drive.device)
            .filter_map(|other| other.inserted.as_ref())
            .collect();
        let is_free =
            |option: &CommandOption| !others.iter().any(|other| is_as_said(Some(option), Some(other)));
        // An empty drive leaves something over only where a medium is said that no drive has.
        let says = |option: &CommandOption| drive.inserted.is_some() || !is_as_said(Some(option), None);
        let mut free = candidates.into_iter().filter(|(_, option)| is_free(option) && says(option));
        match (free.next(), free.next()) {
            (None, _) if drive.inserted.is_none() => Found::AsSaid,
            (Some((place, _)), None) => Found::At(Some(place)),
            _ => Found::At(None),
        }
    }

    /// Takes the old medium off an option, or puts the top image onto it; says whether it could.
    fn edit_drive(&mut self, place: usize, drive: &Drive) -> bool {
        let Some(option) = self.line.options.get_mut(place) else { return false };
        if let Some((_, without)) = SHORT_DRIVES.iter().find(|(name, _)| *name == option.name) {
            *option = CommandOption::with_value("drive", *without);
            return true;
        }
        let image = drive.inserted.as_ref().filter(|inserted| is_plain(&inserted.file));
        if option.name != "drive" {
            let Some(image) = image else { return false };
            option.value = Some(image.file.clone());
            return true;
        }
        let Some(mut properties) = option.properties() else { return false };
        for key in ["file", "format", "driver"] {
            properties.remove(key);
        }
        if !drive.removable {
            let Some(image) = image else { return false };
            if !set_image(&mut properties, image) {
                return false;
            }
        }
        option.set_properties(&properties);
        true
    }

    /// A drive whose device stands on a node.
    fn drive_on_node(&mut self, drive: &Drive, after: &mut Vec<Repetition>) {
        let top = drive.inserted.as_ref().map(|inserted| inserted.node_name.as_str());
        let Some(place) = drive.qdev.as_deref().and_then(|qdev| self.option_of(qdev, top)) else {
            if let Some(inserted) = &drive.inserted
                && !line::has(&self.line, "blockdev", &inserted.node_name)
            {
                let message = format!(
                    "a disk has {} now, and QEMU does not tell which one of the line's it is",
                    inserted.file
                );
                self.refuse(Part::ChangedImage, message, IMAGE_HINT);
            }
            return;
        };
        let said = self.line.options.get(place).and_then(|option| option.get("drive"));
        if said.as_deref() == top {
            return;
        }
        if !drive.removable {
            self.change_top(place, drive);
            return;
        }
        if let Some((option, mut properties)) = self
            .line
            .options
            .get_mut(place)
            .and_then(|option| option.properties().map(|properties| (option, properties)))
        {
            properties.remove("drive");
            option.set_properties(&properties);
        }
        if let Some(inserted) = &drive.inserted {
            self.change_medium(drive, inserted, after);
        }
    }

    /// Another top node under a device of the line: it goes onto the line too.
    fn change_top(&mut self, place: usize, drive: &Drive) {
        let Some(inserted) = &drive.inserted else { return };
        let name = match inserted.node_name.strip_prefix('#') {
            Some(number) => format!("qmigrate-{number}"),
            None => inserted.node_name.clone(),
        };
        if let Err(why) = self.node_on_line(&inserted.node_name, &name) {
            let message = format!("a disk has {} now, which cannot be repeated: {why}", inserted.file);
            self.refuse(Part::ChangedImage, message, IMAGE_HINT);
            return;
        }
        let option = self.line.options.get_mut(place);
        if let Some((option, mut properties)) =
            option.and_then(|option| option.properties().map(|properties| (option, properties)))
            && properties.set("drive", name.as_str()).is_ok()
        {
            option.set_properties(&properties);
        }
    }

    fn node_on_line(&mut self, name: &str, called: &str) -> Result<(), String> {
        if line::has(&self.line, "blockdev", called) {
            return Ok(());
        }
        let (options, below) = self.node_options(name, called).map_err(|error| error.to_string())?;
        for name in below {
            self.node_on_line(&name, &name)?;
        }
        // Nodes are made in the order of the line, and before all devices.
        self.line.options.push(CommandOption::with_value("blockdev", Value::Object(options).to_string()));
        Ok(())
    }

    /// The `-device` of the device that a path leads to. Of those without an id it is the one that says this node, or
    /// else the only one of its kind that says what no drive has.
    fn option_of(&self, qdev: &str, top: Option<&str>) -> Option<usize> {
        let path = device_path(qdev).unwrap_or(qdev);
        if !path.starts_with(WITHOUT_ID) {
            return line::device(
                &self.line,
                path.strip_prefix(WITH_ID).and_then(|id| id.strip_prefix('/')).unwrap_or(path),
            );
        }
        let device = self.present.devices.iter().find(|device| device.path == path)?;
        let mut places = line::devices(&self.line)
            .into_iter()
            .filter(|said| said.id.is_none() && said.is_kind(&device.kind))
            .map(|said| said.place)
            .collect::<Vec<_>>();
        let said = |place: &usize| self.line.options.get(*place).and_then(|option| option.get("drive"));
        if let Some(place) = places.iter().find(|place| said(place).as_deref() == top) {
            return Some(*place);
        }
        let is_free = |name: &str| {
            !self.present.drives.iter().any(|drive| {
                let top = drive.inserted.as_ref().map(|inserted| inserted.node_name.as_str());
                drive.device == name || top == Some(name)
            })
        };
        places.retain(|place| said(place).is_none_or(|name| is_free(&name)));
        places.pop().filter(|_| places.is_empty())
    }

    /// A medium of QEMU's own naming in a device that was plugged in.
    fn medium_of_plugged(&mut self, drive: &Drive, after: &mut Vec<Repetition>) {
        if let Some(inserted) = &drive.inserted
            && is_changed_medium(drive)
        {
            self.change_medium(drive, inserted, after);
        }
    }

    /// The disk of a device that is plugged in.
    pub(super) fn drive(&mut self, device: &Device, arguments: &mut Map<String, Value>) {
        let present = self.present;
        let said = arguments.get("drive").and_then(Value::as_str);
        if said.is_some_and(|name| line::has(&self.line, "drive", name)) {
            return;
        }
        let drive = present.drives.iter().find(|drive| {
            drive.qdev.as_deref().is_some_and(|qdev| device.has(qdev) || Some(qdev) == device.id())
        });
        let Some((drive, inserted)) = drive.and_then(|drive| Some((drive, drive.inserted.as_ref()?))) else {
            arguments.remove("drive");
            return;
        };
        // What hangs on a plugged controller has its own entry; a disk of USB hides its drive in a part of its own.
        if !arguments.contains_key("drive") && !device.kind.starts_with("usb-") {
            return;
        }
        if is_changed_medium(drive) {
            arguments.remove("drive");
            return;
        }
        let name = match (drive.device.as_str(), inserted.node_name.strip_prefix('#')) {
            ("", Some(number)) => format!("qmigrate-{number}"),
            ("", None) => inserted.node_name.clone(),
            (name, _) => name.to_owned(),
        };
        self.node(&device.name(), &inserted.node_name, &name);
        arguments.insert("drive".to_owned(), json!(name));
    }

    fn change_medium(&mut self, drive: &Drive, inserted: &Inserted, after: &mut Vec<Repetition>) {
        let (key, name) = address(drive);
        if !inserted.node_name.starts_with('#') {
            let owner = format!("the medium of the drive \"{name}\"");
            self.node(&owner, &inserted.node_name, &inserted.node_name);
            after.push(repetition(drive, Verb::OpenTray, json!({ key: name, "force": true })));
            let insert = json!({ "id": name, "node-name": inserted.node_name });
            after.push(repetition(drive, Verb::InsertMedium, insert));
            after.push(repetition(drive, Verb::CloseTray, json!({ key: name })));
        } else if is_plain(&inserted.file) {
            let mode = if inserted.ro { "read-only" } else { "read-write" };
            let medium = json!({
                key: name, "filename": inserted.file, "format": inserted.drv, "read-only-mode": mode
            });
            after.push(repetition(drive, Verb::ChangeMedium, medium));
        } else {
            let message = format!(
                "the medium of the drive \"{name}\" is {} now, which cannot be repeated",
                inserted.file
            );
            self.refuse(Part::ChangedMedium, message, "take it out while the guest moves: eject");
        }
    }
}

enum Found {
    AsSaid,
    At(Option<usize>),
}

/// Whether a medium was put in by its file's name.
fn is_changed_medium(drive: &Drive) -> bool {
    let by_name = |inserted: &Inserted| inserted.node_name.starts_with('#');
    drive.removable && drive.device.is_empty() && drive.inserted.as_ref().is_some_and(by_name)
}

fn repetition(drive: &Drive, verb: Verb, arguments: Value) -> Repetition {
    let arguments = match arguments {
        Value::Object(arguments) => arguments,
        _ => Map::new(),
    };
    Repetition { what: format!("the medium of the drive \"{}\"", address(drive).1), verb, arguments }
}

/// A name that is a path and nothing else.
fn is_plain(file: &str) -> bool {
    let protocol = file.split_once(':').map(|(protocol, _)| protocol);
    !protocol.is_some_and(|protocol| {
        protocol.chars().all(|letter| letter.is_ascii_alphanumeric() || letter == '+')
    })
}

/// Whether a drive has what an option says.
fn is_as_said(option: Option<&CommandOption>, inserted: Option<&Inserted>) -> bool {
    let said = option.and_then(|option| match option.properties() {
        Some(properties) => {
            ["file", "file.filename"].into_iter().find_map(|key| properties.get(key)).map(str::to_owned)
        }
        None => option.value.clone(),
    });
    let properties = option.and_then(CommandOption::properties);
    if properties.as_ref().is_some_and(|properties| properties.is_on("snapshot")) {
        return true;
    }
    let has_options = || {
        let keys = properties.map(|properties| properties.keys()).unwrap_or_default();
        keys.iter().any(|key| key.starts_with("file.") || matches!(key.as_str(), "driver" | "format"))
    };
    match (said, inserted) {
        (None, None) => true,
        (None, Some(inserted)) => has_options() && !is_plain(&inserted.file),
        (Some(_), None) => false,
        (Some(said), Some(inserted)) => {
            let said = said.strip_prefix("file:").unwrap_or(&said);
            said == inserted.file
                || inside(&inserted.file).is_some_and(|file| file == said)
                || !is_plain(said) && !is_plain(&inserted.file)
        }
    }
}

/// The file's name in `json:`.
fn inside(file: &str) -> Option<String> {
    let options: Value = serde_json::from_str(file.strip_prefix("json:")?).ok()?;
    ["/filename", "/file/filename", "/file/file/filename"]
        .into_iter()
        .find_map(|path| options.pointer(path)?.as_str().map(str::to_owned))
}

fn set_image(properties: &mut Properties, image: &Inserted) -> bool {
    let mut set = vec![("file", image.file.as_str()), ("format", image.drv.as_str())];
    if !image.node_name.starts_with('#') {
        set.push(("node-name", image.node_name.as_str()));
    }
    set.into_iter().all(|(key, value)| properties.set(key, value).is_ok())
}
