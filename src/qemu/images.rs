//! What each drive has in it, down its backing files: a destination has to open what its source has open.
//!
//! Names on a command line are no proof of that: a drive may have been taken out and another image put in under the same
//! id, a mirror may have replaced a node below one that kept its name, and a backing file may be another one than the
//! image's header says. Nothing in QEMU's stream tells of images; the guest would go on with old blocks. So both sides are
//! asked (`query-block`, whose `image` has the whole chain; run on 5.2 to 11.1, also of a destination that waits).

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use qapi_qmp as words;
use serde_json::Value;

use super::ANSWER_WITHIN;
use crate::qmp::{CallError, Client};

/// The images of all drives, each with what is below it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Images(BTreeMap<String, Vec<String>>);

/// A drive has another image on one side than on the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OtherImage {
    /// The drive: its name, or the path of its device.
    pub drive: String,
    /// On the source: the image, and what is below it.
    pub source: Vec<String>,
    /// On the destination.
    pub destination: Vec<String>,
}

impl Images {
    /// Asks a QEMU.
    ///
    /// # Errors
    ///
    /// It says no, or nothing.
    pub async fn ask(client: &Client) -> Result<Self, CallError> {
        Ok(Self::read(&client.call(&words::query_block {}, ANSWER_WITHIN).await?))
    }

    /// Reads the answer to `query-block`. A drive without a medium has no images.
    fn read(answer: &Value) -> Self {
        let drive = |entry: &Value| {
            let name =
                |key: &str| entry.get(key)?.as_str().filter(|name| !name.is_empty()).map(str::to_owned);
            let image = entry.pointer("/inserted/image");
            let images = std::iter::successors(image, |image: &&Value| image.get("backing-image"));
            let names = images.filter_map(|image| image.get("filename")?.as_str().map(str::to_owned));
            Some((name("device").or_else(|| name("qdev"))?, names.collect()))
        };
        Self(answer.as_array().into_iter().flatten().filter_map(drive).collect())
    }

    /// The drives whose images are not the same files on both sides. One that is there on one side only is a matter of
    /// hardware; where `is_meant` says so of one of its images, the user gives the destination another one.
    pub fn differences(&self, destination: &Self, is_meant: impl Fn(&str) -> bool) -> Vec<OtherImage> {
        let both = self.0.iter().filter_map(|(drive, here)| Some((drive, here, destination.0.get(drive)?)));
        both.filter(|(_, here, there)| !is_same_chain(here, there))
            .filter(|(_, here, _)| !here.iter().any(|name| is_meant(name)))
            .map(|(drive, here, there)| OtherImage {
                drive: drive.clone(),
                source: here.clone(),
                destination: there.clone(),
            })
            .collect()
    }
}

fn is_same_chain(here: &[String], there: &[String]) -> bool {
    here.len() == there.len() && here.iter().zip(there).all(|(here, there)| is_same(here, there))
}

/// Whether two names are of the same image.
fn is_same(here: &str, there: &str) -> bool {
    if here == there {
        return true;
    }
    let (Some(here), Some(there)) = (file_of(here), file_of(there)) else { return false };
    let (here, there) = (Path::new(&here), Path::new(&there));
    if here.is_relative() || there.is_relative() {
        // From which directory is known to whoever opened it: the rewritten name says it, and ends like the other.
        return here.ends_with(there.strip_prefix("./").unwrap_or(there))
            || there.ends_with(here.strip_prefix("./").unwrap_or(here));
    }
    let identity = |path: &Path| path.metadata().map(|file| (file.dev(), file.ino())).ok();
    here == there || identity(here).is_some_and(|file| identity(there) == Some(file))
}

/// The file that a name leads to: QEMU writes `json:` where options say more than a name can.
fn file_of(name: &str) -> Option<String> {
    let Some(text) = name.strip_prefix("json:") else {
        let name = name.strip_prefix("file:").unwrap_or(name);
        // `nbd://…`, `rbd:…`: names of a protocol are the same or not.
        let is_protocol = name.split('/').next().is_some_and(|first| first.contains(':'));
        return (!is_protocol).then(|| name.to_owned());
    };
    let options: Value = serde_json::from_str(text).ok()?;
    let deepest =
        std::iter::successors(Some(&options), |node| node.get("file").filter(|file| file.is_object()))
            .last()?;
    let is_file = matches!(deepest.get("driver").and_then(Value::as_str), Some("file" | "host_device"));
    is_file.then(|| deepest.get("filename")?.as_str().map(str::to_owned)).flatten()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn drive(device: &str, qdev: &str, images: &[&str]) -> Value {
        let chain = images.iter().rev().fold(Value::Null, |below, name| match below {
            Value::Null => json!({ "filename": name }),
            below => json!({ "filename": name, "backing-image": below }),
        });
        let inserted = if chain.is_null() { Value::Null } else { json!({ "image": chain }) };
        json!({ "device": device, "qdev": qdev, "inserted": inserted })
    }

    fn other(here: &[&str], there: &[&str]) -> usize {
        let read =
            |images: &[&str]| Images::read(&json!([drive("d", "/machine/x", images), drive("", "/q", &[])]));
        read(here).differences(&read(there), |_| false).len()
    }

    #[test]
    fn the_whole_chain_counts() {
        assert_eq!(other(&["/vm/top", "/vm/base"], &["/vm/top", "/vm/base"]), 0);
        assert_eq!(other(&["/vm/top", "/moved/base"], &["/vm/top", "/vm/base"]), 1);
        assert_eq!(other(&["/vm/top", "/vm/base"], &["/vm/top"]), 1);
        assert_eq!(other(&["/vm/new"], &["/vm/old"]), 1);
        assert_eq!(other(&[], &["/vm/old"]), 1, "a medium that was taken out");
        assert_eq!(other(&[], &[]), 0);
    }

    #[test]
    fn one_file_may_have_several_names_and_a_protocols_name_is_the_same_or_not() {
        assert_eq!(other(&["disk.img"], &["/srv/disk.img"]), 0, "relative to a directory");
        assert_eq!(other(&["./vm/disk.img"], &["/srv/vm/disk.img"]), 0);
        assert_eq!(other(&["disk.img"], &["/srv/other.img"]), 1);
        assert_eq!(other(&["/dev/null"], &["/dev/./null"]), 0);
        let json = r#"json:{"driver":"qcow2","file":{"driver":"file","filename":"/vm/top"}}"#;
        assert_eq!(other(&[json], &["/vm/top"]), 0);
        assert_eq!(other(&[json], &["/vm/other"]), 1);
        assert_eq!(other(&["rbd:pool/a"], &["rbd:pool/b"]), 1);
        assert_eq!(other(&["nbd://host/a"], &["nbd://host/a"]), 0);
    }

    #[test]
    fn a_drive_that_the_user_gives_another_image_may_have_it() {
        let read = |name: &str| Images::read(&json!([drive("d", "", &[name])]));
        assert!(read("/a").differences(&read("/b"), |name| name == "/a").is_empty());
        let found = read("/a").differences(&read("/b"), |_| false);
        assert_eq!(found[0].drive, "d");
        assert_eq!((&found[0].source[0][..], &found[0].destination[0][..]), ("/a", "/b"));
    }
}
