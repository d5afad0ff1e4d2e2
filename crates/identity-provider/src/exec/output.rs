//! From what a command printed to an identity (EX-2).

use serde::Deserialize;
use serde_json::value::RawValue;
use zeroize::Zeroizing;

use super::fault::{OutputFault, Part};
use crate::chain::arrange;
use crate::pem::{self, MAX_PEM_BYTES};
use crate::{CertificateFacts, Identity, TrustBundles};

/// The most that is read of stdout, in bytes (EX-2).
pub(super) const MAX_OUTPUT: usize = MAX_PEM_BYTES;

/// The version of the JSON object that is known.
const VERSION: u64 = 1;

/// An identity, and what an operator should know about the output it came from.
pub(super) struct Taken {
    pub(super) identity: Identity,
    pub(super) notes: Vec<String>,
}

/// One JSON object instead of PEM blocks. The texts are taken apart here, since what the JSON reader copies
/// while it does so is not wiped.
#[derive(Deserialize)]
struct Object<'a> {
    version: u64,
    #[serde(borrow)]
    certificate_chain: &'a RawValue,
    #[serde(borrow)]
    private_key: &'a RawValue,
    #[serde(borrow, default)]
    ca_bundle: Option<&'a RawValue>,
}

/// The identity in `stdout`. Without `roots_elsewhere` it has to say whom to trust.
pub(super) fn identity(stdout: &[u8], roots_elsewhere: bool) -> Result<Taken, OutputFault> {
    match stdout.trim_ascii_start().first() {
        None => Err(OutputFault::Nothing),
        Some(b'{') => from_json(stdout, roots_elsewhere),
        Some(_) => from_pem(stdout, roots_elsewhere),
    }
}

/// PEM blocks: the certificate of the key and those that vouch for it are the chain, other authorities the bundle.
fn from_pem(stdout: &[u8], roots_elsewhere: bool) -> Result<Taken, OutputFault> {
    let fault = |error| OutputFault::pem(Part::Output, error);
    let key = pem::private_key(stdout, None).map_err(fault)?;
    let certificates = pem::certificates(stdout).map_err(fault)?;
    let chain = arrange(&certificates, &key)?.chain;
    let mut roots = Vec::new();
    let mut notes = Vec::new();
    for der in certificates {
        if chain.contains(&der) || roots.contains(&der) {
            continue;
        }
        let facts = CertificateFacts::from_der(&der).map_err(OutputFault::Certificate)?;
        if facts.is_ca {
            roots.push(der);
        } else {
            notes.push(format!(
                "the identity command printed a certificate that is neither in the chain nor an authority: {} (serial {})",
                facts.subject, facts.serial
            ));
        }
    }
    if roots.is_empty() && !roots_elsewhere {
        // With no root in the output, the highest authority in the chain is what both sides have in common.
        let highest = chain.last().filter(|_| chain.len() > 1);
        roots.push(highest.ok_or(OutputFault::NobodyTrusted)?.clone());
    }
    let bundles = TrustBundles {
        unscoped: roots,
        ..TrustBundles::default()
    };
    let identity = Identity::new(chain, key, bundles).map_err(OutputFault::Certificate)?;
    Ok(Taken { identity, notes })
}

fn from_json(stdout: &[u8], roots_elsewhere: bool) -> Result<Taken, OutputFault> {
    let object: Object<'_> = serde_json::from_slice(stdout).map_err(|error| {
        // The reader's own words may quote the output.
        let (line, column) = (error.line(), error.column());
        match error.classify() {
            serde_json::error::Category::Data => OutputFault::WrongFields { line, column },
            _ => OutputFault::NotJson { line, column },
        }
    })?;
    if object.version != VERSION {
        return Err(OutputFault::Version(object.version));
    }
    let chain = text(object.certificate_chain, Part::Chain)?;
    let key = text(object.private_key, Part::Key)?;
    let key = pem::private_key(&key, None).map_err(|e| OutputFault::pem(Part::Key, e))?;
    let chain = pem::certificates(&chain).map_err(|e| OutputFault::pem(Part::Chain, e))?;
    let arranged = arrange(&chain, &key)?;
    let bundle = match object.ca_bundle {
        Some(raw) => text(raw, Part::Bundle)?,
        None => Zeroizing::default(),
    };
    let roots = match bundle.trim_ascii() {
        [] if roots_elsewhere => Vec::new(),
        [] => return Err(OutputFault::NobodyTrusted),
        some => pem::certificates(some).map_err(|e| OutputFault::pem(Part::Bundle, e))?,
    };
    let bundles = TrustBundles {
        unscoped: roots,
        ..TrustBundles::default()
    };
    let identity = Identity::new(arranged.chain, key, bundles).map_err(OutputFault::Certificate)?;
    let notes = arranged.notes.into_iter();
    Ok(Taken {
        identity,
        notes: notes
            .map(|note| format!("certificate_chain of the identity command: {note}"))
            .collect(),
    })
}

/// The text of a JSON string (RFC 8259 §7), in memory that is wiped.
fn text(raw: &RawValue, part: Part) -> Result<Zeroizing<Vec<u8>>, OutputFault> {
    let not_a_string = OutputFault::NotAString(part);
    let raw = raw.get().as_bytes();
    let inner = raw
        .strip_prefix(b"\"")
        .and_then(|raw| raw.strip_suffix(b"\""));
    let mut rest = inner.ok_or(not_a_string.clone())?.iter().copied();
    let mut text = Zeroizing::new(Vec::with_capacity(raw.len()));
    while let Some(byte) = rest.next() {
        if byte != b'\\' {
            text.push(byte);
            continue;
        }
        text.push(match rest.next() {
            Some(b'n') => b'\n',
            Some(b'r') => b'\r',
            Some(b't') => b'\t',
            Some(same @ (b'/' | b'"' | b'\\')) => same,
            Some(b'u') => {
                // PEM is ASCII (RFC 7468 §3): anything further is a comment there, and any mark stands for it.
                let mut code = 0;
                for _ in 0..4 {
                    let digit = rest.next().and_then(|digit| char::from(digit).to_digit(16));
                    code = code * 16 + digit.ok_or(not_a_string.clone())?;
                }
                u8::try_from(code).ok().filter(u8::is_ascii).unwrap_or(b'?')
            }
            _ => b'?',
        });
    }
    Ok(text)
}
