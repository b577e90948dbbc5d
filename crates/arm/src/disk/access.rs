//! `beginGetAccess`.

use model::managed_disk::{ACCESS_SECONDS_MAX, AccessMode};
use serde::Deserialize;
use serde_json::{Value, json};

use super::shape::{GRANT_ACCESS_DATA, KNOWN_UNTIL};
use crate::api_version::ApiVersion;
use crate::error::ArmError;
use crate::names::{ACCESS_MODES, FILE_FORMATS};
use crate::shape::{self, Strictness};

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Wire {
    access: Option<String>,
    duration_in_seconds: Option<i64>,
    #[serde(rename = "getSecureVMGuestStateSAS")]
    guest_state: Option<bool>,
    file_format: Option<String>,
}

/// What was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AccessRequest {
    /// What it may do.
    pub mode: AccessMode,
    /// For how long.
    pub seconds: u64,
}

/// Reads the body of `beginGetAccess`.
///
/// # Errors
/// What is wrong with it. `fileFormat` VHDX is answered with a VHD by Azure too unless the disk was made for it
/// (recorded), so both words are taken.
pub fn parse_access(body: Value, version: &ApiVersion) -> Result<AccessRequest, ArmError> {
    let strictness = Strictness::compute(version, KNOWN_UNTIL);
    let read = shape::read(body, &GRANT_ACCESS_DATA, &strictness)?;
    let wire: Wire = shape::typed(read.typed, &strictness)?;
    let access = wire.access.ok_or_else(|| ArmError::missing_parameter("access"))?;
    let seconds = wire.duration_in_seconds.ok_or_else(|| ArmError::missing_parameter("durationInSeconds"))?;
    let mode = ACCESS_MODES.parse(&access, "access")?;
    let max = ACCESS_SECONDS_MAX as i64;
    if !(1..=max).contains(&seconds) {
        return Err(model::Violation::out_of_range("durationInSeconds", seconds, 1, max).into());
    }
    FILE_FORMATS.parse_option(wire.file_format.as_deref(), "fileFormat")?;
    if wire.guest_state == Some(true) {
        return Err(ArmError::invalid_parameter(
            "getSecureVMGuestStateSAS",
            "Disks of this service have no VM guest state of their own: leave out 'getSecureVMGuestStateSAS'.",
        ));
    }
    Ok(AccessRequest { mode, seconds: seconds as u64 })
}

/// `{"accessSAS": …}`, the result of the operation.
pub fn render_access(url: &str) -> Value {
    json!({ "accessSAS": url })
}
