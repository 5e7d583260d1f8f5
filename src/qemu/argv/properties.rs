//! The properties of an option, read and changed in one way whatever form they are written in.
//!
//! A path such as `file.filename` is a dotted key in `key=value`, and a nested member in JSON: QEMU reads
//! `-blockdev driver=raw,file.driver=null-co` and `-blockdev '{"driver":"raw","file":{"driver":"null-co"}}'` alike (and
//! refuses a dotted key within JSON, run on 7.2 to 11.1). The forms differ in two more ways: JSON is typed, so that `"on"`
//! is no switch there, and devices in JSON are made after all others, so that an option must keep its form.

use super::key_values::is_on;
use super::options::{Form, form};
use super::{CommandOption, JsonObject, KeyValues, Scalar};

/// Character devices that take properties, and what their first part is.
const CHARACTER_DEVICES: [(&str, &str); 6] = [
    ("unix:", "path"),
    ("tcp:", ADDRESS),
    ("telnet:", ADDRESS),
    ("tn3270:", ADDRESS),
    ("websocket:", ADDRESS),
    ("udp:", ADDRESS),
];

/// Our name for the `host:port` of a character device in its short form, which has no key of its own.
const ADDRESS: &str = "address";

/// The properties of an option.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Properties {
    /// What stands before them, such as `mon:unix:`.
    prefix: String,
    written: Written,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Written {
    Pairs { parts: KeyValues, implied: Option<&'static str>, bare: Bare },
    Json(JsonObject),
}

/// What a part without a key is that is not the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Bare {
    /// A switch: `server` is `server=on`, `nowait` is `wait=off`.
    Switch,
    /// A feature: `+x`, `-x` or `x`.
    Feature,
}

/// A property cannot be set where something else stands above it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' cannot be set: above it stands a value that is no object")]
pub struct NoSuchPlace(pub String);

impl CommandOption {
    /// Its properties, if its value has any: not for `-kernel`, nor for JSON that cannot be read.
    pub fn properties(&self) -> Option<Properties> {
        let text = self.value.as_deref()?;
        let pairs = |prefix: &str, implied, bare| {
            let parts = KeyValues::parse(text.strip_prefix(prefix)?);
            Some(Properties { prefix: prefix.to_owned(), written: Written::Pairs { parts, implied, bare } })
        };
        match form(&self.name) {
            Form::PairsOrJson { .. } | Form::TextOrJson if text.starts_with('{') => {
                let written = Written::Json(JsonObject::parse(text)?);
                Some(Properties { prefix: String::new(), written })
            }
            Form::Pairs { implied } | Form::PairsOrJson { implied } => pairs("", implied, Bare::Switch),
            Form::Cpu => pairs("", Some("model"), Bare::Feature),
            Form::CharacterDevice => {
                let device = text.strip_prefix("mon:").unwrap_or(text);
                let (kind, implied) =
                    CHARACTER_DEVICES.into_iter().find(|(kind, _)| device.starts_with(kind))?;
                let prefix = text.get(..text.len() - device.len() + kind.len())?;
                pairs(prefix, Some(implied), Bare::Switch)
            }
            Form::Alone | Form::Text | Form::TextOrJson => None,
        }
    }

    /// Gives it these properties.
    pub fn set_properties(&mut self, properties: &Properties) {
        self.value = Some(properties.render());
    }

    /// The value of one of its properties.
    pub fn get(&self, path: &str) -> Option<String> {
        self.properties()?.get(path).map(str::to_owned)
    }
}

impl Properties {
    /// The value at a path, as `key=value` has it: `on` for JSON's `true`. Of a key given twice the last one counts.
    pub fn get(&self, path: &str) -> Option<&str> {
        match &self.written {
            Written::Json(object) => object.get(path),
            Written::Pairs { .. } => self.last(path).map(|(_, value)| value),
        }
    }

    /// Whether a switch is on.
    pub fn is_on(&self, path: &str) -> bool {
        self.get(path).is_some_and(is_on)
    }

    /// The paths of all values, in order; a key given twice is there twice.
    pub fn keys(&self) -> Vec<String> {
        match &self.written {
            Written::Json(object) => object.values().into_iter().map(|(path, _)| path).collect(),
            Written::Pairs { .. } => self.parts().into_iter().map(|(_, key, _)| key.to_owned()).collect(),
        }
    }

    /// Sets the value at a path, in its place if it stands there already.
    pub fn set(&mut self, path: &str, value: impl Into<Scalar>) -> Result<(), NoSuchPlace> {
        let value = value.into();
        let place = self.last(path).map(|(index, _)| index);
        match &mut self.written {
            Written::Json(object) => object.set(path, &value).ok_or_else(|| NoSuchPlace(path.to_owned()))?,
            Written::Pairs { parts, implied, .. } => match place.and_then(|index| parts.0.get_mut(index)) {
                Some(part) => replace(part, path, *implied, value.text()),
                None => parts.push(path, &value.text()),
            },
        }
        Ok(())
    }

    /// Takes away what stands at a path, and what stands below it.
    pub fn remove(&mut self, path: &str) {
        let is_meant =
            |key: &str| key == path || key.strip_prefix(path).is_some_and(|key| key.starts_with('.'));
        let all = self.parts();
        let mut meant =
            all.iter().filter(|(_, key, _)| is_meant(key)).map(|(index, ..)| *index).collect::<Vec<_>>();
        // A switch that comes to stand first would be taken for the implied key.
        let second = all.iter().find(|(index, ..)| !meant.contains(index));
        let first = second.filter(|(index, ..)| *index > 0);
        let first = first.map(|&(index, key, value)| (index, (key.to_owned(), value.to_owned())));
        match &mut self.written {
            Written::Json(object) => object.remove(path),
            Written::Pairs { parts, .. } => {
                if let Some((part, named)) =
                    first.and_then(|(index, named)| Some((parts.0.get_mut(index)?, named)))
                {
                    *part = named;
                }
                while let Some(index) = meant.pop() {
                    parts.0.remove(index);
                }
            }
        }
    }

    /// Gives each value that `change` has another one for that one, as text.
    pub fn replace_each(&mut self, mut change: impl FnMut(&str, &str) -> Option<String>) {
        let new =
            |(index, key, value): (usize, &str, &str)| Some((index, key.to_owned(), change(key, value)?));
        let new: Vec<(usize, String, String)> = self.parts().into_iter().filter_map(new).collect();
        match &mut self.written {
            Written::Json(object) => object.replace_each(change),
            Written::Pairs { parts, implied, .. } => {
                for (index, key, value) in new {
                    if let Some(part) = parts.0.get_mut(index) {
                        replace(part, &key, *implied, value);
                    }
                }
            }
        }
    }

    /// The last part with this key: its place and its value.
    fn last(&self, path: &str) -> Option<(usize, &str)> {
        let found = self.parts().into_iter().rev().find(|(_, key, _)| *key == path)?;
        Some((found.0, found.2))
    }

    /// The text again.
    pub fn render(&self) -> String {
        match &self.written {
            Written::Json(object) => object.render().to_owned(),
            Written::Pairs { parts, .. } => format!("{}{}", self.prefix, parts.render()),
        }
    }

    /// The parts that QEMU reads, each with its place, its key and its value; none in JSON.
    fn parts(&self) -> Vec<(usize, &str, &str)> {
        let Written::Pairs { parts, implied, bare } = &self.written else { return Vec::new() };
        let parts = parts.0.iter().enumerate();
        let read = parts.map(|(index, part)| {
            let (key, value) = read(&part.0, &part.1, implied.filter(|_| index == 0), *bare)?;
            Some((index, key, value))
        });
        read.flatten().collect()
    }
}

/// A part as QEMU reads it; `None` for an empty one, which a comma at the end leaves.
fn read<'a>(
    key: &'a str,
    value: &'a str,
    implied: Option<&'static str>,
    bare: Bare,
) -> Option<(&'a str, &'a str)> {
    Some(match (key, implied, bare) {
        ("", _, _) if value.is_empty() => return None,
        ("", Some(implied), _) => (implied, value),
        ("", None, Bare::Switch) => value.strip_prefix("no").map_or((value, "on"), |off| (off, "off")),
        ("", None, Bare::Feature) => match value.strip_prefix('-') {
            Some(off) => (off, "off"),
            None => (value.strip_prefix('+').unwrap_or(value), "on"),
        },
        _ => (key, value),
    })
}

/// Gives a part another value. One without a key keeps doing without where the key is implied and the value would be
/// taken for nothing else.
fn replace(part: &mut (String, String), key: &str, implied: Option<&str>, value: String) {
    let is_plain = !value.is_empty() && !value.contains('=') && !value.starts_with('{');
    if part.0.is_empty() && !(implied == Some(key) && is_plain) {
        key.clone_into(&mut part.0);
    }
    part.1 = value;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn properties(name: &str, value: &str) -> Properties {
        CommandOption::with_value(name, value).properties().unwrap()
    }

    #[test]
    fn every_form_is_read_in_one_way() {
        for (name, value, path, expected) in [
            ("device", "virtio-net-pci,id=n", "driver", "virtio-net-pci"),
            ("device", r#"{"driver":"virtio-net-pci","id":"n"}"#, "driver", "virtio-net-pci"),
            ("blockdev", "driver=raw,file.driver=file,file.filename=/a,,b", "file.filename", "/a,b"),
            (
                "blockdev",
                r#"{"driver":"raw","file":{"driver":"file","filename":"/a,b"}}"#,
                "file.filename",
                "/a,b",
            ),
            ("chardev", "socket,id=c,path=/c,server,nowait", "server", "on"),
            ("chardev", "socket,id=c,path=/c,server,nowait", "wait", "off"),
            ("machine", "pc,usb=off,usb=on", "usb", "on"),
            ("m", "1G", "size", "1G"),
            ("smp", "4,sockets=2", "cpus", "4"),
            ("cpu", "max,+vmx,-svm,pmu,hv_time=off", "vmx", "on"),
            ("cpu", "max,+vmx,-svm,pmu,hv_time=off", "svm", "off"),
            ("cpu", "max,+vmx,-svm,pmu,hv_time=off", "pmu", "on"),
            ("cpu", "max,+vmx", "model", "max"),
            ("qmp", "unix:/q,,1,server=on", "path", "/q,1"),
            ("serial", "mon:telnet::23,server,nowait", "address", ":23"),
            ("vnc", "unix:/v,password=on", "vnc", "unix:/v"),
            ("incoming", r#"{"channel-type":"main","addr":{"transport":"file"}}"#, "addr.transport", "file"),
        ] {
            assert_eq!(properties(name, value).get(path), Some(expected), "-{name} {value}");
            assert_eq!(properties(name, value).render(), value);
        }
        for (name, value) in
            [("kernel", "a=b"), ("qmp", "stdio"), ("serial", "file:/a,b"), ("device", "{'a'")]
        {
            assert_eq!(CommandOption::with_value(name, value).properties(), None, "-{name} {value}");
        }
        assert_eq!(properties("machine", r#"{"type":"pc"}"#).get("type"), Some(r#"{"type":"pc"}"#));
    }

    #[test]
    fn a_change_leaves_every_other_part_as_it_was() {
        for (name, value, changed) in [
            ("device", "x,id=a,id=b,flag,nowait", "y,id=a,id=c,flag,nowait,wait2=off"),
            ("device", r#"{ "driver":"x","id":"b" }"#, r#"{ "driver":"y","id":"c","wait2":false }"#),
            ("device", "driver=x,id=b", "driver=y,id=c,wait2=off"),
        ] {
            let mut properties = properties(name, value);
            properties.set("driver", "y").unwrap();
            properties.set("id", "c").unwrap();
            properties.set("wait2", false).unwrap();
            assert_eq!(properties.render(), changed);
        }
        let mut socket = properties("qmp", "unix:/q,server,nowait");
        socket.set("path", "/a,b").unwrap();
        socket.set("wait", true).unwrap();
        assert_eq!(socket.render(), "unix:/a,,b,server,wait=on");
        assert!(properties("device", r#"{"a":1}"#).set("a.b", 1).is_err());
    }

    #[test]
    fn what_is_removed_goes_with_all_below_it() {
        for (value, left) in [
            ("raw,file.driver=file,file.filename=/a,filex=1,,2", "raw,filex=1,,2"),
            (r#"{"driver":"raw","file":{"driver":"file"},"filex":1}"#, r#"{"driver":"raw","filex":1}"#),
            ("raw,node-name=a,", "raw,node-name=a,"),
        ] {
            let mut properties = properties("blockdev", value);
            properties.remove("file");
            assert_eq!(properties.render(), left);
        }
        // What would now stand first is no driver.
        let mut properties = properties("chardev", "socket,server,nowait");
        properties.remove("backend");
        assert_eq!(properties.render(), "server=on,nowait");
    }
}
