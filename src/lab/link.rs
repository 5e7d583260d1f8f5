//! The link of an experiment: a shaped one in a network namespace of its own, or QEMU's `max-bandwidth`.
//!
//! ```text
//!   network namespace of the runner, without a name
//!   source ── 10.0.0.1 stream-out ══ veth ══ stream-in 10.0.0.2 ── destination
//!             tbf, 1 Gbit/s ──────────────►
//!             ◄────────────── acknowledgements, not shaped
//! ```
//!
//! Both ends are addresses of one namespace, so that source, destination and engine see the same files and each other. What
//! is sent to an address of one's own never leaves the loopback as a rule; here two rules for what this host sends come
//! before the table of its own addresses, which takes it out through one end and in through the other.
//! Frames are those of Ethernet (1500 bytes), so that 1 Gbit/s carries 119 MB/s of stream.
//!
//! The namespace has no name: it is there for as long as a process is in it, which is the runner and what the runner starts.
//! A runner that is killed leaves nothing but those processes, which the next one ends ([`Place`](crate::lab::place::Place)).
//!
//! **What the link adds to a blackout.** `tbf` sends at most 128 KiB at once (1 ms at 1 Gbit/s; with 64 KiB, the size of the
//! kernel's frames, a quarter of the rate was lost) and holds back at most 2 ms of data, beyond which frames are dropped
//! and TCP slows down. More stands in the sender's socket, which the kernel lets grow with the stream: 2 to 3 MB at
//! 1 Gbit/s, as `ss` and `SIOCOUTQ` showed on Linux 6.18, so that the last pages wait for about 20 ms behind it. A real
//! link has that socket too; its size is left to the kernel.

use std::io;
use std::process::{Command, Stdio};

use nix::sched::{CloneFlags, unshare};

use crate::units::Rate;

const SHAPED_END: &str = "stream-out";
/// Where a destination listens whose stream is shaped.
pub const DESTINATION_ADDRESS: &str = "10.0.0.2";
/// How long data may wait, and how much may go at once; see the module's words on blackouts.
const QUEUE: &str = "burst 128kb latency 2ms";

/// A link cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// This process may not have a network of its own.
    #[error("a network namespace cannot be made ({0}); root can")]
    Namespace(nix::errno::Errno),
    /// A program that sets it up is missing.
    #[error("`{command}` cannot be run: {source}")]
    Program {
        /// What was to be run.
        command: String,
        /// Why it was not.
        source: io::Error,
    },
    /// A program said no.
    #[error("`{command}` failed: {said}")]
    Refused {
        /// What was run.
        command: String,
        /// What it said.
        said: String,
    },
    /// A setting of the kernel's could not be written.
    #[error("{setting} cannot be set: {source}")]
    Setting {
        /// Which.
        setting: String,
        /// Why.
        source: io::Error,
    },
}

/// How the streams of a runner are held to a rate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Shaper {
    /// `tbf` in this thread's network namespace.
    Tbf,
    /// QEMU does it itself; the stream travels through a unix socket.
    MaxBandwidth,
}

impl Shaper {
    /// Takes the calling thread, and all that it starts from now on, threads and processes, into a network namespace that
    /// has nothing but the link. There is no way back: it is for a process whose only thread calls it.
    pub fn enter() -> Result<Self, LinkError> {
        unshare(CloneFlags::CLONE_NEWNET).map_err(LinkError::Namespace)?;
        for command in [
            "ip link set lo up",
            "ip link add stream-out address 02:00:00:00:00:01 type veth peer name stream-in address 02:00:00:00:00:02",
            "ip addr add 10.0.0.1/32 dev stream-out",
            "ip addr add 10.0.0.2/32 dev stream-in",
        ] {
            run(command)?;
        }
        for end in ["stream-out", "stream-in"] {
            // A frame from an address of one's own is not taken in otherwise. The file is that of the thread's namespace.
            let setting = format!("/proc/sys/net/ipv4/conf/{end}/accept_local");
            std::fs::write(&setting, "1").map_err(|source| LinkError::Setting { setting, source })?;
        }
        for command in [
            "ip link set stream-out up",
            "ip link set stream-in up",
            "ip neigh add 10.0.0.2 lladdr 02:00:00:00:00:02 dev stream-out nud permanent",
            "ip neigh add 10.0.0.1 lladdr 02:00:00:00:00:01 dev stream-in nud permanent",
            "ip rule add pref 100 lookup local",
            "ip rule del pref 0",
            "ip rule add pref 10 iif lo to 10.0.0.2 lookup 10",
            "ip rule add pref 11 iif lo to 10.0.0.1 lookup 11",
            "ip route add 10.0.0.2 dev stream-out src 10.0.0.1 table 10",
            "ip route add 10.0.0.1 dev stream-in src 10.0.0.2 table 11",
        ] {
            run(command)?;
        }
        let shaper = Self::Tbf;
        // A kernel without tbf is found out now.
        shaper.set(GIGABIT)?;
        Ok(shaper)
    }

    /// Changes the rate of the link, in flight too. Where QEMU shapes the stream there is nothing to be done here.
    pub fn set(&self, rate: Rate) -> Result<(), LinkError> {
        match self {
            Self::Tbf => run(&format!(
                "tc qdisc replace dev {SHAPED_END} root tbf rate {}bit {QUEUE}",
                rate.bytes_per_second().saturating_mul(8)
            )),
            Self::MaxBandwidth => Ok(()),
        }
    }

    /// What a link of this rate is, for a line of results.
    pub fn kind(&self, rate: Option<Rate>) -> String {
        match (self, rate) {
            (_, None) => "unix socket".to_owned(),
            (Self::Tbf, Some(rate)) => format!("tbf {}", show_bits(rate)),
            (Self::MaxBandwidth, Some(rate)) => format!("max-bandwidth {}", show_bits(rate)),
        }
    }
}

const GIGABIT: Rate = match Rate::from_bytes_per_second(125_000_000) {
    Some(rate) => rate,
    None => unreachable!(),
};

/// A rate as links have it: `1 Gbit/s`.
fn show_bits(rate: Rate) -> String {
    let bits = rate.bytes_per_second().saturating_mul(8);
    for (unit, size) in [("Gbit/s", 1_000_000_000), ("Mbit/s", 1_000_000), ("kbit/s", 1000)] {
        if bits.is_multiple_of(size) {
            return format!("{} {unit}", bits / size);
        }
    }
    format!("{bits} bit/s")
}

fn run(command: &str) -> Result<(), LinkError> {
    let mut words = command.split(' ');
    let output = Command::new(words.next().unwrap_or_default()).args(words).stdin(Stdio::null()).output();
    let output = output.map_err(|source| LinkError::Program { command: command.to_owned(), source })?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(LinkError::Refused { command: command.to_owned(), said })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_is_named_by_who_shapes_it_and_its_rate() {
        let rate = |text: &str| Some(text.parse().unwrap());
        assert_eq!(Shaper::Tbf.kind(rate("1Gbit/s")), "tbf 1 Gbit/s");
        assert_eq!(Shaper::Tbf.kind(rate("250Mbit/s")), "tbf 250 Mbit/s");
        assert_eq!(Shaper::MaxBandwidth.kind(rate("1MB/s")), "max-bandwidth 8 Mbit/s");
        assert_eq!(Shaper::MaxBandwidth.kind(rate("1MiB/s")), "max-bandwidth 8388608 bit/s");
        assert_eq!(Shaper::Tbf.kind(None), "unix socket");
    }

    #[test]
    fn a_program_that_is_missing_or_says_no_is_told() {
        assert!(matches!(run("/no/such/program x"), Err(LinkError::Program { .. })));
        assert!(matches!(run("false"), Err(LinkError::Refused { .. })));
    }
}
