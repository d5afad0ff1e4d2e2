//! `file { }`: a SPIFFE bundle document.

use std::path::Path;

use ah_spire_wire::bundle::from_document;
use spiffe::TrustDomain;

use super::Key;

/// The document of a file does not say whose it is.
const NOBODY: &str = "unnamed.invalid";

pub(super) async fn read(path: &Path) -> Result<Vec<Key>, String> {
    let failed = |why: &dyn std::fmt::Display| format!("file: {}: {why}", path.display());
    let document = tokio::fs::read(path)
        .await
        .map_err(|error| failed(&error))?;
    let nobody = TrustDomain::new(NOBODY).map_err(|error| failed(&error))?;
    let bundle = from_document(&nobody, &document).map_err(|error| failed(&error))?;
    let keys = bundle.jwt.into_iter();
    Ok(keys.filter_map(|key| Key::new(key.id, key.spki)).collect())
}
