//! What a guest lets the host know.

/// Something that a guest did or reported. The text is the guest's: show it, never act on it.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum GuestEvent {
    /// The guest took its DHCP lease: its network is up.
    Lease,
    /// The agent is at work; not an end state.
    Provisioning {
        /// The agent's description, at most [`MAX_TEXT`] characters.
        text: String,
    },
    /// Provisioning is done. May repeat: two agents in one image both report. SSH usually answers only later.
    Ready,
    /// Provisioning failed. The VM goes on booting.
    ProvisioningFailed {
        /// The agent's description, at most [`MAX_TEXT`] characters.
        text: String,
    },
    /// The agent's own status (waagent's status blob), for the instance view. Repeats every few seconds.
    AgentStatus(serde_json::Value),
    /// A health report that was not this VM's, for instance from an agent with another VM's saved goal state.
    ForeignReport {
        /// What did not fit.
        reason: String,
    },
    /// The guest tried to reach an address that the policy denies. Reported once for each destination.
    OutboundDenied {
        /// `address:port`.
        destination: String,
        /// The rule, and what would allow it.
        reason: String,
    },
}

impl GuestEvent {
    /// Whether losing this event when nobody reads is harmless, because it repeats or only informs.
    pub(crate) fn may_be_lost(&self) -> bool {
        matches!(
            self,
            Self::AgentStatus(_) | Self::ForeignReport { .. } | Self::OutboundDenied { .. } | Self::Lease
        )
    }
}

/// Longest text of a guest that an event carries, in characters; waagent sends at most 3686.
pub const MAX_TEXT: usize = 4096;
/// Events that wait to be read; then agents wait for their answers, and repeating events are dropped.
pub const MAX_WAITING_EVENTS: usize = 256;

/// `text` trimmed, without control characters, and cut to [`MAX_TEXT`].
pub(crate) fn clean_text(text: &str) -> String {
    text.trim().chars().map(|c| if c.is_control() && c != '\n' { ' ' } else { c }).take(MAX_TEXT).collect()
}
