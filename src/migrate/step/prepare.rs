//! Sets both sides up, and the source back as it was.
//!
//! `events` makes QEMU tell each change of status; `return-path` makes the source wait for the destination's verdict
//! (without it a source says completed though its destination has died: run on 7.2 and 11.1); `late-block-activate`
//! keeps the destination from taking image locks before `cont` (what 10.0 always does). All three are set on both
//! sides wherever a QEMU knows them. The destination comes first: as long as it can still refuse, nothing of the
//! source has been changed.

use std::path::Path;
use std::time::Duration;

use qapi_qmp as words;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::limits::{self, QemuLimits};
use crate::qemu::ANSWER_WITHIN;
use crate::qemu::rewrite::GLOBALS_FOR_LITERAL_INCOMING;
use crate::qmp::words::{MigrationInfo, SocketAddress};
use crate::qmp::{CallError, Client, Leg};
use crate::record::LimitsBy;

const CAPABILITIES: [&str; 3] = ["events", "return-path", "late-block-activate"];
/// The limits of a QEMU that does not tell its own: 2.4 to 2.7 (their documentation).
const UNTOLD: QemuLimits = QemuLimits { downtime_ms: Some(300), bytes_per_second: Some(32 << 20) };

/// The kernel tries a connection again after 1, 3 and 7 s.
const FREE_WITHIN: Duration = Duration::from_secs(10);
/// How often it is looked whether it has given up.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// How the source was set up before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Originals {
    capabilities: Vec<(String, bool)>,
    limits: QemuLimits,
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
    let (told, known) = tokio::try_join!(
        async { Ok(client.call_as::<MigrationInfo, _>(&words::query_migrate {}, ANSWER_WITHIN).await?) },
        capabilities(client),
    )?;
    if let Some(address) = told.socket_address.first() {
        // Started with a literal -incoming: its capabilities came by -global, and cannot be changed any more.
        return reachable(address).ok_or(PrepareError::ListensNowhere);
    }
    set_capabilities(client, &wanted(&known)).await?;
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
    GLOBALS_FOR_LITERAL_INCOMING.map(str::to_owned).to_vec()
}

/// Sets the source up.
pub async fn source(
    client: &Client,
    by: LimitsBy,
    limits: QemuLimits,
    originals: &Originals,
) -> Result<(), PrepareError> {
    set_capabilities(client, &wanted(&originals.capabilities)).await?;
    Ok(limits::send(client, by, limits, ANSWER_WITHIN).await?)
}

/// How the source is set up now.
pub async fn originals(client: &Client, by: LimitsBy) -> Result<Originals, PrepareError> {
    let (capabilities, parameters) = tokio::try_join!(capabilities(client), async {
        Ok(client.call(&words::query_migrate_parameters {}, ANSWER_WITHIN).await?)
    })?;
    Ok(Originals { capabilities, limits: original_limits(by, &parameters) })
}

fn original_limits(by: LimitsBy, parameters: &Value) -> QemuLimits {
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

/// Sets the source back as it was found. Only what differs is set: QEMU may refuse what it once allowed.
pub async fn restore(client: &Client, by: LimitsBy, originals: &Originals) -> Result<(), PrepareError> {
    free(client).await;
    let now = capabilities(client).await?;
    let changed: Vec<_> =
        originals.capabilities.iter().filter(|capability| !now.contains(capability)).cloned().collect();
    set_capabilities(client, &changed).await?;
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
    fn a_qemu_that_does_not_tell_its_limits_gets_its_defaults_back() {
        let told = json!({ "downtime-limit": 70, "max-bandwidth": 0, "compress-level": 1 });
        let found = QemuLimits { downtime_ms: Some(70), bytes_per_second: Some(0) };
        assert_eq!(original_limits(LimitsBy::OldCommands, &told), found);
        assert_eq!(original_limits(LimitsBy::Parameters, &told), found);
        assert_eq!(original_limits(LimitsBy::OldCommands, &json!({ "compress-level": 1 })), UNTOLD);
    }

    #[test]
    fn only_what_a_qemu_knows_and_has_off_is_switched_on() {
        let known =
            [("events".to_owned(), true), ("return-path".to_owned(), false), ("xbzrle".to_owned(), false)];
        assert_eq!(wanted(&known), [("return-path".to_owned(), true)]);
    }
}
