//! Which properties of a device are to be said when it is plugged in again.
//!
//! A property is said when its value is not the default of its kind. Many are of what `auto` has become (`vectors`,
//! `disable-legacy`, `num-queues`, the geometry of a disk): said as they are, they give the same device, also where
//! another version would choose otherwise. Those without a default are said by their type (asked of 7.2, 10.0, 11.1):
//! text when there is some, links when they lead to something of its own. `romfile` is said empty too: that is how a card
//! is given no ROM.

use serde::Deserialize;
use serde_json::{Value, json};

/// Numbers without a default that the user sets: of memory devices.
const SET_BY_USERS: [&str; 3] = ["block-size", "label-size", "requested-size"];

/// Properties that say where a device is, and that QEMU fills in by itself in the order of the devices.
pub(super) const PLACES: [&str; 8] = ["addr", "channel", "lun", "nr", "port", "scsi-id", "slot", "unit"];

/// What is to be said of a device of this kind so that it is where it is.
pub(super) fn place(kind: &str, name: &str, value: Option<&Value>) -> Option<Value> {
    let is_memory = matches!(kind, "pc-dimm" | "nvdimm");
    match (name, value?) {
        ("addr", Value::Number(number)) if !is_memory => slot(number.as_u64()?),
        // A port of PCI Express has a number and a slot that are something else.
        ("port", value) => value.is_string().then(|| value.clone()),
        ("slot", _) if !is_memory => None,
        (_, value) => Some(value.clone()),
    }
}

/// A place on a PCI bus, as `02.0`.
fn slot(number: u64) -> Option<Value> {
    (number < 256).then(|| json!(format!("{:02x}.{:x}", number >> 3, number & 7)))
}

/// A property, as `device-list-properties` tells of it.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Property {
    pub name: String,
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    default_value: Option<Value>,
}

impl Property {
    /// What is to be said of it for the device at this path, if anything.
    pub(super) fn stated(&self, value: &Value, path: &str) -> Option<Value> {
        let is_link = self.kind.starts_with("link<");
        if self.kind.starts_with("child<") || self.kind == "busnr" {
            return None;
        }
        match (value, self.name.as_str()) {
            // The slot of PCI: 7.2 takes a bare number for a slot in hexadecimal digits.
            (Value::Number(number), "addr") if matches!(self.kind.as_str(), "str" | "int32") => {
                slot(number.as_u64()?)
            }
            // Filled in by the place that the device really has.
            (Value::String(_), "port") if self.kind == "str" => Some(value.clone()),
            (Value::String(text), _) if is_link => {
                (!text.is_empty() && !text.starts_with(path)).then(|| value.clone())
            }
            (Value::String(text), name) if self.kind == "str" => {
                (!text.is_empty() || name == "romfile").then(|| value.clone())
            }
            (Value::Array(list), _) => {
                (!list.is_empty() && self.default_value.as_ref() != Some(value)).then(|| value.clone())
            }
            (_, "bootindex") => (value.as_i64() != Some(-1)).then(|| value.clone()),
            (Value::Number(_), name) if self.default_value.is_none() => {
                (SET_BY_USERS.contains(&name) && value.as_u64() != Some(0)).then(|| value.clone())
            }
            _ => {
                let default = self.default_value.as_ref()?;
                (default != value).then(|| value.clone())
            }
        }
    }
}

/// A key that puts `device[10]` behind `device[9]`.
pub(super) fn natural(path: &str) -> (String, u64) {
    match path.split_once('[') {
        Some((name, number)) => (name.to_owned(), number.trim_end_matches(']').parse().unwrap_or(0)),
        None => (path.to_owned(), 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stated(property: &Value, value: &Value) -> Option<Value> {
        let property: Property = serde_json::from_value(property.clone()).unwrap();
        property.stated(value, "/machine/peripheral/d")
    }

    /// As 10.0 tells of a plugged virtio disk, a network card, a DIMM and a tablet.
    #[test]
    fn a_property_is_said_where_it_is_not_the_default() {
        for (property, value, expected) in [
            (
                json!({"name": "vectors", "type": "uint32", "default-value": 4_294_967_295_u64}),
                json!(2),
                Some(json!(2)),
            ),
            (json!({"name": "ats", "type": "bool", "default-value": false}), json!(false), None),
            (
                json!({"name": "disable-legacy", "type": "OnOffAuto", "default-value": "auto"}),
                json!("on"),
                Some(json!("on")),
            ),
            (json!({"name": "addr", "type": "str", "default-value": -1}), json!(58), Some(json!("07.2"))),
            (json!({"name": "addr", "type": "int32", "default-value": -1}), json!(16), Some(json!("02.0"))),
            (
                json!({"name": "addr", "type": "uint64", "default-value": 0}),
                json!(4_294_967_296_u64),
                Some(json!(4_294_967_296_u64)),
            ),
            (json!({"name": "busnr", "type": "busnr"}), json!(1), None),
            (json!({"name": "bootindex", "type": "int32"}), json!(-1), None),
            (json!({"name": "bootindex", "type": "int32"}), json!(3), Some(json!(3))),
            (json!({"name": "serial", "type": "str"}), json!(""), None),
            (json!({"name": "serial", "type": "str"}), json!("abc"), Some(json!("abc"))),
            (json!({"name": "romfile", "type": "str"}), json!(""), Some(json!(""))),
            (
                json!({"name": "iothread", "type": "link<iothread>"}),
                json!("/objects/io1"),
                Some(json!("/objects/io1")),
            ),
            (
                json!({"name": "rng", "type": "link<rng-backend>"}),
                json!("/machine/peripheral/d/default-backend"),
                None,
            ),
            (
                json!({"name": "virtio-backend", "type": "child<virtio-blk-device>"}),
                json!("/machine/peripheral/d/virtio-backend"),
                None,
            ),
            (json!({"name": "iothread-vq-mapping", "type": "IOThreadVirtQueueMappingList"}), json!([]), None),
            (json!({"name": "size", "type": "uint64"}), json!(1024), None),
            (json!({"name": "attached", "type": "bool"}), json!(true), None),
        ] {
            assert_eq!(stated(&property, &value), expected, "{property}");
        }
    }
}
