//! New authorities.

use std::sync::Arc;
use std::time::SystemTime;

use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::SignError;
use super::authority::{Certificate, TokenAuthority, X509Authority, from_unix, to_unix};
use super::certificate::{self, Issuer, Template};
use super::compose::X509Attributes;
use super::sign::{Profile, backdated, new_serial, random};
use super::upstream::{MintedCa, UpstreamError, check_chain};
use crate::keys::SigningKey;

/// A CA that signs itself.
pub(super) fn self_signed(
    profile: &Profile,
    key: Arc<dyn SigningKey>,
    now: SystemTime,
) -> Result<X509Authority, SignError> {
    let serial = new_serial()?;
    let template = Template {
        serial,
        not_before: backdated(now),
        not_after: end_of_life(profile, now),
        spki: key.spki(),
        uri: &profile.trust_domain.id_string(),
        attributes: &profile
            .composers
            .x509_ca(X509Attributes::of(profile.new_ca_subject(serial)))?,
        is_ca: true,
    };
    let der = template
        .sign(&Issuer {
            name: None,
            key_id: None,
            key: key.as_ref(),
        })
        .map_err(|error| SignError::Failed(error.to_string()))?;
    let certificate = Certificate::read(der).map_err(SignError::Failed)?;
    Ok(X509Authority {
        key,
        certificate,
        upstream_chain: Vec::new(),
    })
}

/// A key for tokens under a random name.
pub(super) fn token(
    profile: &Profile,
    key: Arc<dyn SigningKey>,
    now: SystemTime,
) -> Result<TokenAuthority, SignError> {
    const ALPHABET: &[u8; 62] = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789";
    let random: [u8; 32] = random()?;
    let id = random
        .iter()
        .filter_map(|byte| ALPHABET.get(usize::from(*byte).checked_rem(ALPHABET.len())?))
        .map(|letter| char::from(*letter))
        .collect();
    Ok(TokenAuthority {
        key,
        id,
        not_after: from_unix(to_unix(end_of_life(profile, now))),
    })
}

/// A PKCS #10 request for a CA that an upstream authority is to sign.
pub(super) fn request(profile: &Profile, key: &dyn SigningKey) -> Result<Vec<u8>, SignError> {
    let subject = profile.new_ca_subject(new_serial()?);
    let attributes = profile.composers.x509_ca(X509Attributes::of(subject))?;
    certificate::request(&attributes, &profile.trust_domain.id_string(), key)
        .map_err(|error| SignError::Failed(error.to_string()))
}

/// A CA that an upstream authority signed, if it is one that can sign X509-SVIDs.
pub(super) fn minted(
    profile: &Profile,
    key: Arc<dyn SigningKey>,
    minted: &MintedCa,
    now: SystemTime,
) -> Result<X509Authority, UpstreamError> {
    let invalid = |why: &str| {
        UpstreamError(format!(
            "X509 CA minted by upstream authority is invalid: {why}"
        ))
    };
    let Some(first) = minted.chain.first() else {
        return Err(invalid("there is none"));
    };
    let id = profile.trust_domain.id_string();
    check_profile(first, &id).map_err(|why| invalid(&why))?;
    let certificate = Certificate::read(first.clone()).map_err(|why| invalid(&why))?;
    if certificate.spki != key.spki() {
        return Err(invalid("it is of another key"));
    }
    check_chain(
        &certificate,
        key.as_ref(),
        &minted.chain,
        &minted.roots,
        &id,
        now,
    )
    .map_err(|why| invalid(&format!("it produced an invalid X509-SVID chain: {why}")))?;
    Ok(X509Authority {
        key,
        certificate,
        upstream_chain: minted.chain.clone(),
    })
}

fn check_profile(der: &[u8], id: &str) -> Result<(), String> {
    let (_, ca) = X509Certificate::from_der(der).map_err(|error| error.to_string())?;
    if !ca.is_ca() {
        return Err("cA constraint is not set".into());
    }
    let usage = ca.key_usage().ok().flatten().map(|usage| usage.value);
    if !usage.is_some_and(|usage| usage.key_cert_sign()) {
        return Err("keyCertSign key usage must be set".into());
    }
    if usage.is_some_and(|usage| {
        usage.non_repudiation()
            || usage.key_encipherment()
            || usage.data_encipherment()
            || usage.key_agreement()
            || usage.encipher_only()
            || usage.decipher_only()
    }) {
        return Err("only keyCertSign, cRLSign, or digitalSignature key usage can be set".into());
    }
    // A CA should be an SVID of its own, but does not have to (X509-SVID §3.2).
    let names = ca.subject_alternative_name().ok().flatten();
    let uris = names.iter().flat_map(|names| &names.value.general_names);
    for name in uris {
        if let GeneralName::URI(uri) = name
            && *uri != id
        {
            return Err(format!("expected URI SAN \"{id}\" but got \"{uri}\""));
        }
    }
    Ok(())
}

fn end_of_life(profile: &Profile, now: SystemTime) -> SystemTime {
    now.checked_add(profile.ca_ttl).unwrap_or(now)
}
