//! Command lines as other programs and people write them: each parses whole, and says what it says.

use super::configuration::{Defaults, flatten};
use super::options::facts;
use super::*;
use crate::qemu::rewrite::{human_monitors, qmp_sockets};

/// A command line in a shell's words, behind a comment that says whose shape it has.
struct Sample {
    name: &'static str,
    text: &'static str,
    machine: Option<&'static str>,
    memory: Option<u64>,
    qmp: &'static [&'static str],
    human: &'static [&'static str],
    images: &'static [&'static str],
    secrets: &'static [&'static str],
}

const MEBIBYTE: u64 = 1 << 20;

macro_rules! sample {
    ($name:literal, $machine:expr, $memory:expr, $qmp:expr, $human:expr, $images:expr, $secrets:expr) => {
        Sample {
            name: $name,
            text: include_str!(concat!("corpus/", $name, ".txt")),
            machine: $machine,
            memory: $memory,
            qmp: &$qmp,
            human: &$human,
            images: &$images,
            secrets: &$secrets,
        }
    };
}

const SAMPLES: [Sample; 14] = [
    sample!(
        "cloud_test",
        Some("q35"),
        Some(1024 * MEBIBYTE),
        [],
        ["/run/ci.monitor"],
        ["noble.img"],
        ["smbios", "fw_cfg", "append"]
    ),
    sample!("incus", None, None, [], [], [], []),
    sample!(
        "libvirt_modern",
        Some("pc-q35-8.2"),
        Some(4096 * MEBIBYTE),
        [],
        [],
        [
            "/usr/share/OVMF/OVMF_CODE_4M.fd",
            "/var/lib/libvirt/qemu/nvram/mail_VARS.fd",
            "/var/lib/libvirt/images/mail.qcow2"
        ],
        []
    ),
    sample!(
        "libvirt_old",
        Some("pc-i440fx-4.2"),
        Some(2048 * MEBIBYTE),
        [],
        [],
        ["/srv/images/build, old.raw"],
        []
    ),
    sample!(
        "lima",
        Some("q35"),
        Some(4096 * MEBIBYTE),
        ["/home/me/.lima/default/qmp.sock"],
        [],
        [
            "/usr/share/OVMF/OVMF_CODE.fd",
            "/home/me/.lima/default/diffdisk",
            "/home/me/.lima/default/cidata.iso"
        ],
        []
    ),
    sample!("microvm", Some("microvm"), Some(512 * MEBIBYTE), [], [], ["test.img"], []),
    sample!(
        "minikube",
        Some("q35"),
        Some(4000 * MEBIBYTE),
        ["/home/me/.minikube/machines/minikube/monitor"],
        [],
        [
            "/home/me/.minikube/machines/minikube/boot2docker.iso",
            "/home/me/.minikube/machines/minikube/disk.qcow2"
        ],
        []
    ),
    sample!(
        "packer",
        Some("pc"),
        Some(2048 * MEBIBYTE),
        ["/tmp/packer-qmp.sock"],
        [],
        ["output/debian-12", "/home/me/.cache/packer/3f2a.iso"],
        []
    ),
    sample!(
        "proxmox",
        Some("pc+pve0"),
        Some(2048 * MEBIBYTE),
        ["/var/run/qemu-server/100.qmp"],
        [],
        ["/dev/pve/vm-100-disk-0"],
        []
    ),
    sample!(
        "quickemu",
        Some("q35"),
        Some(16384 * MEBIBYTE),
        [],
        ["desktop/desktop-monitor.socket"],
        ["/usr/share/OVMF/OVMF_CODE_4M.fd", "desktop/OVMF_VARS.fd", "desktop/disk.qcow2"],
        []
    ),
    sample!(
        "script_iothreads",
        Some("q35"),
        Some(8192 * MEBIBYTE),
        ["/run/fast.qmp", "/run/fast.pretty"],
        [],
        ["/dev/vg/d0"],
        ["object"]
    ),
    sample!(
        "script_old",
        None,
        Some(256 * MEBIBYTE),
        [],
        [],
        ["/srv/win,xp.img", "http://install:geheim@mirror/xp.iso"],
        ["cdrom"]
    ),
    sample!("utm", Some("pc"), Some(2048 * MEBIBYTE), [], [], ["/Users/me/vm/data.qcow2"], []),
    sample!(
        "vagrant_qemu",
        Some("virt"),
        Some(4096 * MEBIBYTE),
        [],
        ["/home/me/.vagrant.d/tmp/vagrant-qemu/vq_Ab3xYz/qemu_socket"],
        [
            "/home/me/vm/.vagrant/machines/default/qemu/vq_Ab3xYz/linked-box.img",
            "/usr/share/AAVMF/AAVMF_CODE.fd"
        ],
        []
    ),
];

impl Sample {
    fn words(&self) -> Vec<OsString> {
        let (comment, text) = self.text.split_once('\n').unwrap();
        assert!(comment.starts_with("# "), "{}", self.name);
        shell_words::split(text).unwrap().into_iter().map(OsString::from).collect()
    }
}

fn texts(paths: impl Iterator<Item = std::path::PathBuf>) -> Vec<String> {
    paths.map(|path| path.to_string_lossy().into_owned()).collect()
}

#[test]
fn each_command_line_is_known_whole_and_rendered_as_it_was() {
    for sample in &SAMPLES {
        let words = sample.words();
        let mut line = CommandLine::parse(&words).unwrap();
        for option in &mut line.options {
            assert!(
                option.name.is_empty() || facts(&option.name).is_some(),
                "{}: -{}",
                sample.name,
                option.name
            );
            if let Some(properties) = option.properties() {
                option.set_properties(&properties);
            }
        }
        assert_eq!(line.render(), words, "{}", sample.name);
    }
}

#[test]
fn what_each_command_line_says_is_read() {
    for sample in &SAMPLES {
        let (name, line) = (sample.name, CommandLine::parse(&sample.words()).unwrap());
        assert_eq!(line.machine().as_deref(), sample.machine, "{name}");
        assert_eq!(line.memory(), sample.memory, "{name}");
        assert_eq!(texts(qmp_sockets(&line)), sample.qmp, "{name}");
        assert_eq!(texts(human_monitors(&line)), sample.human, "{name}");
        assert_eq!(line.images(), sample.images, "{name}");
        assert_eq!(line.options_with_secrets(), sample.secrets, "{name}");
        let shown = line.shown().render().join(std::ffi::OsStr::new(" ")).into_string().unwrap();
        assert!(!shown.contains("geheim"), "{name}: {shown}");
    }
}

#[test]
fn a_configuration_file_says_what_its_options_say() {
    let flattened = flatten(include_str!("corpus/incus.conf"), Defaults::None).unwrap();
    let line =
        CommandLine { launcher: Vec::new(), program: "qemu-system-x86_64".to_owned(), options: flattened };
    assert_eq!((line.machine().as_deref(), line.memory()), (Some("q35"), Some(1024 * MEBIBYTE)));
    assert_eq!(texts(qmp_sockets(&line)), ["/run/incus/c1/qemu.monitor"]);
    assert_eq!(line.merged(&["smp"], "cpus").as_deref(), Some("2"));
}
