//! The rules: one row for each kind of option that a destination cannot simply copy.
//!
//! An option goes through all rows that are about it, from the first to the last, until one drops it.

use self::Act::{Change, Decide, Drop, Refuse};
use super::characters::{self, Device, device, is_the_engines};
use super::{RewriteError, Sharing, Work, changed, is_own_global, memory, network, resolved, terminal};
use crate::qemu::argv::CommandOption;

/// One row.
pub(super) struct Rule {
    /// The options that it is about; none for all of them.
    options: &'static [&'static str],
    /// Whether it is about this one of them.
    case: fn(&Work<'_>, &CommandOption) -> bool,
    /// What becomes of it.
    act: Act,
    /// What it is about, for people.
    told: Told,
}

/// What becomes of an option.
enum Act {
    /// It is left out.
    Drop,
    /// It stands in the way.
    Refuse(fn(&Work<'_>, &CommandOption) -> RewriteError),
    /// It becomes another one.
    Change(fn(&mut Work<'_>, CommandOption) -> CommandOption),
    /// One of these, by what it says.
    Decide(fn(&mut Work<'_>, CommandOption) -> Option<CommandOption>),
}

/// A row for people.
struct Told {
    option: &'static str,
    becomes: &'static str,
    why: &'static str,
}

/// All rules as a table in Markdown: the one of the module's documentation.
pub fn table() -> String {
    let row = |rule: &Rule| {
        let Told { option, becomes, why } = rule.told;
        format!("| {option} | {becomes} | {why} |\n")
    };
    let rows = RULES.iter().map(row);
    ["| option | on the destination | why |\n|---|---|---|\n".to_owned()].into_iter().chain(rows).collect()
}

impl Rule {
    /// Applies it, if it is about this option.
    pub(super) fn apply(&self, work: &mut Work<'_>, option: CommandOption) -> Option<CommandOption> {
        let is_about = self.options.is_empty() || self.options.contains(&option.name.as_str());
        if !is_about || !(self.case)(work, &option) {
            return Some(option);
        }
        match self.act {
            Drop => None,
            Refuse(error) => {
                let error = error(work, &option);
                work.errors.push(error);
                None
            }
            Change(change) => Some(change(work, option)),
            Decide(decide) => decide(work, option),
        }
    }
}

const fn told(option: &'static str, becomes: &'static str, why: &'static str) -> Told {
    Told { option, becomes, why }
}

type Case = fn(&Work<'_>, &CommandOption) -> bool;

const ALWAYS: Case = |_, _| true;

/// Character devices in both forms.
const CHARACTERS: &[&str] =
    &["chardev", "qmp", "qmp-pretty", "monitor", "serial", "parallel", "debugcon", "virtioconsole", "gdb"];
const NETWORKS: &[&str] = &["netdev", "nic", "net"];

const ANY: &[&str] = &[];

/// All rules.
pub(super) const RULES: &[Rule] = &[
    Rule {
        options: &["incoming", "loadvm", "daemonize", "preconfig", "writeconfig"],
        case: ALWAYS,
        act: Drop,
        told: told(
            "`-incoming`, its `-S`, `-loadvm`, `-daemonize`, `-preconfig`, `-writeconfig`",
            "dropped, then `-S -incoming` ours",
            "the destination waits, held, and is known by its process",
        ),
    },
    Rule {
        options: &["S"],
        case: ALWAYS,
        act: Decide(|work, option| {
            let is_the_guests = work.stops > 0;
            work.stops = work.stops.saturating_sub(1);
            is_the_guests.then_some(option)
        }),
        told: told("`-S` of the guest's own", "kept", "its template has it"),
    },
    Rule {
        options: &["snapshot"],
        case: ALWAYS,
        act: Refuse(|_, _| RewriteError::Snapshot("-snapshot".to_owned())),
        told: told("`-snapshot`", "refused", "the overlay is a private temporary file of the source"),
    },
    Rule {
        options: &["drive"],
        case: |_, option| option.properties().is_some_and(|properties| properties.is_on("snapshot")),
        act: Refuse(|_, option| {
            let shown = option.shown().unwrap_or_default();
            RewriteError::Snapshot(format!("-drive {shown}"))
        }),
        told: told("`-drive snapshot=on`", "refused", "the same"),
    },
    Rule {
        options: NETWORKS,
        case: |_, option| network::tap_descriptors(option).is_some(),
        act: Refuse(|_, option| {
            let netdev = option.get("id").unwrap_or_default();
            let descriptors = network::tap_descriptors(option).unwrap_or_default();
            RewriteError::TapDescriptors { netdev, descriptors }
        }),
        told: told("`tap` by `fd=`, `fds=`", "refused", "numbers mean nothing in another process"),
    },
    Rule {
        options: NETWORKS,
        case: |work, option| {
            work.setting.shared.network == Sharing::Same && network::interface(work, option).is_some()
        },
        act: Refuse(|work, option| {
            let interface = network::interface(work, option).unwrap_or_default();
            RewriteError::Tap { option: option.name.clone(), interface }
        }),
        told: told(
            "`tap` (or `af-xdp`, `netmap`) by `ifname=`",
            "refused on the same network, but for one by `--map`",
            "`Device or resource busy`: one process holds it",
        ),
    },
    Rule {
        options: NETWORKS,
        case: |_, option| option.get("ifname").is_some(),
        act: Change(network::without_vhost_descriptors),
        told: told("its `vhostfd=`, `vhostfds=`", "dropped", "QEMU opens the vhost device itself"),
    },
    Rule {
        options: ANY,
        case: |_, option| names_descriptor(option),
        act: Refuse(|_, option| {
            let shown = option.shown().unwrap_or_default();
            RewriteError::Descriptor(format!("-{} {shown}", option.name))
        }),
        told: told(
            "`-add-fd`, `fd=`, `fd:`, `/dev/fdset/`",
            "refused",
            "what was handed over as a descriptor has no name",
        ),
    },
    Rule {
        options: &["device", "netdev", "tpmdev"],
        case: |work, option| host_device(work, option).is_some(),
        act: Refuse(|work, option| {
            let address = host_device(work, option).unwrap_or_default();
            let user = format!("-{} {}", option.name, option.shown().unwrap_or_default());
            RewriteError::HostDevice { user, address }
        }),
        told: told(
            "`vfio-*`, `vhost-vdpa`, `tpmdev passthrough`",
            "refused, but for another device by `--map`",
            "a device of the host has one guest",
        ),
    },
    Rule {
        options: &["chardev"],
        case: |work, option| work.backend(option).is_some(),
        act: Refuse(|work, option| {
            let (path, user) = work.backend(option).unwrap_or_default();
            RewriteError::Backend { path, user }
        }),
        told: told(
            "the socket of a `vhost-user`, virtiofs or TPM backend",
            "refused on the same files, but for one by `--map`",
            "such a program serves one guest",
        ),
    },
    Rule {
        options: CHARACTERS,
        case: is_the_engines,
        act: Drop,
        told: told(
            "the QMP socket of an earlier move",
            "dropped, then one of this move",
            "it is in that move's directory",
        ),
    },
    Rule {
        options: CHARACTERS,
        case: |_, option| matches!(device(option), Device::UnixServer(_)),
        act: Change(characters::unix_server),
        told: told(
            "unix sockets that listen",
            "on the same files a name of its own, taken over later",
            "the destination unlinks and binds the path: the source's monitor is out of reach (run on 5.2 to 11.1)",
        ),
    },
    Rule {
        options: CHARACTERS,
        case: |_, option| device(option) == Device::TcpServer,
        act: Change(characters::tcp_server),
        told: told(
            "TCP sockets that listen, `-gdb`",
            "on the same network the next port that is free, told",
            "`Failed to find an available port: Address already in use`",
        ),
    },
    Rule {
        options: &["s"],
        case: ALWAYS,
        act: Change(network::debugger),
        told: told("`-s`", "as `-gdb tcp::1234`", "it is that"),
    },
    Rule {
        options: CHARACTERS,
        case: |_, option| device(option) == Device::Udp,
        act: Change(characters::udp),
        told: told("UDP with a port of its own", "the same", "the same"),
    },
    Rule {
        options: CHARACTERS,
        case: |_, option| matches!(device(option), Device::File(_)),
        act: Change(characters::file),
        told: told(
            "`file:` character devices",
            "the same file, `append=on`",
            "QEMU cuts the file to zero as it opens it",
        ),
    },
    Rule {
        options: &["chardev"],
        case: |_, option| option.get("logfile").is_some(),
        act: Change(|_, option| changed(option, "logappend", true)),
        told: told("`logfile=` of a character device", "the same file, `logappend=on`", "the same"),
    },
    Rule {
        options: CHARACTERS,
        case: |work, option| characters::pipe(work, option).is_some(),
        act: Refuse(|work, option| RewriteError::Pipe(characters::pipe(work, option).unwrap_or_default())),
        told: told(
            "`pipe:` character devices",
            "refused on the same files, but for one by `--map`",
            "each byte comes out once, at either of the two",
        ),
    },
    Rule {
        options: CHARACTERS,
        case: |_, option| device(option) == Device::Terminal,
        act: Change(terminal::device),
        told: told(
            "`stdio`, `mon:stdio`",
            "a unix socket, told with how to attach",
            "the terminal stays with the source",
        ),
    },
    Rule {
        options: CHARACTERS,
        case: |_, option| device(option) == Device::PseudoTerminal,
        act: Change(|work, option| {
            let title = characters::title(&option);
            work.warn(
                "pty",
                &format!("{title}: the destination has another pseudo terminal"),
                Some("`query-chardev` on its monitor names it"),
            );
            option
        }),
        told: told("`pty`", "kept, with a warning", "each QEMU gets a new one"),
    },
    Rule {
        options: &["nographic"],
        case: ALWAYS,
        act: Change(terminal::nographic),
        told: told(
            "`-nographic`",
            "`-display none`, `-machine graphics=off`, and a unix socket for what was on the terminal",
            "the terminal stays with the source",
        ),
    },
    Rule {
        options: &["display", "curses", "sdl"],
        case: |_, option| terminal::is_window(option),
        act: Change(terminal::display),
        told: told(
            "`-display gtk`, `sdl`, `curses`",
            "`-display none`, and VNC on a unix socket where nothing else shows the guest",
            "the window stays with the source",
        ),
    },
    Rule {
        options: &["vnc", "display"],
        case: |_, option| option.get("vnc").is_some(),
        act: Change(network::vnc),
        told: told("`-vnc`", "as other sockets", "a unix socket is stolen, a port is taken"),
    },
    Rule {
        options: &["spice"],
        case: ALWAYS,
        act: Change(network::spice),
        told: told("`-spice`", "as other sockets", "the same"),
    },
    Rule {
        options: NETWORKS,
        case: ALWAYS,
        act: Change(network::netdev),
        told: told(
            "`hostfwd=`; `socket`, `stream`, `dgram` that listen",
            "as other sockets",
            "`Could not set up host forwarding rule`; 7.2 starts a `stream` on a taken port without a word",
        ),
    },
    Rule {
        options: &["pidfile"],
        case: ALWAYS,
        act: Change(|work, option| {
            let own = work.own_name("pidfile", option.value.as_deref().unwrap_or_default().as_ref());
            option.having(own)
        }),
        told: told("`-pidfile`", "as unix sockets", "`Cannot lock pid file`"),
    },
    Rule {
        options: &["D", "qtest-log"],
        // QEMU puts its process number there.
        case: |_, option| !option.value.as_deref().unwrap_or_default().contains("%d"),
        act: Change(|work, option| {
            let own = work.own_log("the log", option.value.as_deref().unwrap_or_default());
            option.having(own)
        }),
        told: told("`-D`", "on the same files a log of its own", "both would write it"),
    },
    Rule {
        options: &["trace"],
        case: |_, option| option.get("file").is_some(),
        act: Change(|work, option| {
            let own = work.own_log("the trace", &option.get("file").unwrap_or_default());
            changed(option, "file", own)
        }),
        told: told("`-trace file=`", "a file of its own", "the same"),
    },
    Rule {
        options: &["object", "audiodev"],
        case: |_, option| recording(option).is_some(),
        act: Change(|work, option| {
            let Some((key, file)) = recording(&option) else { return option };
            let own = work.own_log("the recording", &file);
            changed(option, key, own)
        }),
        told: told(
            "`-object filter-dump`, `-audiodev wav`",
            "a file of its own",
            "QEMU cuts the file to zero as it opens it",
        ),
    },
    Rule {
        options: &["plugin", "qtest"],
        case: ALWAYS,
        act: Decide(|work, option| {
            let shown = option.shown().unwrap_or_default();
            let message = format!("-{} {shown} is not carried over: it watches one process", option.name);
            work.warn("not-carried-over", &message, None);
            None
        }),
        told: told(
            "`-plugin`, `-qtest`",
            "dropped, with a warning",
            "what they write and talk to is the source's",
        ),
    },
    Rule {
        options: &["object"],
        case: memory::is_shared_file,
        act: Decide(memory::in_place),
        told: told(
            "`memory-backend-file` with `share=on`",
            "on the same files left in its place (`x-ignore-shared` on both sides), or refused",
            "the destination would write stale pages into the running guest (proved on 10.0)",
        ),
    },
    Rule {
        options: &["machine", "M"],
        case: ALWAYS,
        act: Change(|work, option| {
            let value = option.value.unwrap_or_default();
            let value = work.setting.machine.map_or(value.clone(), |machine| resolved(&value, machine));
            CommandOption::with_value("machine", value)
        }),
        told: told(
            "`-machine pc`, `q35` or none",
            "the versioned type that the source has",
            "aliases differ between QEMUs",
        ),
    },
    Rule {
        options: &["runas"],
        case: ALWAYS,
        act: Drop,
        told: told(
            "`-runas`, `-run-with user=`",
            "dropped",
            "the destination is started as that user, who may not become anybody",
        ),
    },
    Rule {
        options: &["chroot"],
        case: |work, _| work.changes_user(),
        act: Refuse(|_, option| RewriteError::Chroot(option.value.clone().unwrap_or_default())),
        told: told("`-chroot` with another user", "refused", "only root can enter another root directory"),
    },
    Rule {
        options: &["run-with"],
        case: ALWAYS,
        act: Decide(run_with),
        told: told(
            "`-run-with exit-with-parent=on`",
            "dropped",
            "the destination would end with the engine (10.2)",
        ),
    },
    Rule {
        options: &["L"],
        case: |work, option| work.rewritten.line.options.contains(option),
        act: Drop,
        told: told("the same `-L` once more", "dropped", "a wrapper adds it anew"),
    },
    Rule {
        options: &["global"],
        case: |_, option| is_own_global(option.value.as_deref().unwrap_or_default()),
        act: Drop,
        told: told("the engine's own `-global`", "dropped", "each move adds its own"),
    },
    Rule {
        options: ANY,
        case: |_, option| {
            !option.name.is_empty() && crate::qemu::argv::options::facts(&option.name).is_none()
        },
        act: Change(|work, option| {
            let message = format!(
                "-{} is an option that nothing is known of: it is carried over as it is",
                option.name
            );
            work.warn("unknown-option", &message, None);
            option
        }),
        told: told("any that is not known", "kept, with a warning", "never dropped"),
    },
];

/// Whether an option means an open descriptor of its own process.
fn names_descriptor(option: &CommandOption) -> bool {
    let value = option.value.as_deref().unwrap_or_default();
    let is_number =
        |text: &str| !text.is_empty() && text.bytes().all(|letter| letter.is_ascii_digit() || letter == b':');
    let is_meant = |key: &str, value: &str| {
        let last = key.rsplit('.').next().unwrap_or(key);
        let key_is = ["fd", "fds", "vhostfd", "vhostfds", "sock_fd"].contains(&last) && is_number(value);
        key_is || value.starts_with("/dev/fdset/") || value.strip_prefix("fd:").is_some_and(is_number)
    };
    if option.name == "add-fd" {
        return true;
    }
    match option.properties() {
        Some(properties) => {
            properties.keys().iter().any(|key| is_meant(key, properties.get(key).unwrap_or_default()))
        }
        None => is_meant("", value),
    }
}

/// The file into which an option records, and the property that names it.
fn recording(option: &CommandOption) -> Option<(&'static str, String)> {
    let key = match option.get("qom-type").or(option.get("driver"))?.as_str() {
        "filter-dump" => "file",
        "wav" => "path",
        _ => return None,
    };
    Some((key, option.get(key)?))
}

/// The device of the host that an option takes for its guest alone.
fn host_device(work: &Work<'_>, option: &CommandOption) -> Option<String> {
    let properties = option.properties()?;
    let keys: &[&str] = match (option.name.as_str(), properties.get("driver").or(properties.get("type"))?) {
        ("device", driver) if driver.starts_with("vfio-") => &["host", "sysfsdev"],
        ("device", driver) if driver.starts_with("vhost-vdpa-") => &["vhostdev"],
        ("netdev", "vhost-vdpa") => &["vhostdev"],
        ("tpmdev", "passthrough") => &["path"],
        _ => &[],
    };
    let address = keys.iter().find_map(|key| properties.get(key))?;
    (!work.maps.has_given(address)).then(|| address.to_owned())
}

/// `-run-with`, less what the engine does already.
fn run_with(work: &mut Work<'_>, option: CommandOption) -> Option<CommandOption> {
    let mut properties = option.properties()?;
    if let Some(root) = properties.get("chroot").filter(|_| work.changes_user()) {
        work.errors.push(RewriteError::Chroot(root.to_owned()));
        return None;
    }
    properties.remove("exit-with-parent");
    properties.remove("user");
    let mut option = option;
    option.set_properties(&properties);
    (!properties.keys().is_empty()).then_some(option)
}
