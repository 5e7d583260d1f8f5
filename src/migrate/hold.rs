//! Points at which a test holds the engine still; compiled in for tests only.
//!
//! `QMIGRATE_HOLD=armed=/path/of/socket` makes the engine connect to that socket as it enters the phase, write the
//! phase's name, and wait until the other side closes. Before the first phase there are `destination` (it is there and
//! waits, nothing has been set) and `prepared` (both sides are set up, `migrate` has not been sent).

use std::sync::atomic::{AtomicBool, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::phase::{AtSource, Phase, Retreat};

/// A phase may be entered again, with other data; it holds the first time.
static HAS_HELD: AtomicBool = AtomicBool::new(false);

/// A guest that is stopped first enters the stream twice: before it is stopped, and once `migrate` has been sent.
static HAS_BEEN_STOPPED: AtomicBool = AtomicBool::new(false);

/// Holds, if a test has asked for it at this phase.
pub(super) async fn at(phase: Phase) {
    let is_stopped = matches!(phase, Phase::Streaming(guest) if guest.at_source == AtSource::Held);
    if is_stopped && !HAS_BEEN_STOPPED.swap(true, Ordering::Relaxed) {
        return;
    }
    at_point(name_of(phase)).await;
}

/// Holds, if a test has asked for it at the point of this name.
pub(super) async fn at_point(point: &str) {
    let Ok(wish) = std::env::var("QMIGRATE_HOLD") else { return };
    let Some((name, socket)) = wish.split_once('=') else { return };
    if name != point || HAS_HELD.swap(true, Ordering::Relaxed) {
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
