//! A template made from a QEMU that runs.
//!
//! What a migration has put on its command line comes off again (see [`rewrite`](crate::qemu::rewrite)), so that the
//! template of a guest that was moved is the one that it had before.

use std::path::{Path, PathBuf};

use super::{Placeholder, Template, Values, Word};
use crate::host::ProcessView;
use crate::qemu::argv::{CommandLine, CommandOption, KeyValues};
use crate::qemu::rewrite::{
    CHARACTER_DEVICES, DEVICE_PREFIX, is_engine_made, is_own_global, own_stops, public_log_name, public_name,
    qmp_sockets, resolved,
};

/// Stands for a value while the text around it is written; no argument can have it.
const MARK: char = '\0';

/// A QEMU that runs, as far as a template needs it.
#[derive(Debug, Clone, Copy)]
pub struct Origin<'a> {
    /// Its process.
    pub view: &'a ProcessView,
    /// Its command line.
    pub line: &'a CommandLine,
    /// Its versioned machine type, if it could be asked.
    pub machine: Option<&'a str>,
    /// Where migrations have their directories.
    pub runtime: &'a Path,
}

/// What has been made of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Derived {
    /// The template.
    pub template: Template,
    /// What its placeholders are for this QEMU.
    pub values: Values,
    /// Whether the directory that its relative paths count from is known.
    pub directory_is_known: bool,
    /// Options whose value holds a secret.
    pub secrets: Vec<String>,
}

/// Makes a template.
pub fn derive(origin: Origin<'_>) -> Derived {
    let mut work = Work {
        origin,
        qmp: qmp_sockets(origin.line).find(|path| !is_engine_made(path, Some(origin.runtime))),
        template: Template::default(),
        values: Values::default(),
        stops: own_stops(origin.line),
        secrets: Vec::new(),
    };
    // After -daemonize the working directory is `/`, whatever it was before.
    let directory = origin.view.working_directory.to_str().filter(|_| !origin.line.has("daemonize"));
    if let Some(directory) = directory {
        work.values.set(Placeholder::Dir, directory);
    }
    work.template.directory = Some(Word::hole(Placeholder::Dir));
    work.environment();
    work.command();
    let Work { mut template, values, secrets, .. } = work;
    let default = |placeholder| Some((placeholder, Word::from(values.get(placeholder)?)));
    template.defaults = Placeholder::ALL.into_iter().filter_map(default).collect();
    Derived { template, values, directory_is_known: directory.is_some(), secrets }
}

struct Work<'a> {
    origin: Origin<'a>,
    /// The QMP socket that is the guest's first, as its command line has it.
    qmp: Option<PathBuf>,
    template: Template,
    values: Values,
    /// So many `-S` that come now are the guest's own.
    stops: usize,
    secrets: Vec<String>,
}

impl<'a> Work<'a> {
    /// Whether the guest came to this QEMU by a migration.
    fn has_moved(&self) -> bool {
        self.origin.line.has("incoming")
    }

    fn environment(&mut self) {
        let variables = self.origin.view.environment.iter().filter_map(|(name, value)| {
            let (name, value) = (name.to_str()?, value.to_str()?);
            (name.starts_with("QEMU_") || name == "LD_LIBRARY_PATH")
                .then(|| (name.to_owned(), Word::from(value)))
        });
        self.template.environment = variables.collect();
        // Their order means nothing, and is another one in each process.
        self.template.environment.sort_by(|(first, _), (second, _)| first.cmp(second));
    }

    fn command(&mut self) {
        let line = self.origin.line;
        for word in line.launcher.iter().chain([&line.program]) {
            self.template.words.push(Word::from(word.as_str()));
        }
        for option in &line.options {
            self.option(option);
        }
        if let (Some(machine), false) = (self.origin.machine, line.has("machine") || line.has("M")) {
            self.push("machine", Word::from(machine));
        }
        self.template.words.push(Word::hole(Placeholder::Incoming));
    }

    fn push(&mut self, name: &str, value: Word) {
        self.template.words.extend([Word::from(format!("-{name}").as_str()), value]);
    }

    fn option(&mut self, option: &'a CommandOption) {
        let Some(value) = option.value.as_deref() else {
            let is_left_out = match option.name.as_str() {
                "S" if self.stops > 0 => {
                    self.stops -= 1;
                    false
                }
                name => matches!(name, "S" | "daemonize"),
            };
            if !is_left_out {
                self.template.words.push(Word::from(format!("-{}", option.name).as_str()));
            }
            return;
        };
        if option.holds_secret() {
            self.secrets.push(format!("-{}", option.name));
        }
        match option.name.as_str() {
            "incoming" => {}
            "global" if self.has_moved() && is_own_global(value) => {}
            "" => self.template.words.push(Word::from(value)),
            "name" => {
                let value = self.name(value);
                self.push("name", value);
            }
            "pidfile" => {
                let path = public(value);
                let value = self.placed(&MARK.to_string(), Placeholder::Pidfile, &path);
                self.push("pidfile", value);
            }
            "vnc" => {
                let value = self.vnc(value);
                self.push("vnc", value);
            }
            "D" => self.push("D", Word::from(public_log_name(value))),
            "trace" | "object" if self.has_moved() => {
                let value = with_public_file(option).unwrap_or_else(|| value.to_owned());
                self.push(&option.name, Word::from(value.as_str()));
            }
            "machine" | "M" => {
                let value =
                    self.origin.machine.map_or_else(|| value.to_owned(), |machine| resolved(value, machine));
                self.push("machine", Word::from(value.as_str()));
            }
            "chardev" => {
                if let Some(value) = self.chardev(value) {
                    self.push("chardev", value);
                }
            }
            name if CHARACTER_DEVICES.contains(&name) => {
                if let Some(value) = self.character_device(name, value) {
                    self.push(name, value);
                }
            }
            name => self.push(name, Word::from(value)),
        }
    }

    /// The text with a placeholder at its mark, whose value this is. One that has another value already stays what it
    /// is, and the text gets this value as it stands.
    fn placed(&mut self, marked: &str, placeholder: Placeholder, value: &str) -> Word {
        let (before, after) = marked.split_once(MARK).unwrap_or((marked, ""));
        if self.values.get(placeholder).is_some_and(|other| other != value) {
            let value = if before.is_empty() { value.to_owned() } else { value.replace(',', ",,") };
            return Word::from(format!("{before}{value}{after}").as_str());
        }
        self.values.set(placeholder, value);
        let mut word = Word::from(before);
        word.push_hole(placeholder);
        word.push_text(after);
        word
    }

    /// `-name web` becomes `guest={name=web}`, where a comma in a name is doubled by itself.
    fn name(&mut self, value: &str) -> Word {
        let mut parts = KeyValues::parse(value);
        let index = parts.0.iter().position(|(key, _)| key == "guest").or(parts.implied().map(|_| 0));
        let Some((key, name)) = index.and_then(|index| parts.0.get_mut(index)) else {
            return Word::from(value);
        };
        "guest".clone_into(key);
        let name = std::mem::replace(name, MARK.to_string());
        self.placed(&parts.render(), Placeholder::Name, &name)
    }

    fn vnc(&mut self, value: &str) -> Word {
        let value = match value.strip_prefix("unix:") {
            None => value.to_owned(),
            Some(rest) => {
                let (path, options) =
                    rest.split_once(',').map_or((rest, None), |(path, rest)| (path, Some(rest)));
                let options = options.map_or_else(String::new, |options| format!(",{options}"));
                format!("unix:{}{options}", public(path))
            }
        };
        self.placed(&MARK.to_string(), Placeholder::Vnc, &value)
    }

    /// A `-chardev`; `None` when it is one of the engine's own.
    fn chardev(&mut self, text: &str) -> Option<Word> {
        let mut value = KeyValues::parse(text);
        match value.implied() {
            Some("socket") if value.is_on("server") => {
                let Some(path) = value.get("path").map(str::to_owned) else { return Some(Word::from(text)) };
                if self.qmp.as_deref() == Some(Path::new(&path)) {
                    value.set("path", &MARK.to_string());
                    return Some(self.placed(&value.render(), Placeholder::Qmp, &public(&path)));
                }
                value.set("path", &public(&path));
            }
            Some("file") if self.has_moved() => {
                if value.get("id").is_some_and(is_engine_device) {
                    return None;
                }
                // The rewriting puts it there, and nowhere else.
                if value.0.get(1).is_some_and(|(key, on)| key == "append" && on == "on") {
                    value.0.remove(1);
                }
            }
            _ => return Some(Word::from(text)),
        }
        Some(Word::from(value.render().as_str()))
    }

    /// A character device in its short form; `None` when it is one of the engine's own.
    fn character_device(&mut self, option: &str, text: &str) -> Option<Word> {
        let (mux, device) = text.strip_prefix("mon:").map_or(("", text), |device| ("mon:", device));
        let is_first_serial = option == "serial" && self.values.get(Placeholder::Serial).is_none();
        if let Some(path) =
            device.strip_prefix("file:").map(str::to_owned).or_else(|| self.file_behind(device))
        {
            if is_first_serial {
                return Some(self.placed(&format!("{mux}file:{MARK}"), Placeholder::Serial, &path));
            }
            return Some(Word::from(format!("{mux}file:{path}").as_str()));
        }
        let Some(rest) = device.strip_prefix("unix:") else { return Some(Word::from(text)) };
        let mut value = KeyValues::parse(rest);
        let Some(path) = value.implied().map(str::to_owned) else { return Some(Word::from(text)) };
        if is_engine_made(Path::new(&path), Some(self.origin.runtime)) {
            return None;
        }
        let is_qmp = option.starts_with("qmp") && self.qmp.as_deref() == Some(Path::new(&path));
        let placeholder = match (is_qmp, is_first_serial) {
            (true, _) => Some(Placeholder::Qmp),
            (_, true) => Some(Placeholder::Serial),
            _ => None,
        };
        // A socket that QEMU only connects to is somebody else's, and has the name that it has.
        let path = if value.is_on("server") { public(&path) } else { path };
        let first = value.0.first_mut().map(|(_, first)| first)?;
        let Some(placeholder) = placeholder else {
            *first = path;
            return Some(Word::from(format!("{mux}unix:{}", value.render()).as_str()));
        };
        *first = MARK.to_string();
        let marked = format!("{mux}unix:{}", value.render());
        Some(self.placed(&marked, placeholder, &path))
    }

    /// The file of a character device that the rewriting has put in the place of `file:`.
    fn file_behind(&self, device: &str) -> Option<String> {
        let id = device.strip_prefix("chardev:").filter(|id| self.has_moved() && is_engine_device(id))?;
        let mut devices = self.origin.line.values("chardev").map(KeyValues::parse);
        let value = devices.find(|value| value.get("id") == Some(id) && value.implied() == Some("file"))?;
        value.get("path").map(str::to_owned)
    }
}

/// The value of an option whose file is a log, with the name that the user knows.
fn with_public_file(option: &CommandOption) -> Option<String> {
    let mut properties = option.properties()?;
    let public = public_log_name(properties.get("file")?).to_owned();
    properties.set("file", public).ok()?;
    Some(properties.render())
}

/// `public_name` of a text, which stays as it is where it has no private part.
fn public(path: &str) -> String {
    let name = public_name(Path::new(path));
    if name == Path::new(path) { path.to_owned() } else { name.to_string_lossy().into_owned() }
}

fn is_engine_device(id: &str) -> bool {
    id.strip_prefix(DEVICE_PREFIX)
        .is_some_and(|number| !number.is_empty() && number.bytes().all(|digit| digit.is_ascii_digit()))
}

#[cfg(test)]
#[path = "derive_tests.rs"]
mod tests;
