//! What a command line says of its guest, whichever way it is written.

use super::{CommandLine, CommandOption};

/// Options whose value is a disk image and nothing else.
const IMAGES: [&str; 11] =
    ["", "hda", "hdb", "hdc", "hdd", "cdrom", "fda", "fdb", "mtdblock", "pflash", "sd"];

impl CommandLine {
    /// The value of a property of an option that is merged (`-machine pc -machine usb=on`): of all that there are the
    /// last one counts, under whichever of its names the option stands.
    pub fn merged(&self, names: &[&str], key: &str) -> Option<String> {
        let mut options = self.options.iter().rev().filter(|option| names.contains(&option.name.as_str()));
        options.find_map(|option| option.get(key))
    }

    /// The machine, as it was named.
    pub fn machine(&self) -> Option<String> {
        self.merged(&["machine", "M"], "type")
    }

    /// The guest's memory in bytes, if it is said and can be read.
    pub fn memory(&self) -> Option<u64> {
        mebibytes_or(&self.merged(&["m"], "size")?)
    }

    /// The images that it opens, by the name that each has there; for one given as JSON or by parts, the file's own.
    pub fn images(&self) -> Vec<String> {
        self.options.iter().flat_map(images).collect()
    }
}

fn images(option: &CommandOption) -> Vec<String> {
    match option.name.as_str() {
        name if IMAGES.contains(&name) => option.value.iter().cloned().collect(),
        "drive" | "blockdev" => {
            let Some(properties) = option.properties() else { return Vec::new() };
            let is_image = |key: &String| {
                let last = key.rsplit('.').next().unwrap_or(key);
                last == "filename" || key == "file" && option.name == "drive"
            };
            let keys = properties.keys();
            keys.iter()
                .filter(|key| is_image(key))
                .filter_map(|key| properties.get(key).map(str::to_owned))
                .collect()
        }
        _ => Vec::new(),
    }
}

/// A size as `-m` has it: a number, a fraction too, and a letter, or mebibytes.
fn mebibytes_or(text: &str) -> Option<u64> {
    let end = text.find(|letter: char| !letter.is_ascii_digit() && letter != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let unit: u64 = match unit.to_ascii_lowercase().as_str() {
        "b" => 1,
        "k" => 1 << 10,
        "" | "m" => 1 << 20,
        "g" => 1 << 30,
        "t" => 1 << 40,
        "p" => 1 << 50,
        "e" => 1 << 60,
        _ => return None,
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let whole: u64 = whole.parse().ok()?;
    let fraction = match fraction {
        "" => 0,
        _ => {
            fraction.parse::<u64>().ok()?.checked_mul(unit)?
                / 10u64.checked_pow(u32::try_from(fraction.len()).ok()?)?
        }
    };
    whole.checked_mul(unit)?.checked_add(fraction)
}
