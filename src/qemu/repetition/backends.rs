//! What a device stands on: objects, networks, character devices, block nodes.
//!
//! Only what is all in the guest's own tree or in QEMU's answers is made again. A user network tells its address and no
//! mask; a tap device, a file descriptor or a socket that listens cannot be had twice on one host.

use serde_json::{Map, Value, json};

use super::{PLUGGED_HINT, Part, Verb, Work, line};
use crate::qemu::present::blocks::NodeError;
use crate::qemu::present::{CharacterDevice, Object};

/// A user network without any option, as `info network` tells of it.
const USER_NETWORK: &str = "type=user,net=10.0.2.0,restrict=";

/// Properties of memory, with what they are where nobody said anything; they are said where they are not that.
const OF_MEMORY: [(&str, Default); 18] = [
    ("size", Default::None),
    ("mem-path", Default::None),
    ("share", Default::None),
    ("host-nodes", Default::Empty),
    ("policy", Default::Text("default")),
    ("prealloc", Default::Off),
    ("merge", Default::On),
    ("dump", Default::On),
    ("reserve", Default::On),
    ("hugetlb", Default::Off),
    ("hugetlbsize", Default::Zero),
    ("seal", Default::On),
    ("align", Default::Zero),
    ("offset", Default::Zero),
    ("pmem", Default::Off),
    ("readonly", Default::Off),
    ("discard-data", Default::Off),
    ("x-use-canonical-path-for-ramblock-id", Default::Off),
];

#[derive(Debug, Clone, Copy)]
enum Default {
    None,
    Empty,
    On,
    Off,
    Zero,
    Text(&'static str),
}

impl Default {
    fn is(self, value: &Value) -> bool {
        match self {
            Self::None => false,
            Self::Empty => value.as_array().is_some_and(Vec::is_empty),
            Self::On => value == &json!(true),
            Self::Off => value == &json!(false),
            Self::Zero => value == &json!(0),
            Self::Text(text) => value == &json!(text),
        }
    }
}

impl Work<'_> {
    /// Whether something is still to be made; from now on it is not.
    fn is_new(&mut self, option: &str, id: &str) -> bool {
        !line::has(&self.line, option, id) && self.made.insert(format!("{option} {id}"))
    }

    fn cannot(&mut self, part: Part, owner: &str, what: &str, why: &str) {
        self.refuse(
            part,
            format!("{owner} was plugged in with {what}, which cannot be repeated: {why}"),
            PLUGGED_HINT,
        );
    }

    pub(super) fn network(&mut self, owner: &str, id: &str) {
        if line::has_network(&self.line, id) || !self.is_new("netdev", id) {
            return;
        }
        let text = self.present.networks.get(id).map_or("", String::as_str).to_owned();
        let Some(restrict) = text.strip_prefix(USER_NETWORK) else {
            let kind = text.split(',').next().unwrap_or_default().trim_start_matches("type=");
            let why = match kind {
                "user" => "QEMU does not tell its mask".to_owned(),
                "" => "QEMU does not tell what it is".to_owned(),
                "tap" => "a tap device can be had once".to_owned(),
                _ => format!("of a network of the type '{kind}' QEMU does not tell enough"),
            };
            self.cannot(Part::PluggedNetwork, owner, &format!("the network \"{id}\""), &why);
            return;
        };
        let mut arguments =
            Map::from_iter([("type".to_owned(), json!("user")), ("id".to_owned(), json!(id))]);
        if restrict == "on" {
            arguments.insert("restrict".to_owned(), json!(true));
        }
        if self.present.user_networks.iter().any(|network| network.id == id && network.forwards) {
            self.warn(
                "forwards",
                format!("the network \"{id}\" forwards ports of the host, which the source still has: they are not repeated"),
                Some("hostfwd_add in the destination's monitor, when the guest has moved"),
            );
        }
        self.push(owner, Verb::AddNetwork, arguments);
    }

    pub(super) fn character_device(&mut self, owner: &str, id: &str) {
        if !self.is_new("chardev", id) {
            return;
        }
        let Some(device) = self.present.character_devices.iter().find(|device| device.label == id) else {
            return;
        };
        match backend(device) {
            Ok(backend) => {
                if device.filename.starts_with("pty:") {
                    let message = format!(
                        "the character device \"{id}\" ({}) is another terminal there",
                        device.filename
                    );
                    self.warn("pty-moved", message, Some("query-chardev on the destination tells which"));
                }
                let arguments = [("id".to_owned(), json!(id)), ("backend".to_owned(), backend)];
                self.push(owner, Verb::AddCharacterDevice, Map::from_iter(arguments));
            }
            Err(why) => {
                self.cannot(
                    Part::PluggedCharacterDevice,
                    owner,
                    &format!("the character device \"{id}\""),
                    &why,
                );
            }
        }
    }

    pub(super) fn object(&mut self, owner: &str, id: &str) {
        if !self.is_new("object", id) {
            return;
        }
        let Some(object) = self.present.used_objects.get(id) else { return };
        let what = format!("the {} \"{id}\"", object.kind);
        if object.kind == "memory-backend-file" && object.properties.get("share") == Some(&json!(true)) {
            self.refuse(
                Part::SharedMemory,
                format!("{owner} was plugged in with memory that is shared through a file (\"{id}\"): a destination on this host \
                         would write into the running guest"),
                PLUGGED_HINT,
            );
            return;
        }
        let Some(mut arguments) = properties(object) else {
            self.cannot(Part::PluggedObject, owner, &what, "not all of it can be read");
            return;
        };
        if let Some(Value::String(device)) = arguments.get("chardev") {
            let device = device.clone();
            self.character_device(owner, &device);
        }
        arguments.insert("qom-type".to_owned(), json!(object.kind));
        arguments.insert("id".to_owned(), json!(id));
        self.push(owner, Verb::AddObject, arguments);
    }

    /// Makes a block node by this name, after those that it stands on.
    pub(super) fn node(&mut self, owner: &str, name: &str, called: &str) {
        if !self.is_new("blockdev", called) {
            return;
        }
        match self.node_options(name, called) {
            Ok((options, below)) => {
                for name in below {
                    self.node(owner, &name, &name);
                }
                self.push(owner, Verb::AddNode, options);
            }
            Err(error) => {
                self.cannot(
                    Part::PluggedDisk,
                    owner,
                    &format!("the block node \"{called}\""),
                    &error.to_string(),
                );
            }
        }
    }

    /// The options of a block node, and the names of those to be made before.
    pub(super) fn node_options(
        &self,
        name: &str,
        called: &str,
    ) -> Result<(Map<String, Value>, Vec<String>), NodeError> {
        let node = self.present.nodes.iter().find(|node| node.node_name == name);
        let node = node.ok_or_else(|| NodeError::Unknown(name.to_owned()))?;
        let mut below = Vec::new();
        let mut options = node.options(&self.present.nodes, &self.present.edges, &mut below)?;
        options.insert("node-name".to_owned(), json!(called));
        Ok((options, below))
    }
}

/// What `chardev-add` is to be told.
fn backend(device: &CharacterDevice) -> Result<Value, String> {
    let kind = device.filename.split(':').next().unwrap_or_default();
    match kind {
        "null" | "ringbuf" | "pty" | "vc" => Ok(json!({ "type": kind, "data": {} })),
        _ if device.filename.contains("server=on") || device.filename.contains(",server") => {
            Err("it listens on a socket, which can be had once".to_owned())
        }
        "unix" | "tcp" | "disconnected" => {
            let mut address = device.address.clone().ok_or("QEMU does not tell where it is connected to")?;
            let kind = address.remove("type").ok_or("QEMU does not tell how it is connected")?;
            let address = json!({ "type": kind, "data": address });
            Ok(json!({ "type": "socket", "data": { "addr": address, "server": false } }))
        }
        _ => Err(format!("of a character device of the kind '{kind}' QEMU does not tell enough")),
    }
}

/// What `object-add` is to be told.
fn properties(object: &Object) -> Option<Map<String, Value>> {
    let all = &object.properties;
    let of = |names: &[&str]| {
        let has = |name: &&str| Some(((*name).to_owned(), all.get(*name)?.clone()));
        names.iter().filter_map(has).collect::<Map<String, Value>>()
    };
    match object.kind.as_str() {
        "memory-backend-ram" | "memory-backend-memfd" | "memory-backend-file" => {
            let said = OF_MEMORY.iter().filter_map(|(name, default)| {
                let value = all.get(*name).filter(|value| !default.is(value))?;
                Some(((*name).to_owned(), value.clone()))
            });
            Some(said.collect())
        }
        "iothread" => Some(of(&[
            "poll-max-ns",
            "poll-grow",
            "poll-shrink",
            "aio-max-batch",
            "thread-pool-min",
            "thread-pool-max",
        ])),
        "rng-random" => Some(of(&["filename"])),
        "rng-builtin" => Some(Map::new()),
        "rng-egd" => Some(of(&["chardev"])),
        _ => None,
    }
}
