//! Tokens in files, by SoftHSM: a PKCS #11 module for tests.

use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

/// Where Debian has the module.
const MODULE: &str = "/usr/lib/softhsm/libsofthsm2.so";

/// A folder of tokens.
pub struct SoftHsm {
    folder: TempDir,
}

impl SoftHsm {
    /// Without a token. `None` when SoftHSM is not installed, as [`crate::need`] tells.
    pub fn new() -> Option<Self> {
        if !crate::need("softhsm2-util") {
            return None;
        }
        let folder = tempfile::tempdir().expect("a temporary directory");
        let hsm = Self { folder };
        std::fs::create_dir(hsm.tokens()).expect("a directory in it");
        let conf = format!(
            "directories.tokendir = {}\nobjectstore.backend = file\nlog.level = ERROR\n",
            hsm.tokens().display()
        );
        std::fs::write(hsm.conf(), conf).expect("a configuration");
        Some(hsm)
    }

    /// The module.
    pub fn module() -> &'static Path {
        Path::new(MODULE)
    }

    /// What `SOFTHSM2_CONF` has to be.
    pub fn conf(&self) -> PathBuf {
        self.folder.path().join("softhsm2.conf")
    }

    /// Where the tokens are, a folder each.
    pub fn tokens(&self) -> PathBuf {
        self.folder.path().join("tokens")
    }

    /// Makes a token. The security officer's PIN is `so-` and the user's.
    #[track_caller]
    pub fn token(&self, label: &str, pin: &str) {
        let so = format!("so-{pin}");
        let made = Command::new("softhsm2-util")
            .args(["--init-token", "--free", "--label", label])
            .args(["--so-pin", &so, "--pin", pin])
            .env("SOFTHSM2_CONF", self.conf())
            .output()
            .expect("softhsm2-util runs");
        assert!(made.status.success(), "{made:?}");
    }
}
