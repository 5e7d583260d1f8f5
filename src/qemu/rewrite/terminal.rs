//! Terminals and windows: they stay with the source, and the destination gets sockets.
//!
//! The sockets are in the migration's own directory, which stays for as long as the guest has something in it. On the
//! next move they are unix sockets like any other.

use super::characters::title;
use super::{Work, changed};
use crate::qemu::argv::CommandOption;
use crate::qemu::argv::configuration::Defaults;

/// Displays that are a window or a terminal of whoever started QEMU.
const WINDOWS: [&str; 6] = ["gtk", "sdl", "curses", "cocoa", "spice-app", "default"];

/// Options that make a monitor, so that QEMU makes none of itself.
const MONITORS: [&str; 4] = ["monitor", "qmp", "qmp-pretty", "mon"];

impl Work<'_> {
    /// A socket in the place of a terminal; gives its path.
    fn terminal(&mut self, what: &str, from: &str) -> String {
        let path = self.setting.runtime_directory.join(format!("terminal{}", self.terminals));
        let path = path.to_string_lossy().into_owned();
        self.terminals += 1;
        self.warn(
            "console",
            &format!(
                "{from}: the terminal stays with the source; on the destination it is the socket {path}"
            ),
            Some(&format!("attach to it: socat -,rawer UNIX-CONNECT:{path}")),
        );
        self.has_moved(what, "the terminal", path.clone());
        path
    }
}

/// A character device on a terminal becomes a socket.
pub(super) fn device(work: &mut Work<'_>, option: CommandOption) -> CommandOption {
    let from = format!("-{} {}", option.name, option.value.as_deref().unwrap_or_default());
    let path = work.terminal(&title(&option), &from);
    if option.name != "chardev" {
        let mux =
            if option.value.as_deref().is_some_and(|text| text.starts_with("mon:")) { "mon:" } else { "" };
        return option.having(format!("{mux}{}", listening(&path)));
    }
    let mut option = option;
    if let Some(mut properties) = option.properties() {
        properties.remove("signal");
        option.set_properties(&properties);
    }
    let socket = changed(changed(option, "backend", "socket".to_owned()), "path", path);
    changed(changed(socket, "server", true), "wait", false)
}

fn listening(path: &str) -> String {
    format!("unix:{},server=on,wait=off", path.replace(',', ",,"))
}

/// `-nographic` is `-display none`, a machine that tells its firmware so (`graphics=off`, run on 5.2 to 11.1), and the
/// first serial port and the monitor on the terminal, as far as QEMU makes them of itself.
pub(super) fn nographic(work: &mut Work<'_>, _: CommandOption) -> CommandOption {
    let line = work.source;
    let drives = |option: &CommandOption, name: &str| {
        option.name == "device" && option.get("driver").as_deref() == Some(name)
    };
    let is_made = line.defaults() == Defaults::Made;
    let has_serial = line.has("serial") || line.options.iter().any(|option| drives(option, "isa-serial"));
    let has_monitor = MONITORS.iter().any(|name| line.has(name));
    let device = match (is_made && !has_serial, is_made && !has_monitor) {
        (true, true) => Some(("serial", "mon:")),
        (true, false) => Some(("serial", "")),
        (false, true) => Some(("monitor", "")),
        (false, false) => None,
    };
    if let Some((name, mux)) = device {
        let path = work.terminal(name, "-nographic");
        work.push(CommandOption::with_value(name, format!("{mux}{}", listening(&path))));
    }
    work.push(CommandOption::with_value("machine", "graphics=off"));
    CommandOption::with_value("display", "none")
}

/// Whether a display is a window.
pub(super) fn is_window(option: &CommandOption) -> bool {
    option.name != "display" || option.get("type").is_some_and(|kind| WINDOWS.contains(&kind.as_str()))
}

/// A window becomes a socket that a VNC viewer looks at, unless the guest is to be seen otherwise.
pub(super) fn display(work: &mut Work<'_>, option: CommandOption) -> CommandOption {
    let from = option.value.as_deref().map_or_else(String::new, |value| format!(" {value}"));
    let message = format!("-{}{from}: the window stays with the source", option.name);
    if work.source.has("vnc") || work.source.has("spice") {
        work.warn("display", &message, Some("look at it by -vnc or -spice, as before"));
    } else {
        let path = work.setting.runtime_directory.join("screen").to_string_lossy().into_owned();
        work.warn("display", &message, Some(&format!("look at it: vncviewer {path}")));
        work.has_moved("display", "the window", path.clone());
        work.push(CommandOption::with_value("vnc", format!("unix:{}", path.replace(',', ",,"))));
    }
    let mut option = option.having("none");
    "display".clone_into(&mut option.name);
    option
}
