//! What a guest needs before it runs a command for us: a finished boot, or after a resume the right time
//! and fresh randomness.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;

use crate::error::BuildError;
use crate::ssh::SshSession;

/// Bytes of host randomness given to a resumed guest.
const ENTROPY_BYTES: usize = 64;
/// How long cloud-init may go on after SSH answers.
const BOOT_FINISHES_TIMEOUT: Duration = Duration::from_secs(600);

/// cloud-init writes result.json when its last stage is over. A guest without it has nothing to wait for.
const WAIT_FOR_CLOUD_INIT: &str = "
command -v cloud-init >/dev/null 2>&1 || exit 0
n=0
until [ -e /run/cloud-init/result.json ] || [ $n -ge LIMIT ]; do sleep 0.25; n=$((n+1)); done
[ -e /run/cloud-init/result.json ] || { echo 'cloud-init did not finish'; exit 1; }
";

/// Waits until the guest's own boot work is over, custom data included.
pub(crate) async fn wait_for_boot(session: &SshSession) -> Result<(), BuildError> {
    let polls = BOOT_FINISHES_TIMEOUT.as_millis() / 250;
    let script = WAIT_FOR_CLOUD_INIT.replace("LIMIT", &polls.to_string());
    let output = session.exec("sh -s", script.as_bytes(), None).await?;
    if output.exit_status == Some(0) {
        return Ok(());
    }
    Err(BuildError::Boot { reason: format!("its boot did not finish: {}", output.last_lines.join("; ")) })
}

/// Sets the clock, then credits host randomness and reseeds the kernel's generator (RNDADDENTROPY,
/// RNDRESEEDCRNG): two machines resumed from one state must not draw the same numbers. Debian 12's cloud
/// kernel has no VMGENID, so the guest cannot know by itself.
///
/// Perl is essential in Debian and present nearly everywhere; Python stands in. A guest with neither is
/// refused, and the caller boots it instead.
const RESUMED: &str = r#"
set -e
date -u -s "@@NOW@" >/dev/null
if command -v perl >/dev/null 2>&1; then
    perl -MMIME::Base64 -e 'my $b = decode_base64($ARGV[0]); my $n = length $b;
        open(my $f, "+<", "/dev/urandom") or die; my $i = pack("ll", $n * 8, $n) . $b;
        ioctl($f, 0x40085203, $i) or die "RNDADDENTROPY: $!"; ioctl($f, 0x5207, 0) or die "RNDRESEEDCRNG: $!";' @BYTES@
elif command -v python3 >/dev/null 2>&1; then
    python3 -c 'import base64, fcntl, struct, sys
b = base64.b64decode(sys.argv[1]); f = open("/dev/urandom", "wb")
fcntl.ioctl(f, 0x40085203, struct.pack("ii", len(b) * 8, len(b)) + b); fcntl.ioctl(f, 0x5207)' @BYTES@
else
    echo 'neither perl nor python3 is there to inject randomness'; exit 1
fi
"#;

/// Makes a resumed guest fit to be used.
pub(crate) async fn after_resume(session: &SshSession) -> Result<(), BuildError> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let entropy: [u8; ENTROPY_BYTES] = rand::random();
    let script = RESUMED
        .replace("@NOW@", &format!("{}.{:03}", now.as_secs(), now.subsec_millis()))
        .replace("@BYTES@", &BASE64.encode(entropy));
    let output = session.exec("sudo -n sh -s", script.as_bytes(), None).await?;
    if output.exit_status == Some(0) {
        return Ok(());
    }
    let reason =
        format!("clock and randomness could not be set after the resume: {}", output.last_lines.join("; "));
    Err(BuildError::Boot { reason })
}
