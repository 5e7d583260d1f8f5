//! The options of QEMU: which take a value, how it is written, and what a repeated one means.
//!
//! The names and whether they take a value were asked of 5.2, 7.2, 10.0 and 11.1 (`tests/it` asks them again); none of
//! them ever changed from the one to the other. An option that is not in the table is taken to have a value, as all
//! options of QEMU that carry anything do.

/// How the value of an option is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// It has none.
    Alone,
    /// Text in which a comma is a comma.
    Text,
    /// `first,key=value`; the first part belongs to this key where it has none of its own.
    Pairs {
        /// The key of a first part without one.
        implied: Option<&'static str>,
    },
    /// As [`Form::Pairs`], or a JSON object.
    PairsOrJson {
        /// The key of a first part without one.
        implied: Option<&'static str>,
    },
    /// Text, or a JSON object.
    TextOrJson,
    /// A processor, `model,+feature,-feature,key=value`.
    Cpu,
    /// A character device in its short form: `unix:/path,server=on`, `mon:stdio`, `chardev:id`.
    CharacterDevice,
}

/// What it means when an option stands more than once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Repeated {
    /// Each is a thing of its own.
    Each,
    /// All are one, and of a key given twice the last one counts (run on 5.2 to 11.1: `-machine`, `-m`, `-smp`, `-name`).
    Merged,
    /// Only the last one counts.
    Last,
}

/// On which of the versions that were asked an option is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Versions {
    first: Asked,
    last: Asked,
}

/// The versions that were asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Asked {
    /// 5.2.
    V5_2,
    /// 7.2.
    V7_2,
    /// 10.0.
    V10_0,
    /// 11.1.
    V11_1,
}

impl Versions {
    /// Whether it is on this one.
    pub fn has(self, version: Asked) -> bool {
        self.first <= version && version <= self.last
    }
}

/// One option.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OptionFacts {
    /// Its name without dashes.
    pub name: &'static str,
    /// How its value is written.
    pub form: Form,
    /// What it means more than once.
    pub repeated: Repeated,
    /// Where it is; nowhere for a distribution's own.
    pub versions: Option<Versions>,
}

impl OptionFacts {
    const fn new(name: &'static str, form: Form, repeated: Repeated) -> Self {
        let versions = Some(Versions { first: Asked::V5_2, last: Asked::V11_1 });
        Self { name, form, repeated, versions }
    }

    const fn from(mut self, first: Asked) -> Self {
        self.versions = Some(Versions { first, last: Asked::V11_1 });
        self
    }

    const fn until(mut self, last: Asked) -> Self {
        self.versions = Some(Versions { first: Asked::V5_2, last });
        self
    }

    const fn only(mut self, version: Asked) -> Self {
        self.versions = Some(Versions { first: version, last: version });
        self
    }

    const fn not_upstream(mut self) -> Self {
        self.versions = None;
        self
    }
}

const fn alone(name: &'static str) -> OptionFacts {
    OptionFacts::new(name, Form::Alone, Repeated::Last)
}

const fn text(name: &'static str) -> OptionFacts {
    OptionFacts::new(name, Form::Text, Repeated::Last)
}

const fn each_text(name: &'static str) -> OptionFacts {
    OptionFacts::new(name, Form::Text, Repeated::Each)
}

const fn device(name: &'static str) -> OptionFacts {
    OptionFacts::new(name, Form::CharacterDevice, Repeated::Each)
}

const fn pairs(name: &'static str) -> OptionFacts {
    OptionFacts::new(name, Form::Pairs { implied: None }, Repeated::Each)
}

const fn pairs_with(name: &'static str, implied: &'static str) -> OptionFacts {
    OptionFacts::new(name, Form::Pairs { implied: Some(implied) }, Repeated::Each)
}

const fn merged(name: &'static str) -> OptionFacts {
    OptionFacts::new(name, Form::Pairs { implied: None }, Repeated::Merged)
}

const fn merged_with(name: &'static str, implied: &'static str) -> OptionFacts {
    OptionFacts::new(name, Form::Pairs { implied: Some(implied) }, Repeated::Merged)
}

const fn json_with(name: &'static str, implied: &'static str) -> OptionFacts {
    OptionFacts::new(name, Form::PairsOrJson { implied: Some(implied) }, Repeated::Each)
}

/// The facts of an option, by its name without dashes.
pub fn facts(name: &str) -> Option<&'static OptionFacts> {
    OPTIONS.iter().find(|facts| facts.name == name)
}

/// The form of an option's value; an option that nobody knows has text.
pub fn form(name: &str) -> Form {
    facts(name).map_or(Form::Text, |facts| facts.form)
}

/// Whether an option takes the next word as its value.
pub(in crate::qemu) fn takes_value(name: &str) -> bool {
    form(name) != Form::Alone
}

/// Every option that one of the versions has.
///
/// JSON was tried with each option that has a schema: `-blockdev`, `-audiodev` and `-display` take it on all four,
/// `-device`, `-object`, `-netdev` and `-compat` on 7.2 but not on 5.2, `-incoming` (a channel) from 10.0 on. For all
/// others, `-machine`, `-smp`, `-numa`, `-chardev`, `-drive` and `-nic` among them, a brace is plain text.
pub const OPTIONS: &[OptionFacts] = &[
    alone("S"),
    alone("alt-grab").until(Asked::V5_2),
    alone("async-teardown").only(Asked::V7_2),
    alone("audio-help").until(Asked::V7_2),
    alone("ctrl-grab").until(Asked::V5_2),
    alone("curses").until(Asked::V5_2),
    alone("daemonize"),
    alone("enable-fips").until(Asked::V5_2),
    alone("enable-kvm"),
    alone("enable-sync-profile"),
    alone("full-screen"),
    alone("h"),
    alone("help"),
    alone("jitdump").from(Asked::V10_0),
    alone("mem-prealloc"),
    alone("no-acpi").until(Asked::V7_2),
    alone("no-fd-bootchk"),
    alone("no-hpet").until(Asked::V7_2),
    alone("no-quit").until(Asked::V5_2),
    alone("no-reboot"),
    alone("no-shutdown"),
    alone("no-user-config"),
    alone("nodefaults"),
    alone("nographic"),
    alone("old-param").until(Asked::V10_0),
    alone("only-migratable"),
    alone("perfmap").from(Asked::V10_0),
    alone("portrait").until(Asked::V7_2),
    alone("preconfig"),
    alone("s"),
    alone("sdl").until(Asked::V5_2),
    alone("semihosting"),
    alone("show-cursor").until(Asked::V5_2),
    alone("singlestep").until(Asked::V7_2),
    alone("snapshot"),
    alone("usb"),
    alone("version"),
    alone("win2k-hack"),
    alone("xen-attach"),
    alone("xen-domid-restrict"),
    text("D"),
    each_text("L"),
    text("append"),
    text("bios"),
    each_text("cdrom"),
    text("chroot").until(Asked::V7_2),
    text("d"),
    text("dfilter"),
    text("dtb"),
    text("dump-vmstate"),
    text("echr"),
    each_text("fda"),
    each_text("fdb"),
    text("g"),
    each_text("global"),
    each_text("hda"),
    each_text("hdb"),
    each_text("hdc"),
    each_text("hdd"),
    text("initrd"),
    text("k"),
    text("kernel"),
    text("loadvm"),
    text("mem-path"),
    each_text("mtdblock"),
    each_text("pflash"),
    text("pidfile"),
    each_text("prom-env"),
    text("qtest"),
    text("qtest-log"),
    each_text("readconfig"),
    text("rotate").until(Asked::V7_2),
    text("runas").until(Asked::V7_2),
    each_text("sd"),
    text("seed"),
    each_text("set"),
    text("shim").from(Asked::V10_0),
    text("soundhw").until(Asked::V5_2),
    text("tb-size").until(Asked::V5_2),
    each_text("usbdevice"),
    text("uuid"),
    text("vga"),
    text("watchdog").until(Asked::V5_2),
    text("watchdog-action"),
    text("writeconfig").until(Asked::V5_2),
    text("xen-domid"),
    // The number of a guest, in Proxmox's QEMU.
    text("id").not_upstream(),
    OptionFacts::new("incoming", Form::TextOrJson, Repeated::Last),
    OptionFacts::new("cpu", Form::Cpu, Repeated::Last),
    device("debugcon"),
    device("gdb"),
    device("monitor"),
    device("parallel"),
    device("qmp"),
    device("qmp-pretty"),
    device("serial"),
    merged_with("M", "type"),
    merged_with("machine", "type"),
    merged_with("m", "size"),
    merged_with("smp", "cpus"),
    merged_with("boot", "order"),
    merged_with("name", "guest"),
    merged_with("icount", "shift"),
    merged("rtc"),
    merged("spice"),
    merged("action").from(Asked::V7_2),
    merged_with("semihosting-config", "enable"),
    pairs_with("accel", "accel"),
    pairs("acpitable"),
    pairs("add-fd"),
    pairs_with("audio", "driver").from(Asked::V7_2),
    pairs_with("chardev", "backend"),
    pairs("drive"),
    pairs_with("fsdev", "fsdriver"),
    pairs_with("fw_cfg", "name"),
    pairs("iscsi"),
    pairs_with("mon", "chardev"),
    pairs("msg"),
    pairs_with("net", "type"),
    pairs_with("nic", "type"),
    pairs_with("numa", "type"),
    pairs_with("option-rom", "romfile"),
    pairs("overcommit"),
    pairs_with("plugin", "file"),
    pairs("realtime").until(Asked::V5_2),
    pairs("run-with").from(Asked::V10_0),
    pairs_with("sandbox", "enable"),
    pairs("smbios"),
    pairs_with("tpmdev", "type"),
    pairs_with("trace", "enable"),
    pairs_with("virtfs", "fsdriver"),
    pairs_with("vnc", "vnc"),
    json_with("audiodev", "driver"),
    json_with("blockdev", "driver"),
    json_with("device", "driver"),
    json_with("netdev", "type"),
    json_with("object", "qom-type"),
    OptionFacts::new("display", Form::PairsOrJson { implied: Some("type") }, Repeated::Last),
    OptionFacts::new("compat", Form::PairsOrJson { implied: None }, Repeated::Merged).from(Asked::V7_2),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_option_stands_once() {
        for (index, facts) in OPTIONS.iter().enumerate() {
            assert!(OPTIONS.iter().skip(index + 1).all(|other| other.name != facts.name), "{}", facts.name);
        }
    }
}
