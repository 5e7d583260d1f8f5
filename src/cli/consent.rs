//! What a user allows to be done to the guest, and by which policy it is decided.

use std::process::ExitCode;

use clap::Args;
use qmigrate::converge::{Consents, Permission, PolicyName};
use qmigrate::migrate::plan::Limits;

use super::refuse;

/// What may be done besides waiting.
#[derive(Debug, Clone, Args)]
pub(crate) struct ConsentArguments {
    /// What may be done to the guest where waiting does not bring it to an end: throttle (or throttle=80%, the most that
    /// it is slowed down by), pause, postcopy, policy=NAME. Repeatable; commas separate.
    #[arg(long, value_name = "WHAT", value_delimiter = ',')]
    allow: Vec<Permission>,
    /// What decides: qmigrate, or a policy of others, as published, which keeps to no budget and needs --allow
    /// policy=NAME.
    #[arg(long, value_name = "NAME", default_value = "qmigrate")]
    policy: PolicyName,
}

impl ConsentArguments {
    /// These limits with what is allowed; or what was wrong with it, which has been said.
    pub(crate) fn on(&self, limits: Limits) -> Result<Limits, ExitCode> {
        let policy = self.policy;
        if self.allow.contains(&Permission::Postcopy) {
            return Err(refuse(
                "--allow postcopy: postcopy is not carried out yet",
                Some("leave it out; what can be allowed is throttle, throttle=80%, pause and policy=NAME"),
            ));
        }
        if !policy.is_live() {
            return Err(refuse(
                format!("--policy {policy}: this one cannot be in force while a guest is moved"),
                Some("`qmigrate replay RECORD --policy NAME` says what it would have done"),
            ));
        }
        if !policy.keeps_budgets() && !self.allow.contains(&Permission::Policy(policy)) {
            return Err(refuse(
                format!("--policy {policy}: this one keeps to no budget, and does to the guest what it does"),
                Some(&format!("if that is meant: --allow policy={policy}")),
            ));
        }
        let consents: Consents = self.allow.iter().copied().collect();
        Ok(Limits { consents, policy, ..limits })
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Typed {
        #[command(flatten)]
        consents: ConsentArguments,
    }

    fn typed(words: &[&str]) -> Option<Limits> {
        let typed = Typed::try_parse_from([&["qmigrate"], words].concat()).ok()?;
        typed.consents.on(Limits::default()).ok()
    }

    #[test]
    fn what_is_allowed_is_repeated_or_separated_by_commas() {
        let both = typed(&["--allow", "throttle=80%,pause"]).unwrap();
        assert_eq!(both, typed(&["--allow", "pause", "--allow", "throttle=80%"]).unwrap());
        assert_eq!(both.consents.throttle_percent, Some(80));
        assert_eq!(typed(&[]).unwrap(), Limits::default());
    }

    #[test]
    fn what_is_not_there_yet_or_not_consented_to_is_refused() {
        for words in [
            &["--allow", "postcopy"][..],
            &["--allow", "pause,postcopy"],
            &["--allow", "stop"],
            &["--policy", "fixed"],
            &["--policy", "fixed", "--allow", "policy=auto-converge"],
            &["--policy", "unheard-of"],
        ] {
            assert_eq!(typed(words), None, "{words:?}");
        }
        assert_eq!(
            typed(&["--policy", "fixed", "--allow", "policy=fixed"]).unwrap().policy,
            PolicyName::Fixed
        );
    }
}
