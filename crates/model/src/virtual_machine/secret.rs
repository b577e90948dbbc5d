//! Values that are told to the guest and to nobody else.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A text that does not show itself in logs and messages.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// Wraps a text.
    pub fn new(text: String) -> Self {
        Self(text)
    }

    /// The text. Call this where it is used and nowhere else.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// A machine's secrets. Serialised only to be sealed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmSecrets {
    /// The administrator's password.
    pub admin_password: Option<Secret>,
    /// Custom data, base64 as it was sent.
    pub custom_data: Option<Secret>,
    /// User data, base64 as it was sent; shown on request (`$expand=userData`).
    pub user_data: Option<Secret>,
}
