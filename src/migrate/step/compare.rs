//! Holds a destination that waits against its source, before a byte of memory is sent: what QEMU would find late, when
//! the source has stopped, or never.

use crate::check::{Blocker, differences};
use crate::qemu::hardware::{Difference, Hardware};
use crate::qmp::{CallError, Client};

/// All in which the destination differs from a source with this hardware.
pub async fn compare(
    here: &Hardware,
    source: &Client,
    destination: &Client,
) -> Result<Vec<Blocker>, CallError> {
    let there = Hardware::ask(destination).await?;
    let mut found = here.differences(&there);
    for difference in &mut found {
        if let Difference::Features { names, .. } = difference {
            let (has, needs) =
                tokio::try_join!(there.named_features(destination), here.named_features(source))?;
            *names = needs.difference(&has).cloned().collect();
        }
    }
    Ok(differences(&found))
}
