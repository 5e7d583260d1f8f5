//! The one table of codes: every word by which a refusal or a warning is known to programs, with its meaning.
//!
//! A code that does not stand here cannot be written: a [`Blocker`](super::Blocker) takes a [`Code`] and no text. The
//! rooms above this one speak of warnings as plain text; a test holds that all of theirs stand here too.

use std::fmt;

macro_rules! codes {
    ($($(#[$family:meta])* $name:ident = $word:literal, $meaning:literal;)+) => {
        /// Why something is refused, or what somebody should know; a stable word for programs.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Code {
            $(#[doc = $meaning] $name,)+
        }

        impl Code {
            /// All of them, in the order in which they are listed.
            pub const ALL: &[Self] = &[$(Self::$name,)+];

            /// The word.
            pub fn word(self) -> &'static str {
                match self { $(Self::$name => $word,)+ }
            }

            /// What it means, in one line.
            pub fn meaning(self) -> &'static str {
                match self { $(Self::$name => $meaning,)+ }
            }
        }
    };
}

codes! {
    // The source cannot be found or spoken to.
    Name = "name", "what was typed names no QEMU";
    NoSocket = "no-socket", "there is no socket where the monitor was looked for";
    NotASocket = "not-a-socket", "what was named is a file, and no socket";
    NobodyListens = "nobody-listens", "the socket is a left-over: no process listens there";
    Permission = "permission", "this user may not speak to that QEMU or look at its process";
    Busy = "busy", "another client holds the monitor, and a monitor serves one";
    SameQemu = "same-qemu", "source and destination are one and the same QEMU";
    HumanMonitor = "human-monitor", "the socket is a monitor for people, and not QMP";
    NotQmp = "not-qmp", "whoever answers there does not speak QMP";
    Connect = "connect", "the monitor cannot be connected to";
    NotLoopback = "not-loopback", "the monitor is reached by TCP from another machine";
    NoProcess = "no-process", "the process behind the monitor is gone, or cannot be told";
    Process = "process", "the process cannot be read or watched";
    NotQemu = "not-qemu", "the process or the program is no QEMU system emulator";
    NoQmp = "no-qmp", "the QEMU has no QMP monitor that can be reached";
    AnotherProcess = "another-process", "another process listens where the monitor was";
    OtherUser = "other-user", "the QEMU runs as another user";
    Qmp = "qmp", "QEMU refused a question, or did not answer it";
    NoEngine = "no-engine", "no migration runs on this host";

    // What the source does now.
    UnderWay = "under-way", "another engine moves this guest now";
    NotRecovered = "not-recovered", "an earlier migration of this guest is not at its end";
    NoJournal = "no-journal", "there is no open migration of that name";
    Journal = "journal", "the journal cannot be written or read";
    AlreadyMigrating = "already-migrating", "the guest is being migrated by somebody else";
    InMigrate = "inmigrate", "the QEMU is itself a destination that waits";
    PostMigrate = "postmigrate", "the guest has left this QEMU already";
    PreConfig = "preconfig", "the QEMU has not made its machine yet";
    NotHealthy = "not-healthy", "the guest has panicked, shut down, or stopped by an error";
    NeverRan = "prelaunch", "warning: the guest was started stopped, and has not run yet";
    Asleep = "suspended", "warning: the guest sleeps, and will sleep on";
    Stopped = "stopped", "warning: a watchdog or a debugger has stopped the guest";
    Blocked = "blocked", "QEMU says that this guest cannot be migrated";
    Colo = "colo", "the guest is to be kept twice (x-colo), and not to be moved";
    TcgLosesWrites = "tcg-loses-writes", "a guest moved live under TCG by this QEMU loses writes";
    TcgCrashes = "tcg-crashes", "a source moved live under TCG by this QEMU may crash";
    Dialect = "dialect", "the QEMU cannot be told its limits in these words";

    // What the source has that a second QEMU cannot have.
    SharedMemory = "shared-memory", "the guest's memory is a file that both QEMUs would write to";
    ReadConfig = "readconfig", "options stand in a file that cannot be read";
    RelativePath = "relative-path", "a relative path whose directory is not known any more";
    RelativeImage = "relative-image", "an image that QEMU looks for in vain as it hands over";
    Snapshot = "snapshot", "what the guest wrote is in a temporary file of the source";
    Tap = "tap", "a tap of the source, and of another one beside it";
    TapDescriptor = "tap-descriptor", "a tap interface was handed over as a descriptor";
    Descriptor = "descriptor", "an open descriptor, which no other QEMU has";
    Backend = "backend", "a program that serves one guest, such as virtiofsd";
    HostDevice = "host-device", "a device of the host, which one guest can have";
    Pipe = "pipe", "a pipe, whose bytes come out at one of two";
    Chroot = "chroot", "another root directory, which root alone can enter";
    NoPort = "no-port", "no port is free in the place of one of the source's";
    MapUnused = "map-unused", "a --map has found nothing to change";
    ImageGone = "image-gone", "an image that is open cannot be opened again by its name";
    NoImageLock = "no-image-lock", "warning: no lock keeps two QEMUs from writing to an image";
    HostCdrom = "host-cdrom", "the guest has the host's own CD-ROM drive";
    HostUsb = "host-usb", "the guest has a USB device of the host";
    PortTaken = "port-taken", "a port that the destination is to listen on is taken";
    NotCarriedOver = "not-carried-over", "warning: an option of the source's own is left out";
    Display = "display", "warning: the window stays with the source";
    Pty = "pty", "warning: a terminal has another name on the destination";
    UnknownOption = "unknown-option", "warning: an option that is not known is kept as it is";
    LogMoved = "log-moved", "warning: the destination's log has another name";
    SocketMoved = "socket-moved", "warning: a socket has another name on the destination";
    Console = "console", "warning: the terminal stays with the source";

    // What the guest has that stands on no command line.
    PluggedDevice = "plugged-device", "a plugged device that cannot be plugged in again";
    PluggedNetwork = "plugged-network", "a plugged network that cannot be made again";
    PluggedCharacterDevice = "plugged-chardev", "a plugged character device that cannot be made again";
    PluggedObject = "plugged-object", "a plugged object that cannot be made again";
    PluggedDisk = "plugged-disk", "a plugged disk that cannot be opened again";
    Unplugged = "unplugged", "something was taken out that cannot be left out";
    ChangedImage = "changed-image", "a disk has another top image, and which cannot be told";
    ChangedMedium = "changed-medium", "a drive has another medium, and which cannot be told";
    BlockJob = "block-job", "a job runs on a disk, and would end with the source";
    LeftOut = "left-out", "warning: a template has a device that the guest lacks";
    NotRepeated = "not-repeated", "the destination refuses what was plugged in";
    Export = "export", "warning: an image that the source serves";
    VncPassword = "vnc-password", "warning: the VNC password has to be set again";
    Forwards = "forwards", "warning: forwards of a plugged user network are lost";
    PtyMoved = "pty-moved", "warning: a plugged terminal has another name";

    // Where the source lives.
    OtherNamespace = "other-namespace", "the QEMU lives in other namespaces, as in a container";
    Supervised = "supervised", "a supervisor would start the guest a second time";
    SourceUnit = "source-unit", "the unit named is not the source's, or is the engine's too";
    ProgramReplaced = "program-replaced", "warning: the source's program was replaced since it started";

    // What the host has for the destination.
    LittleMemory = "little-memory", "the host has too little memory for a second copy";
    HugePages = "hugepages", "the host has too few huge pages for a second copy";
    NoKvm = "no-kvm", "the guest runs under KVM, which its user cannot open";
    CgroupMemory = "cgroup-memory", "the source's cgroup has too little memory for a second copy";
    LockedMemory = "locked-memory", "the destination may not lock as much memory as the source";
    LimitsNotTaken = "limits-not-taken", "warning: the destination lacks a limit or priority";
    HostProgram = "host-program", "an option runs a program of the host, by root's engine";
    NoUserfaultfd = "no-userfaultfd", "warning: no postcopy, since userfaultfd is forbidden";
    Directory = "directory", "the engine's own directories cannot be made";

    // The destination.
    NoBinary = "no-binary", "the destination's QEMU cannot be started";
    UnknownMachine = "unknown-machine", "the destination's QEMU lacks the guest's machine type";
    OlderQemu = "older-qemu", "warning: the destination's QEMU is older than the source's";
    Template = "template", "the template cannot be read or filled in";
    NoDirectory = "no-directory", "the directory that the template names is not there";
    Destination = "destination", "the destination cannot be had";
    DestinationDied = "destination-died", "the destination ended as it started";
    NotWaiting = "not-waiting", "the destination does not wait for a guest";
    OtherImage = "other-image", "a drive has another image on the destination";
    Differs = "differs", "the destination's hardware differs in a value";
    MissingThere = "missing-there", "the destination lacks hardware that the source has";
    ExtraThere = "extra-there", "the destination has hardware that the source lacks";
    ProcessorFeatures = "processor-features", "the destination's processors lack features of the source's";
    Prepare = "prepare", "one of the two cannot be set up for the migration";
    SwitchedOff = "switched-off", "warning: a capability of the source is off meanwhile";
    NoThrottle = "no-throttle", "warning: the source cannot slow its guest down as allowed";
    NotRestored = "not-restored", "warning: the migration settings could not be set back";
    Cancelled = "cancelled", "it was cancelled before anything moved";
}

impl Code {
    /// The code with this word.
    pub fn of_word(word: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|code| code.word() == word)
    }
}

impl fmt::Display for Code {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.word())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::path::Path;

    use super::*;

    /// The product's own source, without the tests in it and without this file.
    fn source_text(directory: &Path, all: &mut Vec<String>) {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                source_text(&path, all);
            } else if path.extension().is_some_and(|extension| extension == "rs")
                && !path.ends_with("check/code.rs")
            {
                let text = std::fs::read_to_string(path).unwrap();
                all.push(text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default().to_owned());
            }
        }
    }

    fn product() -> Vec<String> {
        let mut all = Vec::new();
        source_text(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut all);
        assert!(all.len() > 50, "the source was found");
        all
    }

    #[test]
    fn every_code_has_a_word_of_its_own_and_a_meaning_in_one_line() {
        let words: HashSet<&str> = Code::ALL.iter().map(|code| code.word()).collect();
        assert_eq!(words.len(), Code::ALL.len());
        for &code in Code::ALL {
            assert_eq!(Code::of_word(code.word()), Some(code));
            assert!(code.word().chars().all(|letter| letter.is_ascii_lowercase() || letter == '-'), "{code}");
            let meaning = code.meaning();
            assert!(!meaning.is_empty() && !meaning.contains('\n') && !meaning.ends_with('.'), "{code}");
            assert!(code.word().len() <= 18 && meaning.len() <= 60, "{code}: too wide for a terminal");
        }
    }

    #[test]
    fn every_code_in_the_table_is_used() {
        let all = product();
        for code in Code::ALL {
            let name = format!("Code::{code:?}");
            let ends_there = |text: &str| !text.starts_with(|letter: char| letter.is_alphanumeric());
            let of_the_type = all.iter().any(|text| text.split(&name).skip(1).any(ends_there));
            let as_text = all.iter().any(|text| text.contains(&format!("\"{code}\"")));
            assert!(of_the_type || as_text, "nothing says '{code}'");
        }
    }

    /// The rooms above write warnings with a word: `warn("word", ...)`, `Warning { code: "word".into(), ...`.
    #[test]
    fn every_word_of_a_warning_stands_in_the_table() {
        let mut found = 0;
        for text in product() {
            for start in ["warn(", "code: "] {
                for rest in text.split(start).skip(1) {
                    let Some(word) =
                        rest.trim_start().strip_prefix('"').and_then(|rest| rest.split('"').next())
                    else {
                        continue;
                    };
                    found += 1;
                    assert!(Code::of_word(word).is_some(), "the table lacks '{word}'");
                }
            }
        }
        assert!(found >= 4, "only {found} were found");
    }
}
