//! Sets both sides up as they [agree](crate::migrate::step::agree), and the source back as it was.
//!
//! The destination comes first: as long as it can still refuse, nothing of the source has been changed.

use std::path::Path;
use std::time::Duration;

use qapi_qmp as words;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::agree::{self, Agreement, Capabilities, Twin};
use super::limits::{self, QemuLimits};
use super::tuning::{Knob, Tuning};
use crate::check::{Blocker, Code, chain};
use crate::qemu::ANSWER_WITHIN;
use crate::qemu::dialect::Dialect;
use crate::qemu::rewrite::{Memory, own_global};
use crate::qmp::words::commands::{CapabilityState, MigrateSetCapabilities, MigrateSetParameters};
use crate::qmp::words::{MigrationInfo, SocketAddress};
use crate::qmp::{CallError, Client, Leg};
use crate::record::LimitsBy;

/// The limits of a QEMU that does not tell its own: 2.4 to 2.7 (their documentation).
const UNTOLD: QemuLimits = QemuLimits { downtime_ms: Some(300), bytes_per_second: Some(32 << 20) };

/// The kernel tries a connection again after 1, 3 and 7 s.
const FREE_WITHIN: Duration = Duration::from_secs(10);
/// How often it is looked whether it has given up.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// How the source was set up before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Originals {
    capabilities: Capabilities,
    limits: QemuLimits,
    /// What is set besides the limits, as it was. Nothing, in journals of older versions.
    #[serde(default)]
    parameters: Map<String, Value>,
}

impl Originals {
    /// What was about to be set besides the limits.
    pub fn tuning(&self) -> Tuning {
        Tuning::of_originals(&self.parameters)
    }
}

/// How a QEMU is set up: its capabilities and all its parameters.
#[derive(Debug, Clone)]
pub struct Settings {
    capabilities: Capabilities,
    parameters: Map<String, Value>,
}

/// A side could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// QEMU said no, or nothing.
    #[error(transparent)]
    Call(#[from] CallError),
    /// The destination listens nowhere that a source could reach.
    #[error("the destination does not say where it listens")]
    ListensNowhere,
    /// The destination listens already, and expects another stream than the source's.
    #[error("the destination listens already, and '{0}' is not there as it is on the source")]
    Unlike(&'static str),
    /// Guest memory is in a file that both have mapped, and must not be sent.
    #[error(
        "guest memory is shared through a file, and one of the two QEMUs cannot leave it in its place (x-ignore-shared)"
    )]
    SharedMemory,
    /// Shared memory that is on no command line would be left behind with the one that stays in its place.
    #[error(
        "guest memory is shared through a file and stays there, and '{0}', which was added since, would be left behind"
    )]
    SharedSince(String),
}

impl From<PrepareError> for Blocker {
    fn from(error: PrepareError) -> Self {
        let message = chain(&error);
        match error {
            PrepareError::Unlike(_) => Self::new(
                Code::Prepare,
                message,
                "start it with -incoming defer, or set the source as it is there",
            ),
            PrepareError::SharedSince(_) => {
                Self::new(Code::SharedMemory, message, "take it away first: device_del, then object_del")
            }
            PrepareError::SharedMemory => Self::new(
                Code::SharedMemory,
                message,
                "QEMU has it from 4.0 on; --map FILE=OTHER gives the destination a file of its own",
            ),
            _ => Self::bare(Code::Prepare, message),
        }
    }
}

/// Makes the destination listen for the stream of a source that is set up so; gives the address to which the source
/// sends, and what they agree on.
pub async fn destination(
    client: &Client,
    socket: &Path,
    source: &Settings,
    twin: Twin,
) -> Result<(String, Agreement), PrepareError> {
    let (told, mut found) = tokio::try_join!(
        async { Ok(client.call_as::<MigrationInfo, _>(&words::query_migrate {}, ANSWER_WITHIN).await?) },
        settings(client),
    )?;
    let channels = agree::of_channels(&source.parameters);
    if twin == Twin::OfTheEngine(Memory::InPlace)
        && !agree::can_leave_memory(&source.capabilities, &found.capabilities)
    {
        return Err(PrepareError::SharedMemory);
    }
    if let Some(address) = told.socket_address.first() {
        // What it has off cannot be switched on any more: it is as if it did not know it. What it has on and the source
        // has off does no harm (run on 5.2 to 11.1), but for channels.
        found.capabilities.retain(|&(_, on)| on);
        let agreement = agree::agree(&source.capabilities, &found.capabilities, twin);
        if agreement.has_channels != found.capabilities.iter().any(|(name, _)| name == agree::MULTIFD) {
            return Err(PrepareError::Unlike("multifd"));
        }
        if agreement.has_channels && agree::of_channels(&found.parameters) != channels {
            return Err(PrepareError::Unlike("multifd-channels or multifd-compression"));
        }
        return Ok((reachable(address).ok_or(PrepareError::ListensNowhere)?, agreement));
    }
    let agreement = agree::agree(&source.capabilities, &found.capabilities, twin);
    set_capabilities(client, &agreement.destination).await?;
    if agreement.has_channels {
        client.call(&MigrateSetParameters(channels), ANSWER_WITHIN).await?;
    }
    let uri = format!("unix:{}", socket.display());
    let incoming = words::migrate_incoming { uri: Some(uri.clone()), channels: None, exit_on_error: None };
    client.call(&incoming, ANSWER_WITHIN).await?;
    Ok((uri, agreement))
}

/// Whether what stays in its place is all the shared memory that the source has: `x-ignore-shared` makes no difference
/// between one that the destination has mapped and one that it has not. Where the list does not say what is shared (run
/// on 5.2) each one is asked.
pub async fn only_these_are_shared(source: &Client, in_place: &[String]) -> Result<(), PrepareError> {
    if in_place.is_empty() {
        return Ok(());
    }
    let memory = source.call(&words::query_memdev {}, ANSWER_WITHIN).await?;
    for entry in memory.as_array().into_iter().flatten() {
        let Some(id) = entry["id"].as_str().filter(|&id| !in_place.iter().any(|known| known == id)) else {
            continue;
        };
        let is_shared = if let Some(is_shared) = entry["share"].as_bool() {
            is_shared
        } else {
            let ask = words::qom_get { path: format!("/objects/{id}"), property: "share".to_owned() };
            source.call(&ask, ANSWER_WITHIN).await? == true
        };
        if is_shared {
            return Err(PrepareError::SharedSince(id.to_owned()));
        }
    }
    Ok(())
}

/// What a source on the same host has to connect to. A destination says what it is bound to, which may be every
/// address (`0.0.0.0`) and is then no address to connect to.
fn reachable(address: &SocketAddress) -> Option<String> {
    match address {
        SocketAddress::Inet { host, port } => match host.as_str() {
            "0.0.0.0" => Some(format!("tcp:127.0.0.1:{port}")),
            "::" => Some(format!("tcp:[::1]:{port}")),
            host if host.contains(':') => Some(format!("tcp:[{host}]:{port}")),
            host => Some(format!("tcp:{host}:{port}")),
        },
        SocketAddress::Unix { path } => Some(format!("unix:{path}")),
        _ => None,
    }
}

/// The `-global` values that set a destination up which listens from its start.
pub fn globals_for_literal_incoming(source: &Dialect) -> Vec<String> {
    let names: Vec<_> = agree::for_literal_incoming(|name| source.is_on(name)).collect();
    let mut globals: Vec<_> = names.iter().map(|name| own_global(&format!("x-{name}"), "on")).collect();
    if names.contains(&agree::MULTIFD) {
        let channels = agree::of_channels(source.all_parameters());
        let as_text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        globals.extend(channels.iter().map(|(name, value)| own_global(name, &as_text(value))));
    }
    globals
}

/// Sets the source up: what was agreed on, these parameters, and its limits.
pub async fn source(
    client: &Client,
    by: LimitsBy,
    limits: QemuLimits,
    agreement: &Agreement,
    parameters: Map<String, Value>,
) -> Result<(), PrepareError> {
    set_capabilities(client, &agreement.source).await?;
    set_parameters(client, parameters).await?;
    Ok(limits::send(client, by, limits, ANSWER_WITHIN).await?)
}

/// How a QEMU is set up now.
pub async fn settings(client: &Client) -> Result<Settings, PrepareError> {
    let (capabilities, parameters) = tokio::try_join!(capabilities(client), parameters(client))?;
    Ok(Settings { capabilities, parameters })
}

impl Settings {
    /// What of them is to be set back, where this is set besides the limits.
    pub fn originals(&self, by: LimitsBy, tuning: Tuning) -> Originals {
        let limits = original_limits(by, &self.parameters);
        let parameters = tuning.originals(&self.parameters);
        Originals { capabilities: self.capabilities.clone(), limits, parameters }
    }

    /// What can be set besides the limits.
    pub fn tuning(&self, dirty_windows: Knob) -> Tuning {
        Tuning::of(&self.capabilities, &self.parameters, dirty_windows)
    }

    /// Its capabilities.
    pub fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    /// All its parameters.
    pub fn parameters(&self) -> &Map<String, Value> {
        &self.parameters
    }
}

fn original_limits(by: LimitsBy, parameters: &Map<String, Value>) -> QemuLimits {
    let read = |name| parameters.get(name).and_then(Value::as_u64);
    let (downtime_ms, bytes_per_second) = (read("downtime-limit"), read("max-bandwidth"));
    match by {
        LimitsBy::Parameters => QemuLimits { downtime_ms, bytes_per_second },
        LimitsBy::OldCommands => QemuLimits {
            downtime_ms: downtime_ms.or(UNTOLD.downtime_ms),
            bytes_per_second: bytes_per_second.or(UNTOLD.bytes_per_second),
        },
    }
}

/// Sets a QEMU as the source was found. Only what it knows and has otherwise is set: QEMU may refuse what it once
/// allowed.
pub async fn restore(client: &Client, by: LimitsBy, originals: &Originals) -> Result<(), PrepareError> {
    free(client).await;
    let now = capabilities(client).await?;
    let is_otherwise = |(name, on): &&(String, bool)| now.contains(&(name.clone(), !on));
    let changed: Vec<_> = originals.capabilities.iter().filter(is_otherwise).cloned().collect();
    set_capabilities(client, &changed).await?;
    if !originals.parameters.is_empty() {
        let now = parameters(client).await?;
        let mut changed = originals.parameters.clone();
        changed.retain(|name, value| now.get(name).is_some_and(|now| now != value));
        set_parameters(client, changed).await?;
    }
    Ok(limits::send(client, by, originals.limits, ANSWER_WITHIN).await?)
}

/// Waits until a source takes another migration: one that was cancelled while it connected goes on connecting until its
/// destination has gone, and says `duplicate yank instance` to the next one meanwhile (run on 10.0). A QEMU before 6.0
/// knows no `yank`.
async fn free(client: &Client) {
    let deadline = tokio::time::Instant::now() + FREE_WITHIN;
    while client.leg() == Leg::Source && tokio::time::Instant::now() < deadline {
        match client.call_as::<Vec<words::YankInstance>, _>(&words::query_yank {}, ANSWER_WITHIN).await {
            Ok(busy) if busy.iter().any(|busy| matches!(busy, words::YankInstance::migration)) => {
                tokio::time::sleep(LOOK_EVERY).await;
            }
            Ok(_) | Err(_) => return,
        }
    }
}

async fn capabilities(client: &Client) -> Result<Capabilities, PrepareError> {
    let answer = client.call(&words::query_migrate_capabilities {}, ANSWER_WITHIN).await?;
    let capability =
        |entry: &Value| Some((entry.get("capability")?.as_str()?.to_owned(), entry.get("state")?.as_bool()?));
    Ok(answer.as_array().into_iter().flatten().filter_map(capability).collect())
}

async fn parameters(client: &Client) -> Result<Map<String, Value>, PrepareError> {
    let answer = client.call(&words::query_migrate_parameters {}, ANSWER_WITHIN).await?;
    Ok(if let Value::Object(parameters) = answer { parameters } else { Map::new() })
}

/// QEMU holds them against each other as they come: all in one go.
async fn set_parameters(client: &Client, parameters: Map<String, Value>) -> Result<(), PrepareError> {
    if !parameters.is_empty() {
        client.call(&MigrateSetParameters(parameters), ANSWER_WITHIN).await?;
    }
    Ok(())
}

async fn set_capabilities(client: &Client, capabilities: &[(String, bool)]) -> Result<(), PrepareError> {
    if capabilities.is_empty() {
        return Ok(());
    }
    let capabilities = capabilities.iter().cloned();
    let capabilities =
        capabilities.map(|(capability, state)| CapabilityState { capability, state }).collect();
    let command = MigrateSetCapabilities { capabilities };
    client.call(&command, ANSWER_WITHIN).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_source_connects_to_an_address_that_it_can_reach() {
        let inet = |host: &str| SocketAddress::Inet { host: host.to_owned(), port: 4444 };
        for (host, uri) in [
            ("0.0.0.0", "tcp:127.0.0.1:4444"),
            ("::", "tcp:[::1]:4444"),
            ("fe80::1", "tcp:[fe80::1]:4444"),
            ("127.0.0.1", "tcp:127.0.0.1:4444"),
        ] {
            assert_eq!(reachable(&inet(host)).as_deref(), Some(uri));
        }
    }

    #[test]
    fn a_qemu_that_does_not_tell_its_limits_gets_its_defaults_back() {
        let map = |value: Value| value.as_object().cloned().unwrap();
        let told = map(json!({ "downtime-limit": 70, "max-bandwidth": 0, "compress-level": 1 }));
        let found = QemuLimits { downtime_ms: Some(70), bytes_per_second: Some(0) };
        assert_eq!(original_limits(LimitsBy::OldCommands, &told), found);
        assert_eq!(original_limits(LimitsBy::Parameters, &told), found);
        assert_eq!(original_limits(LimitsBy::OldCommands, &map(json!({ "compress-level": 1 }))), UNTOLD);
    }
}
