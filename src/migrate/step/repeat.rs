//! Gives a destination that the engine has started what stands on no command line: what was plugged in and changed on the
//! source since that was started.
//!
//! All of it happens while the destination waits for the stream, and before it is held against the source, which proves
//! that it has become the same. What goes wrong ends the destination; the source has not been touched.

use std::collections::{BTreeMap, BTreeSet};

use qapi::Command;
use qapi_qmp as words;
use serde::Serialize;
use serde_json::{Map, Value};

use crate::check::{Blocker, Code};
use crate::qemu::ANSWER_WITHIN;
use crate::qemu::repetition::{Repetition, Verb};
use crate::qmp::{CallError, Client, Reply};

/// Does all of it, in order.
pub async fn repeat(destination: &Client, repetitions: &[Repetition]) -> Result<(), Blocker> {
    let known = known(destination, repetitions).await?;
    let commands = repetitions.iter().map(|repetition| {
        let mut arguments = repetition.arguments.clone();
        if let Some(known) = driver(repetition).and_then(|driver| known.get(driver)) {
            arguments.retain(|name, _| OF_EACH.contains(&name.as_str()) || known.contains(name));
        }
        send(destination, repetition.verb, &arguments)
    });
    let replies: Vec<Reply> = commands.collect();
    for (reply, repetition) in replies.into_iter().zip(repetitions) {
        match reply.within(ANSWER_WITHIN).await {
            Ok(_) => {}
            Err(CallError::Refused { desc, .. }) => {
                return Err(Blocker::new(
                    Code::NotRepeated,
                    format!(
                        "{} cannot be repeated on the destination: {} says: {desc}",
                        repetition.what,
                        repetition.verb.name()
                    ),
                    "--dry-run prints what is repeated; what stands in a template is not: --template FILE",
                ));
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Arguments of `device_add` that are no properties.
const OF_EACH: [&str; 3] = ["driver", "id", "bus"];

/// The properties that the destination knows of each kind of device. A newer source tells of some that an older
/// destination does not have, and which are no part of the machine that both have.
async fn known(
    destination: &Client,
    repetitions: &[Repetition],
) -> Result<BTreeMap<String, BTreeSet<String>>, CallError> {
    let drivers: BTreeSet<&str> = repetitions.iter().filter_map(driver).collect();
    let ask =
        |driver: &&str| destination.send(&words::device_list_properties { typename: (*driver).to_owned() });
    let replies: Vec<Reply> = drivers.iter().map(ask).collect();
    let mut known = BTreeMap::new();
    for (driver, reply) in drivers.iter().zip(replies) {
        // A kind that it does not know at all is named by `device_add`.
        let listed = match reply.within(ANSWER_WITHIN).await {
            Ok(listed) => listed,
            Err(CallError::Refused { .. }) => continue,
            Err(error) => return Err(error),
        };
        let name = |property: &Value| Some(property.get("name")?.as_str()?.to_owned());
        let names = listed.as_array().into_iter().flatten().filter_map(name).collect();
        known.insert((*driver).to_owned(), names);
    }
    Ok(known)
}

fn driver(repetition: &Repetition) -> Option<&str> {
    if repetition.verb == Verb::AddDevice { repetition.arguments.get("driver")?.as_str() } else { None }
}

/// Commands whose arguments are what the source has told.
macro_rules! as_told {
    ($($name:ident $word:literal),* $(,)?) => {
        $(
            #[derive(Serialize)]
            #[serde(transparent)]
            struct $name<'a>(&'a Map<String, Value>);

            impl Command for $name<'_> {
                type Ok = Value;

                const NAME: &'static str = $word;
                const ALLOW_OOB: bool = false;
            }
        )*

        fn send(destination: &Client, verb: Verb, arguments: &Map<String, Value>) -> Reply {
            match verb {
                $(Verb::$name => destination.send(&$name(arguments)),)*
            }
        }
    };
}

as_told! {
    AddObject "object-add",
    AddCharacterDevice "chardev-add",
    AddNode "blockdev-add",
    AddNetwork "netdev_add",
    AddDevice "device_add",
    ChangeMedium "blockdev-change-medium",
    OpenTray "blockdev-open-tray",
    InsertMedium "blockdev-insert-medium",
    CloseTray "blockdev-close-tray",
    Eject "eject",
    Limit "block_set_io_throttle",
}
