//! The policies of others, as they were published, and the names by which a policy is chosen.
//!
//! Each stands in a file of its own, with its constants and where they come from. They know no budget of the user's:
//! what one of them does beyond it is what its users get, and is told beside what ours does. Where one would go
//! postcopy it says so, and goes on as it is.

/// QEMU's own throttle, as it comes.
mod auto_converge;
/// The limit as QEMU comes with it, and nothing else.
mod fixed;

use std::fmt;
use std::str::FromStr;

use super::policy::{Consents, Policy};
use super::{Budget, Controller};

/// A policy by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PolicyName {
    /// Ours.
    Qmigrate,
    /// A limit of 300 ms, and nothing else.
    Fixed,
    /// QEMU's own throttle: 20 %, then 10 % more each time.
    AutoConverge,
}

/// The text is not the name of a policy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no policy '{0}'; there are {all}", all = listed(PolicyName::ALL))]
pub struct PolicyNameError(String);

impl PolicyName {
    /// All of them, ours first.
    pub const ALL: &'static [Self] = &[Self::Qmigrate, Self::Fixed, Self::AutoConverge];

    /// The name as it is typed.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Qmigrate => "qmigrate",
            Self::Fixed => "fixed",
            Self::AutoConverge => "auto-converge",
        }
    }

    /// Whether it can be in force while a guest is moved; the others are for simulation, replay and as a shadow.
    pub fn is_live(self) -> bool {
        match self {
            Self::Qmigrate | Self::Fixed | Self::AutoConverge => true,
        }
    }

    /// Whether it keeps to the user's budgets and consents. One that does not needs consent itself.
    pub fn keeps_budgets(self) -> bool {
        self == Self::Qmigrate
    }

    /// The policy, before its first sample. Only ours takes notice of consents.
    pub fn build(self, budget: Budget, consents: Consents) -> Box<dyn Policy> {
        let _ = consents;
        match self {
            Self::Qmigrate => Box::new(Controller::new(budget)),
            Self::Fixed => Box::new(fixed::Fixed::default()),
            Self::AutoConverge => Box::new(auto_converge::AsItComes::default()),
        }
    }
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

    #[test]
    fn a_name_reads_back_and_one_that_is_none_is_told_those_that_are() {
        for name in PolicyName::ALL {
            assert_eq!(name.to_string().parse(), Ok(*name));
        }
        let error = "proxmix".parse::<PolicyName>().unwrap_err().to_string();
        assert!(error.starts_with("there is no policy 'proxmix'; there are qmigrate, fixed"), "{error}");
        assert!(PolicyName::ALL.iter().all(|name| error.contains(name.as_str())), "{error}");
    }

    #[test]
    fn only_ours_keeps_budgets() {
        let keeping: Vec<_> = PolicyName::ALL.iter().filter(|name| name.keeps_budgets()).collect();
        assert_eq!(keeping, [&PolicyName::Qmigrate]);
    }
}
