//! Blockers in what tells a destination from its source.

use super::{Blocker, Code};
use crate::qemu::hardware::Difference;
use crate::qemu::images::OtherImage;

const HINT: &str = "the destination needs the hardware that the guest has now: the same command line, and what was plugged \
                    in since at the same address (`--template FILE` takes an edited one); --unsafe moves it all the same";

/// Drives that have another image on the destination; no consent makes that right.
pub fn other_images(found: &[OtherImage]) -> Vec<Blocker> {
    let images = |names: &[String]| if names.is_empty() { "nothing".to_owned() } else { names.join(", on ") };
    let blocker = |OtherImage { drive, source, destination }: &OtherImage| {
        Blocker::new(
            Code::OtherImage,
            format!(
                "the drive {drive} has {} on the source, and the destination has opened {}",
                images(source),
                images(destination)
            ),
            "start the destination from a template that names it (`qmigrate template SOURCE`)",
        )
    };
    found.iter().map(blocker).collect()
}

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
