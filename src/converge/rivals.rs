//! The policies of others, as they were published, and the names by which a policy is chosen.
//!
//! Each stands in a file of its own, with its constants and where they come from. They know no budget of the user's:
//! what one of them does beyond it is what its users get, and is told beside what ours does. Where one would go
//! postcopy it says so, and goes on as it is.

/// QEMU's own throttle, as it comes.
mod auto_converge;
/// The limit as QEMU comes with it, and nothing else.
mod fixed;
/// KubeVirt's stall detector.
mod kubevirt;
/// KubeVirt's ramp.
mod kubevirt_ramp;
/// virsh's timeout.
mod libvirt;
/// Nova's clock.
mod nova;
/// oVirt's schedules.
mod ovirt;
/// Proxmox VE's doubling.
mod proxmox;
/// What each of them does to guests and links that nobody has chosen.
#[cfg(test)]
mod promises;

use std::fmt;
use std::str::FromStr;

use serde::Serialize;

use super::policy::{Consents, Policy};
use super::{Budget, Controller, Verdict};
use crate::record::Choice;

/// A policy by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum PolicyName {
    /// Ours.
    Qmigrate,
    /// A limit of 300 ms, and nothing else.
    Fixed,
    /// QEMU's own throttle: 20 %, then 10 % more each time.
    AutoConverge,
    /// Proxmox VE: the limit is doubled, with QEMU's throttle.
    Proxmox,
    /// KubeVirt's stall detector (VEP 248).
    Kubevirt,
    /// KubeVirt's downtime tuning (VEP 291): the limit climbs by the clock.
    KubevirtRamp,
    /// Nova: the limit climbs by the clock, then the migration is aborted.
    Nova,
    /// Nova with `live_migration_timeout_action = force_complete`: the guest is stopped instead.
    NovaForceComplete,
    /// oVirt's "Minimal downtime".
    Ovirt,
    /// oVirt's "Suspend workload if needed".
    OvirtSuspend,
    /// oVirt's "Post-copy migration".
    OvirtPostcopy,
    /// oVirt's "Very large VMs".
    OvirtVeryLarge,
    /// `virsh migrate --timeout`, which suspends the guest.
    Libvirt,
}

/// The text is not the name of a policy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no policy '{0}'; there are {all}", all = listed(PolicyName::ALL))]
pub struct PolicyNameError(String);

impl PolicyName {
    /// All of them, ours first.
    pub const ALL: &'static [Self] = &[
        Self::Qmigrate,
        Self::Fixed,
        Self::AutoConverge,
        Self::Proxmox,
        Self::Kubevirt,
        Self::KubevirtRamp,
        Self::Nova,
        Self::NovaForceComplete,
        Self::Ovirt,
        Self::OvirtSuspend,
        Self::OvirtPostcopy,
        Self::OvirtVeryLarge,
        Self::Libvirt,
    ];

    /// The name as it is typed.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Qmigrate => "qmigrate",
            Self::Fixed => "fixed",
            Self::AutoConverge => "auto-converge",
            Self::Proxmox => "proxmox",
            Self::Kubevirt => "kubevirt",
            Self::KubevirtRamp => "kubevirt-ramp",
            Self::Nova => "nova",
            Self::NovaForceComplete => "nova-force-complete",
            Self::Ovirt => "ovirt",
            Self::OvirtSuspend => "ovirt-suspend",
            Self::OvirtPostcopy => "ovirt-postcopy",
            Self::OvirtVeryLarge => "ovirt-very-large",
            Self::Libvirt => "libvirt",
        }
    }

    /// Whether it can be in force while a guest is moved; the others are for simulation, replay and as a shadow.
    pub fn is_live(self) -> bool {
        match self {
            Self::Qmigrate | Self::Fixed | Self::AutoConverge | Self::Proxmox | Self::Kubevirt => true,
            Self::KubevirtRamp
            | Self::Nova
            | Self::NovaForceComplete
            | Self::Ovirt
            | Self::OvirtSuspend
            | Self::OvirtPostcopy
            | Self::OvirtVeryLarge
            | Self::Libvirt => false,
        }
    }

    /// Whether it keeps to the user's budgets and consents. One that does not needs consent itself.
    pub fn keeps_budgets(self) -> bool {
        self == Self::Qmigrate
    }

    /// The policy, before its first sample. Only ours takes notice of budgets and consents; but for the time budget,
    /// which is what libvirt's users type as their timeout.
    pub fn build(self, budget: Budget, consents: Consents) -> Box<dyn Policy> {
        match self {
            Self::Qmigrate => Box::new(Controller::new(budget, consents)),
            Self::Fixed => Box::new(fixed::Fixed::default()),
            Self::AutoConverge => Box::new(auto_converge::AsItComes::default()),
            Self::Proxmox => Box::new(proxmox::Proxmox::default()),
            Self::Kubevirt => Box::new(kubevirt::StallDetector::default()),
            Self::KubevirtRamp => Box::new(kubevirt_ramp::Ramp::default()),
            Self::Nova => Box::new(nova::Nova::new(nova::TimeoutAction::Abort)),
            Self::NovaForceComplete => Box::new(nova::Nova::new(nova::TimeoutAction::ForceComplete)),
            Self::Ovirt => Box::new(ovirt::Ovirt::new(ovirt::MINIMAL_DOWNTIME)),
            Self::OvirtSuspend => Box::new(ovirt::Ovirt::new(ovirt::SUSPEND_WORKLOAD)),
            Self::OvirtPostcopy => Box::new(ovirt::Ovirt::new(ovirt::POSTCOPY)),
            Self::OvirtVeryLarge => Box::new(ovirt::Ovirt::new(ovirt::VERY_LARGE)),
            Self::Libvirt => Box::new(libvirt::Virsh::new(budget)),
        }
    }
}

/// Something that is looked at every so often.
#[derive(Debug, Clone, Copy)]
struct Ticks {
    every_ms: f64,
    next_ms: f64,
}

impl Ticks {
    /// The first tick comes after one interval.
    const fn every(every_ms: f64) -> Self {
        Self { every_ms, next_ms: every_ms }
    }

    /// Whether one has come since the last that was taken.
    fn has_come(&mut self, now_ms: f64) -> bool {
        let has_come = now_ms >= self.next_ms;
        if has_come {
            self.next_ms = now_ms + self.every_ms;
        }
        has_come
    }
}

/// That the limit becomes another.
fn limit(downtime_limit_ms: u64, reason: String) -> Verdict {
    Verdict { choice: Choice::Limit { downtime_limit_ms }, reason, forecast: None }
}

/// That the migration is given up.
fn abort(reason: String) -> Verdict {
    Verdict { choice: Choice::OutOfTime, reason, forecast: None }
}

/// A number of milliseconds without its fraction; 0 if it is negative.
pub(super) fn whole(milliseconds: f64) -> u64 {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates")]
    let whole = milliseconds as u64;
    whole
}

/// Names as a person reads them: `a, b and c`.
fn listed(names: &[PolicyName]) -> String {
    let names: Vec<&str> = names.iter().map(|name| name.as_str()).collect();
    match names.split_last() {
        Some((last, others)) if !others.is_empty() => format!("{} and {last}", others.join(", ")),
        _ => names.concat(),
    }
}

impl fmt::Display for PolicyName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.as_str())
    }
}

impl FromStr for PolicyName {
    type Err = PolicyNameError;

    fn from_str(text: &str) -> Result<Self, PolicyNameError> {
        let named = Self::ALL.iter().find(|name| name.as_str() == text);
        named.copied().ok_or_else(|| PolicyNameError(text.chars().take(40).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Sample;
    use crate::units::DowntimeMs;

    #[test]
    fn a_name_reads_back_and_one_that_is_none_is_told_those_that_are() {
        for name in PolicyName::ALL {
            assert_eq!(name.to_string().parse(), Ok(*name));
            assert_eq!(serde_json::to_value(name).unwrap(), name.as_str());
        }
        let error = "proxmix".parse::<PolicyName>().unwrap_err().to_string();
        assert!(error.starts_with("there is no policy 'proxmix'; there are qmigrate, fixed, "), "{error}");
        assert!(PolicyName::ALL.iter().all(|name| error.contains(name.as_str())), "{error}");
    }

    #[test]
    fn only_ours_keeps_budgets() {
        let keeping: Vec<_> = PolicyName::ALL.iter().filter(|name| name.keeps_budgets()).collect();
        assert_eq!(keeping, [&PolicyName::Qmigrate]);
    }

    /// The moments at which a policy has said something, and what, as it is shown samples every 100 ms.
    pub(super) fn played(
        policy: &mut dyn Policy,
        last_ms: u32,
        sample: impl Fn(f64) -> Sample,
    ) -> Vec<(f64, Choice)> {
        let moments = (1..=last_ms / 100).map(|step| f64::from(step) * 100.0);
        moments.filter_map(|at_ms| Some((at_ms, policy.observe(&sample(at_ms), at_ms)?.choice))).collect()
    }

    /// A sample of a guest of 4 GiB over a link of 100 MB/s, of which as much is always left.
    pub(super) fn sample(at_ms: f64, passes: u64, remaining_bytes: u64) -> Sample {
        Sample {
            at_ms,
            transferred_bytes: whole(at_ms * 1e5),
            remaining_bytes,
            total_bytes: 4 << 30,
            passes,
            dirty_bytes_per_second: 0,
            stream_bytes_per_second: 0,
            downtime_limit_ms: 300,
            throttle_percent: 0,
        }
    }

    /// The limits among what was said, with their moments in seconds.
    pub(super) fn limits(said: &[(f64, Choice)]) -> Vec<(f64, u64)> {
        let limit = |(at_ms, choice): &(f64, Choice)| match choice {
            Choice::Limit { downtime_limit_ms } => Some((at_ms / 1e3, *downtime_limit_ms)),
            _ => None,
        };
        said.iter().filter_map(limit).collect()
    }

    #[test]
    fn every_policy_that_is_live_starts_with_a_limit_that_qemu_takes() {
        let budget = Budget { max_downtime: DowntimeMs::new(50).unwrap(), max_time: None };
        for name in PolicyName::ALL {
            let wish = name.build(budget, Consents::default()).wish();
            assert!((1..=2_000_000).contains(&wish.downtime_limit_ms), "{name}: {wish:?}");
        }
    }
}
