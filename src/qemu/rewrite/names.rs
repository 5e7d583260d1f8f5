//! Names for what only one of two QEMUs can have: the destination's own while both live, and the user's after that.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{Sharing, Work};
use crate::record::{MigrationId, Moved};

/// The longest path of a unix socket: `sun_path` less its NUL (QEMU: "Path must be less than 108 bytes", N13).
const LONGEST_SOCKET_PATH: usize = 107;
/// What the private directories beside the user's own files are called, before the id.
const PRIVATE_PREFIX: &str = ".qmigrate-";

/// Something that the destination has under another name until the source has gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rename {
    /// The option that it comes from, such as `qmp`.
    pub what: String,
    /// Its name while both live.
    pub temporary: PathBuf,
    /// The name that the user knows.
    pub public: PathBuf,
}

/// What a migration's directories beside the user's own files are called.
pub fn private_directory_name(id: &MigrationId) -> String {
    format!("{PRIVATE_PREFIX}{id}")
}

/// The name that the user knows: without the private directory of an earlier migration.
pub fn public_name(path: &Path) -> PathBuf {
    path.components().filter(|part| !is_private_part(&part.as_os_str().to_string_lossy())).collect()
}

fn is_private_part(part: &str) -> bool {
    part.strip_prefix(PRIVATE_PREFIX).is_some_and(|id| MigrationId::from_str(id).is_ok())
}

/// Whether this is a QMP socket that the rewriting added in an earlier migration; `runtime` is where migrations have
/// their directories.
pub(in crate::qemu) fn is_engine_made(path: &Path, runtime: Option<&Path>) -> bool {
    let directory = path.parent();
    let is_id = directory
        .and_then(Path::file_name)
        .and_then(|name| name.to_str())
        .is_some_and(|name| MigrationId::from_str(name).is_ok());
    is_id && directory.and_then(Path::parent) == runtime && path.ends_with("qmp")
}

/// The log that the user knows: without the id of an earlier migration.
pub(in crate::qemu) fn public_log_name(path: &str) -> &str {
    match path.rsplit_once('.') {
        Some((bare, last)) if MigrationId::from_str(last).is_ok() => bare,
        _ => path,
    }
}

impl Work<'_> {
    /// A name of the destination's own for a file or socket that only one QEMU can have; on other files the name that
    /// the user knows.
    pub(super) fn own_name(&mut self, what: &str, path: &Path) -> String {
        let public = public_name(path);
        if self.setting.shared.files == Sharing::Other {
            return text(&public);
        }
        let name = public.file_name().map_or_else(|| PathBuf::from(what), PathBuf::from);
        let beside = public.parent().unwrap_or(Path::new("")).join(private_directory_name(self.setting.id));
        let directory = self.directory.join(&beside);
        let absolute = directory.join(&name);
        if absolute.as_os_str().len() <= LONGEST_SOCKET_PATH {
            if !self.rewritten.directories.contains(&directory) {
                self.rewritten.directories.push(directory);
            }
            self.rewritten.renames.push(Rename {
                what: what.to_owned(),
                temporary: absolute,
                public: self.directory.join(public),
            });
            return text(&beside.join(name));
        }
        // Two of them may have the same name in different directories.
        let number = self.rewritten.moved.len();
        let own = text(&self.setting.runtime_directory.join(format!("{number}-{}", name.display())));
        let from = text(&public);
        let message = format!("{from} becomes {own}: beside it the path would be too long for a socket");
        self.warn("socket-moved", &message, None);
        self.has_moved(what, from, own.clone());
        own
    }

    /// A log beside the old one: `vm.log` becomes `vm.log.ID`, and again for a guest that was moved before. A device such
    /// as `/dev/null` is nobody's.
    pub(super) fn own_log(&mut self, what: &str, path: &str) -> String {
        let public = public_log_name(path);
        if self.setting.shared.files == Sharing::Other || public.starts_with("/dev/") {
            return public.to_owned();
        }
        let own = format!("{public}.{}", self.setting.id);
        self.warn("log-moved", &format!("{what} of the destination goes to {own}"), None);
        own
    }

    /// Tells that something has another name for good.
    pub(super) fn has_moved(&mut self, what: &str, from: impl Into<String>, to: impl Into<String>) {
        self.rewritten.moved.push(Moved { what: what.to_owned(), from: from.into(), to: to.into() });
    }
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
