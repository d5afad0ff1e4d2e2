//! Host certificates (PROTOCOL.certkeys of OpenSSH).

use std::time::SystemTime;

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::node::binary::Reader;
use crate::node::sshpop::key::{PublicKey, Sha1, certified, read_signature};
use crate::node::sshpop::messages::Signature;

const USER: u32 = 1;
const HOST: u32 = 2;

/// A certificate that was read whole, and is trusted by nobody yet.
#[derive(Debug)]
pub(super) struct Certificate {
    pub(super) key: PublicKey,
    pub(super) serial: u64,
    pub(super) kind: u32,
    pub(super) key_id: String,
    pub(super) principals: Vec<String>,
    /// Seconds since 1970, the first that counts.
    pub(super) valid_after: u64,
    /// Seconds since 1970, the first that does not count any more; `u64::MAX` where there is none.
    pub(super) valid_before: u64,
    /// SHA-256 of the whole in base64 that may stand in a path, without padding.
    pub(super) fingerprint: String,
    critical: Vec<String>,
    authority: PublicKey,
    signed: Vec<u8>,
    signature: Signature,
}

/// Why a certificate is none that counts.
pub(super) struct Untrusted {
    pub(super) why: String,
    pub(super) hint: &'static str,
}

impl Certificate {
    /// The error is a text.
    pub(super) fn read(blob: &[u8]) -> Result<Self, String> {
        let mut reader = Reader::new(blob);
        let kind = reader.text()?;
        let kind = certified(kind).ok_or_else(|| format!("{kind:?} is no type of certificate"))?;
        let _nonce = reader.string()?;
        let key = PublicKey::read_fields(kind, &mut reader)?;
        let serial = reader.u64()?;
        let kind = reader.u32()?;
        let key_id = reader.text()?.to_owned();
        let principals = Reader::new(reader.string()?).strings()?;
        let principals = principals.into_iter().map(str::to_owned).collect();
        let (valid_after, valid_before) = (reader.u64()?, reader.u64()?);
        let critical = options(reader.string()?)?;
        let _extensions = options(reader.string()?)?;
        let _reserved = reader.string()?;
        let authority = PublicKey::read(reader.string()?);
        let authority = authority.map_err(|error| format!("the key of its CA: {error}"))?;
        let unsigned = reader.rest().len();
        let signed = blob.len().checked_sub(unsigned);
        let signed = signed.and_then(|length| blob.get(..length));
        let signature = read_signature(reader.string()?)?;
        reader.end()?;
        Ok(Self {
            key,
            serial,
            kind,
            key_id,
            principals,
            valid_after,
            valid_before,
            fingerprint: URL_SAFE_NO_PAD.encode(digest(&SHA256, blob)),
            critical,
            authority,
            signed: signed.unwrap_or_default().to_vec(),
            signature,
        })
    }

    /// The host that it names first, once it counts at the time `now` because one of `authorities` signed it.
    pub(super) fn host(
        &self,
        authorities: &[PublicKey],
        now: SystemTime,
    ) -> Result<&str, Untrusted> {
        let untrusted = |why: String, hint| Untrusted { why, hint };
        let principal = self.principals.first().ok_or_else(|| {
            untrusted(
                "cert has no valid principals".into(),
                "name the host when it is certified: ssh-keygen -s CA -I ID -h -n HOST KEY.pub",
            )
        })?;
        let unchecked =
            |why: String, hint| untrusted(format!("failed to check host key: {why}"), hint);
        if self.kind != HOST {
            let kind = match self.kind {
                USER => "a user's".to_owned(),
                other => format!("of type {other}"),
            };
            return Err(unchecked(
                format!(
                    "certificate presented as a host key has type {}: it is {kind}",
                    self.kind
                ),
                "certify the host's key with -h: ssh-keygen -s CA -I ID -h -n HOST KEY.pub",
            ));
        }
        if !authorities.contains(&self.authority) {
            return Err(unchecked(
                format!("no authorities for hostname: {principal}"),
                "compare `ssh-keygen -L -f CERTIFICATE` (Signing CA) with cert_authorities and cert_authorities_path on the server",
            ));
        }
        if let Some(option) = self.critical.first() {
            return Err(unchecked(
                format!("unsupported critical option {option:?} in certificate"),
                "certify the host's key without -O critical:…, source-address and force-command",
            ));
        }
        let renew = "renew the certificate of the host, and check the clocks with `date -u`";
        let since = now.duration_since(SystemTime::UNIX_EPOCH);
        let now = since.unwrap_or_default().as_secs();
        if now < self.valid_after {
            return Err(unchecked("cert is not yet valid".into(), renew));
        }
        if now >= self.valid_before && self.valid_before != u64::MAX {
            return Err(unchecked("cert has expired".into(), renew));
        }
        let verified = self
            .authority
            .verify(&self.signed, &self.signature, Sha1::Refused);
        verified.map_err(|why| {
            unchecked(
                format!("certificate signature does not verify: {why}"),
                "certify the host's key anew; with an RSA key of the CA: ssh-keygen -t rsa-sha2-512 -s CA …",
            )
        })?;
        Ok(principal)
    }
}

/// The names of options, which stand in order, each once.
fn options(list: &[u8]) -> Result<Vec<String>, String> {
    let mut reader = Reader::new(list);
    let mut names: Vec<String> = Vec::new();
    while !reader.rest().is_empty() {
        let name = reader.text()?;
        if names.last().is_some_and(|last| last.as_str() >= name) {
            return Err("its options are not in order".into());
        }
        names.push(name.to_owned());
        let _value = reader.string()?;
    }
    Ok(names)
}
