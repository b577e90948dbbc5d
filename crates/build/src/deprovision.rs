//! The hidden last customizer: takes out of the machine what makes it one machine.
//!
//! Azure runs `waagent -force -deprovision+user`, and a template may replace it with
//! `/tmp/DeprovisioningScript.sh` (RULES.md 2A). waagent resets neither the machine id nor cloud-init's
//! state, so both are done here for every image.

use crate::error::{BuildError, Stage, StepFailure};
use crate::event::{Events, Stream};
use crate::ssh::SshSession;
use crate::vm::BUILDER;

/// Run by `sh` as root. It must not need Python: a translated guest takes seconds to start it.
const SCRIPT: &str = r#"
set -e
if [ -e /tmp/DeprovisioningScript.sh ]; then
    echo 'deprovision: the template brought its own /tmp/DeprovisioningScript.sh'
    sh -e /tmp/DeprovisioningScript.sh
else
    WAAGENT=/usr/sbin/waagent
    if command -v waagent >/dev/null 2>&1; then WAAGENT=waagent; fi
    if command -v "$WAAGENT" >/dev/null 2>&1; then
        "$WAAGENT" -force -deprovision+user
    fi
    # The agent's user is still logged in, so userdel must not insist.
    if id BUILDER >/dev/null 2>&1; then userdel -f -r BUILDER >/dev/null 2>&1 || true; fi
    rm -f /etc/sudoers.d/90-cloud-init-users /etc/ssh/ssh_host_*
    rm -rf /var/lib/cloud/* /var/log/cloud-init*.log /var/lib/waagent/* /var/lib/dhcp/* /root/.ssh
    rm -f /root/.bash_history /var/lib/systemd/random-seed /var/lib/dbus/machine-id
    if [ -e /etc/cloud ]; then rm -f /etc/network/interfaces.d/50-cloud-init /etc/netplan/50-cloud-init.yaml; fi
    echo uninitialized > /etc/machine-id
    echo localhost > /etc/hostname
    : > /etc/resolv.conf || true
    rm -rf /tmp/* /var/tmp/*
    find /var/log -type f -name '*.log' -exec truncate -s 0 {} + 2>/dev/null || true
    rm -rf /var/log/journal/* /run/log/journal/*
fi
fstrim / 2>/dev/null || true
sync
"#;

/// Said by the guest when everything above succeeded.
const DONE: &str = "TINTYPE-DEPROVISIONED";

/// Runs the deprovisioning in the guest, which then powers itself off: the builder's account is gone, so
/// nobody could log in to say it.
pub(crate) async fn deprovision(session: &SshSession, events: &Events) -> Result<(), BuildError> {
    let script =
        format!("{}\necho {DONE}\nsystemctl --no-block poweroff\n", SCRIPT.replace("BUILDER", BUILDER));
    let command = "sudo -n sh -c \"$(cat)\"";
    let output = session.exec(command, script.as_bytes(), Some((events, Stream::Customization))).await?;
    if output.last_lines.iter().any(|line| line == DONE) {
        return Ok(());
    }
    Err(BuildError::Step(StepFailure {
        stage: Stage::Deprovision,
        step: "deprovision".into(),
        exit_status: output.exit_status,
        last_lines: output.last_lines,
    }))
}
