//! Values of the form `first,key=value,flag`, with `,,` for a comma.

/// A value of the form `first,key=value,flag`, with `,,` for a comma, as most of QEMU's options have it.
///
/// A part without `=` keeps an empty key; QEMU reads the first such part as the option's implied key, and a later one
/// as a flag that is on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyValues(pub Vec<(String, String)>);

impl KeyValues {
    /// Reads it. Every text can be read.
    pub fn parse(text: &str) -> Self {
        let mut parts = Vec::new();
        let mut rest = text;
        loop {
            // A key ends at the first comma or `=`, and what is no key may have doubled commas and `=` in it.
            let end = rest.find(['=', ',']).unwrap_or(rest.len());
            let key = if end > 0 && rest[end..].starts_with('=') { &rest[..end] } else { "" };
            let (value, after) = read_value(if key.is_empty() { rest } else { &rest[end + 1..] });
            parts.push((key.to_owned(), value));
            match after {
                Some(after) => rest = after,
                None => return Self(parts),
            }
        }
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().rev().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
    }

    /// The first part, when it has no key.
    pub fn implied(&self) -> Option<&str> {
        self.0.first().filter(|(name, _)| name.is_empty()).map(|(_, value)| value.as_str())
    }

    /// Whether a switch is on, in the new spelling (`server=on`) or in the old (`server`).
    pub fn is_on(&self, key: &str) -> bool {
        self.get(key).is_some_and(is_on)
            || self.0.iter().skip(1).any(|(name, value)| name.is_empty() && value == key)
    }

    /// Sets a key, in its place if it stands there already.
    pub fn set(&mut self, key: &str, value: &str) {
        match self.0.iter_mut().rev().find(|(name, _)| name == key) {
            Some((_, old)) => value.clone_into(old),
            None => self.push(key, value),
        }
    }

    /// Adds a part at the end; a comma that stands there already begins it.
    pub(super) fn push(&mut self, key: &str, value: &str) {
        self.0.pop_if(|(key, value)| key.is_empty() && value.is_empty());
        self.0.push((key.to_owned(), value.to_owned()));
    }

    /// The text again.
    pub fn render(&self) -> String {
        let part = |(key, value): &(String, String)| {
            let value = value.replace(',', ",,");
            if key.is_empty() { value } else { format!("{key}={value}") }
        };
        self.0.iter().map(part).collect::<Vec<_>>().join(",")
    }
}

/// A value up to the comma that ends it, and what stands behind that.
fn read_value(text: &str) -> (String, Option<&str>) {
    let mut value = String::new();
    let mut rest = text;
    while let Some(comma) = rest.find(',') {
        value.push_str(&rest[..comma]);
        rest = &rest[comma + 1..];
        match rest.strip_prefix(',') {
            Some(behind) => {
                value.push(',');
                rest = behind;
            }
            None => return (value, Some(rest)),
        }
    }
    value.push_str(rest);
    (value, None)
}

/// Whether QEMU reads a word as true.
pub(super) fn is_on(word: &str) -> bool {
    matches!(word, "on" | "yes" | "true" | "y")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn commas_switches_and_implied_keys_are_read_as_qemu_does() {
        let mut value = KeyValues::parse("socket,id=a,path=/tmp/x,,y,server,wait=off");
        assert_eq!(value.implied(), Some("socket"));
        assert_eq!(value.get("path"), Some("/tmp/x,y"));
        assert!(value.is_on("server") && !value.is_on("wait"));
        value.set("path", "/z,1");
        assert_eq!(value.render(), "socket,id=a,path=/z,,1,server,wait=off");
    }

    #[test]
    fn what_stands_behind_a_doubled_comma_is_no_key() {
        let value = KeyValues::parse("/a,,b=c,server=on");
        assert_eq!(value.implied(), Some("/a,b=c"));
        assert_eq!(value.get("server"), Some("on"));
    }

    proptest! {
        #[test]
        fn key_values_render_to_what_was_parsed(text in "[a-z=,/. ]{0,60}") {
            prop_assert_eq!(KeyValues::parse(&text).render(), text);
        }
    }
}
