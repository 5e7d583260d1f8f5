//! Whose cancel it was that the source tells of: ours, or another client's.

use crate::qmp::words::MigrationStatus;

/// The cancels of one migration.
#[derive(Debug, Default)]
pub(super) struct Cancels {
    /// How many went out from here, and when the first of them did, in microseconds since 1970.
    own: u32,
    own_since_us: Option<u64>,
    /// How often the source has begun to cancel.
    heard: u32,
}

impl Cancels {
    /// One goes out from here.
    pub(super) fn send(&mut self, now_us: u64) {
        self.own += 1;
        self.own_since_us.get_or_insert(now_us);
    }

    /// Takes in a status of the source with its stamp; says whether it is of another client's cancel.
    ///
    /// QEMU says `cancelling` for each `migrate_cancel`, also for a second one. It ends the link first, so that the
    /// destination may have failed, and our own cancel gone out, before the first is told (run on 10.0).
    pub(super) fn are_somebodys(&mut self, status: &MigrationStatus, at_us: Option<u64>) -> bool {
        match status {
            MigrationStatus::Cancelling => self.heard += 1,
            MigrationStatus::Cancelled => {}
            _ => return false,
        }
        let is_earlier = |own| at_us.is_some_and(|at| at < own);
        self.heard > self.own || self.own_since_us.is_none_or(is_earlier)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CANCELLING: MigrationStatus = MigrationStatus::Cancelling;
    const CANCELLED: MigrationStatus = MigrationStatus::Cancelled;

    #[test]
    fn a_cancel_that_nobody_here_has_sent_is_somebodys() {
        assert!(!Cancels::default().are_somebodys(&MigrationStatus::Failed, Some(5)));
        for status in [CANCELLING, CANCELLED] {
            assert!(Cancels::default().are_somebodys(&status, None));
        }
    }

    #[test]
    fn our_own_is_ours_and_one_before_or_beside_it_is_not() {
        let sent = || {
            let mut cancels = Cancels::default();
            cancels.send(10);
            cancels
        };
        let mut ours = sent();
        assert!(!ours.are_somebodys(&CANCELLING, Some(11)) && !ours.are_somebodys(&CANCELLED, Some(12)));
        assert!(sent().are_somebodys(&CANCELLING, Some(9)));
        let mut twice = sent();
        assert!(!twice.are_somebodys(&CANCELLING, Some(11)));
        assert!(twice.are_somebodys(&CANCELLING, Some(12)));
    }
}
