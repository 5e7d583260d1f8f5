//! Gives the destination's processors and I/O threads what those of its source have: people pin them one by one.
//!
//! Only QEMU knows which of its threads is which, so that both sides are asked; and a QEMU may lie: what it names is
//! touched only if it is a thread of its own.

use std::collections::BTreeMap;

use qapi_qmp as words;
use serde_json::Value;

use super::standing::not_taken;
use crate::host::ThreadStanding;
use crate::qemu::ANSWER_WITHIN;
use crate::qmp::{CallError, Client};
use crate::record::Warning;

/// A QEMU, and its process.
pub type Running<'a> = (&'a Client, i32);

/// Gives each thread of the destination that has one of its kind on the source what that one has.
pub async fn pin(source: Running<'_>, destination: Running<'_>) -> Result<Option<Warning>, CallError> {
    let (there, here) = tokio::try_join!(threads(source.0), threads(destination.0))?;
    let mut lacking = Vec::new();
    let standing = |pid, thread| ThreadStanding::of(pid, thread).ok();
    let of_process = standing(source.1, source.1);
    for (name, thread) in here {
        let wanted = there.get(&name).and_then(|&thread| standing(source.1, thread));
        let (Some(wanted), Some(has)) = (wanted, standing(destination.1, thread)) else { continue };
        // What the process has its threads have got from it, or were not permitted, which has been told.
        if has == wanted || Some(&wanted) == of_process.as_ref() {
            continue;
        }
        wanted.give(thread);
        let has = standing(destination.1, thread).unwrap_or(has);
        lacking.extend(wanted.lacking(&has).into_iter().map(|what| format!("{name}: {what}")));
    }
    Ok((!lacking.is_empty()).then(|| not_taken("a thread of the destination", &lacking)))
}

/// The threads of a QEMU by what they do. Under TCG all processors may be of one thread.
async fn threads(client: &Client) -> Result<BTreeMap<String, i32>, CallError> {
    let (processors, io) = tokio::try_join!(
        client.call(&words::query_cpus_fast {}, ANSWER_WITHIN),
        client.call(&words::query_iothreads {}, ANSWER_WITHIN),
    )?;
    let each = |answer: Value, kind: &'static str, key: &'static str| {
        let answer = if let Value::Array(answer) = answer { answer } else { Vec::new() };
        answer.into_iter().filter_map(move |thread| {
            let number = thread["thread-id"].as_i64().and_then(|number| i32::try_from(number).ok())?;
            let name = thread[key].as_str().map_or_else(|| thread[key].to_string(), str::to_owned);
            Some((format!("{kind} {name}"), number))
        })
    };
    Ok(each(processors, "processor", "cpu-index").chain(each(io, "I/O thread", "id")).collect())
}
