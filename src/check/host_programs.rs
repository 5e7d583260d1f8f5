//! Blockers in options with which QEMU runs other programs of the host.
//!
//! A command line is read from the memory of the process that it belongs to, and whoever has taken that process over (a
//! guest that broke out of it, for one) writes there what it likes. That process may be kept from running programs, by
//! `-sandbox on,spawn=deny`, say; an engine of root's would run them in its place, and without that. So an engine of
//! root's runs none unless it is told to, whomever they would run as. An engine of anybody else can do no more than that
//! user, whose QEMU it is, may do anyway.
//!
//! What is looked at is the destination's own command line: what is not on it is not run.

use super::{Blocker, Code};
use crate::qemu::argv::{CommandLine, CommandOption, Properties};

/// The options that make a network backend, one of which has the guest's side with it.
const NETWORK: [&str; 3] = ["netdev", "net", "nic"];

/// One blocker for each program, or library, that a QEMU with this command line would run.
pub fn host_programs(line: &CommandLine) -> Vec<Blocker> {
    let of_option = |option: &CommandOption| {
        let programs = programs(option);
        let shown = option.shown().unwrap_or_default();
        let blocker = |program: String| {
            Blocker::new(
                Code::HostProgram,
                format!("-{} {shown} runs a program of the host: {program}", option.name),
                "an engine that runs as root does not, unless it is told to: --allow-host-programs",
            )
        };
        programs.into_iter().map(blocker).collect::<Vec<_>>()
    };
    line.options.iter().flat_map(of_option).collect()
}

/// What an option runs, in words.
fn programs(option: &CommandOption) -> Vec<String> {
    let properties = option.properties();
    let has = |key: &str| properties.as_ref().and_then(|properties| properties.get(key));
    let found = match (option.name.as_str(), properties.as_ref()) {
        (name, Some(properties)) if NETWORK.contains(&name) => return of_network(properties),
        ("plugin", _) => has("file").map(|file| format!("the plugin {file}")),
        ("display", _) => (has("type") == Some("spice-app")).then(|| "a viewer".to_owned()),
        // The guest itself may then call system().
        ("semihosting", _) => Some("whatever the guest asks for".to_owned()),
        ("semihosting-config", _) => {
            (has("enable") != Some("off")).then(|| "whatever the guest asks for".to_owned())
        }
        ("audiodev", Some(properties)) => {
            let starts = |way: &str| properties.is_on(&format!("{way}.start-server"));
            (starts("in") || starts("out")).then(|| "a JACK server".to_owned())
        }
        // `-set netdev.ID.script=PROGRAM` adds to an option that stands elsewhere.
        ("set", _) => option.value.as_deref().filter(|value| adds_program(value)).map(str::to_owned),
        _ => None,
    };
    found.into_iter().collect()
}

fn of_network(properties: &Properties) -> Vec<String> {
    let has = |key: &str| properties.get(key);
    let helper = || format!("the helper {}", has("helper").unwrap_or("qemu-bridge-helper"));
    match has("type") {
        Some("tap") => {
            if has("fd").is_some() || has("fds").is_some() {
                return Vec::new();
            }
            if has("helper").is_some() {
                return vec![helper()];
            }
            // Without a word QEMU runs those that its distribution has put there.
            let scripts = [("script", "/etc/qemu-ifup"), ("downscript", "/etc/qemu-ifdown")];
            let runs = |(key, usual): (&str, &'static str)| {
                let script = has(key).map_or_else(|| usual.to_owned(), str::to_owned);
                (!matches!(script.as_str(), "" | "no")).then(|| format!("{key} {script}"))
            };
            scripts.into_iter().filter_map(runs).collect()
        }
        Some("bridge") => vec![helper()],
        Some("passt") => vec![has("path").unwrap_or("passt").to_owned()],
        Some("user") => {
            let mut found = Vec::new();
            // One may be there more than once, and JSON has them in a list.
            properties.clone().replace_each(|key, value| {
                if is_forwarded_to_program(key, value) {
                    found.push(format!("guestfwd {value}"));
                }
                None
            });
            found.extend(has("smb").map(|directory| format!("smbd, for {directory}")));
            found
        }
        _ => Vec::new(),
    }
}

fn is_forwarded_to_program(key: &str, value: &str) -> bool {
    key.starts_with("guestfwd") && value.contains("-cmd:")
}

fn adds_program(value: &str) -> bool {
    let Some((place, value)) = value.split_once('=') else { return false };
    let mut place = place.splitn(3, '.');
    let (group, key) = (place.next().unwrap_or_default(), place.nth(1).unwrap_or_default());
    let runs =
        matches!(key, "script" | "downscript" | "helper" | "smb") || is_forwarded_to_program(key, value);
    NETWORK.contains(&group) && runs && value != "no"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(words: &str) -> Vec<String> {
        let words = ["qemu-system-x86_64"].into_iter().chain(words.split(' ')).map(Into::into);
        let line = CommandLine::parse(&words.collect::<Vec<_>>()).unwrap();
        let blockers = host_programs(&line);
        assert!(blockers.iter().all(|blocker| blocker.code == Code::HostProgram && blocker.hint.is_some()));
        let told = |blocker: Blocker| blocker.message.split_once("host: ").unwrap().1.to_owned();
        blockers.into_iter().map(told).collect()
    }

    #[test]
    fn each_option_that_runs_a_program_is_found_in_each_form() {
        for (words, programs) in [
            ("-netdev tap,id=n", &["script /etc/qemu-ifup", "downscript /etc/qemu-ifdown"][..]),
            ("-nic tap,script=/a,downscript=no", &["script /a"]),
            ("-net tap,script=no,downscript=/b", &["downscript /b"]),
            (r#"-netdev {"type":"tap","id":"n","script":"/a","downscript":"no"}"#, &["script /a"]),
            ("-netdev tap,id=n,helper=/h", &["the helper /h"]),
            ("-netdev bridge,id=n,br=br0", &["the helper qemu-bridge-helper"]),
            ("-netdev passt,id=n", &["passt"]),
            ("-netdev passt,id=n,path=/p", &["/p"]),
            (
                "-netdev user,id=n,guestfwd=tcp:10.0.2.100:1-cmd:/a,guestfwd=tcp:10.0.2.100:2-cmd:/b",
                &["guestfwd tcp:10.0.2.100:1-cmd:/a", "guestfwd tcp:10.0.2.100:2-cmd:/b"],
            ),
            (
                r#"-netdev {"type":"user","id":"n","guestfwd":[{"str":"tcp:10.0.2.100:1-cmd:/a"}]}"#,
                &["guestfwd tcp:10.0.2.100:1-cmd:/a"],
            ),
            ("-nic user,smb=/share", &["smbd, for /share"]),
            ("-plugin /p.so", &["the plugin /p.so"]),
            ("-plugin file=/p.so,arg=x", &["the plugin /p.so"]),
            ("-display spice-app,gl=on", &["a viewer"]),
            ("-semihosting-config enable=on,target=native", &["whatever the guest asks for"]),
            ("-audiodev jack,id=a,in.start-server=on", &["a JACK server"]),
            ("-set netdev.n.script=/a", &["netdev.n.script=/a"]),
            ("--netdev bridge,id=n -plugin /p.so", &["the helper qemu-bridge-helper", "the plugin /p.so"]),
        ] {
            assert_eq!(found(words), programs, "{words}");
        }
    }

    #[test]
    fn what_runs_none_is_not_refused() {
        for words in [
            "-netdev tap,id=n,ifname=tap0,script=no,downscript=no",
            "-netdev tap,id=n,script=,downscript=",
            "-netdev tap,id=n,fd=9",
            "-netdev tap,id=n,fds=9:10",
            "-netdev user,id=n,guestfwd=tcp:10.0.2.100:1-tcp:127.0.0.1:2,hostfwd=tcp::1-:2",
            "-nic none",
            "-net nic,model=e1000",
            "-display none",
            "-audiodev jack,id=a,in.start-server=off",
            "-semihosting-config enable=off",
            "-set netdev.n.script=no -set device.n.script=/a",
            "-chardev pipe,id=c,path=/p -drive file=/a-cmd:b",
        ] {
            assert_eq!(found(words), [] as [&str; 0], "{words}");
        }
    }
}
