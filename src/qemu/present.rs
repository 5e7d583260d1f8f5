//! What the guest really has now, by QMP: also what was plugged in, changed or taken away since its QEMU was started,
//! which stands on no command line.
//!
//! | what | from |
//! |---|---|
//! | the user's devices | `qom-list` of `/machine/peripheral` and `/machine/peripheral-anon`, `hotplugged` of each |
//! | the properties of one that was plugged in | `device-list-properties` of its kind, `qom-get` of each |
//! | its bus | the last part of `parent_bus`; the port of USB from `info qtree`, since the property is the wish only |
//! | processors | `query-hotpluggable-cpus` |
//! | objects | `qom-list` of `/objects`, and of those that a plugged device uses each property |
//! | disks | `query-block`, `query-named-block-nodes`, `x-debug-query-block-graph` (which node stands on which) |
//! | character devices, networks | `query-chardev` and `addr` of each socket; `info network`, `info usernet` |
//! | jobs, exports, VNC | `query-block-jobs`, `query-block-exports`, `query-vnc` |
//!
//! Two rounds where nothing was plugged in or taken out; up to seven where something was.
//!
//! `hotplugged` is true of whatever comes by `device_add`, also on a destination that waits, and false of what stands on
//! the command line (run on 7.2, 10.0 and 11.1). That is how a device that was repeated once is known as one that has
//! to be repeated again.
//!
//! What no QEMU tells, and so is not here: whether a link is down (`set_link`; a virtio card that was down still is after
//! a move, run on 10.0 and 11.1), what a watchdog does, a password of VNC, the forwards and the mask of a user network in
//! a form that could be typed again, and of a disk `discard`, `aio` and `locking`. The target of a balloon is part of that
//! device's own state.

use std::collections::BTreeMap;

use qapi_qmp as words;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// Disks: drives, nodes, and which stands on which.
pub mod blocks;
/// Which properties of a device are to be said when it is plugged in again.
mod stated;

pub use blocks::{Drive, Edges, Inserted, Node};

use super::ANSWER_WITHIN;
use super::argv::CommandLine;
use super::hardware::{Device as Placed, people, told, tree};
use crate::qmp::words::commands::QueryBlockGraph;
use crate::qmp::{CallError, Client, Reply};

/// Where the user's devices are that have an id.
pub(super) const WITH_ID: &str = "/machine/peripheral";
/// Where the others are.
pub(super) const WITHOUT_ID: &str = "/machine/peripheral-anon";

/// What a guest has now.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Present {
    /// The devices that its user has given it.
    pub devices: Vec<Device>,
    /// The places of processors, by number.
    pub processors: Vec<Processor>,
    /// The ids of all objects.
    pub objects: Vec<String>,
    /// Those that a plugged device uses, by id.
    pub used_objects: BTreeMap<String, Object>,
    /// Drives, as devices see them.
    pub drives: Vec<Drive>,
    /// All block nodes.
    pub nodes: Vec<Node>,
    /// Which node stands on which.
    pub edges: Edges,
    /// Character devices.
    pub character_devices: Vec<CharacterDevice>,
    /// Network backends and cards: what `info network` says of each.
    pub networks: BTreeMap<String, String>,
    /// The user networks, in the order in which they were made.
    pub user_networks: Vec<UserNetwork>,
    /// Block jobs.
    pub jobs: Vec<Job>,
    /// Exports that are served.
    pub exports: Vec<Export>,
    /// How VNC lets people in, where it is on.
    pub vnc: Option<String>,
}

/// A device of the user's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Device {
    /// Where it is in the tree of objects.
    pub path: String,
    /// Its kind.
    pub kind: String,
    /// Whether it was plugged in, and does not stand on the command line.
    pub hotplugged: bool,
    /// The path of its bus, if it has one and that has been asked.
    #[serde(default)]
    pub bus: Option<String>,
    /// What has to be said of one that was plugged in to get the same; of another one where it is, if that has to be said.
    #[serde(default)]
    pub properties: Map<String, Value>,
}

impl Device {
    /// Its id, if it has one.
    pub fn id(&self) -> Option<&str> {
        self.path.strip_prefix(WITH_ID)?.strip_prefix('/')
    }

    /// Whether a path is that of this device, or of a part of it.
    pub fn has(&self, path: &str) -> bool {
        path.strip_prefix(self.path.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }

    /// How people call it.
    pub fn name(&self) -> String {
        self.id().map_or_else(|| format!("the {}", self.kind), |id| format!("the {} \"{id}\"", self.kind))
    }
}

/// The place of a processor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Processor {
    /// The kind of processor that fits.
    #[serde(rename = "type")]
    pub kind: String,
    /// Socket, core, thread.
    pub props: Map<String, Value>,
    /// The processor, if there is one.
    #[serde(default)]
    pub qom_path: Option<String>,
}

/// An object, such as a memory backend.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Object {
    /// Its kind.
    pub kind: String,
    /// All properties that can be read.
    pub properties: Map<String, Value>,
}

/// A character device.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CharacterDevice {
    /// Its id.
    pub label: String,
    /// What it is, in QEMU's words.
    pub filename: String,
    /// Where a socket is.
    #[serde(default)]
    pub address: Option<Map<String, Value>>,
}

/// A user network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserNetwork {
    /// Its id.
    pub id: String,
    /// Whether it forwards ports of the host.
    pub forwards: bool,
}

/// A block job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Job {
    /// Its name.
    pub device: String,
    /// What it does.
    #[serde(rename = "type")]
    pub kind: String,
}

/// An export.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Export {
    /// Its name.
    pub id: String,
    /// By which protocol.
    #[serde(rename = "type")]
    pub kind: String,
    /// Of which node.
    pub node_name: String,
}

/// Asks a QEMU whose twin is to be started with this line. What it does not tell stays empty; an error is one of the
/// connection.
pub async fn ask(client: &Client, line: &CommandLine) -> Result<Present, CallError> {
    let list = |path: &str| words::qom_list { path: path.to_owned() };
    let (with_id, without_id, objects) = (list(WITH_ID), list(WITHOUT_ID), list("/objects"));
    let (with_id, without_id, objects, processors, blocks, sockets, networks, rest) = tokio::join!(
        client.call(&with_id, ANSWER_WITHIN),
        client.call(&without_id, ANSWER_WITHIN),
        client.call(&objects, ANSWER_WITHIN),
        client.call(&words::query_hotpluggable_cpus {}, ANSWER_WITHIN),
        blocks(client),
        client.call(&words::query_chardev {}, ANSWER_WITHIN),
        networks(client),
        rest(client),
    );
    let ((drives, nodes, edges), (networks, user_networks)) = (blocks?, networks?);
    let (jobs, exports, vnc) = rest?;
    let mut devices = children(WITH_ID, told(with_id)?.as_ref());
    devices.extend(children(WITHOUT_ID, told(without_id)?.as_ref()));
    let objects = told(objects)?.as_ref().map(names).unwrap_or_default();
    let mut processors: Vec<Processor> = read(told(processors)?);
    // QEMU tells the last one first (run on 7.2, 10.0 and 11.1).
    processors.reverse();
    let mut present = Present {
        devices,
        processors,
        objects,
        drives,
        nodes,
        edges,
        character_devices: read(told(sockets)?),
        networks,
        user_networks,
        jobs,
        exports,
        vnc,
        ..Present::default()
    };
    present.look_at_devices(client).await?;
    let cold = present.devices.iter().filter(|device| !device.hotplugged).count();
    if line.options.iter().filter(|option| option.name == "device").count() > cold {
        present.look_at_places(client).await?;
    }
    Ok(present)
}

impl Present {
    /// Finds out which devices were plugged in, and all about those.
    async fn look_at_devices(&mut self, client: &Client) -> Result<(), CallError> {
        let hotplugged =
            get_each(client, self.devices.iter().map(|device| (&device.path, "hotplugged"))).await?;
        for (device, hotplugged) in self.devices.iter_mut().zip(hotplugged) {
            device.hotplugged = hotplugged.as_ref().and_then(Value::as_bool) == Some(true);
        }
        if !self.devices.iter().any(|device| device.hotplugged) {
            return Ok(());
        }
        let is_processor =
            |path: &str| self.processors.iter().any(|processor| processor.qom_path.as_deref() == Some(path));
        let mut plugged: Vec<&mut Device> = self
            .devices
            .iter_mut()
            .filter(|device| device.hotplugged && !is_processor(&device.path))
            .collect();
        let list = |device: &&mut Device| {
            client.send(&words::device_list_properties { typename: device.kind.clone() })
        };
        let lists: Vec<Reply> = plugged.iter().map(list).collect();
        let buses = get_each(client, plugged.iter().map(|device| (&device.path, "parent_bus"))).await?;
        let placed = tree::parse(&told(people(client, "info qtree").await)?.unwrap_or_default());
        let mut properties = Vec::new();
        for list in lists {
            properties.push(read::<Vec<stated::Property>>(told(list.within(ANSWER_WITHIN).await)?));
        }
        for (device, bus) in plugged.iter_mut().zip(buses) {
            device.bus =
                bus.as_ref().and_then(Value::as_str).filter(|bus| !bus.is_empty()).map(str::to_owned);
        }
        let asked = plugged.iter().zip(&properties).flat_map(|(device, properties)| {
            properties.iter().map(|property| (&device.path, property.name.as_str()))
        });
        let mut values = get_each(client, asked).await?.into_iter();
        for (device, properties) in plugged.iter_mut().zip(&properties) {
            for property in properties {
                let value = values.next().flatten();
                if let Some(value) = value.and_then(|value| property.stated(&value, &device.path)) {
                    device.properties.insert(property.name.clone(), value);
                }
            }
        }
        name_ports(&mut plugged, &placed);
        self.look_at_objects(client).await?;
        self.look_at_sockets(client).await
    }

    /// Finds out where the devices are that were not plugged in: one is missing before them.
    async fn look_at_places(&mut self, client: &Client) -> Result<(), CallError> {
        let mut cold: Vec<&mut Device> =
            self.devices.iter_mut().filter(|device| !device.hotplugged).collect();
        let asked = cold
            .iter()
            .flat_map(|device| stated::PLACES.map(|name| (&device.path, name)))
            .collect::<Vec<_>>();
        let values = get_each(client, asked.into_iter()).await?;
        let buses = get_each(client, cold.iter().map(|device| (&device.path, "parent_bus"))).await?;
        let placed = tree::parse(&told(people(client, "info qtree").await)?.unwrap_or_default());
        for ((device, values), bus) in cold.iter_mut().zip(values.chunks(stated::PLACES.len())).zip(buses) {
            device.bus = path_of(bus.as_ref());
            for (name, value) in stated::PLACES.iter().zip(values) {
                if let Some(value) = stated::place(&device.kind, name, value.as_ref()) {
                    device.properties.insert((*name).to_owned(), value);
                }
            }
        }
        name_ports(&mut cold, &placed);
        Ok(())
    }

    /// Reads the objects that a plugged device uses.
    async fn look_at_objects(&mut self, client: &Client) -> Result<(), CallError> {
        let mut used: Vec<String> = Vec::new();
        for device in &self.devices {
            used.extend(self.objects.iter().filter(|id| device.uses(id)).cloned());
        }
        used.sort_unstable();
        used.dedup();
        for id in used {
            let path = format!("/objects/{id}");
            let list = words::qom_list { path: path.clone() };
            let listed = told(client.call(&list, ANSWER_WITHIN).await)?.unwrap_or_default();
            let names: Vec<String> = plain_properties(&listed);
            let values = get_each(client, names.iter().map(|name| (&path, name.as_str()))).await?;
            let properties = names.iter().cloned().zip(values);
            let mut properties: Map<String, Value> =
                properties.filter_map(|(name, value)| Some((name, value?))).collect();
            let kind = properties.remove("type");
            let kind = kind.as_ref().and_then(Value::as_str).unwrap_or_default().to_owned();
            self.used_objects.insert(id, Object { kind, properties });
        }
        Ok(())
    }

    /// Reads where the sockets of plugged devices are.
    async fn look_at_sockets(&mut self, client: &Client) -> Result<(), CallError> {
        let is_used = |label: &str| self.devices.iter().any(|device| device.uses(label));
        let mut used: Vec<&mut CharacterDevice> =
            self.character_devices.iter_mut().filter(|device| is_used(&device.label)).collect();
        let paths: Vec<String> = used.iter().map(|device| format!("/chardevs/{}", device.label)).collect();
        let addresses = get_each(client, paths.iter().map(|path| (path, "addr"))).await?;
        for (device, address) in used.iter_mut().zip(addresses) {
            device.address = address.as_ref().and_then(Value::as_object).cloned();
        }
        Ok(())
    }
}

impl Device {
    /// Whether one of its properties names this.
    pub(super) fn uses(&self, id: &str) -> bool {
        fn names(value: &Value, id: &str) -> bool {
            match value {
                Value::String(text) => text == id || text.strip_prefix("/objects/") == Some(id),
                Value::Array(list) => list.iter().any(|value| names(value, id)),
                Value::Object(members) => members.values().any(|value| names(value, id)),
                _ => false,
            }
        }
        self.properties.values().any(|value| names(value, id))
    }

    /// The name of its bus.
    pub(super) fn bus_name(&self) -> Option<&str> {
        self.bus.as_deref()?.rsplit('/').next()
    }
}

/// Where a link leads, if anywhere.
fn path_of(link: Option<&Value>) -> Option<String> {
    link.and_then(Value::as_str).filter(|path| !path.is_empty()).map(str::to_owned)
}

/// Gives each USB device the port that it has. QEMU tells the newest device of a bus first.
fn name_ports(devices: &mut [&mut Device], placed: &[Placed]) {
    let mut free: Vec<&Placed> = placed.iter().rev().filter(|placed| placed.port().is_some()).collect();
    devices.sort_by_key(|device| stated::natural(&device.path));
    for device in devices.iter_mut().filter(|device| device.properties.contains_key("port")) {
        let is_it = |placed: &&Placed| {
            placed.is_kind(&device.kind)
                && placed.has_id(device.id().unwrap_or_default())
                && Some(placed.bus_name()) == device.bus_name()
                && (!device.hotplugged
                    || device.properties.get("chardev").and_then(Value::as_str) == placed.text("chardev"))
        };
        if let Some(place) = free.iter().position(is_it) {
            device.properties.insert("port".to_owned(), json!(free.remove(place).port()));
        } else {
            device.properties.remove("port");
        }
    }
}

async fn blocks(client: &Client) -> Result<(Vec<Drive>, Vec<Node>, Edges), CallError> {
    let nodes = words::query_named_block_nodes { flat: Some(true) };
    let (drives, nodes, graph) = tokio::join!(
        client.call(&words::query_block {}, ANSWER_WITHIN),
        client.call(&nodes, ANSWER_WITHIN),
        client.call(&QueryBlockGraph {}, ANSWER_WITHIN),
    );
    Ok((read(told(drives)?), read(told(nodes)?), blocks::edges(told(graph)?)))
}

async fn networks(client: &Client) -> Result<(BTreeMap<String, String>, Vec<UserNetwork>), CallError> {
    let (all, users) = tokio::join!(people(client, "info network"), people(client, "info usernet"));
    let (all, users) = (told(all)?.unwrap_or_default(), told(users)?.unwrap_or_default());
    Ok((all.lines().filter_map(network).collect(), user_networks(&users)))
}

async fn rest(client: &Client) -> Result<(Vec<Job>, Vec<Export>, Option<String>), CallError> {
    let (jobs, exports, vnc) = tokio::join!(
        client.call(&words::query_block_jobs {}, ANSWER_WITHIN),
        client.call(&words::query_block_exports {}, ANSWER_WITHIN),
        client.call(&words::query_vnc {}, ANSWER_WITHIN),
    );
    let vnc = told(vnc)?.filter(|vnc| vnc.get("enabled").and_then(Value::as_bool) == Some(true));
    let auth = vnc.and_then(|vnc| Some(vnc.get("auth")?.as_str()?.to_owned()));
    Ok((read(told(jobs)?), read(told(exports)?), auth))
}

/// `nic1: index=0,type=nic,...`, and indented behind a backslash what it is joined to.
fn network(line: &str) -> Option<(String, String)> {
    let line = line.trim_start_matches([' ', '\\']);
    let (name, text) = line.split_once(": index=")?;
    let (_, text) = text.split_once(',')?;
    Some((name.to_owned(), text.trim_end().to_owned()))
}

/// Each begins with `Hub -1 (net1):`, in the order in which they were made; then come its connections, and a line
/// `TCP[HOST_FORWARD]` for each port.
fn user_networks(text: &str) -> Vec<UserNetwork> {
    let mut found: Vec<UserNetwork> = Vec::new();
    for line in text.lines() {
        if let Some((_, id)) = line.strip_suffix("):").and_then(|line| line.split_once('(')) {
            found.push(UserNetwork { id: id.to_owned(), forwards: false });
        } else if let Some(last) = found.last_mut().filter(|_| line.contains("[HOST_FORWARD]")) {
            last.forwards = true;
        }
    }
    found
}

/// Asks for properties, all at once; `None` for each that cannot be read.
async fn get_each<'a>(
    client: &Client,
    asked: impl Iterator<Item = (&'a String, &'a str)>,
) -> Result<Vec<Option<Value>>, CallError> {
    let get = |(path, name): (&String, &str)| {
        client.send(&words::qom_get { path: path.clone(), property: name.to_owned() })
    };
    let replies: Vec<Reply> = asked.map(get).collect();
    let mut values = Vec::with_capacity(replies.len());
    for reply in replies {
        values.push(told(reply.within(ANSWER_WITHIN).await)?);
    }
    Ok(values)
}

/// The children that `qom-list` tells of, in the order of their names.
fn children(path: &str, listed: Option<&Value>) -> Vec<Device> {
    let child = |entry: &Value| {
        let kind = entry.get("type")?.as_str()?.strip_prefix("child<")?.strip_suffix('>')?.to_owned();
        let path = format!("{path}/{}", entry.get("name")?.as_str()?);
        Some(Device { path, kind, hotplugged: false, bus: None, properties: Map::new() })
    };
    let mut found: Vec<Device> =
        listed.and_then(Value::as_array).into_iter().flatten().filter_map(child).collect();
    found.sort_by_key(|device| stated::natural(&device.path));
    found
}

/// The names of the children that `qom-list` tells of.
fn names(listed: &Value) -> Vec<String> {
    children("", Some(listed))
        .into_iter()
        .map(|child| child.path.trim_start_matches('/').to_owned())
        .collect()
}

/// The properties that `qom-list` tells of, but for children and what nobody may read.
fn plain_properties(listed: &Value) -> Vec<String> {
    let plain = |entry: &Value| {
        let kind = entry.get("type")?.as_str()?;
        let name = entry.get("name")?.as_str()?;
        (!kind.starts_with("child<") && !matches!(name, "data" | "password")).then(|| name.to_owned())
    };
    listed.as_array().into_iter().flatten().filter_map(plain).collect()
}

/// Reads an answer; what has another form is left out.
fn read<T: serde::de::DeserializeOwned + Default>(answer: Option<Value>) -> T {
    answer.and_then(|answer| serde_json::from_value(answer).ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As 10.0 tells it.
    #[test]
    fn networks_are_read_from_what_people_are_shown() {
        let text = "nic1: index=0,type=nic,model=virtio-net-pci,macaddr=52:54:00:00:00:99\n \\ net1: index=0,type=user,net=10.0.2.0,restrict=off\n";
        let networks: BTreeMap<String, String> = text.lines().filter_map(network).collect();
        assert_eq!(networks["net1"], "type=user,net=10.0.2.0,restrict=off");
        assert_eq!(networks["nic1"], "type=nic,model=virtio-net-pci,macaddr=52:54:00:00:00:99");
        let text = "Hub -1 (z):\n  Protocol[State]    FD  Source Address  Port   Dest. Address  Port RecvQ SendQ\n  \
                    TCP[HOST_FORWARD]  14       127.0.0.1 42573       10.7.2.15    22     0     0\nHub -1 (a):\n  \
                    Protocol[State]    FD  Source Address  Port   Dest. Address  Port RecvQ SendQ\n";
        let found: Vec<(String, bool)> =
            user_networks(text).into_iter().map(|network| (network.id, network.forwards)).collect();
        assert_eq!(found, [("z".to_owned(), true), ("a".to_owned(), false)]);
    }

    #[test]
    fn children_come_in_the_order_of_their_numbers() {
        let listed = json!([
            { "name": "type", "type": "string" },
            { "name": "device[10]", "type": "child<usb-kbd>" },
            { "name": "device[9]", "type": "child<usb-mouse>" },
        ]);
        let kinds: Vec<String> =
            children(WITHOUT_ID, Some(&listed)).into_iter().map(|device| device.kind).collect();
        assert_eq!(kinds, ["usb-mouse", "usb-kbd"]);
    }
}
