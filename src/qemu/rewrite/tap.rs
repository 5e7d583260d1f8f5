//! A tap in the place of another one: two QEMUs cannot hold the same (`Device or resource busy`, run on 5.2 to 11.1).

use crate::qemu::argv::{CommandLine, CommandOption, Properties};

/// The options that make a network backend.
const NETWORK: [&str; 3] = ["netdev", "net", "nic"];

/// How a command line names a tap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TapName {
    /// By its interface.
    Interface(String),
    /// By descriptors that it was given, one for each queue.
    Descriptors(Vec<i32>),
    /// Not at all, and no script was to look after it: QEMU has made one, and somebody else has put it somewhere.
    Unnamed,
}

/// A tap in the place of one that the source has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TapChange {
    /// The one on the source's command line.
    pub from: TapName,
    /// The interface of the new one.
    pub to: String,
    /// Whether its packets have a header of virtio's. A device that has none must not be given one.
    pub has_header: bool,
}

/// The taps on a command line.
pub fn taps(line: &CommandLine) -> impl Iterator<Item = TapName> {
    line.options.iter().filter_map(|option| name(option, &option.properties()?))
}

/// The option with the new tap, if it has a tap that is changed.
pub(super) fn with_new_tap(option: &CommandOption, changes: &[TapChange]) -> Option<CommandOption> {
    let mut properties = option.properties()?;
    let from = name(option, &properties)?;
    let change = changes.iter().find(|change| change.from == from)?;
    for key in ["fd", "fds", "vhostfd", "vhostfds"] {
        properties.remove(key);
    }
    // None of these stands below a value that is no object.
    let mut set = |key: &str, value: &str| properties.set(key, value).is_ok();
    let mut is_set = set("ifname", &change.to) && set("script", "no") && set("downscript", "no");
    if let TapName::Descriptors(descriptors) = &from {
        if descriptors.len() > 1 {
            is_set &= properties.set("queues", u64::try_from(descriptors.len()).unwrap_or(1)).is_ok();
        }
        if !change.has_header {
            is_set &= properties.set("vnet_hdr", false).is_ok();
        }
    }
    let mut option = option.clone();
    option.set_properties(&properties);
    is_set.then_some(option)
}

/// How the tap of an option is named, if it has one that QEMU does not get anew by a script or a helper.
fn name(option: &CommandOption, properties: &Properties) -> Option<TapName> {
    let has = |key: &str| properties.get(key);
    if !NETWORK.contains(&option.name.as_str()) || has("type") != Some("tap") {
        return None;
    }
    if let Some(name) = has("ifname") {
        return Some(TapName::Interface(name.to_owned()));
    }
    if let Some(descriptors) = has("fd").or_else(|| has("fds")) {
        let descriptors = descriptors.split(':').map(str::parse).collect::<Result<Vec<i32>, _>>();
        // One that has a name was handed over by QMP.
        return descriptors.ok().map(TapName::Descriptors);
    }
    let is_alone = has("helper").is_none() && matches!(has("script"), Some("no" | ""));
    is_alone.then_some(TapName::Unnamed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changed(name: &str, value: &str, has_header: bool) -> Option<String> {
        let option = CommandOption::with_value(name, value);
        let from = super::name(&option, &option.properties().unwrap())?;
        let change = TapChange { from, to: "qm-k3f9x2ab".to_owned(), has_header };
        with_new_tap(&option, &[change])?.value
    }

    #[test]
    fn a_tap_is_changed_in_each_form() {
        for (name, value, expected) in [
            (
                "netdev",
                "tap,id=n,ifname=tap0,vhost=on",
                "tap,id=n,ifname=qm-k3f9x2ab,vhost=on,script=no,downscript=no",
            ),
            (
                "nic",
                "tap,ifname=tap0,script=/a,downscript=/b,model=e1000",
                "tap,ifname=qm-k3f9x2ab,script=no,downscript=no,model=e1000",
            ),
            ("net", "tap,ifname=tap0,script=no", "tap,ifname=qm-k3f9x2ab,script=no,downscript=no"),
            (
                "netdev",
                "tap,id=n,script=no,downscript=no",
                "tap,id=n,script=no,downscript=no,ifname=qm-k3f9x2ab",
            ),
            (
                "netdev",
                "tap,fd=9,id=n,vhostfd=10,vhost=on",
                "tap,id=n,vhost=on,ifname=qm-k3f9x2ab,script=no,downscript=no",
            ),
            (
                "netdev",
                r#"{"type":"tap","fds":"9:10","id":"n"}"#,
                r#"{"type":"tap","id":"n","ifname":"qm-k3f9x2ab","script":"no","downscript":"no","queues":2}"#,
            ),
        ] {
            assert_eq!(changed(name, value, true).as_deref(), Some(expected), "-{name} {value}");
        }
        let without = "tap,id=n,ifname=qm-k3f9x2ab,script=no,downscript=no,vnet_hdr=off";
        assert_eq!(changed("netdev", "tap,id=n,fd=9", false).as_deref(), Some(without));
    }

    #[test]
    fn what_a_second_qemu_gets_anew_is_left_as_it_is() {
        for (name, value) in [
            ("netdev", "tap,id=n"),
            ("netdev", "tap,id=n,script=/a"),
            ("netdev", "tap,id=n,helper=/h,script=no"),
            ("netdev", "tap,id=n,fd=handed-over"),
            ("netdev", "bridge,id=n,br=br0"),
            ("netdev", "user,id=n"),
            ("device", "tap,ifname=tap0"),
        ] {
            assert_eq!(changed(name, value, true), None, "-{name} {value}");
        }
        let option = CommandOption::with_value("netdev", "tap,id=n,ifname=tap1");
        let other = TapName::Interface("tap0".to_owned());
        let change = TapChange { from: other, to: "qm-k3f9x2ab".to_owned(), has_header: true };
        assert_eq!(with_new_tap(&option, &[change]), None);
    }
}
