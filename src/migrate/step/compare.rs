//! Holds a destination that waits against its source, before a byte of memory is sent: what QEMU would find late, when
//! the source has stopped, or never.

use crate::check::{Blocker, differences, other_images};
use crate::qemu::hardware::{Difference, Hardware};
use crate::qemu::images::Images;
use crate::qemu::rewrite::Map;
use crate::qmp::{CallError, Client};

/// All in which the destination differs from the source. Both are asked at the same time, and as they are now.
pub async fn compare(source: &Client, destination: &Client) -> Result<Vec<Blocker>, CallError> {
    let (here, there) = tokio::try_join!(Hardware::ask(source), Hardware::ask(destination))?;
    let mut found = here.differences(&there);
    for difference in &mut found {
        if let Difference::Features { names, .. } = difference {
            let (needs, has) =
                tokio::try_join!(here.named_features(source), there.named_features(destination))?;
            *names = needs.difference(&has).cloned().collect();
        }
    }
    Ok(differences(&found))
}

/// The drives of a destination that was made from its source's command line and have another image than there, where the
/// user has not given them one.
pub async fn images(source: &Client, destination: &Client, maps: &[Map]) -> Result<Vec<Blocker>, CallError> {
    let (here, there) = tokio::try_join!(Images::ask(source), Images::ask(destination))?;
    let is_meant = |name: &str| maps.iter().any(|map| map.occurs_in(name));
    Ok(other_images(&here.differences(&there, is_meant)))
}
