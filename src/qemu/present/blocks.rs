//! Disks: drives, nodes, and which stands on which.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// A drive, as `query-block` tells of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Drive {
    /// Its name; empty where a device stands on a node.
    pub device: String,
    /// The device, by its id or its path.
    #[serde(default)]
    pub qdev: Option<String>,
    /// Whether its medium can be taken out.
    pub removable: bool,
    /// Whether its tray is open, where it has one.
    #[serde(default)]
    pub tray_open: bool,
    /// What is in it.
    #[serde(default)]
    pub inserted: Option<Inserted>,
}

/// What is in a drive.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Inserted {
    /// The top node.
    pub node_name: String,
    /// The image, as QEMU calls it.
    pub file: String,
    /// Its format.
    pub drv: String,
    /// Whether it cannot be written.
    pub ro: bool,
    /// How fast it may be read and written, with all else.
    #[serde(flatten)]
    rest: Map<String, Value>,
}

impl Inserted {
    /// Its limits, as `block_set_io_throttle` takes them. Where there are none that is said only of a drive that starts
    /// with some.
    pub fn limits(&self, starts_with: StartsWith) -> Map<String, Value> {
        const LIMITS: [&str; 6] = ["bps", "bps_rd", "bps_wr", "iops", "iops_rd", "iops_wr"];
        let all = LIMITS
            .iter()
            .flat_map(|name| [(*name).to_owned(), format!("{name}_max"), format!("{name}_max_length")]);
        let limit = |name: String| {
            let value = self.rest.get(&name)?;
            (value.as_u64() != Some(0)).then(|| (name, value.clone()))
        };
        let mut limits: Map<String, Value> =
            all.chain(["iops_size".to_owned(), "group".to_owned()]).filter_map(limit).collect();
        if !LIMITS.iter().any(|name| limits.contains_key(*name)) {
            if starts_with == StartsWith::NoLimits {
                return Map::new();
            }
            limits.clear();
        }
        for name in LIMITS {
            limits.entry(name).or_insert(json!(0));
        }
        limits
    }
}

/// Whether a drive has limits by its command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartsWith {
    /// It has.
    Limits,
    /// It has not.
    NoLimits,
}

/// A block node, as `query-named-block-nodes` tells of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Node {
    /// Its name; one that begins with `#` was made up by QEMU.
    pub node_name: String,
    /// What drives it.
    pub drv: String,
    /// Whether it cannot be written.
    pub ro: bool,
    /// Whether it needs a key.
    #[serde(default)]
    pub encrypted: bool,
    /// How it is cached.
    #[serde(default)]
    pub cache: Cache,
    /// What becomes of zeroes.
    #[serde(default, rename = "detect_zeroes")]
    pub detect_zeroes: String,
    /// The image.
    pub image: Image,
}

/// How a node is cached.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Cache {
    direct: bool,
    no_flush: bool,
}

/// What a node shows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Image {
    /// Its name, or `json:` and its options.
    pub filename: String,
    /// Its size in bytes.
    #[serde(default)]
    pub virtual_size: u64,
    /// What it stands on, by its own header.
    #[serde(default)]
    pub backing_filename: Option<String>,
}

/// The nodes below each node, by their names, with what they are for it.
pub type Edges = BTreeMap<String, Vec<(String, String)>>;

/// Reads `x-debug-query-block-graph`.
pub(super) fn edges(answer: Option<Value>) -> Edges {
    #[derive(Deserialize)]
    struct Vertex {
        id: u64,
        #[serde(rename = "type")]
        kind: String,
        name: String,
    }
    #[derive(Deserialize)]
    struct Edge {
        parent: u64,
        child: u64,
        name: String,
    }
    #[derive(Deserialize)]
    struct Graph {
        nodes: Vec<Vertex>,
        edges: Vec<Edge>,
    }
    let Some(graph) = answer.and_then(|answer| serde_json::from_value::<Graph>(answer).ok()) else {
        return Edges::new();
    };
    // What a device has for itself, and a job, may be called as a node is.
    let nodes = graph.nodes.iter().filter(|vertex| vertex.kind == "block-driver");
    let names: BTreeMap<u64, &String> = nodes.map(|node| (node.id, &node.name)).collect();
    let mut edges = Edges::new();
    for edge in &graph.edges {
        if let (Some(parent), Some(child)) = (names.get(&edge.parent), names.get(&edge.child)) {
            edges.entry((*parent).clone()).or_default().push((edge.name.clone(), (*child).clone()));
        }
    }
    edges
}

/// Why a node cannot be made again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NodeError {
    /// Its driver is one of which not all can be read.
    #[error("of a '{0}' node QEMU does not tell enough to make it again")]
    Driver(String),
    /// It needs a key.
    #[error("it is encrypted, and its key cannot be read")]
    Encrypted,
    /// It is not there.
    #[error("its node {0} is not there")]
    Unknown(String),
}

impl Node {
    /// The options by which `blockdev-add` makes it again: unnamed nodes below it are part of it, named ones are `named`,
    /// to be made before.
    pub fn options(
        &self,
        nodes: &[Self],
        edges: &Edges,
        named: &mut Vec<String>,
    ) -> Result<Map<String, Value>, NodeError> {
        if self.encrypted {
            return Err(NodeError::Encrypted);
        }
        let mut options = self.own_options()?;
        if !self.node_name.starts_with('#') {
            options.insert("node-name".to_owned(), json!(self.node_name));
        }
        if self.ro {
            options.insert("read-only".to_owned(), json!(true));
        }
        if self.cache.direct || self.cache.no_flush {
            options.insert("cache".to_owned(), json!(self.cache));
        }
        if !matches!(self.detect_zeroes.as_str(), "" | "off") {
            options.insert("detect-zeroes".to_owned(), json!(self.detect_zeroes));
        }
        let below: &[(String, String)] = edges.get(&self.node_name).map_or(&[], Vec::as_slice);
        for (what, name) in below {
            let child = nodes.iter().find(|node| node.node_name == *name);
            let child = child.ok_or_else(|| NodeError::Unknown(name.clone()))?;
            match (what.as_str(), name.starts_with('#')) {
                ("file" | "backing", false) => {
                    named.push(name.clone());
                    options.insert(what.clone(), json!(name));
                }
                ("file", true) => {
                    options.insert(what.clone(), json!(child.options(nodes, edges, named)?));
                }
                // By its header.
                ("backing", true) => {}
                _ => return Err(NodeError::Driver(self.drv.clone())),
            }
        }
        if self.drv == "qcow2"
            && self.image.backing_filename.is_some()
            && !below.iter().any(|(what, _)| what == "backing")
        {
            options.insert("backing".to_owned(), Value::Null);
        }
        Ok(options)
    }

    fn own_options(&self) -> Result<Map<String, Value>, NodeError> {
        let said = self.image.filename.strip_prefix("json:");
        let said: Option<Map<String, Value>> = said.and_then(|text| serde_json::from_str(text).ok());
        let mut options = match self.drv.as_str() {
            "raw" | "qcow2" => said.unwrap_or_default(),
            "file" | "host_device" | "host_cdrom" => {
                said.unwrap_or_else(|| Map::from_iter([("filename".to_owned(), json!(self.image.filename))]))
            }
            "null-co" | "null-aio" => {
                let mut options = said.unwrap_or_default();
                options.insert("size".to_owned(), json!(self.image.virtual_size));
                options
            }
            other => return Err(NodeError::Driver(other.to_owned())),
        };
        options.retain(|name, value| !value.is_object() && name != "backing");
        options.insert("driver".to_owned(), json!(self.drv));
        Ok(options)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, driver: &str, filename: &str) -> Node {
        let node = json!({
            "node-name": name, "drv": driver, "ro": name == "read-only", "detect_zeroes": "unmap",
            "cache": { "direct": true, "no-flush": false, "writeback": true },
            "image": { "filename": filename, "virtual-size": 1024 }
        });
        serde_json::from_value(node).unwrap()
    }

    /// What 7.2, 10.0 and 11.1 tell of nodes that were added with options of their own.
    #[test]
    fn a_node_is_made_again_by_what_is_told_of_it() {
        let json = r#"json:{"offset": 512, "driver": "raw", "size": 1024, "file": {"driver": "file", "filename": "disk"}}"#;
        let mut overlay = node("top", "qcow2", "snapshot");
        overlay.image.backing_filename = Some("disk".to_owned());
        let nodes = [node("a", "raw", json), node("#block032", "file", "disk"), overlay];
        let mut edges = Edges::from([("a".to_owned(), vec![("file".to_owned(), "#block032".to_owned())])]);
        edges.insert("top".to_owned(), vec![("file".to_owned(), "#block032".to_owned())]);
        let options = |node: &Node| node.options(&nodes, &edges, &mut Vec::new()).map(Value::Object);
        let same = json!({ "direct": true, "no-flush": false });
        assert_eq!(
            options(&nodes[0]),
            Ok(json!({
                "driver": "raw", "node-name": "a", "offset": 512, "size": 1024, "cache": same, "detect-zeroes": "unmap",
                "file": { "driver": "file", "filename": "disk", "cache": same, "detect-zeroes": "unmap" }
            }))
        );
        assert_eq!(
            options(&nodes[2]).unwrap()["backing"],
            Value::Null,
            "opened without what its header says"
        );
        let null =
            options(&node("read-only", "null-co", r#"json:{"read-zeroes": true, "driver": "null-co"}"#));
        assert_eq!(null.as_ref().unwrap()["size"], 1024);
        assert_eq!(null.unwrap()["read-only"], true);
        assert_eq!(options(&node("t", "throttle", "disk")), Err(NodeError::Driver("throttle".to_owned())));
        let mut secret = node("s", "qcow2", "disk");
        secret.encrypted = true;
        assert_eq!(options(&secret), Err(NodeError::Encrypted));
    }

    #[test]
    fn limits_are_said_where_there_are_some() {
        let inserted = |bps: u64| -> Inserted {
            let inserted = json!({
                "node-name": "n", "file": "disk", "drv": "raw", "ro": false, "bps": bps, "bps_rd": 0, "bps_max": 7, "iops": 0
            });
            serde_json::from_value(inserted).unwrap()
        };
        let zeroes = json!({ "bps": 0, "bps_rd": 0, "bps_wr": 0, "iops": 0, "iops_rd": 0, "iops_wr": 0 });
        let mut some = zeroes.clone();
        some["bps"] = json!(5);
        some["bps_max"] = json!(7);
        assert_eq!(Value::Object(inserted(5).limits(StartsWith::NoLimits)), some);
        assert_eq!(Value::Object(inserted(0).limits(StartsWith::NoLimits)), json!({}));
        assert_eq!(Value::Object(inserted(0).limits(StartsWith::Limits)), zeroes);
    }
}
