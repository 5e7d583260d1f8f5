//! Sets both sides up, and the source back as it was.
//!
//! `events` makes QEMU tell each change of status; `return-path` makes the source wait for the destination's verdict
//! (without it a source says completed though its destination has died: run on 7.2 and 11.1); `late-block-activate`
//! keeps the destination from taking image locks before `cont` (what 10.0 always does). All three are set on both
//! sides wherever a QEMU knows them. The destination comes first: as long as it can still refuse, nothing of the
//! source has been changed.

use std::path::Path;

use qapi_qmp as words;
use serde_json::{Map, Value, json};

use crate::qemu::ANSWER_WITHIN;
use crate::qmp::words::{MigrationInfo, SocketAddress};
use crate::qmp::{CallError, Client};
use crate::units::{DowntimeMs, Rate};

const CAPABILITIES: [&str; 3] = ["events", "return-path", "late-block-activate"];
/// The parameters that this engine touches, and therefore restores.
const PARAMETERS: [&str; 2] = ["downtime-limit", "max-bandwidth"];

/// How the source was set up before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Originals {
    capabilities: Vec<(String, bool)>,
    parameters: Map<String, Value>,
}

/// A side could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// QEMU said no, or nothing.
    #[error(transparent)]
    Call(#[from] CallError),
    /// The words of this crate and of QEMU do not fit together.
    #[error("'{0}' cannot be said to QEMU")]
    Words(&'static str),
    /// The destination listens nowhere that a source could reach.
    #[error("the destination does not say where it listens")]
    ListensNowhere,
}

/// Makes the destination listen; gives the address to which the source sends.
pub async fn destination(client: &Client, socket: &Path) -> Result<String, PrepareError> {
    let told: MigrationInfo = client.call_as(&words::query_migrate {}, ANSWER_WITHIN).await?;
    if let Some(address) = told.socket_address.first() {
        // Started with a literal -incoming: its capabilities came by -global, and cannot be changed any more.
        return reachable(address).ok_or(PrepareError::ListensNowhere);
    }
    set_capabilities(client, &wanted(&capabilities(client).await?)).await?;
    let uri = format!("unix:{}", socket.display());
    let incoming = words::migrate_incoming { uri: Some(uri.clone()), channels: None, exit_on_error: None };
    client.call(&incoming, ANSWER_WITHIN).await?;
    Ok(uri)
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
pub fn globals_for_literal_incoming() -> Vec<String> {
    vec!["migration.x-events=on".to_owned(), "migration.x-return-path=on".to_owned()]
}

/// Sets the source up; gives back how it was.
pub async fn source(
    client: &Client,
    downtime_limit_ms: u64,
    max_bandwidth: Option<Rate>,
) -> Result<Originals, (Option<Originals>, PrepareError)> {
    let originals = originals(client).await.map_err(|error| (None, error))?;
    let set = async {
        set_capabilities(client, &wanted(&originals.capabilities)).await?;
        client.call(&limits_command(downtime_limit_ms, max_bandwidth)?, ANSWER_WITHIN).await?;
        Ok(())
    };
    match set.await {
        Ok(()) => Ok(originals),
        Err(error) => Err((Some(originals), error)),
    }
}

async fn originals(client: &Client) -> Result<Originals, PrepareError> {
    let (capabilities, parameters) = tokio::try_join!(capabilities(client), async {
        Ok(client.call(&words::query_migrate_parameters {}, ANSWER_WITHIN).await?)
    })?;
    let parameters =
        PARAMETERS.iter().filter_map(|&name| Some((name.to_owned(), parameters.get(name)?.clone())));
    Ok(Originals { capabilities, parameters: parameters.collect() })
}

/// The command that sets both limits; no bandwidth means no bound.
pub fn limits_command(
    downtime_limit_ms: u64,
    max_bandwidth: Option<Rate>,
) -> Result<words::migrate_set_parameters, PrepareError> {
    let max_bandwidth = max_bandwidth.map_or(0, Rate::bytes_per_second);
    parameters_command(json!({ "downtime-limit": downtime_limit_ms, "max-bandwidth": max_bandwidth }))
}

/// Sets what is given of the limits of a migration that is not this engine's.
pub async fn set_limits(
    client: &Client,
    max_downtime: Option<DowntimeMs>,
    max_bandwidth: Option<Rate>,
) -> Result<(), PrepareError> {
    let mut parameters = Map::new();
    if let Some(downtime) = max_downtime {
        parameters.insert("downtime-limit".to_owned(), json!(downtime.milliseconds()));
    }
    if let Some(rate) = max_bandwidth {
        parameters.insert("max-bandwidth".to_owned(), json!(rate.bytes_per_second()));
    }
    set_parameters(client, parameters).await
}

/// Sets the source back as it was found. Only what differs is set: QEMU may refuse what it once allowed.
pub async fn restore(client: &Client, originals: &Originals) -> Result<(), PrepareError> {
    let now = capabilities(client).await?;
    let changed: Vec<_> =
        originals.capabilities.iter().filter(|capability| !now.contains(capability)).cloned().collect();
    set_capabilities(client, &changed).await?;
    set_parameters(client, originals.parameters.clone()).await
}

async fn capabilities(client: &Client) -> Result<Vec<(String, bool)>, PrepareError> {
    let answer = client.call(&words::query_migrate_capabilities {}, ANSWER_WITHIN).await?;
    let capability =
        |entry: &Value| Some((entry.get("capability")?.as_str()?.to_owned(), entry.get("state")?.as_bool()?));
    Ok(answer.as_array().into_iter().flatten().filter_map(capability).collect())
}

/// The capabilities to switch on, of those that this QEMU knows.
fn wanted(known: &[(String, bool)]) -> Vec<(String, bool)> {
    let off = |name: &&str| known.iter().any(|(known, on)| known == name && !on);
    CAPABILITIES.iter().filter(|name| off(name)).map(|&name| (name.to_owned(), true)).collect()
}

async fn set_capabilities(client: &Client, capabilities: &[(String, bool)]) -> Result<(), PrepareError> {
    if capabilities.is_empty() {
        return Ok(());
    }
    let entries =
        capabilities.iter().map(|(name, on)| json!({"capability": name, "state": on})).collect::<Vec<_>>();
    let command: words::migrate_set_capabilities = serde_json::from_value(json!({ "capabilities": entries }))
        .map_err(|_| PrepareError::Words("a capability"))?;
    client.call(&command, ANSWER_WITHIN).await?;
    Ok(())
}

async fn set_parameters(client: &Client, parameters: Map<String, Value>) -> Result<(), PrepareError> {
    if !parameters.is_empty() {
        client.call(&parameters_command(Value::Object(parameters))?, ANSWER_WITHIN).await?;
    }
    Ok(())
}

fn parameters_command(parameters: Value) -> Result<words::migrate_set_parameters, PrepareError> {
    serde_json::from_value(parameters).map_err(|_| PrepareError::Words("a parameter"))
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn only_what_a_qemu_knows_and_has_off_is_switched_on() {
        let known =
            [("events".to_owned(), true), ("return-path".to_owned(), false), ("xbzrle".to_owned(), false)];
        assert_eq!(wanted(&known), [("return-path".to_owned(), true)]);
    }
}
