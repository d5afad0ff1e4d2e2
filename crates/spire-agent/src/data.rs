//! The agent's data directory: `agent-data.json`, in upstream's format.

use std::io;
use std::path::{Path, PathBuf};

use ah_identity_provider::{Code, Explained};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls_pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::files;

/// What an agent remembers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AgentData {
    /// Its own SVID, DER, leaf first. Empty when it has none.
    pub svid: Vec<CertificateDer<'static>>,
    /// Roots of its trust domain, DER. Empty when it has none.
    pub bundle: Vec<CertificateDer<'static>>,
    /// Whether the node may attest again under the same ID.
    pub reattestable: bool,
    /// Whether the trust bundle was got before, and since when the agent tries to get it.
    pub bootstrap: BootstrapState,
    /// SHA-256 of the public key that an attestation was begun with whose answer has not come, hexadecimal: it may be
    /// under way still, or lost. Upstream's agent passes over it.
    pub pending_key: Option<String>,
}

/// How far a bootstrap is; upstream tells it to who serves the trust bundle.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BootstrapState {
    /// 0: never said, 1: the first bootstrap, 2: a later one.
    pub use_: i64,
    /// When it began; `None` when none is under way.
    pub since: Option<OffsetDateTime>,
    /// Attempts since then.
    pub attempts: i64,
}

/// The directory, and what it held when it was opened or last written, but for what [`DataDirectory::take`] could not
/// write.
#[derive(Debug)]
pub struct DataDirectory {
    directory: PathBuf,
    data: AgentData,
    saved: bool,
}

impl DataDirectory {
    /// Opens `directory`, which is made when it is not there.
    ///
    /// A file that cannot be understood is set aside: the agent starts as on its first day. One that cannot be read
    /// is an error.
    pub fn open(directory: &Path) -> Result<Self, Explained> {
        files::create_directory(directory).map_err(|error| unusable(directory, &error))?;
        let path = directory.join(FILE);
        let data = match files::read(&path).map_err(|error| unusable(&path, &error))? {
            None => AgentData::default(),
            Some(bytes) => match parse(&bytes) {
                Ok(data) => data,
                Err(why) => {
                    let aside = files::set_aside(&path).map_err(|error| unusable(&path, &error))?;
                    tracing::error!(
                        path = %path.display(),
                        kept_as = %aside.display(),
                        error = why,
                        "the agent's data cannot be understood; the node has to attest again"
                    );
                    AgentData::default()
                }
            },
        };
        Ok(Self {
            directory: directory.to_owned(),
            data,
            saved: true,
        })
    }

    /// What is remembered.
    pub fn data(&self) -> &AgentData {
        &self.data
    }

    /// A file of this directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Remembers what `change` makes of it. When this fails, nothing changed.
    pub fn update(&mut self, change: impl FnOnce(&mut AgentData)) -> Result<(), Explained> {
        let mut next = self.data.clone();
        change(&mut next);
        if next != self.data || !self.saved {
            self.write(&next)?;
            self.data = next;
            self.saved = true;
        }
        Ok(())
    }

    /// As [`Self::update`], for what holds whether or not the disk has room: what `change` makes is remembered even
    /// when this fails, and written by the next call of either that succeeds.
    pub fn take(&mut self, change: impl FnOnce(&mut AgentData)) -> Result<(), Explained> {
        let before = self.data.clone();
        change(&mut self.data);
        self.saved &= self.data == before;
        self.update(|_| {})
    }

    fn write(&self, data: &AgentData) -> Result<(), Explained> {
        let path = self.path(FILE);
        files::put(&path, &encode(data)?).map_err(|error| unusable(&path, &error))
    }
}

/// [`BootstrapState::use_`] of the first bootstrap.
pub(crate) const BOOTSTRAP: i64 = 1;

/// [`BootstrapState::use_`] of a later one.
pub(crate) const REBOOTSTRAP: i64 = 2;

const FILE: &str = "agent-data.json";

/// What Go writes for a time that was never set.
const NO_TIME: &str = "0001-01-01T00:00:00Z";

/// The certificates are PEM in base64: Go's encoding of bytes.
#[derive(Serialize, Deserialize)]
struct DataFile {
    #[serde(default)]
    svid: Option<Vec<String>>,
    #[serde(default)]
    bundle: Option<Vec<String>>,
    #[serde(default)]
    reattestable: bool,
    #[serde(default)]
    bootstrap_use: i64,
    #[serde(default)]
    bootstrap_start_time: Option<String>,
    #[serde(default)]
    connection_attempts: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pending_key: Option<String>,
}

fn parse(json: &[u8]) -> Result<AgentData, String> {
    let file: DataFile = serde_json::from_slice(json).map_err(|error| error.to_string())?;
    let since = match file.bootstrap_start_time.as_deref() {
        None | Some(NO_TIME) => None,
        Some(text) => Some(
            OffsetDateTime::parse(text, &Rfc3339)
                .map_err(|error| format!("bootstrap_start_time: {error}"))?,
        ),
    };
    Ok(AgentData {
        svid: certificates("svid", file.svid)?,
        bundle: certificates("bundle", file.bundle)?,
        reattestable: file.reattestable,
        bootstrap: BootstrapState {
            use_: file.bootstrap_use,
            since,
            attempts: file.connection_attempts,
        },
        pending_key: file.pending_key,
    })
}

fn certificates(
    field: &str,
    texts: Option<Vec<String>>,
) -> Result<Vec<CertificateDer<'static>>, String> {
    let mut all = Vec::new();
    for text in texts.unwrap_or_default() {
        let pem = STANDARD
            .decode(text)
            .map_err(|error| format!("{field}: {error}"))?;
        let found = ah_identity_provider::pem::certificates(&pem)
            .map_err(|error| format!("{field}: {error}"))?;
        all.extend(found);
    }
    Ok(all)
}

fn encode(data: &AgentData) -> Result<Vec<u8>, Explained> {
    let texts = |certificates: &[CertificateDer<'static>]| {
        let pem = |der| STANDARD.encode(ah_identity_provider::pem::certificate_pem(der));
        (!certificates.is_empty()).then(|| certificates.iter().map(pem).collect())
    };
    let failed = |error: &dyn std::fmt::Display| {
        Explained::new(Code::Other, "cannot encode the agent's data").cause(error)
    };
    let since = match data.bootstrap.since {
        None => NO_TIME.to_owned(),
        Some(since) => since.format(&Rfc3339).map_err(|error| failed(&error))?,
    };
    let file = DataFile {
        svid: texts(&data.svid),
        bundle: texts(&data.bundle),
        reattestable: data.reattestable,
        bootstrap_use: data.bootstrap.use_,
        bootstrap_start_time: Some(since),
        connection_attempts: data.bootstrap.attempts,
        pending_key: data.pending_key.clone(),
    };
    serde_json::to_vec(&file).map_err(|error| failed(&error))
}

fn unusable(path: &Path, error: &io::Error) -> Explained {
    Explained::new(
        Code::Other,
        format!("cannot use the data directory: {}", path.display()),
    )
    .cause(error)
    .hint("let `data_dir` name a directory that the agent's user owns, on a disk with room")
}

#[cfg(test)]
mod tests {
    use ah_testkit::ca::TestCa;

    use super::*;

    #[test]
    fn what_was_written_is_read_again() {
        let directory = tempfile::tempdir().unwrap();
        let ca = TestCa::new("example.org");
        let mut data = DataDirectory::open(directory.path()).unwrap();
        data.update(|data| {
            data.bundle = vec![ca.root_der().clone()];
            data.reattestable = true;
            data.bootstrap = BootstrapState {
                use_: 2,
                since: Some(OffsetDateTime::UNIX_EPOCH),
                attempts: 3,
            };
            data.pending_key = Some("ab".into());
        })
        .unwrap();
        let again = DataDirectory::open(directory.path()).unwrap();
        assert_eq!(again.data(), data.data());
    }

    // What upstream's agent 1.14 leaves behind, certificates cut out.
    #[test]
    fn upstreams_empty_fields_are_understood() {
        let data = parse(
            br#"{"svid":null,"bundle":null,"reattestable":false,"bootstrap_use":2,"bootstrap_start_time":"0001-01-01T00:00:00Z","connection_attempts":0}"#,
        )
        .unwrap();
        assert_eq!(data.bootstrap.since, None);
        assert_eq!(data.bootstrap.use_, 2);
        assert!(
            String::from_utf8(encode(&data).unwrap())
                .unwrap()
                .contains(NO_TIME)
        );
        let written = String::from_utf8(encode(&data).unwrap()).unwrap();
        assert!(!written.contains("pending_key"), "{written}");
    }

    #[test]
    fn a_broken_file_is_set_aside() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join(FILE), "{\"svid\":[\"").unwrap();
        let data = DataDirectory::open(directory.path()).unwrap();
        assert_eq!(data.data(), &AgentData::default());
        assert!(directory.path().join("agent-data.json.corrupt").exists());
    }
}
