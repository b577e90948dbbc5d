//! One SSH connection to a guest, over a tunnel that leads to this VM alone.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use russh::client::{self, Handle};
use russh::keys::ssh_key::LineEnding;
use russh::keys::{Algorithm, PrivateKey, PrivateKeyWithHashAlg};
use russh::{ChannelMsg, Disconnect};
use serde::{Deserialize, Serialize};
use vmhost::VmHandle;

use crate::error::TAIL_LINES_MAX;
use crate::event::{Events, Stream};

const SSH_PORT: u16 = 22;
/// One attempt to connect and log in; key exchange takes about a second under TCG.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(20);
const ATTEMPT_PAUSE: Duration = Duration::from_millis(150);
/// Output of one command that is kept for the caller.
const OUTPUT_BYTES_MAX: usize = 1 << 20;

/// Why a guest could not be talked to.
#[derive(Debug, thiserror::Error)]
pub enum SshError {
    /// SSH itself.
    #[error("SSH: {0}")]
    Protocol(#[from] russh::Error),
    /// A key.
    #[error("SSH key: {0}")]
    Key(#[from] russh::keys::ssh_key::Error),
    /// The guest's sshd did not let us in.
    #[error("the guest refused the key of user {user}")]
    Refused {
        /// Who tried.
        user: String,
    },
    /// The guest did not answer in time.
    #[error("SSH did not answer within {} s; last error: {last}", after.as_secs())]
    Silent {
        /// How long.
        after: Duration,
        /// What happened last.
        last: String,
    },
    /// The VM is gone.
    #[error(transparent)]
    Vm(#[from] vmhost::VmError),
}

/// A key pair for one VM, Ed25519.
#[derive(Clone, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SshKey(String);

impl std::fmt::Debug for SshKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SshKey(…)")
    }
}

impl SshKey {
    /// A new random key.
    ///
    /// # Errors
    /// When the key cannot be encoded.
    pub fn generate() -> Result<Self, SshError> {
        let key = PrivateKey::random(&mut rand::rng(), Algorithm::Ed25519)?;
        Ok(Self(key.to_openssh(LineEnding::LF)?.to_string()))
    }

    /// The public half in OpenSSH's one-line format.
    ///
    /// # Errors
    /// When the stored text is not a key.
    pub fn public(&self) -> Result<String, SshError> {
        Ok(self.private()?.public_key().to_openssh()?)
    }

    /// The private half in OpenSSH's PEM format, for other clients.
    pub fn to_openssh(&self) -> &str {
        &self.0
    }

    fn private(&self) -> Result<PrivateKey, SshError> {
        Ok(PrivateKey::from_openssh(&self.0)?)
    }
}

/// What a command did.
#[derive(Debug, Clone)]
pub struct ExecOutput {
    /// Exit status; `None` when the command was killed or the connection broke.
    pub exit_status: Option<u32>,
    /// Standard output, at most a mebibyte.
    pub stdout: Vec<u8>,
    /// The last lines of both streams.
    pub last_lines: Vec<String>,
}

/// A logged-in connection.
pub struct SshSession {
    handle: Handle<AnyHostKey>,
}

/// The tunnel ends in the one guest that owns the socket, so its host key proves nothing more.
struct AnyHostKey;

impl client::Handler for AnyHostKey {
    type Error = russh::Error;

    async fn check_server_key(
        &mut self,
        _key: &russh::keys::PublicKeyOrCertificate,
    ) -> Result<bool, Self::Error> {
        Ok(true)
    }
}

impl SshSession {
    /// Connects and logs in, trying again until `limit`: the agent reports ready long before sshd runs.
    ///
    /// # Errors
    /// [`SshError::Silent`] after `limit`; [`SshError::Vm`] at once when the VM has ended.
    pub async fn connect(vm: &VmHandle, user: &str, key: &SshKey, limit: Duration) -> Result<Self, SshError> {
        let started = Instant::now();
        let private = Arc::new(key.private()?);
        let mut last = "none".to_owned();
        while started.elapsed() < limit {
            match tokio::time::timeout(ATTEMPT_TIMEOUT, Self::attempt(vm, user, &private)).await {
                Ok(Ok(session)) => return Ok(session),
                Ok(Err(SshError::Vm(ended @ vmhost::VmError::Ended(_)))) => return Err(ended.into()),
                Ok(Err(error)) => last = error.to_string(),
                Err(_) => last = "the attempt timed out".to_owned(),
            }
            tokio::time::sleep(ATTEMPT_PAUSE).await;
        }
        Err(SshError::Silent { after: limit, last })
    }

    async fn attempt(vm: &VmHandle, user: &str, key: &Arc<PrivateKey>) -> Result<Self, SshError> {
        let stream = vm.tunnel(SSH_PORT).await?;
        let config = client::Config {
            preferred: russh::Preferred {
                // Cheap to compute for a guest under TCG.
                kex: Cow::Borrowed(&[russh::kex::CURVE25519]),
                ..russh::Preferred::DEFAULT
            },
            keepalive_interval: Some(Duration::from_secs(30)),
            keepalive_max: 10,
            inactivity_timeout: None,
            nodelay: true,
            ..client::Config::default()
        };
        let mut handle = client::connect_stream(Arc::new(config), stream, AnyHostKey).await?;
        let key = PrivateKeyWithHashAlg::new(Arc::clone(key), None);
        if handle.authenticate_publickey(user, key).await?.success() {
            Ok(Self { handle })
        } else {
            Err(SshError::Refused { user: user.to_owned() })
        }
    }

    /// Runs `command` with `input` on its standard input; every line of output goes to `log`, if there is one.
    ///
    /// # Errors
    /// When the connection breaks before the command was started. A connection that breaks later gives
    /// an output without exit status.
    pub async fn exec(
        &self,
        command: &str,
        input: &[u8],
        log: Option<(&Events, Stream)>,
    ) -> Result<ExecOutput, SshError> {
        let mut channel = self.handle.channel_open_session().await?;
        channel.exec(true, command).await?;
        if !input.is_empty() {
            channel.data_bytes(input.to_vec()).await?;
        }
        channel.eof().await?;
        let mut output = ExecOutput { exit_status: None, stdout: Vec::new(), last_lines: Vec::new() };
        let mut streams = [LineSplitter::default(), LineSplitter::default()];
        while let Some(message) = channel.wait().await {
            let (stream, data) = match &message {
                ChannelMsg::Data { data } => (0, data),
                ChannelMsg::ExtendedData { data, .. } => (1, data),
                ChannelMsg::ExitStatus { exit_status } => {
                    output.exit_status = Some(*exit_status);
                    continue;
                }
                _ => continue,
            };
            if stream == 0 {
                let room = OUTPUT_BYTES_MAX.saturating_sub(output.stdout.len());
                output.stdout.extend_from_slice(&data[..data.len().min(room)]);
            }
            for line in streams[stream].push(data) {
                keep_tail(&mut output.last_lines, &line);
                tell(log, line).await;
            }
        }
        for line in streams.iter_mut().filter_map(LineSplitter::rest) {
            keep_tail(&mut output.last_lines, &line);
            tell(log, line).await;
        }
        Ok(output)
    }

    /// Ends the connection; errors do not matter then.
    pub async fn close(self) {
        drop(self.handle.disconnect(Disconnect::ByApplication, "", "").await);
    }
}

async fn tell(log: Option<(&Events, Stream)>, line: String) {
    if let Some((events, stream)) = log {
        events.line(stream, line).await;
    }
}

fn keep_tail(lines: &mut Vec<String>, line: &str) {
    if lines.len() == TAIL_LINES_MAX {
        lines.remove(0);
    }
    lines.push(line.to_owned());
}

/// Cuts a byte stream into lines; a line longer than the limit is cut into several.
#[derive(Default)]
struct LineSplitter(Vec<u8>);

impl LineSplitter {
    fn push(&mut self, data: &[u8]) -> Vec<String> {
        let mut lines = Vec::new();
        for &byte in data {
            if byte == b'\n' || self.0.len() >= crate::event::LINE_BYTES_MAX {
                lines.extend(self.rest());
            }
            if byte != b'\n' && byte != b'\r' {
                self.0.push(byte);
            }
        }
        lines
    }

    fn rest(&mut self) -> Option<String> {
        let line = std::mem::take(&mut self.0);
        (!line.is_empty()).then(|| String::from_utf8_lossy(&line).into_owned())
    }
}
