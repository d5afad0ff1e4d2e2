//! An OpenBao beside the access point, whose PKI engine signs with the authority of the run.

use std::fs;
use std::io;

use ah_testkit::openbao::{Listen, OpenBao};
use serde_json::json;

use super::process::LOAD_CORE;
use super::subject::VaultRole;
use crate::pki::{self, Files};

/// The server, ended when this is dropped.
pub(crate) struct Vault(OpenBao);

impl Vault {
    /// Starts one on the load core. `None` where OpenBao is not installed.
    pub(crate) fn start(files: &Files) -> io::Result<Option<Self>> {
        let core = LOAD_CORE.to_string();
        let listen = Listen {
            wrapper: ["taskset", "-c", &core].map(str::to_owned).into(),
            ..Listen::default()
        };
        let Some(mut bao) = OpenBao::raft(&listen) else {
            return Ok(None);
        };
        bao.initialise();
        bao.unseal();
        let (key, certificate) = (files.ca_key(), files.ca());
        let bundle = fs::read_to_string(key)? + &fs::read_to_string(certificate)?;
        bao.write("sys/mounts/pki", json!({"type": "pki"}));
        bao.write("pki/config/ca", json!({"pem_bundle": bundle}));
        let role = json!({
            "allowed_domains": "localhost",
            "allow_bare_domains": true,
            "allowed_uri_sans": pki::server_id(),
            "key_type": "ec",
            "key_bits": 256,
            "key_usage": "DigitalSignature",
            "max_ttl": "72h",
        });
        bao.write("pki/roles/access-point", role);
        Ok(Some(Self(bao)))
    }

    /// What the access point takes its identity from.
    pub(crate) fn role(&self) -> VaultRole {
        VaultRole {
            url: self.0.url().to_owned(),
            token: self.0.token().to_owned(),
            path: "pki/sign/access-point".to_owned(),
        }
    }
}
