//! Whom a process runs as, and touching files as that user would.

use nix::unistd::{Gid, Uid, getegid, geteuid, getgroups, setfsgid, setfsuid};

/// Whom a process runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    /// Its user.
    pub user: Uid,
    /// Its group.
    pub group: Gid,
    /// Its further groups.
    pub groups: Vec<Gid>,
}

impl Credentials {
    /// Those of this process.
    pub fn own() -> nix::Result<Self> {
        let (user, group) = (geteuid(), getegid());
        Ok(Self { user, group, groups: getgroups()? })
    }
}

/// Touches files as another user would. What root does in a directory of somebody else's can be turned against it (a
/// link put in the place of a name between two looks); what that somebody could do alone cannot.
///
/// Only root can be another user; for everybody else this is `act` alone.
pub fn as_user<T>(user: &Credentials, act: impl FnOnce() -> T) -> T {
    if !geteuid().is_root() {
        return act();
    }
    // Per thread, and for files only (`setfsuid(2)`); neither call can fail for root. The further groups first.
    let further = getgroups().unwrap_or_default();
    set_groups_of_this_thread(&user.groups);
    let group_before = setfsgid(user.group);
    let user_before = setfsuid(user.user);
    let result = act();
    setfsuid(user_before);
    setfsgid(group_before);
    set_groups_of_this_thread(&further);
    result
}

/// Sets the further groups of one thread, by the bare system call: the C library's function sets them for all threads.
fn set_groups_of_this_thread(groups: &[Gid]) {
    let groups: Vec<nix::libc::gid_t> = groups.iter().map(|group| group.as_raw()).collect();
    // SAFETY: the pointer and the length are those of a live vector of group numbers, which the kernel only reads.
    let result = unsafe { nix::libc::syscall(nix::libc::SYS_setgroups, groups.len(), groups.as_ptr()) };
    if result != 0 {
        tracing::warn!("the further groups of a user could not be taken");
    }
}
