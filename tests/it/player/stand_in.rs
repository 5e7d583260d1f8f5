//! Processes that stand in for QEMUs, so that the engine has something to watch and to end.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use qmigrate::host::ProcessHandle;

/// An ordinary process that does nothing, and ends with whoever started it.
#[derive(Debug)]
pub(crate) struct StandIn(Child);

impl StandIn {
    fn start() -> Self {
        let mut command = Command::new("cat");
        Self(command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap())
    }

    fn pid(&self) -> i32 {
        self.0.id().try_into().unwrap()
    }

    /// A hold on it.
    pub(crate) fn handle(&self) -> ProcessHandle {
        ProcessHandle::open(self.pid()).unwrap()
    }

    /// Ends it, and waits until it has ended.
    pub(crate) fn end(&mut self) {
        self.0.kill().unwrap();
        self.ended();
    }

    /// Whether somebody has ended it. With a stopped clock the moments that the kernel takes for that would be hours,
    /// so they are waited for here.
    pub(crate) fn was_ended(&self) -> bool {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.unwrap_or_default().trim().to_owned()
        };
        let has_signal = u64::from_str_radix(&field("SigPnd:"), 16).is_ok_and(|signals| signals != 0);
        let is_over = has_signal || field("State:").starts_with(['Z', 'X']);
        if is_over {
            self.ended();
        }
        is_over
    }

    fn ended(&self) {
        assert!(self.handle().has_ended_within(Duration::from_secs(10)), "it was killed and lives");
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// Those who have no part at the moment: most plays end without a death.
#[derive(Debug, Default)]
pub(crate) struct Cast(Vec<StandIn>);

impl Cast {
    /// One that lives.
    pub(crate) fn get(&mut self) -> StandIn {
        self.0.pop().unwrap_or_else(StandIn::start)
    }

    /// Takes one back; one that has ended goes.
    pub(crate) fn give(&mut self, stand_in: StandIn) {
        if !stand_in.was_ended() {
            self.0.push(stand_in);
        }
    }
}
