//! PEM as people make it: comments between blocks, any line end, several blocks in one file.
//!
//! The text is cut into blocks here, because a block this product does not take (a trusted certificate, an
//! encrypted key) is to be named and not skipped. The base64 of each is read by `rustls-pki-types`, in
//! constant time where the block is secret.

use pkcs8::EncryptedPrivateKeyInfoRef;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::{PemObject, SectionKind};
use zeroize::Zeroizing;

use crate::{CertificateFacts, PrivateKey};

/// The largest PEM input that is read, in bytes.
pub const MAX_PEM_BYTES: usize = 1024 * 1024;

/// Why a text is not the PEM that was asked for. Never quotes the text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PemError {
    /// Larger than [`MAX_PEM_BYTES`].
    #[error("larger than 1 MiB")]
    TooLarge,
    /// Nothing in it.
    #[error("empty")]
    Empty,
    /// Saved in an encoding of two bytes a character.
    #[error("saved as UTF-16 text, not as ASCII or UTF-8")]
    Utf16,
    /// DER where PEM belongs.
    #[error("binary (DER), not PEM")]
    Der,
    /// A block has no end: usually the file was read while it was being written.
    #[error("the {label} block that begins at line {line} has no end")]
    Unterminated {
        /// What stands after `BEGIN`.
        label: String,
        /// Line of its `BEGIN`, from 1.
        line: usize,
    },
    /// A block whose base64 is damaged.
    #[error("the {label} block that begins at line {line} is not valid base64")]
    Base64 {
        /// What stands after `BEGIN`.
        label: String,
        /// Line of its `BEGIN`, from 1.
        line: usize,
    },
    /// A certificate block that holds no certificate.
    #[error("the certificate that begins at line {line}: {why}")]
    Certificate {
        /// Line of its `BEGIN`, from 1.
        line: usize,
        /// What is wrong.
        why: String,
    },
    /// OpenSSL's own form, which adds trust settings that nobody else reads.
    #[error(
        "line {line}: a TRUSTED CERTIFICATE block, which only openssl reads; `openssl x509 -in FILE -out NEW` turns it into a plain one"
    )]
    TrustedCertificate {
        /// Line of its `BEGIN`, from 1.
        line: usize,
    },
    /// No `CERTIFICATE` block.
    #[error("holds no CERTIFICATE block{}", found(.0))]
    NoCertificate(Vec<String>),
    /// No private key block.
    #[error("holds no private key block{}", found(.0))]
    NoKey(Vec<String>),
    /// More than one private key block.
    #[error("holds {0} private keys, and which one is meant cannot be known")]
    SeveralKeys(usize),
    /// An encrypted key and no passphrase.
    #[error("the private key is encrypted and no passphrase file is configured")]
    Encrypted,
    /// A key in the old encryption of OpenSSL (`Proc-Type: 4,ENCRYPTED`).
    #[error("the private key is encrypted in the old form of openssl (Proc-Type: 4,ENCRYPTED)")]
    LegacyEncrypted,
    /// The passphrase does not open the key.
    #[error("the passphrase does not decrypt the private key")]
    WrongPassphrase,
    /// A cipher that is not served.
    #[error("the private key is encrypted with an algorithm that is not supported")]
    UnsupportedEncryption,
}

impl PemError {
    /// Whether the file may just be in the middle of being written.
    pub fn may_be_half_written(&self) -> bool {
        matches!(
            self,
            Self::Empty
                | Self::Unterminated { .. }
                | Self::Base64 { .. }
                | Self::Certificate { .. }
                | Self::NoCertificate(_)
                | Self::NoKey(_)
        )
    }
}

/// Every certificate in `pem`, in the order of the file.
pub fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, PemError> {
    let blocks = blocks(pem)?;
    let mut certificates = Vec::new();
    for block in &blocks {
        match block.label.as_str() {
            "CERTIFICATE" | "X509 CERTIFICATE" => {
                let der = block.decode("CERTIFICATE", SectionKind::Certificate)?;
                CertificateFacts::from_der(&der).map_err(|e| PemError::Certificate {
                    line: block.line,
                    why: e.to_string(),
                })?;
                certificates.push(CertificateDer::from(der.to_vec()));
            }
            "TRUSTED CERTIFICATE" => {
                return Err(PemError::TrustedCertificate { line: block.line });
            }
            _ => {}
        }
    }
    if certificates.is_empty() {
        return Err(PemError::NoCertificate(labels(&blocks)));
    }
    Ok(certificates)
}

/// The one private key in `pem`: PKCS#8, PKCS#1 or SEC1, and PKCS#8 encrypted under `passphrase`.
pub fn private_key(pem: &[u8], passphrase: Option<&[u8]>) -> Result<PrivateKey, PemError> {
    let blocks = blocks(pem)?;
    let mut keys = blocks
        .iter()
        .filter(|block| block.label.ends_with("PRIVATE KEY"));
    let Some(block) = keys.next() else {
        return Err(PemError::NoKey(labels(&blocks)));
    };
    let others = keys.count();
    if others > 0 {
        return Err(PemError::SeveralKeys(others.saturating_add(1)));
    }
    if block.legacy_encrypted {
        return Err(PemError::LegacyEncrypted);
    }
    let take = |mut der: Zeroizing<Vec<u8>>| std::mem::take(&mut *der);
    match block.label.as_str() {
        "PRIVATE KEY" => {
            let der = block.decode("PRIVATE KEY", SectionKind::PrivateKey)?;
            Ok(PrivateKey::pkcs8(take(der)))
        }
        "RSA PRIVATE KEY" => {
            let der = block.decode("RSA PRIVATE KEY", SectionKind::RsaPrivateKey)?;
            Ok(PrivateKey::pkcs1(take(der)))
        }
        "EC PRIVATE KEY" => {
            let der = block.decode("EC PRIVATE KEY", SectionKind::EcPrivateKey)?;
            Ok(PrivateKey::sec1(take(der)))
        }
        "ENCRYPTED PRIVATE KEY" => {
            let passphrase = passphrase.ok_or(PemError::Encrypted)?;
            decrypt(
                &block.decode("PRIVATE KEY", SectionKind::PrivateKey)?,
                passphrase,
            )
        }
        _ => Err(PemError::NoKey(labels(&blocks))),
    }
}

/// The bytes of the first block of `pem` that is labelled `label`, such as `OPENSSH PRIVATE KEY`; none where there is no
/// such block.
pub fn secret_block(pem: &[u8], label: &str) -> Result<Option<Zeroizing<Vec<u8>>>, PemError> {
    let blocks = blocks(pem)?;
    let block = blocks.iter().find(|block| block.label == label);
    block
        .map(|block| block.decode("PRIVATE KEY", SectionKind::PrivateKey))
        .transpose()
}

/// RFC 5958 §3, with the password-based schemes of RFC 8018 (PBES2).
fn decrypt(der: &[u8], passphrase: &[u8]) -> Result<PrivateKey, PemError> {
    let info =
        EncryptedPrivateKeyInfoRef::try_from(der).map_err(|_| PemError::UnsupportedEncryption)?;
    if info.encryption_algorithm.pbes2().is_none() {
        return Err(PemError::UnsupportedEncryption);
    }
    match info.decrypt(passphrase) {
        Ok(plain) => Ok(PrivateKey::pkcs8(plain.as_bytes().to_vec())),
        Err(pkcs8::Error::EncryptedPrivateKey(pkcs8::pkcs5::Error::DecryptFailed))
        | Err(pkcs8::Error::Asn1(_)) => Err(PemError::WrongPassphrase),
        Err(_) => Err(PemError::UnsupportedEncryption),
    }
}

/// One `BEGIN` … `END`, not decoded yet.
struct Block {
    label: String,
    line: usize,
    body: Zeroizing<Vec<u8>>,
    legacy_encrypted: bool,
}

impl Block {
    /// The bytes of the block, read as if it were labelled `label`.
    fn decode(&self, label: &str, kind: SectionKind) -> Result<Zeroizing<Vec<u8>>, PemError> {
        let mut text = Zeroizing::new(Vec::with_capacity(self.body.len().saturating_add(128)));
        text.extend_from_slice(format!("-----BEGIN {label}-----\n").as_bytes());
        text.extend_from_slice(&self.body);
        text.extend_from_slice(format!("\n-----END {label}-----\n").as_bytes());
        match <(SectionKind, Vec<u8>)>::from_pem_slice(&text) {
            Ok((found, der)) if found == kind => Ok(Zeroizing::new(der)),
            _ => Err(PemError::Base64 {
                label: self.label.clone(),
                line: self.line,
            }),
        }
    }
}

/// Cuts `pem` into its blocks; whatever stands between them is commentary (RFC 7468 §2).
fn blocks(pem: &[u8]) -> Result<Vec<Block>, PemError> {
    if pem.len() > MAX_PEM_BYTES {
        return Err(PemError::TooLarge);
    }
    if pem.starts_with(&[0xFF, 0xFE]) || pem.starts_with(&[0xFE, 0xFF]) {
        return Err(PemError::Utf16);
    }
    let text = pem.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(pem);
    if text.trim_ascii().is_empty() {
        return Err(PemError::Empty);
    }
    let mut done = Vec::new();
    let mut open: Option<Block> = None;
    for (index, line) in lines(text).enumerate() {
        let line_number = index.saturating_add(1);
        let line = line.trim_ascii();
        if let Some(label) = marker(line, b"-----BEGIN ") {
            if let Some(block) = open.take() {
                return Err(unterminated(block));
            }
            open = Some(Block {
                label,
                line: line_number,
                body: Zeroizing::new(Vec::with_capacity(text.len().min(8192))),
                legacy_encrypted: false,
            });
        } else if let Some(mut block) = open.take() {
            match marker(line, b"-----END ") {
                Some(label) if label == block.label => done.push(block),
                Some(_) => return Err(unterminated(block)),
                None => {
                    // Headers of RFC 1421 §4.6 stand before the base64, which has no colon.
                    if line.contains(&b':') {
                        block.legacy_encrypted |=
                            line.starts_with(b"Proc-Type:") && line.ends_with(b"ENCRYPTED");
                    } else {
                        block.body.extend_from_slice(line);
                    }
                    open = Some(block);
                }
            }
        }
    }
    if let Some(block) = open {
        return Err(unterminated(block));
    }
    if done.is_empty() && text.first() == Some(&0x30) {
        return Err(PemError::Der);
    }
    Ok(done)
}

/// Lines ended by LF, CR LF or CR, so that line numbers are those an editor shows.
fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(|byte| *byte == b'\n').flat_map(|line| {
        line.strip_suffix(b"\r")
            .unwrap_or(line)
            .split(|byte| *byte == b'\r')
    })
}

fn marker(line: &[u8], start: &[u8]) -> Option<String> {
    let label = line.strip_prefix(start)?.strip_suffix(b"-----")?;
    // Labels are printable ASCII (RFC 7468 §3), so that an error may print one.
    let printable = label
        .iter()
        .all(|byte| byte.is_ascii_graphic() || *byte == b' ');
    (printable && label.len() <= 64).then(|| String::from_utf8_lossy(label).into_owned())
}

fn unterminated(block: Block) -> PemError {
    PemError::Unterminated {
        label: block.label,
        line: block.line,
    }
}

fn labels(blocks: &[Block]) -> Vec<String> {
    let mut labels: Vec<_> = blocks.iter().map(|block| block.label.clone()).collect();
    labels.dedup();
    labels.truncate(4);
    labels
}

fn found(labels: &[String]) -> String {
    if labels.is_empty() {
        String::new()
    } else {
        format!(" (found: {})", labels.join(", "))
    }
}

/// `der` as a PEM block (RFC 7468 §5), with a final newline.
pub fn certificate_pem(der: &CertificateDer<'_>) -> String {
    // Base64 of a certificate that is in memory cannot fail.
    pkcs8::der::pem::encode_string("CERTIFICATE", pkcs8::LineEnding::LF, der).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Pieces that PEM files are made of, put together in any way.
    fn pieces() -> impl Strategy<Value = Vec<u8>> {
        let piece = prop_oneof![
            Just(b"-----BEGIN CERTIFICATE-----\n".to_vec()),
            Just(b"-----END CERTIFICATE-----\r\n".to_vec()),
            Just(b"-----BEGIN PRIVATE KEY-----".to_vec()),
            Just(b"-----END PRIVATE KEY-----\n".to_vec()),
            Just(b"-----BEGIN ENCRYPTED PRIVATE KEY-----\n".to_vec()),
            Just(b"-----END ENCRYPTED PRIVATE KEY-----\n".to_vec()),
            Just(b"-----BEGIN ".to_vec()),
            Just(b"Proc-Type: 4,ENCRYPTED\n\n".to_vec()),
            Just(b"MIIBCgKCAQEA\n".to_vec()),
            Just(b"\n".to_vec()),
            proptest::collection::vec(any::<u8>(), 0..40),
        ];
        proptest::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat())
    }

    fn read_all(bytes: &[u8]) {
        let _ = certificates(bytes);
        let _ = private_key(bytes, None);
        let _ = private_key(bytes, Some(b"passphrase"));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            read_all(&bytes);
        }

        #[test]
        fn any_pieces_of_pem_are_read_without_a_panic(bytes in pieces()) {
            read_all(&bytes);
        }
    }

    // FI-3: a file cut anywhere is never taken for a whole one, and counts as one being written.
    #[test]
    fn fi_3_a_cut_file_is_seen_as_half_written() {
        let key = rcgen::KeyPair::generate().unwrap().serialize_pem();
        assert!(private_key(key.as_bytes(), None).is_ok());
        let whole = key.trim_end().len();
        for end in 0..whole {
            let error = private_key(&key.as_bytes()[..end], None).err();
            assert!(
                error.is_some_and(|error| error.may_be_half_written()),
                "{end}"
            );
        }
    }

    #[test]
    fn lines_are_counted_as_editors_count_them() {
        for text in [
            "# a\n# b\n-----BEGIN X-----\n",
            "# a\r\n# b\r\n-----BEGIN X-----\r\n",
        ] {
            let error = certificates(text.as_bytes()).unwrap_err();
            let label = "X".to_owned();
            assert_eq!(error, PemError::Unterminated { label, line: 3 });
        }
    }
}
