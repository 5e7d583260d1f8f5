//! What people may ask of a running migration.

use tokio::sync::{mpsc, oneshot};

use crate::units::{DowntimeMs, Rate};

/// New limits; what is absent stays as it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct NewLimits {
    /// The longest blackout.
    pub max_downtime_ms: Option<DowntimeMs>,
    /// The largest rate of the stream.
    pub max_bandwidth_bytes_per_second: Option<Rate>,
}

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// The guest goes back to its source; with the reason.
    Cancel(String),
    /// Stop the guest now, so that what is left can be sent, and run it on the destination.
    Pause,
    /// Change limits.
    Limits(NewLimits),
}

/// A request and the one who waits to hear what became of it.
#[derive(Debug)]
pub struct Order {
    /// What is asked.
    pub request: Request,
    /// Told once: what was done, or why it was not.
    pub answer: oneshot::Sender<Result<String, String>>,
}

impl Order {
    /// Answers; whoever has gone away meanwhile did not want to know.
    pub fn answer(self, answer: Result<String, String>) {
        let _ = self.answer.send(answer);
    }
}

/// Gives orders to a migration.
#[derive(Debug, Clone)]
pub struct Commander(mpsc::Sender<Order>);

impl Commander {
    /// Gives an order and waits for what becomes of it.
    pub async fn give(&self, request: Request) -> Result<String, String> {
        let (answer, answered) = oneshot::channel();
        let ended = || "the migration has ended".to_owned();
        self.0.send(Order { request, answer }).await.map_err(|_| ended())?;
        answered.await.unwrap_or_else(|_| Err(ended()))
    }
}

/// Takes the orders of a migration.
#[derive(Debug)]
pub struct Orders(mpsc::Receiver<Order>);

/// The two ends of a migration's orders.
pub fn orders() -> (Commander, Orders) {
    let (sender, receiver) = mpsc::channel(16);
    (Commander(sender), Orders(receiver))
}

impl Orders {
    /// The next order; waits for ever when nobody is left who could give one.
    pub async fn next(&mut self) -> Order {
        match self.0.recv().await {
            Some(order) => order,
            None => std::future::pending().await,
        }
    }

    /// Waits for a cancel while nothing streams yet, and refuses all else.
    pub async fn cancelled(&mut self) -> String {
        loop {
            let order = self.next().await;
            match order.request.clone() {
                Request::Cancel(reason) => {
                    order.answer(Ok("cancelled; nothing had been moved".to_owned()));
                    return reason;
                }
                Request::Pause | Request::Limits(_) => {
                    order.answer(Err("nothing is being sent yet; ask again in a moment".to_owned()));
                }
            }
        }
    }
}
