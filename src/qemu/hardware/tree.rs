//! The tree of devices, from `info qtree`.
//!
//! ```text
//! bus: main-system-bus
//!   type System
//!   dev: i440FX-pcihost, id ""
//!     bus: pci.0
//!       type PCI
//!       dev: virtio-net-pci, id "net0"
//!         vectors = 3 (0x3)
//!         addr = 03.0
//!         class Ethernet controller, addr 00:03.0, pci id 1af4:1000 (sub 1af4:0001)
//!         bus: virtio-bus
//!           type virtio-pci-bus
//!           dev: virtio-net-device, id ""
//!             mac = "52:54:00:12:34:56"
//! ```
//!
//! A device is known by its place: the devices and buses above it, what it is, and its address, or its number among
//! its like where it has none. Ids are the user's and may differ (run on 7.2 and 11.1), and so do the names of buses,
//! which come from ids.

use std::collections::{BTreeMap, BTreeSet};

use super::Difference;

/// Properties that say where a device is on its bus: PCI, USB, virtio-serial, SCSI, IDE; every version tells them. The
/// `iobase` of ISA is not among them: 5.2 does not tell that of its clock, and 7.2 does.
const ADDRESSES: [&str; 7] = ["addr", "port", "nr", "channel", "scsi-id", "lun", "unit"];

/// Properties that belong to the host, or that the guest cannot tell: each side may have its own.
///
/// `rombar` is 1 up to 9.x and -1 from 10.0 on, for the same default; `xres` and `yres` are hints for the guest's next
/// boot (5.2 and 7.2 have others); `busnr` is what the guest's firmware has set (10.0); the geometry of a disk is guessed
/// anew from its size and its partitions at each start.
const FREE: [&str; 37] = [
    "acpi-index",
    "audiodev",
    "bios-chs-trans",
    "bus",
    "busnr",
    "chardev",
    "cryptodev",
    "cyls",
    "display",
    "drive",
    "failover_pair_id",
    "fd",
    "fsdev",
    "heads",
    "host",
    "hostaddr",
    "hostbus",
    "hostport",
    "iommufd",
    "iothread",
    "iothread-vq-mapping",
    "netdev",
    "pcap",
    "refx",
    "rerror",
    "rng",
    "rombar",
    "romfile",
    "secs",
    "stats-intervals",
    "sysfsdev",
    "tpmdev",
    "vf-token",
    "vhostfd",
    "werror",
    "xres",
    "yres",
];

/// One device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// The place of its bus.
    below: String,
    kind: String,
    id: String,
    bus: String,
    /// Whether it is part of the board itself, of which QEMU's versions tell more or less.
    is_of_board: bool,
    properties: BTreeMap<String, String>,
}

impl Device {
    fn address(&self) -> String {
        let told =
            ADDRESSES.iter().filter_map(|name| Some(format!("{name} {}", self.properties.get(*name)?)));
        told.collect::<Vec<_>>().join(" ")
    }

    /// Its place, which no other device has that is not just like it.
    fn place(&self) -> String {
        format!("{}/{}@{}", self.below, self.kind, self.address())
    }

    /// Whether it is of one of these kinds, or part of one that is.
    fn is_of(&self, kinds: &BTreeSet<String>) -> bool {
        let above = self.below.split('/').filter_map(|part| part.split_once('@')).map(|(kind, _)| kind);
        above.chain([self.kind.as_str()]).any(|kind| kinds.contains(kind))
    }

    /// Whether it is of this kind.
    pub(in crate::qemu) fn is_kind(&self, kind: &str) -> bool {
        self.kind == kind
    }

    /// Whether this is its id; an empty one where it has none.
    pub(in crate::qemu) fn has_id(&self, id: &str) -> bool {
        self.id == id
    }

    /// The name of its bus.
    pub(in crate::qemu) fn bus_name(&self) -> &str {
        &self.bus
    }

    /// The port of USB that it has.
    pub(in crate::qemu) fn port(&self) -> Option<&str> {
        self.properties.get("port").map(String::as_str)
    }

    /// A property that is a text, if there is any in it.
    pub(in crate::qemu) fn text(&self, name: &str) -> Option<&str> {
        let text = self.properties.get(name)?.strip_prefix('"')?.strip_suffix('"')?;
        (!text.is_empty()).then_some(text)
    }

    /// How people call it.
    fn name(&self) -> String {
        let address = self.address();
        let at = if address.is_empty() { String::new() } else { format!(" at {address}") };
        let id = if self.id.is_empty() { String::new() } else { format!(" (id \"{}\")", self.id) };
        format!("{}{at} on {}{id}", self.kind, self.bus)
    }
}

/// A line that others stand below.
struct Above {
    indent: usize,
    what: Branch,
}

enum Branch {
    Bus { place: String, name: String, is_system: bool },
    Device { number: usize, buses: usize },
}

/// Reads the answer; lines of another form are left out.
pub(in crate::qemu) fn parse(text: &str) -> Vec<Device> {
    let mut devices: Vec<Device> = Vec::new();
    let mut above: Vec<Above> = Vec::new();
    for line in text.lines() {
        let content = line.trim_start();
        let indent = line.len() - content.len();
        while above.last().is_some_and(|above| above.indent >= indent) {
            above.pop();
        }
        let parent = above.last_mut().map(|above| &mut above.what);
        let what = if let Some(name) = content.strip_prefix("bus: ") {
            let place = match parent {
                // All that a device says of itself comes before its buses: its address is known.
                Some(Branch::Device { number, buses }) => {
                    *buses += 1;
                    devices.get(*number).map_or(String::new(), |device| format!("{}/{buses}", device.place()))
                }
                _ => String::new(),
            };
            Branch::Bus { place, name: name.to_owned(), is_system: false }
        } else if let (Some((kind, id)), Some(Branch::Bus { place, name, is_system })) =
            (device(content), &parent)
        {
            devices.push(Device {
                below: place.clone(),
                kind: kind.to_owned(),
                id: id.to_owned(),
                bus: name.clone(),
                is_of_board: *is_system,
                properties: BTreeMap::new(),
            });
            Branch::Device { number: devices.len() - 1, buses: 0 }
        } else {
            match (parent, content.split_once(" = ")) {
                (Some(Branch::Device { number, .. }), Some((name, value))) => {
                    if let Some(device) = devices.get_mut(*number) {
                        device.properties.insert(name.to_owned(), value.to_owned());
                    }
                }
                (Some(Branch::Device { number, .. }), None) => {
                    if let (Some(device), Some(port)) = (devices.get_mut(*number), usb_port(content)) {
                        device.properties.insert("port".to_owned(), port.to_owned());
                    }
                }
                (Some(Branch::Bus { is_system, .. }), None) if content == "type System" => *is_system = true,
                _ => {}
            }
            continue;
        };
        above.push(Above { indent, what });
    }
    devices
}

/// `dev: virtio-net-pci, id "net0"`
fn device(content: &str) -> Option<(&str, &str)> {
    let (kind, id) = content.strip_prefix("dev: ")?.split_once(", id ")?;
    Some((kind, id.trim_matches('"')))
}

/// `addr 0.1, port 1, speed 480, name QEMU USB Tablet`: the property is empty where the user has named no port.
fn usb_port(content: &str) -> Option<&str> {
    content.strip_prefix("addr ")?.split_once(", port ")?.1.split(',').next()
}

/// Devices by their places; those that are just alike are counted.
fn placed(devices: &[Device]) -> BTreeMap<(String, usize), &Device> {
    let mut alike: BTreeMap<String, usize> = BTreeMap::new();
    let place = |device: &Device| {
        let place = device.place();
        let number = alike.entry(place.clone()).or_default();
        *number += 1;
        (place, *number)
    };
    devices.iter().map(place).zip(devices).collect()
}

/// What one of the two has and the other has not, and properties in which the user's own devices differ, which are of
/// these kinds. Among those of the board are some that the guest sets (`smb_io_base` of `PIIX4_PM`, run on 7.2 to 11.1).
pub(super) fn differences(
    source: &[Device],
    destination: &[Device],
    users: &BTreeSet<String>,
) -> Vec<Difference> {
    if source.is_empty() || destination.is_empty() {
        return Vec::new();
    }
    let (here, there) = (placed(source), placed(destination));
    let mut found = Vec::new();
    for (place, device) in here.iter().filter(|(_, device)| !device.is_of_board) {
        match there.get(place) {
            // What hangs below it is missing with it.
            None if is_below_a_missing_one(place, &here, &there) => {}
            None => found.push(Difference::Missing(device.name())),
            Some(other) if device.is_of(users) => found.extend(properties(device, other)),
            Some(_) => {}
        }
    }
    let extra = there.iter().filter(|(place, device)| {
        !device.is_of_board && !here.contains_key(*place) && !is_below_a_missing_one(place, &there, &here)
    });
    found.extend(extra.map(|(_, device)| Difference::Extra(device.name())));
    found
}

/// Whether a device hangs on one of `here` that is not `there`.
fn is_below_a_missing_one(
    (place, _): &(String, usize),
    here: &BTreeMap<(String, usize), &Device>,
    there: &BTreeMap<(String, usize), &Device>,
) -> bool {
    here.keys().any(|key| {
        let (above, _) = key;
        place.strip_prefix(above.as_str()).is_some_and(|rest| rest.starts_with('/'))
            && !there.contains_key(key)
    })
}

fn properties(source: &Device, destination: &Device) -> Vec<Difference> {
    let free: BTreeSet<&str> = FREE.into_iter().collect();
    let differs = |(name, here): (&String, &String)| {
        let there = destination.properties.get(name).filter(|there| *there != here)?;
        (!free.contains(name.as_str())).then(|| Difference::Value {
            what: format!("'{name}' of {}", source.name()),
            source: here.clone(),
            destination: there.clone(),
        })
    };
    source.properties.iter().filter_map(differs).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TREE: &str = "bus: main-system-bus
  type System
  dev: ps2-mouse, id \"\"
    gpio-out \"\" 1
  dev: i440FX-pcihost, id \"\"
    pci-hole64-size = 2147483648 (2 GiB)
    bus: pci.0
      type PCI
      dev: nec-usb-xhci, id \"x\"
        p2 = 4 (0x4)
        addr = 05.0
        class USB controller, addr 00:05.0, pci id 1033:0194 (sub 1af4:1100)
        bar 0: mem at 0xffffffffffffffff [0x3ffe]
        bus: x.0
          type usb-bus
          dev: usb-tablet, id \"\"
            port = \"\"
            usb_version = 2 (0x2)
            addr 0.1, port 1, speed 480, name QEMU USB Tablet
      dev: virtio-net-pci, id \"\"
        vectors = 3 (0x3)
        rombar = 1 (0x1)
        addr = 03.0
        bus: virtio-bus
          type virtio-pci-bus
          dev: virtio-net-device, id \"\"
            mac = \"52:54:00:12:34:56\"
            netdev = \"n0\"
      dev: isa-serial, id \"\"
      dev: isa-serial, id \"\"
";

    fn users() -> BTreeSet<String> {
        ["virtio-net-pci", "nec-usb-xhci"].map(str::to_owned).into()
    }

    fn but(changes: &[(&str, &str)]) -> Vec<String> {
        let other = changes.iter().fold(TREE.to_owned(), |tree, (from, to)| {
            assert!(tree.contains(from), "{from}");
            tree.replacen(from, to, 1)
        });
        differences(&parse(TREE), &parse(&other), &users()).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn devices_are_read_with_their_places_and_properties() {
        let devices = parse(TREE);
        assert_eq!(devices.len(), 8);
        let tablet = devices.iter().find(|device| device.kind == "usb-tablet").unwrap();
        assert_eq!(tablet.place(), "/i440FX-pcihost@/1/nec-usb-xhci@addr 05.0/1/usb-tablet@port 1");
        assert_eq!(tablet.name(), "usb-tablet at port 1 on x.0");
        assert_eq!(tablet.properties["usb_version"], "2 (0x2)");
        assert_eq!(parse("nothing of this form\n  at = all\n"), []);
    }

    #[test]
    fn what_belongs_to_the_host_or_to_the_board_may_differ() {
        let free = [
            ("rombar = 1 (0x1)", "rombar = -1 (0xffffffffffffffff)"),
            ("\"n0\"", "\"n7\""),
            ("id \"x\"", "id \"y\""),
            ("bus: x.0", "bus: y.0"),
            ("  dev: ps2-mouse, id \"\"\n", ""),
            ("        p2 = 4 (0x4)\n", ""),
            ("pci-hole64-size = 2147483648 (2 GiB)", "pci-hole64-size = 1 (1 B)"),
        ];
        assert_eq!(but(&free), [] as [&str; 0]);
        assert_eq!(differences(&parse(TREE), &[], &users()), [], "one that does not tell");
    }

    #[test]
    fn a_device_too_few_or_too_many_is_named_once_with_its_place() {
        let controller = TREE.find("      dev: nec-usb-xhci").unwrap();
        let network = TREE.find("      dev: virtio-net-pci").unwrap();
        let without = format!("{}{}", &TREE[..controller], &TREE[network..]);
        let (all, less) = (parse(TREE), parse(&without));
        let texts = |found: Vec<Difference>| found.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(
            texts(differences(&all, &less, &users())),
            ["the destination has no nec-usb-xhci at addr 05.0 on pci.0 (id \"x\")"]
        );
        assert_eq!(
            texts(differences(&less, &all, &users())),
            ["the source has no nec-usb-xhci at addr 05.0 on pci.0 (id \"x\"), and the destination has"]
        );
        assert_eq!(
            but(&[("      dev: isa-serial, id \"\"\n", "")]),
            ["the destination has no isa-serial on pci.0"],
            "of two that are alike"
        );
    }

    #[test]
    fn a_property_that_both_tell_is_compared() {
        assert_eq!(
            but(&[("vectors = 3 (0x3)", "vectors = 9 (0x9)")]),
            [
                "'vectors' of virtio-net-pci at addr 03.0 on pci.0 is 3 (0x3) on the source and 9 (0x9) on the destination"
            ]
        );
        assert_eq!(
            but(&[("addr = 03.0", "addr = 04.0")]),
            [
                "the destination has no virtio-net-pci at addr 03.0 on pci.0",
                "the source has no virtio-net-pci at addr 04.0 on pci.0, and the destination has"
            ]
        );
    }
}
