//! What stands on a command line, and what is to be taken off it.

use serde_json::Value;

use crate::qemu::argv::{CommandLine, CommandOption, Scalar};
use crate::qemu::present::Device;
use crate::qemu::present::blocks::StartsWith;

/// A `-device`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LineDevice {
    /// Which option it is.
    pub(super) place: usize,
    pub(super) driver: String,
    pub(super) id: Option<String>,
}

/// Kinds that go by another name on the command line, beside those of virtio.
const ALIASES: [(&str, &str); 3] = [("ahci", "ich9-ahci"), ("lsi", "lsi53c895a"), ("e1000-82540em", "e1000")];

impl LineDevice {
    /// Whether it makes a device of this kind: `virtio-net` is `virtio-net-pci`.
    pub(super) fn is_kind(&self, kind: &str) -> bool {
        self.driver == kind
            || kind.strip_suffix("-pci") == Some(&self.driver)
            || self.driver.eq_ignore_ascii_case(kind)
            || ALIASES.contains(&(self.driver.as_str(), kind))
    }
}

/// All `-device`, in the order in which QEMU makes them: those in JSON come last. One that QEMU hides until its partner
/// is there (`failover_pair_id`) is not among them.
pub(super) fn devices(line: &CommandLine) -> Vec<LineDevice> {
    let options = line.options.iter().enumerate().filter(|(_, option)| option.name == "device");
    let device = |(place, option): (usize, &CommandOption)| {
        let properties = option.properties()?;
        if properties.get("failover_pair_id").is_some() {
            return None;
        }
        let driver = properties.get("driver")?.to_owned();
        Some(LineDevice { place, driver, id: properties.get("id").map(str::to_owned) })
    };
    let (json, plain): (Vec<_>, Vec<_>) =
        options.partition(|(_, option)| option.value.as_deref().is_some_and(|value| value.starts_with('{')));
    plain.into_iter().chain(json).filter_map(device).collect()
}

/// Says where a device is, as far as its option does not say it.
pub(super) fn pin(line: &mut CommandLine, place: usize, device: &Device) {
    let Some(option) = line.options.get_mut(place) else { return };
    let Some(mut properties) = option.properties() else { return };
    let bus = device.bus_name().map(|bus| ("bus", Scalar::from(bus)));
    let rest = device.properties.iter().filter_map(|(name, value)| {
        let value = match value {
            Value::String(text) => Scalar::from(text.as_str()),
            value => Scalar::Number(value.as_i64()?.into()),
        };
        Some((name.as_str(), value))
    });
    for (name, value) in bus.into_iter().chain(rest) {
        if properties.get(name).is_none() && properties.set(name, value).is_err() {
            return;
        }
    }
    option.set_properties(&properties);
}

/// Where the `-device` with this id stands.
pub(super) fn device(line: &CommandLine, id: &str) -> Option<usize> {
    line.options.iter().position(|option| option.name == "device" && option.get("id").as_deref() == Some(id))
}

/// The id of a backend that stands for itself.
pub(super) fn backend(option: &CommandOption) -> Option<String> {
    match option.name.as_str() {
        "netdev" | "chardev" | "object" | "audiodev" | "fsdev" | "tpmdev" | "drive" => option.get("id"),
        "blockdev" => option.get("node-name"),
        _ => None,
    }
}

/// Whether this is a user network that stands for itself.
pub(super) fn is_user_network(option: &CommandOption) -> bool {
    option.name == "netdev" && option.get("type").as_deref() == Some("user")
}

/// Whether a network stands on the line, or is one that QEMU has named (`__org.qemu.` in 5.2, `#` later): those are the
/// line's, or those of nobody.
pub(super) fn has_network(line: &CommandLine, id: &str) -> bool {
    let is_it = |option: &CommandOption| {
        matches!(option.name.as_str(), "netdev" | "nic" | "net") && option.get("id").as_deref() == Some(id)
    };
    let is_named_by_qemu = ["#", "user.", "__org.qemu."].iter().any(|begin| id.starts_with(begin));
    is_named_by_qemu || line.options.iter().any(is_it)
}

/// Whether a backend stands on the line.
pub(super) fn has(line: &CommandLine, name: &str, id: &str) -> bool {
    line.options.iter().any(|option| option.name == name && backend(option).as_deref() == Some(id))
}

/// Whether the `-drive` with this id starts with limits.
pub(super) fn is_limited(line: &CommandLine, id: &str) -> StartsWith {
    let drive =
        line.options.iter().find(|option| option.name == "drive" && option.get("id").as_deref() == Some(id));
    let keys = drive.and_then(CommandOption::properties).map(|properties| properties.keys());
    let is_limit =
        |key: &String| key.starts_with("throttling.") || key.starts_with("bps") || key.starts_with("iops");
    if keys.is_some_and(|keys| keys.iter().any(is_limit)) { StartsWith::Limits } else { StartsWith::NoLimits }
}

/// Whether another option than the one at `place` names this id.
pub(super) fn names(line: &CommandLine, place: usize, id: &str) -> bool {
    let has = |text: &str| text.split([',', ':', '=', '"', ' ', '{', '}', '[', ']']).any(|word| word == id);
    let mut others = line.options.iter().enumerate().filter(|(other, _)| *other != place);
    others.any(|(_, option)| option.value.as_deref().is_some_and(has))
}

/// Takes options off it.
pub(super) fn remove(line: &mut CommandLine, places: &[usize]) {
    let mut place = 0;
    line.options.retain(|_| {
        place += 1;
        !places.contains(&(place - 1))
    });
}

/// How many processors a guest starts with, where it can have so many.
pub(super) fn processors(line: &CommandLine, possible: usize) -> usize {
    let said = |key| line.merged(&["smp"], key);
    match said("cpus").and_then(|text| text.parse().ok()) {
        Some(0) | None if line.has("smp") => possible,
        Some(number) => number,
        None => 1,
    }
}

/// Lets a guest start with fewer processors; says whether that could be written.
pub(super) fn set_processors(line: &mut CommandLine, number: usize, possible: usize) -> bool {
    let Some(option) = line.options.iter_mut().rev().find(|option| option.name == "smp") else {
        return false;
    };
    let Some(mut properties) = option.properties() else { return false };
    let set = [("cpus", number), ("maxcpus", possible)]
        .into_iter()
        .all(|(key, value)| properties.set(key, value.to_string().as_str()).is_ok());
    option.set_properties(&properties);
    set
}
