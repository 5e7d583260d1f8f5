//! What is to be moved, where to, and within which limits; fixed before anything starts.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::converge::{Budget, Consent, Consents, Policy, PolicyName, Wish as PolicyWish};
use crate::host::UnitName;
use crate::migrate::phase::AtDestination;
use crate::qemu::QemuName;
use crate::qemu::dialect::Wish;
use crate::qemu::rewrite::Map;
use crate::qemu::template::{TemplateFile, Values};
use crate::record::{Allowed, MigrationId, Request};
use crate::units::{DowntimeMs, Rate};

/// The shortest grace: a machine that is busy for a second is no reason to give up a switch that is under way.
const SHORTEST_GRACE: Duration = Duration::from_secs(2);

/// The limits of one migration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The longest blackout.
    pub max_downtime: DowntimeMs,
    /// How much longer than that the guest may stand still before it goes back to its source; `None` for as long
    /// again, and 2 s at least.
    pub grace: Option<Duration>,
    /// The longest that streaming may take.
    pub max_time: Option<Duration>,
    /// The largest rate of the stream.
    pub max_bandwidth: Option<Rate>,
    /// What may be done to the guest besides waiting.
    pub consents: Consents,
    /// What decides within all that.
    pub policy: PolicyName,
}

impl Limits {
    /// How much longer than its budget a blackout may last.
    pub fn grace(self) -> Duration {
        self.grace.unwrap_or_else(|| self.max_downtime.duration().max(SHORTEST_GRACE))
    }

    /// After so long a blackout the guest goes back to its source.
    pub fn longest_blackout(self) -> Duration {
        self.max_downtime.duration() + self.grace()
    }

    /// The limits that a record tells of.
    pub fn of(request: &Request) -> Self {
        Self {
            max_downtime: request.max_downtime_ms,
            grace: Some(Duration::from_millis(request.grace_ms)),
            max_time: request.max_time_ms.map(Duration::from_millis),
            max_bandwidth: request.max_bandwidth_bytes_per_second,
            consents: consents_of(request.allowed),
            // One that a newer version had: ours keeps to the budgets.
            policy: request.policy.parse().unwrap_or(PolicyName::Qmigrate),
        }
    }

    /// What the controller has to keep to.
    pub fn budget(self) -> Budget {
        Budget { max_downtime: self.max_downtime, max_time: self.max_time }
    }

    /// What decides within them, before its first sample.
    pub fn build_policy(self) -> Box<dyn Policy> {
        #[cfg(feature = "hold-points")]
        if let Some(rehearsal) = super::rehearsal::wanted() {
            return rehearsal;
        }
        self.policy.build(self.budget(), self.consents)
    }

    /// What of a policy's wish is sent: of ours, what is within budget and consents. Whoever has consented to a policy of
    /// others has consented to what that one does.
    pub fn permitted(self, wish: PolicyWish) -> PolicyWish {
        if self.policy.keeps_budgets() { self.consents.hold(wish, self.budget()) } else { wish }
    }

    /// Whether a policy may stop the guest for as long as the rest takes.
    pub fn may_pause(self) -> bool {
        self.consents.pause == Consent::Given || !self.policy.keeps_budgets()
    }

    /// After so long a blackout the guest goes back to its source while this is the limit in force. Under a policy of
    /// others that may be above the budget, and has the same grace then.
    pub fn longest_blackout_under(self, downtime_limit_ms: u64) -> Duration {
        let in_force =
            Self { max_downtime: DowntimeMs::new(downtime_limit_ms).unwrap_or(self.max_downtime), ..self };
        if self.policy.keeps_budgets() {
            self.longest_blackout()
        } else {
            self.longest_blackout().max(in_force.longest_blackout())
        }
    }
}

fn consents_of(allowed: Allowed) -> Consents {
    let consent = |given| if given { Consent::Given } else { Consent::Withheld };
    Consents {
        // A record is input: no throttle is 0 % or 100 %.
        throttle_percent: allowed.throttle_percent.filter(|percent| (1..=99).contains(percent)),
        pause: consent(allowed.pause),
        postcopy: consent(allowed.postcopy),
    }
}

fn allowed_of(consents: Consents) -> Allowed {
    Allowed {
        throttle_percent: consents.throttle_percent,
        pause: consents.pause == Consent::Given,
        postcopy: consents.postcopy == Consent::Given,
    }
}

impl Default for Limits {
    /// 300 ms of blackout, and no other limit.
    fn default() -> Self {
        const DEFAULT: DowntimeMs = match DowntimeMs::new(300) {
            Some(default) => default,
            None => panic!("300 ms is a downtime"),
        };
        Self {
            max_downtime: DEFAULT,
            grace: None,
            max_time: None,
            max_bandwidth: None,
            consents: Consents::default(),
            policy: PolicyName::Qmigrate,
        }
    }
}

/// Whether the guest runs while its memory is copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// It runs until the last pass.
    Live,
    /// It is stopped first, by consent.
    NonLive,
}

/// How the destination is told where to listen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Incoming {
    /// `-incoming defer`, then a unix socket in the private directory.
    Defer,
    /// This, as it stands, on the destination's command line.
    Literal(String),
}

/// What the destination's command line is made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MadeFrom {
    /// The source's own.
    Source,
    /// A template, with the values that were typed; the others are those that the source shows.
    Template(Box<TemplateFile>, Values),
}

/// Where the destination comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destination {
    /// The engine starts it.
    Start {
        /// What its command line is made from.
        made_from: MadeFrom,
        /// Another QEMU than the one in that.
        qemu: Option<PathBuf>,
        /// How it is told where to listen.
        incoming: Incoming,
    },
    /// The user has started it, with `-incoming defer`.
    Started(QemuName),
}

/// What becomes of the source once the guest runs elsewhere.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SourceAfter {
    /// It quits, and the guest takes over its names.
    Quit,
    /// The same, but by its unit of systemd, which would start it anew otherwise.
    StopUnit(UnitName),
    /// It stays, stopped for good (`postmigrate`).
    Keep,
}

/// Who started a destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StartedBy {
    /// The engine, which also ends it.
    Engine,
    /// The user.
    User,
}

/// What to do with a migration that the guest may not survive: live under TCG before QEMU 9.0, which loses its writes, or
/// to other hardware.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Risks {
    /// Refuse it.
    Refuse,
    /// Do it all the same.
    Accept,
}

/// What an engine of root's does with a guest whose options make QEMU run other programs of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostPrograms {
    /// Refuse it.
    Refuse,
    /// Run them.
    Allow,
}

/// In whose cgroups the destination starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CgroupsOf {
    /// Those of the source, with their limits.
    Source,
    /// Those of the engine: where the end of the source ends all that is in its cgroup, as systemd does with a service.
    Engine,
}

/// One migration, whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Its name.
    pub id: MigrationId,
    /// The source as it was typed.
    pub typed: String,
    /// The source.
    pub source: QemuName,
    /// The destination.
    pub destination: Destination,
    /// Its limits.
    pub limits: Limits,
    /// The policies that are asked beside the one in force, and change nothing.
    pub shadows: Vec<PolicyName>,
    /// Live or not.
    pub mode: Mode,
    /// What the guest is to do on the destination.
    pub at_destination: AtDestination,
    /// What becomes of the source.
    pub source_after: SourceAfter,
    /// What is to be another resource on the destination.
    pub maps: Vec<Map>,
    /// What to do where the guest may not survive it.
    pub risks: Risks,
    /// What to do where the destination would run other programs.
    pub host_programs: HostPrograms,
    /// How the QEMUs are to be told their limits.
    pub dialect: Wish,
    /// The migration's own directory, which the engine makes and removes.
    pub directory: PathBuf,
}

impl Plan {
    /// In whose cgroups the destination starts.
    pub fn cgroups_of(&self) -> CgroupsOf {
        match self.source_after {
            SourceAfter::StopUnit(_) => CgroupsOf::Engine,
            SourceAfter::Quit | SourceAfter::Keep => CgroupsOf::Source,
        }
    }

    /// The part of it that goes into a record.
    pub fn request(&self) -> Request {
        let milliseconds = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        Request {
            source: self.typed.clone(),
            max_downtime_ms: self.limits.max_downtime,
            grace_ms: milliseconds(self.limits.grace()),
            max_time_ms: self.limits.max_time.map(milliseconds),
            max_bandwidth_bytes_per_second: self.limits.max_bandwidth,
            live: self.mode == Mode::Live,
            allowed: allowed_of(self.limits.consents),
            policy: self.limits.policy.to_string(),
            budgets_enforced: self.limits.policy.keeps_budgets(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::converge::{AutoConverge, Throttle};

    #[test]
    fn the_unit_to_stop_is_written_down_and_read_back_as_a_name_only() {
        let after = SourceAfter::StopUnit("vm".parse().unwrap());
        let json = serde_json::to_string(&after).unwrap();
        assert_eq!(json, r#"{"stop_unit":"vm.service"}"#);
        assert_eq!(serde_json::from_str::<SourceAfter>(&json).unwrap(), after);
        assert!(serde_json::from_str::<SourceAfter>(r#"{"stop_unit":"--host=x"}"#).is_err());
        assert_eq!(serde_json::to_string(&SourceAfter::Quit).unwrap(), r#""quit""#);
    }

    #[test]
    fn a_record_gives_back_what_was_allowed_and_an_old_one_allows_nothing() {
        let consents = Consents { throttle_percent: Some(80), pause: Consent::Given, ..Consents::default() };
        let mut request = Request::in_a_test("/vm");
        request.allowed = allowed_of(consents);
        request.policy = PolicyName::Fixed.to_string();
        let json = serde_json::to_value(&request).unwrap();
        assert_eq!(
            json["allowed"],
            serde_json::json!({"throttle_percent": 80, "pause": true, "postcopy": false})
        );
        let found = Limits::of(&serde_json::from_value(json.clone()).unwrap());
        assert_eq!((found.consents, found.policy), (consents, PolicyName::Fixed));

        let mut old = json;
        for new in ["allowed", "policy", "budgets_enforced"] {
            old.as_object_mut().unwrap().remove(new);
        }
        let old: Request = serde_json::from_value(old).unwrap();
        let found = Limits::of(&old);
        assert_eq!((found.consents, found.policy), (Consents::default(), PolicyName::Qmigrate));
        assert!(old.budgets_enforced);

        request.allowed.throttle_percent = Some(100);
        assert_eq!(Limits::of(&request).consents.throttle_percent, None);
    }

    #[test]
    fn a_policy_of_others_may_do_what_it_does_and_is_given_up_no_sooner_than_its_limit_says() {
        let wish =
            PolicyWish { downtime_limit_ms: 5000, throttle: Throttle::Automatic(AutoConverge::DEFAULT) };
        let ours = Limits::default();
        let others = Limits { policy: PolicyName::AutoConverge, ..ours };
        assert_eq!(ours.permitted(wish), PolicyWish { downtime_limit_ms: 300, throttle: Throttle::Never });
        assert_eq!(others.permitted(wish), wish);
        assert!(others.may_pause() && !ours.may_pause());
        assert_eq!(ours.longest_blackout_under(5000), Duration::from_millis(2300));
        assert_eq!(others.longest_blackout_under(5000), Duration::from_secs(10));
    }

    #[test]
    fn the_grace_is_as_long_as_the_budget_and_two_seconds_at_least() {
        let mut limits = Limits::default();
        assert_eq!(limits.longest_blackout(), Duration::from_millis(2300));
        limits.max_downtime = DowntimeMs::new(5000).unwrap();
        assert_eq!(limits.longest_blackout(), Duration::from_secs(10));
        limits.grace = Some(Duration::ZERO);
        assert_eq!(limits.longest_blackout(), Duration::from_secs(5));
    }
}
