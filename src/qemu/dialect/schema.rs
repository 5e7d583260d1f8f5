//! What `query-qmp-schema` tells and the lists do not: arguments of commands, members of answers, words of enums.
//!
//! Types are numbered, and numbered otherwise in every build; only commands and events have their names
//! (`SchemaInfo`, `qapi/introspect.json`). The walk therefore starts at a command or an event, always.

use std::collections::HashMap;

use qapi_qmp as words;
use serde::Deserialize;

use crate::qemu::ANSWER_WITHIN;
use crate::qmp::{CallError, Client};

/// A QEMU's schema.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(from = "Vec<Entity>")]
pub struct Schema {
    entities: HashMap<String, Entity>,
}

/// A command, an event or a type, as far as it is looked at here.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Entity {
    name: String,
    meta_type: String,
    #[serde(default)]
    arg_type: Option<String>,
    #[serde(default)]
    ret_type: Option<String>,
    #[serde(default)]
    allow_oob: bool,
    #[serde(default)]
    members: Vec<Member>,
    /// The words of an enum. Since 6.2 its members have them too, and some day only these.
    #[serde(default)]
    values: Vec<String>,
}

/// A member of an object or of an enum.
#[derive(Debug, Clone, PartialEq, Deserialize)]
struct Member {
    /// Those of an `alternate` have none.
    #[serde(default)]
    name: String,
    /// Those of an enum have none.
    #[serde(default, rename = "type")]
    of: String,
}

impl From<Vec<Entity>> for Schema {
    fn from(entities: Vec<Entity>) -> Self {
        Self { entities: entities.into_iter().map(|entity| (entity.name.clone(), entity)).collect() }
    }
}

impl Schema {
    /// Asks for it; 150 to 250 KB, for which a QEMU takes 13 to 33 ms (5.2 to 11.1).
    pub async fn ask(client: &Client) -> Result<Self, CallError> {
        client.call_as(&words::query_qmp_schema {}, ANSWER_WITHIN).await
    }

    /// Whether there is an event of this name.
    pub fn has_event(&self, name: &str) -> bool {
        self.entities.get(name).is_some_and(|entity| entity.meta_type == "event")
    }

    /// Whether a command may be sent out of band.
    pub fn is_out_of_band(&self, command: &str) -> bool {
        self.command(command).is_some_and(|command| command.allow_oob)
    }

    /// Whether a command has an argument.
    pub fn has_argument(&self, command: &str, argument: &str) -> bool {
        self.argument(command, argument).is_some()
    }

    /// Whether an answer has a member.
    pub fn has_answer(&self, command: &str, member: &str) -> bool {
        self.answer(command, member).is_some()
    }

    /// The words that an argument takes, if it is an enum.
    pub fn words_of_argument(&self, command: &str, argument: &str) -> Vec<&str> {
        self.argument(command, argument).map_or_else(Vec::new, |member| self.words(member))
    }

    /// The words that a member of an answer may be, if it is an enum.
    pub fn words_of_answer(&self, command: &str, member: &str) -> Vec<&str> {
        self.answer(command, member).map_or_else(Vec::new, |member| self.words(member))
    }

    fn command(&self, name: &str) -> Option<&Entity> {
        self.entities.get(name).filter(|entity| entity.meta_type == "command")
    }

    fn argument(&self, command: &str, argument: &str) -> Option<&Member> {
        self.member(self.command(command)?.arg_type.as_deref()?, argument)
    }

    fn answer(&self, command: &str, member: &str) -> Option<&Member> {
        self.member(self.command(command)?.ret_type.as_deref()?, member)
    }

    fn member(&self, object: &str, member: &str) -> Option<&Member> {
        self.entities.get(object)?.members.iter().find(|found| found.name == member)
    }

    fn words(&self, member: &Member) -> Vec<&str> {
        let Some(of) = self.entities.get(&member.of).filter(|of| of.meta_type == "enum") else {
            return Vec::new();
        };
        let members = of.members.iter().map(|member| &member.name);
        if of.members.is_empty() {
            of.values.iter().map(String::as_str).collect()
        } else {
            members.map(String::as_str).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// Cut out of the schemas of 5.2 (`values` only) and 11.1 (both), with their numbers.
    fn schema() -> Schema {
        let entities = json!([
            { "name": "migrate", "meta-type": "command", "arg-type": "94", "ret-type": "0" },
            { "name": "migrate-pause", "meta-type": "command", "allow-oob": true, "arg-type": "0", "ret-type": "0" },
            { "name": "calc-dirty-rate", "meta-type": "command", "arg-type": "5", "ret-type": "0" },
            { "name": "query-migrate", "meta-type": "command", "arg-type": "0", "ret-type": "87" },
            { "name": "MIGRATION", "meta-type": "event", "arg-type": "33" },
            { "name": "0", "meta-type": "object", "members": [] },
            { "name": "5", "meta-type": "object", "members": [
                { "name": "calc-time", "type": "int" }, { "name": "mode", "default": null, "type": "412" }] },
            { "name": "33", "meta-type": "object", "members": [{ "name": "status", "type": "350" }] },
            { "name": "87", "meta-type": "object", "members": [
                { "name": "status", "default": null, "type": "350" },
                { "name": "error-desc", "default": null, "type": "str" }] },
            { "name": "94", "meta-type": "object", "members": [{ "name": "uri", "type": "str" }] },
            { "name": "350", "meta-type": "enum", "values": ["none", "setup"] },
            { "name": "412", "meta-type": "enum", "values": ["dirty-ring"],
              "members": [{ "name": "dirty-ring" }, { "name": "new", "features": ["unstable"] }] },
            { "name": "str", "meta-type": "builtin", "json-type": "string" },
            { "name": "7", "meta-type": "alternate", "members": [{ "type": "str" }, { "type": "350" }] }
        ]);
        serde_json::from_value(entities).unwrap()
    }

    #[test]
    fn arguments_answers_events_and_bands_are_found_from_their_command() {
        let schema = schema();
        assert!(schema.has_argument("migrate", "uri") && !schema.has_argument("migrate", "channels"));
        assert!(!schema.has_argument("yank", "instances") && !schema.has_argument("94", "uri"));
        assert!(
            schema.has_answer("query-migrate", "error-desc") && !schema.has_answer("migrate", "error-desc")
        );
        assert!(schema.has_event("MIGRATION") && !schema.has_event("migrate"));
        assert!(schema.is_out_of_band("migrate-pause") && !schema.is_out_of_band("migrate"));
    }

    #[test]
    fn the_words_of_an_enum_are_found_in_both_spellings() {
        let schema = schema();
        assert_eq!(schema.words_of_answer("query-migrate", "status"), ["none", "setup"]);
        assert_eq!(schema.words_of_argument("calc-dirty-rate", "mode"), ["dirty-ring", "new"]);
        let none: [&str; 0] = [];
        assert_eq!(schema.words_of_answer("query-migrate", "error-desc"), none);
        assert_eq!(schema.words_of_argument("calc-dirty-rate", "sample"), none);
    }
}
