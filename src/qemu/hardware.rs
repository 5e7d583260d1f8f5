//! The guest's hardware as a QEMU has it now, and how that of two QEMUs differs.
//!
//! QEMU itself compares little: a processor or a serial port too few is found when the source has already stopped
//! (`Unknown savevm section`), another processor model, another uuid or a device too many never (run on 7.2 and 11.1).
//! What is compared here is asked of both sides, so that it holds for hot-plugged devices too, which stand on no
//! command line.
//!
//! | what | from | compared as |
//! |---|---|---|
//! | devices | `info qtree` | place on the bus, kind, and of the user's the properties that both tell |
//! | memory | `info ramblock` | name and size of each block, as QEMU's own stream does |
//! | processors | `query-cpus-fast`, and of the first `type` and `feature-words` | number, topology, model, feature bits |
//! | the rest | `query-uuid`, `query-kvm`, the machine's type | value |
//!
//! `info qtree` is for people, but has had this form from 5.2 to 11.1, and is one question of 2 to 17 ms where the same
//! by `qom-get` are a thousand. With one versioned machine type a guest of twelve devices had, on 5.2, 7.2, 10.0 and
//! 11.1, the same devices and, but for `rombar`, `xres` and `yres`, the same value for each property that two of them
//! tell; and the same feature words for each named processor model. What one of the two does not tell is not compared.

use std::collections::BTreeSet;
use std::fmt;

use qapi_qmp as words;
use serde::Deserialize;
use serde_json::Value;

/// Blocks of memory, from `info ramblock`.
mod blocks;
/// Which features of a processor one side has and the other lacks.
mod features;
/// What the log of dirty pages misses under TCG.
mod tcg_log;
/// The tree of devices, from `info qtree`.
pub(super) mod tree;

pub use blocks::{Block, Blocks};
pub use features::FeatureWord;
pub use tcg_log::Untracked;
pub use tree::Device;

use super::ANSWER_WITHIN;
use crate::qmp::{CallError, Client};

/// A processor, as far as `query-cpus-fast` tells.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Processor {
    cpu_index: u64,
    qom_path: String,
    /// Its place: socket, core, thread.
    #[serde(default)]
    props: Value,
}

/// The hardware of a guest.
#[derive(Debug, Clone, PartialEq)]
pub struct Hardware {
    machine: Option<String>,
    kvm: Option<bool>,
    uuid: Option<String>,
    processors: Vec<Processor>,
    model: Option<String>,
    features: Vec<FeatureWord>,
    blocks: Blocks,
    devices: Vec<Device>,
    /// The kinds of the devices that the user has given it.
    users: BTreeSet<String>,
}

/// How the destination differs from the source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Difference {
    /// One value that both have.
    Value {
        /// Of what, such as `the machine type`.
        what: String,
        /// On the source.
        source: String,
        /// On the destination.
        destination: String,
    },
    /// The destination lacks it.
    Missing(String),
    /// Only the destination has it.
    Extra(String),
    /// The destination's processor lacks feature bits of the source's.
    Features {
        /// Those that it lacks, as words of `CPUID`.
        lacks: Vec<FeatureWord>,
        /// The same by name, where that was asked for.
        names: Vec<String>,
    },
}

impl fmt::Display for Difference {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Value { what, source, destination } => {
                write!(formatter, "{what} is {source} on the source and {destination} on the destination")
            }
            Self::Missing(what) => write!(formatter, "the destination has no {what}"),
            Self::Extra(what) => write!(formatter, "the source has no {what}, and the destination has"),
            Self::Features { lacks, names } => {
                let words = || lacks.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
                let list = if names.is_empty() { words() } else { names.join(", ") };
                write!(formatter, "the destination's processor lacks features of the source's: {list}")
            }
        }
    }
}

impl Hardware {
    /// Asks a QEMU, in two rounds. What it does not tell stays empty; an error is one of the connection.
    pub async fn ask(client: &Client) -> Result<Self, CallError> {
        let machine = words::qom_get { path: "/machine".to_owned(), property: "type".to_owned() };
        let list = |path: &str| words::qom_list { path: path.to_owned() };
        let (with_id, without_id) = (list("/machine/peripheral"), list("/machine/peripheral-anon"));
        let (machine, kvm, uuid, processors, blocks, devices, with_id, without_id) = tokio::join!(
            client.call(&machine, ANSWER_WITHIN),
            client.call(&words::query_kvm {}, ANSWER_WITHIN),
            client.call(&words::query_uuid {}, ANSWER_WITHIN),
            client.call(&words::query_cpus_fast {}, ANSWER_WITHIN),
            people(client, "info ramblock"),
            people(client, "info qtree"),
            client.call(&with_id, ANSWER_WITHIN),
            client.call(&without_id, ANSWER_WITHIN),
        );
        let processors = told(processors)?.map(processors_of).unwrap_or_default();
        let (model, features) = match processors.first() {
            Some(first) => {
                let get =
                    |name: &str| words::qom_get { path: first.qom_path.clone(), property: name.to_owned() };
                let (model, features) = (get("type"), get("feature-words"));
                let asked =
                    tokio::join!(client.call(&model, ANSWER_WITHIN), client.call(&features, ANSWER_WITHIN));
                (told(asked.0)?, told(asked.1)?)
            }
            None => (None, None),
        };
        Ok(Self {
            machine: told(machine)?.as_ref().and_then(Value::as_str).map(str::to_owned),
            kvm: told(kvm)?.and_then(|kvm| kvm.get("enabled")?.as_bool()),
            uuid: told(uuid)?.and_then(|uuid| uuid_of(&uuid)),
            processors,
            model: model.as_ref().and_then(Value::as_str).map(str::to_owned),
            features: features.and_then(|words| serde_json::from_value(words).ok()).unwrap_or_default(),
            blocks: Blocks::parse(&told(blocks)?.unwrap_or_default()),
            devices: tree::parse(&told(devices)?.unwrap_or_default()),
            users: [told(with_id)?, told(without_id)?].iter().flatten().flat_map(kinds).collect(),
        })
    }

    /// All in which a destination differs from this source, and which the guest or QEMU would find.
    pub fn differences(&self, destination: &Self) -> Vec<Difference> {
        let mut found = Vec::new();
        let accelerator = |kvm| if kvm { "KVM" } else { "TCG" }.to_owned();
        let mut value = |what: &str, source: Option<String>, destination: Option<String>| {
            if let (Some(source), Some(destination)) = (source, destination)
                && source != destination
            {
                found.push(Difference::Value { what: what.to_owned(), source, destination });
            }
        };
        value("the machine type", self.machine.clone(), destination.machine.clone());
        value("the accelerator", self.kvm.map(accelerator), destination.kvm.map(accelerator));
        value("the uuid", self.uuid.clone(), destination.uuid.clone());
        value("the processor model", self.model.clone(), destination.model.clone());
        value("the number of processors", self.count(), destination.count());
        if self.count() == destination.count() {
            value("the topology of the processors", self.topology(), destination.topology());
        }
        found.extend(features::lacking(&self.features, &destination.features));
        found.extend(self.blocks.differences(&destination.blocks));
        found.extend(tree::differences(&self.devices, &destination.devices, &self.users));
        found
    }

    /// The names of the features that its processors have; see [`Difference::Features`].
    pub async fn named_features(&self, client: &Client) -> Result<BTreeSet<String>, CallError> {
        match self.processors.first() {
            Some(processor) => features::named(client, &processor.qom_path).await,
            None => Ok(BTreeSet::new()),
        }
    }

    fn count(&self) -> Option<String> {
        (!self.processors.is_empty()).then(|| self.processors.len().to_string())
    }

    fn topology(&self) -> Option<String> {
        let places: Vec<String> =
            self.processors.iter().map(|processor| processor.props.to_string()).collect();
        (!places.is_empty()).then(|| places.join(" "))
    }
}

/// A QEMU that was given no uuid says zeros.
fn uuid_of(answer: &Value) -> Option<String> {
    let text = answer.get("UUID")?.as_str()?;
    text.contains(|digit| !matches!(digit, '0' | '-')).then(|| text.to_owned())
}

/// In the order of their numbers.
fn processors_of(answer: Value) -> Vec<Processor> {
    let mut processors: Vec<Processor> = serde_json::from_value(answer).unwrap_or_default();
    processors.sort_by_key(|processor| processor.cpu_index);
    processors
}

/// The kinds of the children that `qom-list` tells of.
fn kinds(children: &Value) -> Vec<String> {
    let kind = |child: &Value| {
        let kind = child.get("type")?.as_str()?.strip_prefix("child<")?.strip_suffix('>')?;
        Some(kind.to_owned())
    };
    children.as_array().into_iter().flatten().filter_map(kind).collect()
}

/// What the monitor for people says.
pub(super) async fn people(client: &Client, command: &str) -> Result<String, CallError> {
    let command = words::human_monitor_command { command_line: command.to_owned(), cpu_index: None };
    let text = client.call(&command, ANSWER_WITHIN).await?;
    Ok(text.as_str().unwrap_or_default().replace('\r', ""))
}

/// An answer; `None` where QEMU has none to this question.
pub(super) fn told<T>(answer: Result<T, CallError>) -> Result<Option<T>, CallError> {
    match answer {
        Ok(value) => Ok(Some(value)),
        Err(CallError::Refused { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}
