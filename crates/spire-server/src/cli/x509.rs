//! `x509 mint`

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use ah_spire_plugin::goflag::FlagSet;
use ah_spire_wire::bundle::pem;
use ah_spire_wire::server::bundle::GetBundleRequest;
use ah_spire_wire::server::svid::MintX509svidRequest;
use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256, SanType};
use zeroize::Zeroizing;

use super::json::base64;
use super::{Call, Failure};
use crate::{ids, moment};

pub(super) fn flags(flags: FlagSet) -> FlagSet {
    flags
        .string("spiffeID", "", "SPIFFE ID of the X509-SVID")
        .duration("ttl", Duration::ZERO, "TTL of the X509-SVID")
        .list(
            "dns",
            "DNS name that will be included in SVID. Can be used more than once.",
        )
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
    let seconds = seconds(ttl)?;
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)
        .map_err(|error| Failure::because("unable to generate key", error))?;
    let csr = csr(&key, id.to_string(), flags.list("dns"))
        .map_err(|error| Failure::because("unable to generate CSR", error))?;
    let request = MintX509svidRequest { csr, ttl: seconds };
    let what = "unable to mint SVID";
    let mut client = call
        .server
        .svids()
        .await
        .map_err(|failure| failure.during(what))?;
    let answer = client.mint_x509svid(request).await;
    let answer = answer
        .map_err(|error| Failure::from(error).during(what))?
        .into_inner();
    let svid = answer.svid.filter(|svid| !svid.cert_chain.is_empty());
    let svid = svid.ok_or("server response missing SVID chain")?;
    let request = GetBundleRequest { output_mask: None };
    let bundle = call.server.bundles().await?.get_bundle(request).await;
    let bundle = bundle.map_err(|error| Failure::from(error).during("unable to get bundle"))?;
    let roots = bundle.into_inner().x509_authorities;
    if roots.is_empty() {
        return Err("server response missing X509 Authorities".into());
    }
    tell_capped(call, "X509-SVID", svid.expires_at, ttl);
    let key_der = Zeroizing::new(key.serialize_der());
    if call.out.is_json() && flags.nonempty("write").is_none() {
        let list = |ders: &mut dyn Iterator<Item = &[u8]>| {
            let texts: Vec<String> = ders.map(|der| format!("\"{}\"", base64(der))).collect();
            texts.join(",")
        };
        call.out.line(&format!(
            "[{{\"x509_svid\":[{}],\"private_key\":\"{}\",\"root_cas\":[{}]}}]",
            list(&mut svid.cert_chain.iter().map(AsRef::as_ref)),
            base64(&key_der),
            list(&mut roots.iter().map(|ca| ca.asn1.as_ref())),
        ));
        return Ok(());
    }
    let svid_pem: String = svid.cert_chain.iter().map(|der| pem(der)).collect();
    let key_pem = Zeroizing::new(pem(&key_der).replace("CERTIFICATE", "PRIVATE KEY"));
    let roots_pem: String = roots.iter().map(|ca| pem(&ca.asn1)).collect();
    let Some(directory) = flags.nonempty("write") else {
        call.out.line(&format!("X509-SVID:\n{svid_pem}"));
        call.out.line(&format!("Private key:\n{}", *key_pem));
        call.out.line(&format!("Root CAs:\n{roots_pem}"));
        return Ok(());
    };
    let files = [
        ("svid.pem", svid_pem.as_bytes(), 0o644, "SVID", "X509-SVID"),
        ("key.pem", key_pem.as_bytes(), 0o600, "key", "Private key"),
        (
            "bundle.pem",
            roots_pem.as_bytes(),
            0o644,
            "bundle",
            "Root CAs",
        ),
    ];
    for (name, content, mode, what, title) in files {
        let path = Path::new(directory).join(name).display().to_string();
        write(&path, content, mode)
            .map_err(|error| Failure::because(&format!("unable to write {what}"), error))?;
        call.out.line(&format!("{title} written to {path}"));
    }
    Ok(())
}

fn csr(key: &KeyPair, id: String, dns_names: &[String]) -> Result<Vec<u8>, rcgen::Error> {
    let mut params = CertificateParams::new(dns_names.to_vec())?;
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names.push(SanType::URI(id.try_into()?));
    Ok(params.serialize_request(key)?.der().to_vec())
}

/// Whole seconds, rounded up.
pub(super) fn seconds(ttl: Duration) -> Result<i32, Failure> {
    let rounded = ttl.as_secs() + u64::from(ttl.subsec_nanos() > 0);
    i32::try_from(rounded).map_err(|error| Failure::because("invalid value for TTL", error))
}

/// Says so when what ends then lives shorter than was asked for.
pub(super) fn tell_capped(call: &mut Call<'_>, kind: &str, expires_at: i64, ttl: Duration) {
    let ttl = i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX);
    if ttl > 0 && expires_at.saturating_sub(moment::now()) < ttl.saturating_sub(1) {
        call.out.error_line(&format!(
            "{kind} lifetime was capped shorter than specified ttl; expires \"{}\"",
            moment::rfc3339(expires_at)
        ));
    }
}

/// Writes a file of this mode in one step: who reads it sees all of it or none.
pub(super) fn write(path: &str, content: &[u8], mode: u32) -> std::io::Result<()> {
    let draft = format!("{path}.{:08x}", rand::random::<u32>());
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&draft)?;
    let written = file
        .write_all(content)
        .and_then(|()| file.sync_all())
        .and_then(|()| std::fs::rename(&draft, path));
    if written.is_err() {
        let _ = std::fs::remove_file(&draft);
    }
    written
}
