//! The QEMU that is to be the destination, where that is another file than the source runs.

use std::ffi::OsString;
use std::path::Path;

use qapi_qmp as words;
use serde_json::Value;

use super::{Blocker, Code, Findings, chain};
use crate::host::Credentials;
use crate::qemu::dialect::probe::{Probe, ProbeError};
use crate::qemu::{ANSWER_WITHIN, Inventory};

/// What a QEMU says of itself that was started without a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    /// Major and minor version.
    pub version: (u32, u32),
    /// The version in full.
    pub version_text: String,
    /// The machine types that it knows.
    pub machines: Vec<String>,
}

impl Program {
    /// Starts it only to ask it, as the user and in the environment that the destination gets, where those are known.
    pub async fn ask(
        qemu: &Path,
        runtime: &Path,
        starter: Option<(Credentials, Vec<(OsString, OsString)>)>,
    ) -> Result<Self, Blocker> {
        let probe = match starter {
            Some((user, environment)) => Probe::start_as(qemu, runtime, &user, environment).await,
            None => Probe::start(qemu, runtime).await,
        };
        let probe = probe.map_err(|error| match error {
            ProbeError::Launch { .. } => Blocker::new(
                Code::NoBinary,
                chain(&error),
                "--qemu PATH names the destination's QEMU; is it there and executable?",
            ),
            error => error.into(),
        })?;
        let machines =
            probe.client().call(&words::query_machines { compat_props: None }, ANSWER_WITHIN).await;
        let version = &probe.client().greeting().version;
        let (numbers, text) = (
            (version.major, version.minor),
            format!("{}.{}.{}", version.major, version.minor, version.micro),
        );
        probe.end().await;
        let machines = machines?;
        let name = |entry: &Value| entry.get("name")?.as_str().map(str::to_owned);
        let machines = machines.as_array().into_iter().flatten().filter_map(name).collect();
        Ok(Self { version: numbers, version_text: text, machines })
    }

    /// What stands in the way of this guest there.
    pub fn findings(&self, qemu: &Path, source: &Inventory) -> Findings {
        let mut findings = Findings::default();
        if let Some(machine) = &source.machine
            && !self.machines.is_empty()
            && !self.machines.contains(machine)
        {
            findings.block(Blocker::new(
                Code::UnknownMachine,
                format!(
                    "{} (QEMU {}) does not know the guest's machine type {machine}",
                    qemu.display(),
                    self.version_text
                ),
                "--qemu PATH names a QEMU that has it; newer ones keep a machine type for about six years",
            ));
        }
        findings.warnings.extend(older_qemu(self.version, &self.version_text, source).map(Into::into));
        findings
    }
}

/// A destination that is older than its source.
pub fn older_qemu(version: (u32, u32), text: &str, source: &Inventory) -> Option<Blocker> {
    (version < source.version).then(|| {
        Blocker::new(
            Code::OlderQemu,
            format!(
                "the destination's QEMU {text} is older than the source's {}: few people move guests that way",
                source.version_text
            ),
            "if it is refused, the guest stays as it is; a QEMU as new as the source's is the safer way",
        )
    })
}
