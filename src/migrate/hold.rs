//! Points at which a test holds the engine still; compiled in for tests only.
//!
//! `QMIGRATE_HOLD=armed=/path/of/socket` makes the engine connect to that socket as it enters the phase, write the
//! phase's name, and wait until the other side closes.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::phase::{Phase, Retreat};

/// A phase may be entered again, with other data; it holds the first time.
static HAS_HELD: AtomicBool = AtomicBool::new(false);

/// Holds, if a test has asked for it at this phase.
pub(super) async fn at(phase: Phase) {
    let Ok(wish) = std::env::var("QMIGRATE_HOLD") else { return };
    let Some((name, socket)) = wish.split_once('=') else { return };
    if name != name_of(phase) || HAS_HELD.swap(true, Ordering::Relaxed) {
        return;
    }
    let Ok(mut stream) = tokio::net::UnixStream::connect(socket).await else { return };
    let _ = stream.write_all(name.as_bytes()).await;
    let _ = stream.read(&mut [0]).await;
}

fn name_of(phase: Phase) -> &'static str {
    match phase {
        Phase::Streaming(_) => "streaming",
        Phase::Switchover { .. } => "switchover",
        Phase::Armed { .. } => "armed",
        Phase::Committed { .. } => "committed",
        Phase::Arrived(_) => "arrived",
        Phase::Retreating(_, Retreat::Stopping) => "stopping",
        Phase::Retreating(_, Retreat::Settling) => "settling",
        Phase::Retreating(_, Retreat::Clearing) => "clearing",
        Phase::Retreating(_, Retreat::Reviving) => "reviving",
        Phase::Back(_) => "back",
        Phase::Undecided(_) => "undecided",
        Phase::Lost => "lost",
    }
}
