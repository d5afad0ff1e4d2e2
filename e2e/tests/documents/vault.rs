//! Vault on the reader's machine, with TLS, where the documents look for it.

use std::path::PathBuf;

use ah_e2e::Machine;
use ah_testkit::ca::TestCa;
use ah_testkit::openbao::{Listen, OpenBao};
use tempfile::TempDir;

/// An initialised server at vault.example.com:8200, whose operator is root.
pub(crate) struct Vault {
    _bao: OpenBao,
    _files: TempDir,
}

impl Vault {
    /// The command line, as a file of this host. `None` where it is not installed.
    pub(crate) fn program() -> Option<PathBuf> {
        OpenBao::program()
    }

    pub(crate) fn start(machine: &Machine) -> Option<Self> {
        let files = tempfile::tempdir().expect("a temporary directory");
        let ca = TestCa::new("vault.example.com");
        let leaf = ca.leaf().dns("vault.example.com").ip("127.0.0.1").issue();
        let own = leaf.write(files.path(), "vault");
        let authority = ca.write(files.path(), "vault-ca");
        let mut bao = OpenBao::raft(&Listen {
            port: Some(8200),
            tls: Some([own.cert, own.key, authority.clone()]),
            wrapper: machine.network(),
            ..Listen::default()
        })?;
        bao.initialise();
        bao.unseal();
        let authority = std::fs::read_to_string(authority).expect("it was written");
        let token = bao.token();
        machine.shell(&format!(
            "install -d /etc/ah \"$HOME\" && umask 077\n\
             echo '{token}' > \"$HOME/.vault-token\"\n\
             umask 022; cat > /etc/ah/vault-ca.pem << 'END'\n{authority}\nEND"
        ));
        Some(Self {
            _bao: bao,
            _files: files,
        })
    }

    /// What the documents say is set.
    pub(crate) fn environment(&self) -> [(&'static str, &'static str); 2] {
        [
            ("VAULT_ADDR", "https://vault.example.com:8200"),
            ("VAULT_CACERT", "/etc/ah/vault-ca.pem"),
        ]
    }
}
