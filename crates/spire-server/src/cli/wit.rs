//! `wit mint`

use std::path::Path;
use std::time::Duration;

use ah_spire_plugin::goflag::FlagSet;
use ah_spire_wire::Jwk;
use ah_spire_wire::server::svid::MintWitsvidRequest;
use ah_spire_wire::spiffe_id_to_wire;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Serialize;
use serde_json::json;
use x509_parser::asn1_rs::{Any, FromDer};
use zeroize::Zeroizing;

use super::{Call, Failure, json as told, x509};
use crate::ids;
use crate::keys::{KeyType, LocalKey, SigningKey as _};

/// Upstream lists the command for those alone who name the feature in this variable, one of several between spaces.
pub(super) fn is_listed() -> bool {
    std::env::var("SPIRE_SERVER_FFLAGS")
        .is_ok_and(|flags| flags.split(' ').any(|flag| flag == "wit-svid"))
}

pub(super) fn flags(flags: FlagSet) -> FlagSet {
    flags
        .string("spiffeID", "", "SPIFFE ID of the WIT-SVID")
        .string("keyType", "ec-p256", "Key type of the WIT-SVID")
        .string(
            "signingAlgorithm",
            "ES256",
            "Signing algorithm for the workload signing key",
        )
        .duration("ttl", Duration::ZERO, "TTL of the WIT-SVID")
        .string(
            "write",
            "",
            "Directory to write output to instead of stdout",
        )
}

pub(super) async fn mint(call: &mut Call<'_>) -> Result<(), Failure> {
    let flags = call.flags;
    let id = flags
        .nonempty("spiffeID")
        .ok_or("spiffeID must be specified")?;
    let id = ids::parse(id)?;
    let ttl = flags.duration("ttl");
    let seconds = x509::seconds(ttl)?;
    let algorithm = flags.string("signingAlgorithm");
    let kind = key_type(flags.string("keyType"), algorithm)?;
    let unmade = "could not generate public/private key pair";
    let key = LocalKey::generate("workload", kind);
    let key = key.map_err(|error| Failure::because(unmade, error))?;
    let jwk = private_jwk(&key).map_err(|error| Failure::because(unmade, error))?;
    let request = MintWitsvidRequest {
        id: Some(spiffe_id_to_wire(&id)),
        public_key: key.spki().to_vec(),
        ttl: seconds,
        signing_algorithm: algorithm.to_owned(),
    };
    let what = "unable to mint SVID";
    let mut client = call
        .server
        .svids()
        .await
        .map_err(|failure| failure.during(what))?;
    let answer = client.mint_witsvid(request).await;
    let answer = answer
        .map_err(|error| Failure::from(error).during(what))?
        .into_inner();
    let svid = answer.svid.filter(|svid| !svid.token.is_empty());
    let svid = svid.ok_or("server response missing token")?;
    x509::tell_capped(call, "WIT-SVID", svid.expires_at, ttl);
    let Some(directory) = flags.nonempty("write") else {
        if call.out.is_json() {
            let svid = told::wit_svid(&svid);
            call.out.json(&json!({ "private_key": *jwk, "svid": svid }));
        } else {
            call.out.line(&svid.token);
            call.out.line(&jwk);
        }
        return Ok(());
    };
    let files = [
        ("token", svid.token.as_bytes(), "WIT-SVID"),
        ("key", jwk.as_bytes(), "Private key"),
    ];
    for (name, content, title) in files {
        let path = Path::new(directory).join(name).display().to_string();
        x509::write(&path, content, 0o600)
            .map_err(|error| Failure::because(&format!("unable to write {name}"), error))?;
        call.out.line(&format!("{title} written to {path}"));
    }
    Ok(())
}

/// The type of a key that can sign with this algorithm (RFC 7518 §3.1).
fn key_type(name: &str, algorithm: &str) -> Result<KeyType, Failure> {
    match (algorithm, name) {
        ("RS256" | "RS384" | "RS512" | "PS256" | "PS384" | "PS512", name) => match name {
            "rsa-2048" => Ok(KeyType::Rsa2048),
            "rsa-4096" => Ok(KeyType::Rsa4096),
            _ => Err(Failure(format!(
                "unsupported key type '{name}' for signing algorithm '{algorithm}'"
            ))),
        },
        ("ES256", "ec-p256") => Ok(KeyType::EcP256),
        ("ES384", "ec-p384") => Ok(KeyType::EcP384),
        ("ES256" | "ES384", _) => Err(Failure(format!(
            "unsupported key type '{name}' for '{algorithm}' signing algorithm"
        ))),
        _ => Err(Failure(format!(
            "unsupported signing algorithm: {algorithm}"
        ))),
    }
}

/// A private key as a JWK (RFC 7518 §6.2.2, §6.3.2), members in upstream's order.
fn private_jwk(key: &LocalKey) -> Result<Zeroizing<String>, String> {
    #[derive(Serialize)]
    struct Private<'a> {
        #[serde(flatten)]
        public: Jwk,
        d: &'a str,
        #[serde(skip_serializing_if = "str::is_empty")]
        p: &'a str,
        #[serde(skip_serializing_if = "str::is_empty")]
        q: &'a str,
        #[serde(skip_serializing_if = "str::is_empty")]
        dp: &'a str,
        #[serde(skip_serializing_if = "str::is_empty")]
        dq: &'a str,
        #[serde(skip_serializing_if = "str::is_empty")]
        qi: &'a str,
    }

    let pkcs8 = key.to_pkcs8().map_err(|error| error.to_string())?;
    let numbers = secrets(key.key_type(), &pkcs8).ok_or("its encoding cannot be read")?;
    let numbers: Vec<Zeroizing<String>> = numbers
        .into_iter()
        .map(|number| Zeroizing::new(URL_SAFE_NO_PAD.encode(number)))
        .collect();
    let part = |at: usize| numbers.get(at).map_or("", |number| number.as_str());
    let private = Private {
        public: Jwk::new(key.spki(), None).map_err(|error| error.to_string())?,
        d: part(0),
        p: part(1),
        q: part(2),
        dp: part(3),
        dq: part(4),
        qi: part(5),
    };
    serde_json::to_string(&private)
        .map(Zeroizing::new)
        .map_err(|error| error.to_string())
}

/// The secret numbers of a PKCS #8 document (RFC 5208 §5) in the order of a JWK: one of an elliptic curve (RFC 5915 §3),
/// six of RSA (RFC 8017 §A.1.2).
fn secrets(kind: KeyType, pkcs8: &[u8]) -> Option<Vec<&[u8]>> {
    let document = *values(pkcs8)?.first()?;
    let key = *values(document)?.get(2)?;
    let numbers = values(values(key)?.first()?)?;
    match kind {
        KeyType::EcP256 | KeyType::EcP384 => numbers.get(1..2).map(<[_]>::to_vec),
        KeyType::Rsa2048 | KeyType::Rsa4096 => numbers.get(3..9).map(|numbers| {
            // DER has a zero before a first bit that is set; JWK has not.
            let unsigned = numbers.iter().map(|n| n.strip_prefix(&[0]).unwrap_or(n));
            unsigned.collect()
        }),
    }
}

/// The contents of DER values that stand one after the other.
fn values(mut der: &[u8]) -> Option<Vec<&[u8]>> {
    let mut contents = Vec::new();
    while !der.is_empty() {
        let (rest, value) = Any::from_der(der).ok()?;
        contents.push(value.data);
        der = rest;
    }
    Some(contents)
}

#[cfg(test)]
mod tests {
    use super::*;

    // Upstream's combinations, and its texts for all others.
    #[test]
    fn a_key_type_has_to_fit_the_algorithm() {
        assert_eq!(key_type("ec-p256", "ES256"), Ok(KeyType::EcP256));
        assert_eq!(key_type("ec-p384", "ES384"), Ok(KeyType::EcP384));
        assert_eq!(key_type("rsa-2048", "PS512"), Ok(KeyType::Rsa2048));
        assert_eq!(key_type("rsa-4096", "RS256"), Ok(KeyType::Rsa4096));
        for (name, algorithm, text) in [
            (
                "ec-p256",
                "RS256",
                "unsupported key type 'ec-p256' for signing algorithm 'RS256'",
            ),
            (
                "rsa-2048",
                "ES256",
                "unsupported key type 'rsa-2048' for 'ES256' signing algorithm",
            ),
            ("ec-p256", "ES512", "unsupported signing algorithm: ES512"),
        ] {
            assert_eq!(key_type(name, algorithm), Err(text.into()));
        }
    }

    #[test]
    fn a_private_key_is_told_with_all_its_numbers() {
        for (kind, names) in [
            (KeyType::EcP256, &["kty", "crv", "x", "y", "d"][..]),
            (KeyType::EcP384, &["kty", "crv", "x", "y", "d"]),
            (
                KeyType::Rsa2048,
                &["kty", "n", "e", "d", "p", "q", "dp", "dq", "qi"],
            ),
        ] {
            let key = LocalKey::generate("k", kind).unwrap();
            let text = private_jwk(&key).unwrap();
            let jwk: serde_json::Map<String, serde_json::Value> =
                serde_json::from_str(&text).unwrap();
            assert_eq!(jwk.len(), names.len(), "{kind:?}");
            let at: Vec<_> = names
                .iter()
                .map(|name| text.find(&format!("\"{name}\":")).unwrap())
                .collect();
            assert!(at.is_sorted(), "{kind:?}: {at:?}");
            let bytes = |name: &str| URL_SAFE_NO_PAD.decode(jwk[name].as_str().unwrap()).unwrap();
            match kind {
                KeyType::EcP256 => assert_eq!(bytes("d").len(), 32),
                KeyType::EcP384 => assert_eq!(bytes("d").len(), 48),
                _ => {
                    let sizes = ["n", "p", "q"].map(|name| bytes(name).len());
                    assert_eq!(sizes, [256, 128, 128]);
                }
            }
        }
    }
}
