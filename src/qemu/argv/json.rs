//! A JSON object as QEMU reads it on its command line, changed in place: what is not changed keeps every byte.
//!
//! QEMU takes single quotes for double ones, and refuses a key that is given twice (run on 7.2 to 11.1).

use std::ops::Range;

/// QEMU gives up at 1024 levels; nothing that anybody writes comes near this.
const DEEPEST: usize = 64;

/// A value that is set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scalar {
    /// Text.
    Text(String),
    /// A number.
    Number(i128),
    /// A switch; `on` or `off` outside JSON.
    Switch(bool),
}

impl From<&str> for Scalar {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Scalar {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<u64> for Scalar {
    fn from(number: u64) -> Self {
        Self::Number(number.into())
    }
}

impl From<bool> for Scalar {
    fn from(switch: bool) -> Self {
        Self::Switch(switch)
    }
}

impl Scalar {
    /// As `key=value` has it.
    pub(super) fn text(&self) -> String {
        match self {
            Self::Text(text) => text.clone(),
            Self::Number(number) => number.to_string(),
            Self::Switch(switch) => if *switch { "on" } else { "off" }.to_owned(),
        }
    }

    fn json(&self) -> String {
        match self {
            Self::Text(text) => quoted(text),
            Self::Number(number) => number.to_string(),
            Self::Switch(switch) => switch.to_string(),
        }
    }
}

/// A JSON object with the text that it was read from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JsonObject {
    text: String,
    root: Node,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Node {
    span: Range<usize>,
    kind: Kind,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    Object(Vec<Member>),
    List(Vec<Node>),
    /// Text, or a number, `true`, `false` or `null` as `key=value` has it.
    Scalar(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Member {
    key: String,
    start: usize,
    value: Node,
}

impl Node {
    /// What stands directly below, each with its name.
    fn children(&self) -> Vec<(String, &Node)> {
        match &self.kind {
            Kind::Object(members) => {
                members.iter().map(|member| (member.key.clone(), &member.value)).collect()
            }
            Kind::List(nodes) => {
                nodes.iter().enumerate().map(|(index, node)| (index.to_string(), node)).collect()
            }
            Kind::Scalar(_) => Vec::new(),
        }
    }

    fn child(&self, name: &str) -> Option<&Node> {
        self.children().into_iter().rev().find(|(key, _)| key == name).map(|(_, node)| node)
    }

    fn at(&self, path: &str) -> Option<&Node> {
        path.split('.').try_fold(self, |node, name| node.child(name))
    }

    fn leaves(&self, path: &str, found: &mut Vec<(String, Range<usize>, String)>) {
        if let Kind::Scalar(text) = &self.kind {
            found.push((path.to_owned(), self.span.clone(), text.clone()));
        }
        for (name, node) in self.children() {
            let below = if path.is_empty() { name } else { format!("{path}.{name}") };
            node.leaves(&below, found);
        }
    }
}

impl JsonObject {
    /// Reads it; `None` for what is no JSON object.
    pub fn parse(text: &str) -> Option<Self> {
        let mut reader = Reader { text, at: 0 };
        reader.space();
        let root = reader.value(DEEPEST)?;
        reader.space();
        let is_whole = reader.at == text.len() && matches!(root.kind, Kind::Object(_));
        is_whole.then(|| Self { text: text.to_owned(), root })
    }

    /// The text.
    pub fn render(&self) -> &str {
        &self.text
    }

    /// The value at a dotted path, if it is no object and no list.
    pub fn get(&self, path: &str) -> Option<&str> {
        match &self.root.at(path)?.kind {
            Kind::Scalar(text) => Some(text),
            Kind::Object(_) | Kind::List(_) => None,
        }
    }

    /// The paths of all values, in order, each with its value.
    pub fn values(&self) -> Vec<(String, String)> {
        self.leaves().into_iter().map(|(path, _, text)| (path, text)).collect()
    }

    fn leaves(&self) -> Vec<(String, Range<usize>, String)> {
        let mut found = Vec::new();
        self.root.leaves("", &mut found);
        found
    }

    /// Sets the value at a path, and makes the objects above it that are not there. `None` where something stands above
    /// it that is neither an object nor a list that has it.
    pub fn set(&mut self, path: &str, value: &Scalar) -> Option<()> {
        if let Some(node) = self.root.at(path) {
            let span = node.span.clone();
            return self.splice(span, &value.json());
        }
        let names: Vec<&str> = path.split('.').collect();
        let mut node = &self.root;
        let mut depth = 0;
        while let Some(below) = names.get(depth).and_then(|name| node.child(name)) {
            node = below;
            depth += 1;
        }
        let Kind::Object(members) = &node.kind else { return None };
        let missing = names.get(depth..).unwrap_or_default();
        let entry = |value: String, name: &&str| format!("{}:{value}", quoted(name));
        let (name, inner) = missing.split_first()?;
        let new = inner.iter().rev().fold(value.json(), |value, name| format!("{{{}}}", entry(value, name)));
        let new = entry(new, name);
        match members.last() {
            Some(last) => self.splice(last.value.span.end..last.value.span.end, &format!(",{new}")),
            None => self.splice(node.span.start + 1..node.span.start + 1, &new),
        }
    }

    /// Takes away what stands at a path, with all below it.
    pub fn remove(&mut self, path: &str) {
        while let Some(span) = self.span_with_comma(path) {
            if self.splice(span, "").is_none() {
                return;
            }
        }
    }

    /// Gives each value that `change` has another one for that one, as text.
    pub fn replace_each(&mut self, mut change: impl FnMut(&str, &str) -> Option<String>) {
        for (path, span, text) in self.leaves().into_iter().rev() {
            if let Some(new) = change(&path, &text) {
                let _ = self.splice(span, &quoted(&new));
            }
        }
    }

    /// An entry at a path, and the comma that goes with it.
    fn span_with_comma(&self, path: &str) -> Option<Range<usize>> {
        let (above, name) = path
            .rsplit_once('.')
            .map_or((&self.root, path), |(above, name)| (self.root.at(above).unwrap_or(&self.root), name));
        self.root.at(path)?;
        let spans: Vec<Range<usize>> = match &above.kind {
            Kind::Object(members) => {
                members.iter().map(|member| member.start..member.value.span.end).collect()
            }
            Kind::List(nodes) => nodes.iter().map(|node| node.span.clone()).collect(),
            Kind::Scalar(_) => return None,
        };
        let index = above.children().iter().rposition(|(key, _)| key == name)?;
        let own = spans.get(index)?.clone();
        Some(match (spans.get(index + 1), index.checked_sub(1).and_then(|before| spans.get(before))) {
            (Some(next), _) => own.start..next.start,
            (None, Some(before)) => before.end..own.end,
            (None, None) => own,
        })
    }

    fn splice(&mut self, span: Range<usize>, new: &str) -> Option<()> {
        let mut text = self.text.clone();
        text.replace_range(span, new);
        *self = Self::parse(&text)?;
        Some(())
    }
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
}

impl Reader<'_> {
    fn rest(&self) -> &str {
        &self.text[self.at..]
    }

    fn space(&mut self) {
        self.at += self.rest().len() - self.rest().trim_start_matches([' ', '\t', '\r', '\n']).len();
    }

    fn take(&mut self, word: &str) -> Option<()> {
        self.rest().starts_with(word).then(|| self.at += word.len())
    }

    fn value(&mut self, deepest: usize) -> Option<Node> {
        let deepest = deepest.checked_sub(1)?;
        let start = self.at;
        let kind = match self.rest().chars().next()? {
            '{' => Kind::Object(self.entries('{', '}', |reader| reader.member(deepest))?),
            '[' => Kind::List(self.entries('[', ']', |reader| reader.value(deepest))?),
            '"' | '\'' => Kind::Scalar(self.string()?),
            _ => Kind::Scalar(self.word()?),
        };
        Some(Node { span: start..self.at, kind })
    }

    fn entries<T>(
        &mut self,
        open: char,
        close: char,
        mut entry: impl FnMut(&mut Self) -> Option<T>,
    ) -> Option<Vec<T>> {
        let mut found = Vec::new();
        self.take(&open.to_string())?;
        self.space();
        while self.take(&close.to_string()).is_none() {
            if !found.is_empty() {
                self.take(",")?;
                self.space();
            }
            found.push(entry(self)?);
            self.space();
        }
        Some(found)
    }

    fn member(&mut self, deepest: usize) -> Option<Member> {
        let start = self.at;
        let key = self.string()?;
        self.space();
        self.take(":")?;
        self.space();
        Some(Member { key, start, value: self.value(deepest)? })
    }

    fn string(&mut self) -> Option<String> {
        let quote = self.rest().chars().next().filter(|letter| matches!(letter, '"' | '\''))?;
        let inner = &self.rest()[1..];
        let mut is_escaped = false;
        let ends = |letter: char| {
            let is_end = letter == quote && !is_escaped;
            is_escaped = letter == '\\' && !is_escaped;
            is_end
        };
        let end = inner.find(ends)?;
        let text = &inner[..end];
        // As JSON has it, which knows no single quotes and no escape for one.
        let standard = if quote == '"' { text.to_owned() } else { standard(text) };
        let value = serde_json::from_str(&format!("\"{standard}\"")).ok()?;
        self.at += end + 2;
        Some(value)
    }

    /// A number, `true`, `false` or `null`.
    fn word(&mut self) -> Option<String> {
        let rest = self.rest();
        let end = rest.find([',', '}', ']', ' ', '\t', '\r', '\n', ':']).unwrap_or(rest.len());
        let word = rest.get(..end)?;
        let text = match serde_json::from_str(word).ok()? {
            serde_json::Value::Bool(switch) => Scalar::Switch(switch).text(),
            serde_json::Value::Number(_) | serde_json::Value::Null => word.to_owned(),
            _ => return None,
        };
        self.at += end;
        Some(text)
    }
}

/// The inside of a string in single quotes as it would be in double ones.
fn standard(text: &str) -> String {
    let mut standard = String::new();
    let mut letters = text.chars();
    while let Some(letter) = letters.next() {
        match letter {
            '\\' => match letters.next() {
                Some('\'') => standard.push('\''),
                next => standard.extend(['\\'].into_iter().chain(next)),
            },
            '"' => standard.push_str("\\\""),
            _ => standard.push(letter),
        }
    }
    standard
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(text: &str) -> JsonObject {
        JsonObject::parse(text).unwrap()
    }

    #[test]
    fn values_are_found_by_their_path() {
        let object =
            read(r#" { "driver": "raw", "file": {"server": [{"host":"a"}, {"port":1}]}, "ro": true }"#);
        assert_eq!(object.get("driver"), Some("raw"));
        assert_eq!(object.get("file.server.1.port"), Some("1"));
        assert_eq!(object.get("ro"), Some("on"));
        assert_eq!((object.get("file"), object.get("driver.x"), object.get("none")), (None, None, None));
        assert_eq!(read("{'a':'it\\'s \"x\"'}").get("a"), Some("it's \"x\""));
        for text in ["[]", "{", "{\"a\":}", "{\"a\":1}x", "{a:1}", "{\"a\":1,}", "", &"{\"a\":".repeat(2000)]
        {
            assert_eq!(JsonObject::parse(text), None, "{text}");
        }
    }

    #[test]
    fn a_change_leaves_everything_else_as_it_was() {
        let mut object = read("{'driver' : \"raw\",\n \"file\": {\"filename\":\"/a\", \"x\":1e3} }");
        object.set("file.filename", &"/b\"".into()).unwrap();
        object.set("read-only", &true.into()).unwrap();
        object.set("a.b", &7u64.into()).unwrap();
        assert_eq!(
            object.render(),
            "{'driver' : \"raw\",\n \"file\": {\"filename\":\"/b\\\"\", \"x\":1e3},\"read-only\":true,\"a\":{\"b\":7} }"
        );
        assert_eq!(object.set("driver.x", &1u64.into()), None);
        for path in ["file.x", "a", "driver", "nothing", "nothing.at.all"] {
            object.remove(path);
        }
        assert_eq!(object.render(), "{\"file\": {\"filename\":\"/b\\\"\"},\"read-only\":true }");
        let mut empty = read("{ }");
        empty.set("a", &false.into()).unwrap();
        assert_eq!(empty.render(), "{\"a\":false }");
        empty.remove("a");
        assert_eq!(empty.values(), []);
    }

    proptest! {
        #[test]
        fn what_is_set_is_there_and_what_is_removed_is_not(
            paths in proptest::collection::vec(("[a-c](\\.[a-c]){0,2}", "[ -~é]{0,8}"), 0..8),
        ) {
            let mut object = read("{ }");
            for (path, text) in &paths {
                if object.set(path, &text.as_str().into()).is_some() {
                    prop_assert_eq!(object.get(path), Some(text.as_str()));
                }
                let (values, whole) = (object.values(), object.render().to_owned());
                prop_assert_eq!(serde_json::from_str::<serde_json::Value>(&whole).is_ok(), true, "{}", whole);
                for (path, value) in values {
                    prop_assert_eq!(object.get(&path), Some(value.as_str()));
                }
            }
            for (path, _) in &paths {
                object.remove(path);
                prop_assert_eq!(object.get(path), None);
            }
        }

        #[test]
        fn no_text_is_too_strange(text in "[{}\\[\\]\"':,\\\\a1é \n]{0,24}") {
            if let Some(object) = JsonObject::parse(&text) {
                prop_assert_eq!(object.render(), text);
            }
        }
    }
}
