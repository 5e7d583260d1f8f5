//! The future of one answer.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use serde_json::Value;
use tokio::sync::oneshot;

use super::connection::Shared;
use super::error::{CallError, Closed};
use super::window::Answer;

/// The answer to one command, when it comes.
///
/// Dropping it is safe at any time: a command that was not written yet is taken back, one that was written runs on and
/// its answer is dropped when it comes.
#[derive(Debug)]
#[must_use = "a dropped reply takes its command back if that was not written yet"]
pub struct Reply {
    shared: Arc<Shared>,
    id: u64,
    command: &'static str,
    answer: oneshot::Receiver<Answer>,
    answered: bool,
}

impl Reply {
    pub(super) fn new(
        shared: Arc<Shared>,
        id: u64,
        command: &'static str,
        answer: oneshot::Receiver<Answer>,
    ) -> Self {
        Self { shared, id, command, answer, answered: false }
    }

    /// The reply to a command that was never submitted.
    pub(super) fn failed(shared: Arc<Shared>, command: &'static str, error: CallError) -> Self {
        let (sender, answer) = oneshot::channel();
        // The receiver is here.
        let _ = sender.send(Err(error));
        Self { shared, id: 0, command, answer, answered: false }
    }

    /// Awaits the answer, at most so long.
    pub async fn within(mut self, deadline: Duration) -> Result<Value, CallError> {
        match tokio::time::timeout(deadline, &mut self).await {
            Ok(answer) => answer,
            Err(_) => Err(CallError::Late {
                leg: self.shared.leg,
                command: self.command,
                after: deadline,
                written: !self.withdraw(),
            }),
        }
    }

    /// Takes the command back; says whether it was not written yet.
    fn withdraw(&mut self) -> bool {
        self.answered = true;
        self.shared.window().withdraw(self.id)
    }
}

impl Future for Reply {
    type Output = Answer;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Answer> {
        let answer = ready!(Pin::new(&mut self.answer).poll(context));
        self.answered = true;
        Poll::Ready(answer.unwrap_or_else(|_| {
            let (leg, command) = (self.shared.leg, self.command);
            Err(CallError::Interrupted { leg, command, written: true, cause: Closed::Stopped })
        }))
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if !self.answered {
            self.withdraw();
        }
    }
}
