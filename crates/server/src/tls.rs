//! The server's own certificate authority, and the certificate that it serves with.
//!
//! The authority (ECDSA P-256) is made once and kept in `data_dir/tls` with mode 0600; clients trust
//! `ca.pem`. The server's key never touches the disk: each start makes a new key and certificate.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use chrono::{DateTime, Datelike, Days, Utc};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType,
};
use rustls::ServerConfig;
use rustls::pki_types::PrivatePkcs8KeyDer;

use crate::secret_file;

/// Days that the authority is valid.
const CA_DAYS: u64 = 3650;
/// Days that a server certificate is valid; a server that runs longer must be restarted.
const SERVER_DAYS: u64 = 397;
/// Days that certificates are valid before they were made, for clients whose clock is late.
const BACKDATE_DAYS: u64 = 1;

/// Why TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file of the authority cannot be read or written.
    #[error("cannot use {path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// Cause.
        source: std::io::Error,
    },
    /// The authority's files are damaged, or one is missing.
    #[error(
        "{path} is damaged or missing while its pair exists; restore it, or remove both ca.pem and ca.key.pem"
    )]
    Authority {
        /// The file.
        path: PathBuf,
    },
    /// A certificate cannot be made.
    #[error("cannot make a certificate")]
    Certificate(#[from] rcgen::Error),
    /// TLS does not accept the certificate.
    #[error("cannot configure TLS")]
    Tls(#[from] rustls::Error),
}

/// What the service is served with.
pub(crate) struct Tls {
    /// For the acceptor.
    pub(crate) config: Arc<ServerConfig>,
    /// The authority's certificate, for clients.
    pub(crate) ca_pem: PathBuf,
}

/// Installs aws-lc-rs as the process's cryptography. Call it first in `main`; calling it again does nothing.
pub fn install_crypto() {
    // An error means that a provider is installed already, by an earlier call.
    let _: Result<(), _> = rustls::crypto::aws_lc_rs::default_provider().install_default();
}

/// Loads or makes the authority in `{data_dir}/tls`, and makes a certificate for loopback and `public_host`.
pub(crate) fn set_up(data_dir: &Path, public_host: &str, now: DateTime<Utc>) -> Result<Tls, TlsError> {
    let folder = data_dir.join("tls");
    secret_file::create_folder(&folder).map_err(|source| TlsError::File { path: folder.clone(), source })?;
    let ca_pem = folder.join("ca.pem");
    let (ca_text, ca_key) = authority(&folder, &ca_pem, now)?;
    let issuer = Issuer::from_ca_cert_pem(&ca_text, ca_key)?;

    let mut params = CertificateParams::default();
    params.subject_alt_names = alternative_names(public_host)?;
    params.distinguished_name.push(DnType::CommonName, public_host);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    validity(&mut params, now, SERVER_DAYS);
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let certificate = params.signed_by(&key, &issuer)?;

    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(
            vec![certificate.der().clone()],
            PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
        )?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Tls { config: Arc::new(config), ca_pem })
}

fn authority(folder: &Path, ca_pem: &Path, now: DateTime<Utc>) -> Result<(String, KeyPair), TlsError> {
    let key_pem = folder.join("ca.key.pem");
    let file = |path: &Path| {
        let path = path.to_owned();
        move |source| TlsError::File { path, source }
    };
    let damaged = |path: &Path| TlsError::Authority { path: path.to_owned() };
    let key = secret_file::read(&key_pem).map_err(file(&key_pem))?;
    if let Some(key) = key {
        let key = KeyPair::from_pem(&key).map_err(|_| damaged(&key_pem))?;
        let text = std::fs::read_to_string(ca_pem).map_err(|_| damaged(ca_pem))?;
        return Ok((text, key));
    }
    if ca_pem.exists() {
        return Err(damaged(&key_pem));
    }
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.distinguished_name.push(DnType::CommonName, "Tintype local authority");
    validity(&mut params, now, CA_DAYS);
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let certificate = params.self_signed(&key)?;
    // The certificate first: a crash in between leaves a pair that can be told to be incomplete.
    std::fs::write(ca_pem, certificate.pem()).map_err(file(ca_pem))?;
    secret_file::create(&key_pem, &key.serialize_pem()).map_err(file(&key_pem))?;
    Ok((certificate.pem(), key))
}

fn alternative_names(public_host: &str) -> Result<Vec<SanType>, TlsError> {
    let mut names = vec![
        SanType::DnsName("localhost".try_into()?),
        SanType::IpAddress(IpAddr::V4(Ipv4Addr::LOCALHOST)),
        SanType::IpAddress(IpAddr::V6(Ipv6Addr::LOCALHOST)),
    ];
    let own = match public_host.parse() {
        Ok(address) => SanType::IpAddress(address),
        Err(_) => SanType::DnsName(public_host.try_into()?),
    };
    if !names.contains(&own) {
        names.push(own);
    }
    Ok(names)
}

fn validity(params: &mut CertificateParams, now: DateTime<Utc>, days: u64) {
    let date = |at: DateTime<Utc>| {
        // Months and days fit: chrono gives 1 to 12 and 1 to 31.
        rcgen::date_time_ymd(at.year(), at.month() as u8, at.day() as u8)
    };
    params.not_before = date(now - Days::new(BACKDATE_DAYS));
    params.not_after = date(now + Days::new(days));
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn the_authority_is_made_once_and_kept_private() {
        let folder = tempfile::tempdir().unwrap();
        let first = set_up(folder.path(), "localhost", Utc::now()).unwrap();
        let pem = std::fs::read(&first.ca_pem).unwrap();
        assert_eq!(std::fs::metadata(folder.path().join("tls/ca.key.pem")).unwrap().mode() & 0o777, 0o600);
        set_up(folder.path(), "images.example.org", Utc::now()).unwrap();
        assert_eq!(std::fs::read(&first.ca_pem).unwrap(), pem);

        std::fs::remove_file(folder.path().join("tls/ca.key.pem")).unwrap();
        assert!(matches!(set_up(folder.path(), "localhost", Utc::now()), Err(TlsError::Authority { .. })));
    }
}
