//! Which features of a processor one side has and the other lacks.
//!
//! A word of `feature-words` is a register of `CPUID`, which only x86 has. The state of a processor travels and its
//! features do not: a guest that uses one which its new processor lacks crashes there, and QEMU moves it all the same
//! (run on 7.2 and 11.1). More features on the destination are found by nobody before the guest's next boot.

use std::collections::BTreeSet;
use std::fmt;

use qapi_qmp as words;
use serde::Deserialize;
use serde_json::Value;

use super::{ANSWER_WITHIN, Difference, told};
use crate::qmp::{CallError, Client};

/// One register of `CPUID` as the guest sees it, as far as it has feature bits.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct FeatureWord {
    cpuid_input_eax: u64,
    #[serde(default)]
    cpuid_input_ecx: u64,
    cpuid_register: String,
    features: u64,
}

impl FeatureWord {
    fn is_the_register_of(&self, other: &Self) -> bool {
        let key = |word: &Self| (word.cpuid_input_eax, word.cpuid_input_ecx, word.cpuid_register.clone());
        key(self) == key(other)
    }
}

impl fmt::Display for FeatureWord {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cpuid_input_eax: leaf, cpuid_input_ecx: sub, cpuid_register: register, features } = self;
        write!(formatter, "{features:#x} in {register} of CPUID {leaf:#x}.{sub}")
    }
}

/// The bits that the destination lacks. A register that one of the two does not tell is one of another version.
pub(super) fn lacking(source: &[FeatureWord], destination: &[FeatureWord]) -> Option<Difference> {
    let lacks: Vec<FeatureWord> = source
        .iter()
        .filter_map(|word| {
            let there = destination.iter().find(|there| word.is_the_register_of(there))?;
            let features = word.features & !there.features;
            (features != 0).then(|| FeatureWord { features, ..word.clone() })
        })
        .collect();
    (!lacks.is_empty()).then(|| Difference::Features { lacks, names: Vec::new() })
}

/// The names of the features that a processor has. Hundreds of questions: for where there is something to explain.
pub(super) async fn named(client: &Client, processor: &str) -> Result<BTreeSet<String>, CallError> {
    let list = client.call(&words::qom_list { path: processor.to_owned() }, ANSWER_WITHIN).await?;
    let is_switch = |property: &&Value| property.get("type").and_then(Value::as_str) == Some("bool");
    let switches = list.as_array().into_iter().flatten().filter(is_switch);
    let asked: Vec<_> = switches
        .filter_map(|property| property.get("name")?.as_str())
        .map(|name| {
            let get = words::qom_get { path: processor.to_owned(), property: name.to_owned() };
            (name.to_owned(), client.send(&get))
        })
        .collect();
    let mut on = BTreeSet::new();
    for (name, reply) in asked {
        if told(reply.within(ANSWER_WITHIN).await)? == Some(Value::Bool(true)) {
            on.insert(name);
        }
    }
    Ok(on)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn word(register: &str, features: u64) -> FeatureWord {
        serde_json::from_value(json!({
            "cpuid-register": register, "cpuid-input-eax": 7, "cpuid-input-ecx": 0, "features": features
        }))
        .unwrap()
    }

    #[test]
    fn only_what_the_destination_lacks_is_a_difference() {
        let (less, more) = ([word("EBX", 0b01), word("ECX", 0)], [word("EBX", 0b11), word("ECX", 0)]);
        assert_eq!(lacking(&less, &more), None);
        assert_eq!(lacking(&more, &[word("EDX", 0)]), None, "a register that it does not tell");
        let found = lacking(&more, &less).unwrap().to_string();
        assert_eq!(
            found,
            "the destination's processor lacks features of the source's: 0x2 in EBX of CPUID 0x7.0"
        );
    }
}
