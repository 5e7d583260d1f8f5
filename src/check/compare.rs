//! Blockers in what tells a destination from its source.

use super::{Blocker, Code};
use crate::qemu::hardware::Difference;

const HINT: &str = "the destination needs the hardware that the guest has now: the same command line, and what was plugged \
                    in since at the same address (`--template FILE` takes an edited one); --unsafe moves it all the same";

/// One blocker for each difference, with a code by its kind.
pub fn differences(found: &[Difference]) -> Vec<Blocker> {
    let blocker = |difference: &Difference| {
        let code = match difference {
            Difference::Value { .. } => Code::Differs,
            Difference::Missing(_) => Code::MissingThere,
            Difference::Extra(_) => Code::ExtraThere,
            Difference::Features { .. } => Code::ProcessorFeatures,
        };
        Blocker::new(code, difference.to_string(), HINT)
    };
    found.iter().map(blocker).collect()
}
