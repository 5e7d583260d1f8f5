//! What a QEMU can do, known by asking it: never by its version where an answer tells.
//!
//! Three short questions (`query-commands`, `query-migrate-capabilities`, `query-migrate-parameters`, together about
//! 2 ms and 8 KB on 5.2 to 11.1) say which commands, capabilities and parameters there are. What they leave open, such
//! as the arguments of a command or the words of an enum, only `query-qmp-schema` tells (30 ms and 150 to 250 KB),
//! which is asked where somebody wants to see it and never on the way of a migration.

use std::collections::{BTreeMap, BTreeSet};

use qapi_qmp as words;
use serde_json::{Map, Value};

/// What QEMUs can do, as a table.
pub mod features;
/// Starts a QEMU only to ask it.
pub mod probe;
/// What the schema tells and the lists do not.
pub mod schema;

use super::ANSWER_WITHIN;
use crate::qmp::{CallError, Client};
use crate::record::LimitsBy;

/// From this version on a live migration under TCG keeps all writes of the guest (commit 03bfc2188f) to its first memory
/// ([`Untracked`](super::hardware::Untracked)). No answer tells it: this is the one thing that is known by version.
pub const TCG_KEEPS_WRITES_FROM: (u32, u32) = (9, 0);

/// How a user wants limits to be set.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Wish {
    /// By parameters where the QEMU has them, else by the old commands.
    #[default]
    Auto,
    /// By `migrate_set_downtime` and `migrate_set_speed`.
    Legacy,
    /// By `migrate-set-parameters`.
    Modern,
}

/// Limits cannot be set as was wished.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LimitsError {
    /// The old commands are gone.
    #[error("this QEMU has no migrate_set_downtime and migrate_set_speed, which --dialect legacy asks for")]
    NoOldCommands,
    /// The parameters are not there yet.
    #[error("this QEMU has no parameters downtime-limit and max-bandwidth, which --dialect modern asks for")]
    NoParameters,
    /// It has neither.
    #[error("this QEMU has no way to limit downtime and bandwidth: neither parameters nor the old commands")]
    Neither,
}

/// What a QEMU says that it has.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Dialect {
    commands: BTreeSet<String>,
    capabilities: BTreeMap<String, bool>,
    parameters: Map<String, Value>,
}

impl Dialect {
    /// Asks it, all at once.
    pub async fn ask(client: &Client) -> Result<Self, CallError> {
        let (commands, capabilities, parameters) = tokio::try_join!(
            client.call(&words::query_commands {}, ANSWER_WITHIN),
            client.call(&words::query_migrate_capabilities {}, ANSWER_WITHIN),
            client.call(&words::query_migrate_parameters {}, ANSWER_WITHIN),
        )?;
        Ok(Self::from_answers(&commands, &capabilities, parameters))
    }

    /// From the answers to the three questions. What has another shape than expected is taken as absent.
    pub fn from_answers(commands: &Value, capabilities: &Value, parameters: Value) -> Self {
        let entries = |list: &Value| list.as_array().cloned().into_iter().flatten();
        let text = |entry: &Value, key: &str| entry.get(key)?.as_str().map(str::to_owned);
        let is_on = |entry: &Value| entry.get("state").and_then(Value::as_bool).unwrap_or(false);
        let capability = |entry: Value| Some((text(&entry, "capability")?, is_on(&entry)));
        Self {
            commands: entries(commands).filter_map(|entry| text(&entry, "name")).collect(),
            capabilities: entries(capabilities).filter_map(capability).collect(),
            parameters: if let Value::Object(parameters) = parameters { parameters } else { Map::new() },
        }
    }

    /// Whether it has a command.
    pub fn has_command(&self, name: &str) -> bool {
        self.commands.contains(name)
    }

    /// Its commands, by name.
    pub fn commands(&self) -> impl Iterator<Item = &str> {
        self.commands.iter().map(String::as_str)
    }

    /// Whether it has a capability, on or off.
    pub fn has_capability(&self, name: &str) -> bool {
        self.capabilities.contains_key(name)
    }

    /// Whether a capability was on when asked.
    pub fn is_on(&self, name: &str) -> bool {
        self.capabilities.get(name).copied().unwrap_or(false)
    }

    /// Its capabilities, by name.
    pub fn capabilities(&self) -> impl Iterator<Item = &str> {
        self.capabilities.keys().map(String::as_str)
    }

    /// A parameter as it was set when asked; absent where the QEMU has none of that name.
    pub fn parameter(&self, name: &str) -> Option<&Value> {
        self.parameters.get(name)
    }

    /// All its parameters as they were set when asked.
    pub fn all_parameters(&self) -> &Map<String, Value> {
        &self.parameters
    }

    /// Its parameters, by name.
    pub fn parameters(&self) -> impl Iterator<Item = &str> {
        self.parameters.keys().map(String::as_str)
    }

    /// How its limits are to be set.
    pub fn limits_by(&self, wish: Wish) -> Result<LimitsBy, LimitsError> {
        let by_parameters =
            ["downtime-limit", "max-bandwidth"].iter().all(|name| self.parameter(name).is_some());
        let by_commands =
            ["migrate_set_downtime", "migrate_set_speed"].iter().all(|name| self.has_command(name));
        match wish {
            Wish::Auto | Wish::Modern if by_parameters => Ok(LimitsBy::Parameters),
            Wish::Auto | Wish::Legacy if by_commands => Ok(LimitsBy::OldCommands),
            _ if !by_parameters && !by_commands => Err(LimitsError::Neither),
            Wish::Legacy => Err(LimitsError::NoOldCommands),
            _ => Err(LimitsError::NoParameters),
        }
    }

    /// As [`Dialect::limits_by`], but in the other way where it lacks the one wished: for a QEMU that the wish was not
    /// made for.
    pub fn limits_by_or_else(&self, wish: Wish) -> Result<LimitsBy, LimitsError> {
        self.limits_by(wish).or_else(|_| self.limits_by(Wish::Auto))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// A dialect with these commands and parameters.
    fn dialect(commands: &[&str], parameters: &[&str]) -> Dialect {
        let commands = commands.iter().map(|name| json!({ "name": name })).collect::<Vec<_>>();
        let parameters = parameters.iter().map(|&name| (name.to_owned(), json!(1))).collect::<Map<_, _>>();
        Dialect::from_answers(&json!(commands), &json!([]), parameters.into())
    }

    const OLD: [&str; 2] = ["migrate_set_downtime", "migrate_set_speed"];
    const NEW: [&str; 2] = ["downtime-limit", "max-bandwidth"];

    #[test]
    fn parameters_are_preferred_and_a_wish_is_kept_to_or_refused() {
        use LimitsBy::{OldCommands, Parameters};
        use LimitsError::{Neither, NoOldCommands, NoParameters};
        let table = [
            // 2.4 to 2.7, 2.8 to 5.2, from 6.0 on, and none that there is.
            (dialect(&OLD, &["compress-level"]), [Ok(OldCommands), Ok(OldCommands), Err(NoParameters)]),
            (dialect(&OLD, &NEW), [Ok(Parameters), Ok(OldCommands), Ok(Parameters)]),
            (dialect(&["yank"], &NEW), [Ok(Parameters), Err(NoOldCommands), Ok(Parameters)]),
            (dialect(&OLD[..1], &NEW[..1]), [Err(Neither), Err(Neither), Err(Neither)]),
        ];
        for (dialect, expected) in table {
            let found = [Wish::Auto, Wish::Legacy, Wish::Modern].map(|wish| dialect.limits_by(wish));
            assert_eq!(found, expected, "{dialect:?}");
        }
    }

    #[test]
    fn a_qemu_that_the_wish_was_not_made_for_gets_its_limits_as_it_can() {
        assert_eq!(dialect(&[], &NEW).limits_by_or_else(Wish::Legacy), Ok(LimitsBy::Parameters));
        assert_eq!(dialect(&OLD, &NEW).limits_by_or_else(Wish::Legacy), Ok(LimitsBy::OldCommands));
        assert_eq!(dialect(&[], &[]).limits_by_or_else(Wish::Modern), Err(LimitsError::Neither));
    }

    #[test]
    fn answers_of_another_shape_read_as_nothing() {
        for odd in [json!(null), json!(7), json!(["name"]), json!({"name": 1}), json!([{"name": 1}])] {
            let dialect = Dialect::from_answers(&odd, &odd, odd.clone());
            assert_eq!(dialect.commands().count() + dialect.capabilities().count(), 0, "{odd}");
        }
    }
}
