//! A guest for one run: started anew, proven at the end, and ended with all that it has become.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use qapi_qmp as words;
use qmigrate::guest::{Content, Pattern, Workload};
use qmigrate::lab::subject::{Board, Subject};
use qmigrate::units::{Rate, Size};
use tempfile::TempDir;

use crate::series::Setting;

/// Longer than any emulated KVM takes to its first beat after `cont`.
const BEAT_WITHIN: Duration = Duration::from_secs(10);
const END_WITHIN: Duration = Duration::from_secs(10);

/// The guest of one run. When it is dropped, every QEMU that its heart was seen in has ended.
#[derive(Debug)]
pub(crate) struct Guest {
    pub(crate) subject: Subject,
    /// The QEMU for both sides.
    pub(crate) qemu: PathBuf,
    directory: TempDir,
}

/// What the heartbeats showed, in milliseconds: the longest that the guest can have stood still less one beat, and the
/// error of that.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Gap {
    pub(crate) milliseconds: f64,
    pub(crate) error: f64,
}

impl Guest {
    pub(crate) async fn start(setting: &Setting, load: Load) -> anyhow::Result<Self> {
        let directory = tempfile::Builder::new().prefix("qm-live-").tempdir()?;
        let board = Board { more: load.devices, ..Board::newest(setting.accelerator) };
        let subject = Subject::start(&setting.qemu, board, load.workload()?, directory.path()).await?;
        // A guest that has only just filled its memory has not yet come to its own pace.
        tokio::time::sleep(Duration::from_millis(100)).await;
        Ok(Self { subject, qemu: setting.qemu.clone(), directory })
    }

    /// Where a twin may put what it needs.
    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Where its monitor is.
    pub(crate) fn monitor(&self) -> PathBuf {
        self.subject.machine.qmp.clone()
    }

    /// Waits until the guest beats in its new QEMU; gives the pause of its heart.
    pub(crate) fn arrived(&self) -> anyhow::Result<Gap> {
        let observer = &self.subject.observer;
        let source = self.subject.process.pid();
        let destination = self.subject.destination().context("no second QEMU was seen")?;
        observer
            .wait_for_first_beat(destination, BEAT_WITHIN)
            .context("the guest does not run on its destination")?;
        let handover = observer.handover(source, destination)?;
        ensure!(handover.never_two(), "the heartbeats do not follow each other: {handover:?}");
        Ok(Gap {
            milliseconds: (handover.gap.as_secs_f64() * 1e3 - 1.0).max(0.0),
            error: handover.uncertainty.as_secs_f64() * 1e3,
        })
    }

    /// Proves every byte of the guest's memory, and ends it.
    pub(crate) async fn verify_and_end(self) -> anyhow::Result<()> {
        let client = self.subject.connect().await?;
        self.subject.verify(&client).await.context("the guest's memory does not verify")?;
        // It may close the connection before its answer is read.
        let _ = client.call(&words::quit {}, END_WITHIN).await;
        drop(client);
        for process in self.subject.processes() {
            ensure!(process.ended_within(END_WITHIN).await, "process {} has not ended", process.pid());
        }
        Ok(())
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        for process in self.subject.processes() {
            // It may have ended by itself.
            let _ = process.kill();
        }
    }
}

/// A guest that sweeps its working set, with pages that nothing compresses.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Load {
    pub(crate) memory_mib: u64,
    pub(crate) working_set_mib: u64,
    pub(crate) rate: &'static str,
    /// Devices besides.
    pub(crate) devices: &'static [&'static str],
}

/// Ten devices of the kinds that guests have.
pub(crate) const TEN_DEVICES: [&str; 30] = [
    "-blockdev",
    "driver=null-co,node-name=disk0,size=1073741824,read-zeroes=on",
    "-device",
    "virtio-blk-pci,id=vda,drive=disk0",
    "-blockdev",
    "driver=null-co,node-name=disk1,size=1073741824,read-zeroes=on",
    "-device",
    "virtio-scsi-pci,id=scsi",
    "-device",
    "scsi-hd,id=sda,bus=scsi.0,drive=disk1",
    "-netdev",
    "user,id=net0",
    "-device",
    "virtio-net-pci,id=nic0,netdev=net0",
    "-netdev",
    "user,id=net1",
    "-device",
    "e1000,id=nic1,netdev=net1",
    "-device",
    "virtio-rng-pci,id=rng",
    "-device",
    "virtio-balloon-pci,id=balloon",
    "-device",
    "virtio-serial-pci,id=serial",
    "-device",
    "qemu-xhci,id=usb",
    "-device",
    "usb-tablet,id=tablet,bus=usb.0",
    "-device",
    "VGA,id=vga",
];

impl Load {
    fn workload(self) -> anyhow::Result<Workload> {
        let mebibytes = |number| Size::from_mebibytes(number).context("no size");
        let rate: Rate = self.rate.parse()?;
        let (memory, working_set) = (mebibytes(self.memory_mib)?, mebibytes(self.working_set_mib)?);
        Ok(Workload::new(memory, working_set, Some(rate), Pattern::Sweep, Content::Incompressible)?)
    }
}
