//! Memory backends of which no part of the guest makes use.
//!
//! One is easily left over: an object whose device was taken out, or that was never given one. It stays a block of memory
//! that a migration looks at. Under TCG a QEMU from 10.0 on crashes as a source in one live move of six with such a one
//! (assertion in `tlb_reset_dirty_range_all`; 5 of 20 on 10.0, 4 of 25 on 11.1, shared or not; 0 of 25 on 5.2, on 7.2, and
//! on 10.0 where the guest stands still).

use qapi_qmp as words;
use serde_json::Value;

use super::{people, told};
use crate::qemu::ANSWER_WITHIN;
use crate::qmp::{CallError, Client};

/// The names of those that are neither in an address space nor a device's.
pub async fn unused_memory(client: &Client) -> Result<Vec<String>, CallError> {
    let backends = told(client.call(&words::query_memdev {}, ANSWER_WITHIN).await)?.unwrap_or_default();
    if backends.as_array().is_none_or(Vec::is_empty) {
        return Ok(Vec::new());
    }
    let (spaces, devices) = tokio::join!(people(client, "info mtree"), people(client, "info qtree"));
    match (told(spaces)?, told(devices)?) {
        (Some(spaces), Some(devices)) => Ok(unused(&backends, &spaces, &devices)),
        _ => Ok(Vec::new()),
    }
}

fn unused(backends: &Value, spaces: &str, devices: &str) -> Vec<String> {
    let is_used = |id: &str| {
        let path = format!("/objects/{id}");
        let mut regions = spaces.lines().filter_map(|line| line.rsplit_once("): ")).map(|(_, region)| region);
        regions.any(|region| region.split([' ', '@']).any(|word| word == id || word == path))
            || devices.contains(&format!("\"{path}\""))
    };
    let ids = backends.as_array().into_iter().flatten().filter_map(|backend| backend.get("id")?.as_str());
    ids.filter(|id| !is_used(id)).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// As 10.0 says it.
    #[test]
    fn what_is_in_no_address_space_and_no_devices_is_unused() {
        let backends = json!([{"id": "ram"}, {"id": "dimm"}, {"id": "window"}, {"id": "left"}, {"size": 1}]);
        let spaces = "address-space: memory\n  0000000000000000-ffffffffffffffff (prio 0, i/o): system\n    \
            0000000000000000-0000000003ffffff (prio 0, ram): alias ram-below-4g @ram 0000000000000000-0000000003ffffff\n    \
            0000000100000000-0000000100ffffff (prio 0, ram): /objects/dimm\n";
        let devices = "dev: ivshmem-plain, id \"\"\n  memdev = \"/objects/window\"\n";
        assert_eq!(unused(&backends, spaces, devices), ["left"]);
        assert_eq!(unused(&json!([]), "", ""), [] as [&str; 0]);
    }
}
