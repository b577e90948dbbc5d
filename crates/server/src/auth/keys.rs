//! The key that signs tokens: RSA-2048, made at the first start, kept in `data_dir/keys` with mode 0600.

use std::path::{Path, PathBuf};

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
use aws_lc_rs::rsa::{KeyPair, KeySize};
use aws_lc_rs::signature::KeyPair as _;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::secret_file;

/// Seconds by which clocks may differ when a token's times are checked.
const CLOCK_SKEW_S: u64 = 60;
/// Longest token that is looked at, in bytes.
const MAX_TOKEN_BYTES: usize = 8 * 1024;

/// Why the signing key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file cannot be read or written.
    #[error("cannot use {path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// Cause.
        source: std::io::Error,
    },
    /// The file holds no RSA key in PKCS#8 PEM.
    #[error("{path} holds no RSA private key (PKCS#8 PEM); restore it, or remove it to have a new one made")]
    Damaged {
        /// The file.
        path: PathBuf,
    },
    /// No key can be made.
    #[error("cannot generate an RSA key")]
    Generate,
}

/// What a token says.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Claims {
    pub(crate) aud: String,
    pub(crate) iss: String,
    pub(crate) iat: i64,
    pub(crate) nbf: i64,
    pub(crate) exp: i64,
    pub(crate) tid: Uuid,
    pub(crate) oid: Uuid,
    pub(crate) sub: Uuid,
    pub(crate) appid: Uuid,
    pub(crate) ver: String,
    pub(crate) idtyp: String,
}

pub(crate) struct SigningKeys {
    id: String,
    encoding: EncodingKey,
    decoding: DecodingKey,
    modulus: Vec<u8>,
    exponent: Vec<u8>,
}

impl SigningKeys {
    /// Loads `{data_dir}/keys/signing.pem`, or makes it.
    pub(crate) fn load(data_dir: &Path) -> Result<SigningKeys, KeyError> {
        let folder = data_dir.join("keys");
        let path = folder.join("signing.pem");
        let file = |source| KeyError::File { path: path.clone(), source };
        secret_file::create_folder(&folder).map_err(file)?;
        let pem = match secret_file::read(&path).map_err(file)? {
            Some(pem) => pem,
            None => {
                let pem = generate()?;
                secret_file::create(&path, &pem).map_err(file)?;
                pem
            }
        };
        SigningKeys::from_pem(&pem).ok_or(KeyError::Damaged { path })
    }

    fn from_pem(pem: &str) -> Option<SigningKeys> {
        let body: String = pem.lines().filter(|line| !line.starts_with("-----")).collect();
        let pair = KeyPair::from_pkcs8(&STANDARD.decode(body).ok()?).ok()?;
        let public = pair.public_key();
        let modulus = public.modulus().big_endian_without_leading_zero().to_vec();
        let exponent = public.exponent().big_endian_without_leading_zero().to_vec();
        Some(SigningKeys {
            id: hex::encode(&Sha256::digest(&modulus)[..16]),
            encoding: EncodingKey::from_rsa_pem(pem.as_bytes()).ok()?,
            decoding: DecodingKey::from_rsa_raw_components(&modulus, &exponent),
            modulus,
            exponent,
        })
    }

    /// Signs a token with RS256.
    pub(crate) fn sign(&self, claims: &Claims) -> Result<String, jsonwebtoken::errors::Error> {
        let mut header = Header::new(Algorithm::RS256);
        header.kid = Some(self.id.clone());
        jsonwebtoken::encode(&header, claims, &self.encoding)
    }

    /// Checks signature (RS256 with our key and nothing else), issuer, audience and times.
    pub(crate) fn verify(
        &self,
        token: &str,
        issuer: &str,
        audiences: &[String],
    ) -> Result<Claims, jsonwebtoken::errors::Error> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(jsonwebtoken::errors::ErrorKind::InvalidToken.into());
        }
        let mut rules = Validation::new(Algorithm::RS256);
        rules.leeway = CLOCK_SKEW_S;
        rules.validate_nbf = true;
        rules.set_required_spec_claims(&["exp", "nbf", "aud", "iss", "sub"]);
        rules.set_issuer(&[issuer]);
        rules.set_audience(audiences);
        jsonwebtoken::decode::<Claims>(token, &self.decoding, &rules).map(|data| data.claims)
    }

    /// The public key as a JSON Web Key Set (RFC 7517).
    pub(crate) fn key_set(&self, issuer: &str) -> Value {
        json!({ "keys": [{
            "kty": "RSA", "use": "sig", "alg": "RS256", "kid": self.id, "x5t": self.id, "issuer": issuer,
            "n": URL_SAFE_NO_PAD.encode(&self.modulus),
            "e": URL_SAFE_NO_PAD.encode(&self.exponent),
        }]})
    }
}

fn generate() -> Result<String, KeyError> {
    let pair = KeyPair::generate(KeySize::Rsa2048).map_err(|_| KeyError::Generate)?;
    let der: Pkcs8V1Der<'_> = pair.as_der().map_err(|_| KeyError::Generate)?;
    let body = STANDARD.encode(der.as_ref());
    let mut pem = String::from("-----BEGIN PRIVATE KEY-----\n");
    let mut rest = body.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at(rest.len().min(64));
        pem.push_str(line);
        pem.push('\n');
        rest = after;
    }
    pem.push_str("-----END PRIVATE KEY-----\n");
    Ok(pem)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ISSUER: &str = "https://localhost:1/t/v2.0";

    fn claims() -> Claims {
        let now = chrono::Utc::now().timestamp();
        let id = Uuid::nil();
        Claims {
            aud: "https://a/".to_owned(),
            iss: ISSUER.to_owned(),
            iat: now,
            nbf: now,
            exp: now + 600,
            tid: id,
            oid: id,
            sub: id,
            appid: id,
            ver: "2.0".to_owned(),
            idtyp: "app".to_owned(),
        }
    }

    fn segment(value: &Value) -> String {
        URL_SAFE_NO_PAD.encode(value.to_string())
    }

    #[test]
    fn only_our_own_rs256_tokens_pass() {
        let folder = tempfile::tempdir().unwrap();
        let keys = SigningKeys::load(folder.path()).unwrap();
        let again = SigningKeys::load(folder.path()).unwrap();
        assert_eq!(keys.id, again.id, "the key is kept");
        let audiences = ["https://a/".to_owned()];
        let ok = |token: &str| keys.verify(token, ISSUER, &audiences).is_ok();
        let signed = |change: fn(&mut Claims)| {
            let mut claims = claims();
            change(&mut claims);
            again.sign(&claims).unwrap()
        };
        assert!(ok(&signed(|_| {})));
        assert!(!ok(&signed(|c| c.aud = "https://b/".to_owned())));
        assert!(!ok(&signed(|c| c.iss = "https://localhost:1/other/v2.0".to_owned())));
        assert!(!ok(&signed(|c| c.exp -= 700)));
        assert!(!ok(&signed(|c| c.nbf += 700)));

        let body = segment(&serde_json::to_value(claims()).unwrap());
        assert!(!ok(&format!("{}.{body}.", segment(&json!({"alg": "none"})))));
        assert!(!ok(&format!("{}.{body}.x", segment(&json!({"alg": "RS256"})))));
        // The classic confusion: HMAC with the public key as its secret.
        let secret = EncodingKey::from_secret(&keys.modulus);
        assert!(!ok(&jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims(), &secret).unwrap()));
        assert!(!ok(
            &jsonwebtoken::encode(&Header::new(Algorithm::RS512), &claims(), &keys.encoding).unwrap()
        ));

        let other = tempfile::tempdir().unwrap();
        let stranger = SigningKeys::load(other.path()).unwrap();
        assert!(!ok(&stranger.sign(&claims()).unwrap()));
        assert!(!ok(&"a".repeat(MAX_TOKEN_BYTES + 1)));
    }
}
