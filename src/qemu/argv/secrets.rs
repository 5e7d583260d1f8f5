//! A command line that is safe to show.
//!
//! Secrets are what opens something by itself: the data of a `secret` object, passwords, cookies, the user part of an
//! address, keys of Ceph, credentials that firmware hands to the guest. What only names one (`password-secret=`,
//! `file=`) is none, and neither is a switch (`-vnc :1,password=on`).

use std::borrow::Cow;

use super::{CommandLine, CommandOption, JsonObject};

/// Stands in the place of a secret.
pub const HIDDEN: &str = "***";

/// A shorter secret is not looked for in other text, where it would be found by chance.
const SHORTEST_SOUGHT: usize = 4;

impl CommandOption {
    /// Its value as it may be shown.
    pub fn shown(&self) -> Option<Cow<'_, str>> {
        let value = self.value.as_deref()?;
        Some(self.without_secrets(&mut Vec::new()).map_or(Cow::Borrowed(value), Cow::Owned))
    }

    /// Whether its value has a secret in it.
    pub fn holds_secret(&self) -> bool {
        self.without_secrets(&mut Vec::new()).is_some()
    }

    /// Its value with every secret hidden, if there is one; the secrets are added to `found`.
    fn without_secrets(&self, found: &mut Vec<String>) -> Option<String> {
        let value = self.value.as_deref()?;
        let Some(mut properties) = self.properties() else {
            return in_text(&self.name, value, found);
        };
        let context = Context::of(self);
        let before = found.len();
        properties.replace_each(|path, value| context.hidden(path, value, found));
        (found.len() > before).then(|| properties.render())
    }
}

impl CommandLine {
    /// The same with every secret hidden.
    #[must_use]
    pub fn shown(&self) -> Self {
        let mut shown = self.clone();
        for option in &mut shown.options {
            if let Some(value) = option.without_secrets(&mut Vec::new()) {
                option.value = Some(value);
            }
        }
        shown
    }

    /// The names of the options that hold a secret.
    pub fn options_with_secrets(&self) -> Vec<&str> {
        let holders = self.options.iter().filter(|option| option.holds_secret());
        holders.map(|option| option.name.as_str()).collect()
    }

    /// Text that a QEMU with this command line wrote, which may quote it, with every secret of it hidden.
    pub fn conceal(&self, text: &str) -> String {
        let mut text = text.to_owned();
        let mut secrets = Vec::new();
        for option in &self.options {
            if let (Some(shown), Some(value)) = (option.without_secrets(&mut secrets), &option.value) {
                text = text.replace(value, &shown);
            }
        }
        // A long one may have a short one in it.
        secrets.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
        let sought = secrets.iter().filter(|secret| secret.len() >= SHORTEST_SOUGHT);
        sought
            .fold(text, |text, secret| without_word(&without_word(&text, secret), &secret.replace(',', ",,")))
    }
}

/// A text with something hidden in it, except where that is part of a longer word.
fn without_word(text: &str, word: &str) -> String {
    let mut shown = String::new();
    let mut rest = text;
    while let Some(at) = rest.find(word) {
        let (before, behind) = (&rest[..at], &rest[at + word.len()..]);
        let is_within = before.ends_with(char::is_alphanumeric) || behind.starts_with(char::is_alphanumeric);
        shown.push_str(before);
        shown.push_str(if is_within { word } else { HIDDEN });
        rest = behind;
    }
    shown + rest
}

/// What a property means depends on what stands beside it.
struct Context {
    option: String,
    is_secret_object: bool,
    is_for_the_guest: bool,
}

impl Context {
    fn of(option: &CommandOption) -> Self {
        let starts = |path: &str, with: &str| option.get(path).is_some_and(|value| value.starts_with(with));
        Self {
            option: option.name.clone(),
            is_secret_object: starts("qom-type", "secret"),
            is_for_the_guest: starts("name", "opt/"),
        }
    }

    /// What to show in the place of a value with a secret.
    fn hidden(&self, path: &str, value: &str, found: &mut Vec<String>) -> Option<String> {
        let key = path.rsplit('.').next().unwrap_or(path);
        let is_secret = match (self.option.as_str(), key) {
            (_, "password" | "passwd") => !matches!(value, "on" | "off"),
            (_, "cookie") => true,
            ("object", "data") => self.is_secret_object,
            ("fw_cfg", "string") => self.is_for_the_guest,
            ("smbios", "value") => value.starts_with("io.systemd.credential"),
            _ => false,
        };
        if is_secret && !value.is_empty() {
            found.push(value.to_owned());
            return Some(HIDDEN.to_owned());
        }
        in_place(value, found)
    }
}

/// The value of an option that has no properties.
fn in_text(option: &str, value: &str, found: &mut Vec<String>) -> Option<String> {
    match option {
        "append" => {
            let words: Vec<String> = value
                .split(' ')
                .map(|word| of_kernel(word, found).unwrap_or_else(|| word.to_owned()))
                .collect();
            let joined = words.join(" ");
            (joined != value).then_some(joined)
        }
        _ => in_place(value, found),
    }
}

/// A word of the kernel's command line.
fn of_kernel(word: &str, found: &mut Vec<String>) -> Option<String> {
    let (key, value) = word.split_once('=').filter(|(_, value)| !value.is_empty())?;
    let last = key.rsplit('.').next().unwrap_or(key);
    let (name, secret) = match last {
        "set_credential" | "set_credential_binary" => value.split_once(':')?,
        "password" | "passwd" => ("", value),
        _ => return None,
    };
    found.push(secret.to_owned());
    let name = if name.is_empty() { String::new() } else { format!("{name}:") };
    Some(format!("{key}={name}{HIDDEN}"))
}

/// The name of a file, a place or an image, with what opens it hidden.
fn in_place(place: &str, found: &mut Vec<String>) -> Option<String> {
    if let Some(json) = place.strip_prefix("json:") {
        let mut object = JsonObject::parse(json)?;
        let before = found.len();
        let context = Context { option: String::new(), is_secret_object: false, is_for_the_guest: false };
        object.replace_each(|path, value| context.hidden(path, value, found));
        return (found.len() > before).then(|| format!("json:{}", object.render()));
    }
    if place.starts_with("rbd:") {
        let parts: Vec<String> = place.split(':').map(|part| of_ceph(part, found)).collect();
        let joined = parts.join(":");
        return (joined != place).then_some(joined);
    }
    let (scheme, rest) = place.split_once("://")?;
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (host, path) = rest.split_at(end);
    let user = host.rsplit_once('@').and_then(|(user, host)| {
        // iSCSI has a percent sign between the two.
        let (user, secret) = user.split_once(if scheme == "iscsi" { '%' } else { ':' })?;
        Some((user, secret, host))
    });
    let query = path.split_once('?').filter(|(_, query)| scheme.starts_with("http") && !query.is_empty());
    if user.is_none() && query.is_none() {
        return None;
    }
    let host = user.map_or_else(
        || host.to_owned(),
        |(user, secret, host)| {
            found.push(secret.to_owned());
            let mark = if scheme == "iscsi" { '%' } else { ':' };
            format!("{user}{mark}{HIDDEN}@{host}")
        },
    );
    let path = query.map_or_else(
        || path.to_owned(),
        |(path, query)| {
            // A signed address is a key.
            found.push(query.to_owned());
            format!("{path}?{HIDDEN}")
        },
    );
    Some(format!("{scheme}://{host}{path}"))
}

fn of_ceph(part: &str, found: &mut Vec<String>) -> String {
    match part.strip_prefix("key=") {
        Some(key) => {
            found.push(key.to_owned());
            format!("key={HIDDEN}")
        }
        None => part.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_hidden_in_every_form_and_nothing_else_is() {
        for (name, value, shown) in [
            ("object", "secret,id=s,data=x,format=raw", "secret,id=s,data=***,format=raw"),
            ("object", r#"{ "qom-type":"secret","data":"x" }"#, r#"{ "qom-type":"secret","data":"***" }"#),
            ("object", "qom-type=secret,data=a,data=b", "qom-type=secret,data=***,data=***"),
            ("spice", "port=1,password=a,,b", "port=1,password=***"),
            ("iscsi", "user=u,password=p", "user=u,password=***"),
            ("drive", "file=http://u:p@h/x,if=none", "file=http://u:***@h/x,if=none"),
            ("drive", "file=https://h/x?Signature=a,,b", "file=https://h/x?***"),
            ("drive", "file=rbd:p/i:id=x:key=K==:mon_host=h", "file=rbd:p/i:id=x:key=***:mon_host=h"),
            (
                "drive",
                r#"file=json:{"driver":"http",,"url":"http://u:p@h"}"#,
                r#"file=json:{"driver":"http",,"url":"http://u:***@h"}"#,
            ),
            ("blockdev", "driver=http,file.cookie=c", "driver=http,file.cookie=***"),
            (
                "blockdev",
                r#"{"file":{"driver":"http","url":"http://u:p@h/","cookie":"c"}}"#,
                r#"{"file":{"driver":"http","url":"http://u:***@h/","cookie":"***"}}"#,
            ),
            ("cdrom", "ftp://u:p@h/x.iso", "ftp://u:***@h/x.iso"),
            ("", "iscsi://u%p@h/iqn/0", "iscsi://u%***@h/iqn/0"),
            ("fw_cfg", "name=opt/a,string=b", "name=opt/a,string=***"),
            ("smbios", "type=11,value=a,value=io.systemd.credential:p=q", "type=11,value=a,value=***"),
            ("append", "quiet systemd.set_credential=a:b x", "quiet systemd.set_credential=a:*** x"),
        ] {
            let option = CommandOption::with_value(name, value);
            assert_eq!(option.shown().as_deref(), Some(shown), "-{name} {value}");
            assert!(option.holds_secret());
        }
        for (name, value) in [
            ("object", "secret,id=s,file=/s"),
            ("object", "memory-backend-ram,id=data,size=1G"),
            ("vnc", ":1,password=on"),
            ("vnc", ":1,password"),
            ("spice", "password-secret=s"),
            ("drive", "file=nbd://h:10809/x,key-secret=s"),
            ("smbios", "type=1,serial=ds=nocloud"),
            ("fw_cfg", "name=etc/x,string=y"),
            ("kernel", "/boot/a=b"),
        ] {
            let option = CommandOption::with_value(name, value);
            assert_eq!(option.shown().as_deref(), Some(value));
            assert!(!option.holds_secret(), "-{name} {value}");
        }
    }

    #[test]
    fn what_qemu_says_of_its_command_line_has_no_secret_either() {
        let words = ["qemu-system-x86_64", "-spice", "port=1,password=a,,bcd", "-cdrom", "http://u:pass@h/"];
        let line = CommandLine::parse(&words.map(Into::into)).unwrap();
        assert_eq!(line.options_with_secrets(), ["spice", "cdrom"]);
        assert_eq!(
            line.conceal("qemu: -spice port=1,password=a,,bcd: no; 'http://u:pass@h/': no; 'a,bcd'"),
            "qemu: -spice port=1,password=***: no; 'http://u:***@h/': no; '***'"
        );
        assert_eq!(line.shown().options[0].value.as_deref(), Some("port=1,password=***"));
    }
}
