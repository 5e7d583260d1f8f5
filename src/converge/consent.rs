//! What a user allows: as it is typed, and a policy's wish held to it.

use std::fmt;
use std::str::FromStr;

use super::Budget;
use super::policy::{Consent, Consents, Throttle, Wish};
use super::rivals::{PolicyName, PolicyNameError};

/// QEMU takes no more: at 100 % a guest would stand still.
const MOST_PERCENT: u8 = 99;

/// One thing that a user allows (`--allow`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Permission {
    /// Slowing the guest down, by so many per cent at most: 1 to 99.
    Throttle {
        /// Of the guest's time, in per cent.
        at_most_percent: u8,
    },
    /// Stopping it so that what is left can be sent.
    Pause,
    /// Running it on the destination before all of its memory is there.
    Postcopy,
    /// A policy that does not keep to the budgets.
    Policy(PolicyName),
}

/// The text is nothing that can be allowed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PermissionError {
    /// It is none of the words.
    #[error(
        "'{0}' is nothing that can be allowed; there are throttle, throttle=80%, pause, postcopy and policy=NAME"
    )]
    Unknown(String),
    /// A throttle that QEMU does not have.
    #[error(
        "'{0}' is no share of the guest's time; a throttle is 1% to {MOST_PERCENT}%, such as throttle=80%"
    )]
    Throttle(String),
    /// A word that takes no value.
    #[error("'{0}' takes no value; write {0} alone")]
    NoValue(&'static str),
    /// There is no such policy.
    #[error(transparent)]
    Policy(#[from] PolicyNameError),
}

impl FromStr for Permission {
    type Err = PermissionError;

    fn from_str(text: &str) -> Result<Self, PermissionError> {
        let (word, value) = match text.trim().split_once('=') {
            Some((word, value)) => (word, Some(value)),
            None => (text.trim(), None),
        };
        match (word, value) {
            ("throttle", None) => Ok(Self::Throttle { at_most_percent: MOST_PERCENT }),
            ("throttle", Some(value)) => {
                let number = value.strip_suffix('%').unwrap_or(value).parse();
                let number = number.ok().filter(|percent| (1..=MOST_PERCENT).contains(percent));
                let at_most_percent = number.ok_or_else(|| PermissionError::Throttle(shortened(value)))?;
                Ok(Self::Throttle { at_most_percent })
            }
            ("pause", None) => Ok(Self::Pause),
            ("postcopy", None) => Ok(Self::Postcopy),
            ("pause", Some(_)) => Err(PermissionError::NoValue("pause")),
            ("postcopy", Some(_)) => Err(PermissionError::NoValue("postcopy")),
            ("policy", Some(name)) => Ok(Self::Policy(name.parse()?)),
            _ => Err(PermissionError::Unknown(shortened(text))),
        }
    }
}

impl fmt::Display for Permission {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Throttle { at_most_percent } => write!(formatter, "throttle={at_most_percent}%"),
            Self::Pause => formatter.write_str("pause"),
            Self::Postcopy => formatter.write_str("postcopy"),
            Self::Policy(name) => write!(formatter, "policy={name}"),
        }
    }
}

fn shortened(text: &str) -> String {
    text.chars().take(40).collect()
}

/// What was said last counts. Which policy may be in force is no consent of its own.
impl FromIterator<Permission> for Consents {
    fn from_iter<I: IntoIterator<Item = Permission>>(permissions: I) -> Self {
        let mut consents = Self::default();
        for permission in permissions {
            match permission {
                Permission::Throttle { at_most_percent } => consents.throttle_percent = Some(at_most_percent),
                Permission::Pause => consents.pause = Consent::Given,
                Permission::Postcopy => consents.postcopy = Consent::Given,
                Permission::Policy(_) => {}
            }
        }
        consents
    }
}

impl Consents {
    /// A wish as far as it is consented to, and within the budget: whatever a policy makes of its samples, no more than
    /// this is sent.
    pub fn hold(self, wish: Wish, budget: Budget) -> Wish {
        let throttle = match (wish.throttle, self.throttle_percent) {
            (Throttle::ByHand { percent }, Some(most)) => Throttle::ByHand { percent: percent.min(most) },
            _ => Throttle::Never,
        };
        let downtime_limit_ms = wish.downtime_limit_ms.min(budget.max_downtime.milliseconds());
        Wish { downtime_limit_ms, throttle }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::converge::AutoConverge;
    use crate::units::DowntimeMs;

    fn throttle(at_most_percent: u8) -> Permission {
        Permission::Throttle { at_most_percent }
    }

    #[test]
    fn what_can_be_allowed_reads_back() {
        for (text, permission) in [
            ("throttle=80%", throttle(80)),
            ("throttle=1%", throttle(1)),
            ("throttle=99%", throttle(99)),
            ("pause", Permission::Pause),
            ("postcopy", Permission::Postcopy),
            ("policy=fixed", Permission::Policy(PolicyName::Fixed)),
        ] {
            assert_eq!(text.parse(), Ok(permission));
            assert_eq!(permission.to_string(), text);
        }
        assert_eq!("throttle".parse(), Ok(throttle(99)));
        assert_eq!("throttle=7".parse(), Ok(throttle(7)));
        assert_eq!(" pause".parse(), Ok(Permission::Pause), "as it stands behind a comma");
    }

    #[test]
    fn what_cannot_be_allowed_is_told_with_what_can() {
        for (text, part) in [
            ("", "throttle=80%, pause, postcopy and policy=NAME"),
            ("stop", "throttle=80%, pause, postcopy and policy=NAME"),
            ("policy", "policy=NAME"),
            ("throttle=0%", "1% to 99%"),
            ("throttle=100%", "1% to 99%"),
            ("throttle=-5", "1% to 99%"),
            ("throttle=a lot", "1% to 99%"),
            ("throttle=", "1% to 99%"),
            ("pause=5s", "pause alone"),
            ("policy=fast", "there are qmigrate"),
        ] {
            let error = text.parse::<Permission>().unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn what_was_said_last_counts_and_nothing_is_allowed_that_was_not_said() {
        assert_eq!([].into_iter().collect::<Consents>(), Consents::default());
        let given = [throttle(80), Permission::Pause, throttle(50), Permission::Policy(PolicyName::Fixed)];
        let expected =
            Consents { throttle_percent: Some(50), pause: Consent::Given, postcopy: Consent::Withheld };
        assert_eq!(given.into_iter().collect::<Consents>(), expected);
    }

    proptest! {
        #[test]
        fn no_wish_goes_beyond_the_budget_or_the_consent(
            downtime_limit_ms in 0_u64..3_000_000,
            percent in 0_u8..=255,
            most in proptest::option::of(1_u8..=99),
            max_downtime_ms in 1_u64..2_000_000,
            automatic: bool,
        ) {
            let by_hand = Throttle::ByHand { percent };
            let throttle = if automatic { Throttle::Automatic(AutoConverge::DEFAULT) } else { by_hand };
            let budget = Budget { max_downtime: DowntimeMs::new(max_downtime_ms).unwrap(), max_time: None };
            let consents = Consents { throttle_percent: most, ..Consents::default() };
            let held = consents.hold(Wish { downtime_limit_ms, throttle }, budget);
            prop_assert_eq!(held.downtime_limit_ms, downtime_limit_ms.min(max_downtime_ms));
            let expected = match most {
                Some(most) if !automatic => Throttle::ByHand { percent: percent.min(most) },
                _ => Throttle::Never,
            };
            prop_assert_eq!(held.throttle, expected);
        }
    }
}
