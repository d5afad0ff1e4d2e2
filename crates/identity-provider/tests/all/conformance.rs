//! The providers of this crate keep the promises of the provider seam.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use ah_identity_provider::dev::{DevConfig, DevProvider, DevRole};
use ah_identity_provider::exec::{ExecConfig, ExecProvider};
use ah_identity_provider::files::FilesProvider;
use ah_identity_provider::spiffe::SpiffeProvider;
use ah_identity_provider::{ProviderKind, SystemClock};
use ah_testkit::provider_suite::{ProviderFixture, conforms};
use tempfile::TempDir;

use crate::common::{Files, HeldClock};
use crate::exec::{PRINT, Script};
use crate::spiffe::Agent;

struct FilesFixture {
    files: Files,
    whole: String,
}

impl ProviderFixture for FilesFixture {
    type Provider = FilesProvider;

    const KIND: ProviderKind = ProviderKind::Files;

    fn provider(&self) -> FilesProvider {
        FilesProvider::new(self.files.config())
    }

    async fn renew(&mut self) {
        self.files.put(&self.files.ca.leaf("renewed.example"));
    }

    async fn break_source(&mut self) -> Vec<String> {
        let path = self.files.path("cert.pem");
        self.whole = fs::read_to_string(&path).unwrap();
        fs::write(&path, self.whole.get(..200).unwrap()).unwrap();
        vec![path.display().to_string(), "has no end".to_owned()]
    }

    async fn mend(&mut self) {
        fs::write(self.files.path("cert.pem"), &self.whole).unwrap();
    }

    fn secrets(&self) -> Vec<String> {
        lines_of(&fs::read_to_string(self.files.path("key.pem")).unwrap())
    }
}

struct DevFixture {
    state: TempDir,
    clock: HeldClock,
    whole: String,
}

impl ProviderFixture for DevFixture {
    type Provider = DevProvider;

    const KIND: ProviderKind = ProviderKind::Dev;

    fn provider(&self) -> DevProvider {
        let role = DevRole::Executor {
            name: "one".to_owned(),
        };
        DevProvider::new(
            DevConfig::new(self.state.path(), role),
            Arc::new(self.clock.clone()),
        )
    }

    async fn renew(&mut self) {
        self.clock.advance(Duration::from_secs(2 * 3600 / 3));
    }

    async fn break_source(&mut self) -> Vec<String> {
        let path = self.state.path().join("dev/ca-key.pem");
        self.whole = fs::read_to_string(&path).unwrap();
        fs::write(&path, self.whole.get(..60).unwrap()).unwrap();
        vec![path.display().to_string(), "rm -r".to_owned()]
    }

    async fn mend(&mut self) {
        fs::write(self.state.path().join("dev/ca-key.pem"), &self.whole).unwrap();
    }

    fn secrets(&self) -> Vec<String> {
        lines_of(&self.whole)
    }
}

/// The files of [`Files`], printed by a command that is asked ten times a second.
struct ExecFixture {
    script: Script,
}

impl ProviderFixture for ExecFixture {
    type Provider = ExecProvider;

    const KIND: ProviderKind = ProviderKind::Exec;

    fn provider(&self) -> ExecProvider {
        let config = ExecConfig {
            refresh_interval: Some(Duration::from_millis(100)),
            ..self.script.config()
        };
        ExecProvider::new(config, Arc::new(SystemClock))
    }

    async fn renew(&mut self) {
        let files = &self.script.files;
        files.put(&files.ca.leaf("renewed.example"));
    }

    async fn break_source(&mut self) -> Vec<String> {
        self.script
            .says("cat key.pem; echo no luck today >&2; exit 7");
        vec!["exited with code 7".to_owned(), "no luck today".to_owned()]
    }

    async fn mend(&mut self) {
        self.script.says(PRINT);
    }

    fn secrets(&self) -> Vec<String> {
        lines_of(&fs::read_to_string(self.script.files.path("key.pem")).unwrap())
    }
}

struct SpiffeFixture {
    agent: Agent,
    secrets: Vec<String>,
}

impl ProviderFixture for SpiffeFixture {
    type Provider = SpiffeProvider;

    const KIND: ProviderKind = ProviderKind::Spiffe;

    fn provider(&self) -> SpiffeProvider {
        self.agent.provider()
    }

    async fn renew(&mut self) {
        self.secrets.extend(lines_of(&self.agent.renew().key_pem()));
    }

    async fn break_source(&mut self) -> Vec<String> {
        self.agent.api.stop();
        vec![self.agent.api.endpoint(), "no such file".to_owned()]
    }

    async fn mend(&mut self) {
        self.agent.api.start();
    }

    fn secrets(&self) -> Vec<String> {
        self.secrets.clone()
    }
}

/// The lines of base64 in a PEM text.
fn lines_of(pem: &str) -> Vec<String> {
    let lines = pem.lines().filter(|line| !line.starts_with("-----"));
    lines.map(str::to_owned).collect()
}

#[tokio::test]
async fn files_conform() {
    conforms(FilesFixture {
        files: Files::new(),
        whole: String::new(),
    })
    .await;
}

#[tokio::test]
async fn exec_conforms() {
    conforms(ExecFixture {
        script: Script::new(PRINT),
    })
    .await;
}

/// Time is paused: the provider's looks at the clock come at once.
#[tokio::test(start_paused = true)]
async fn dev_conforms() {
    conforms(DevFixture {
        state: tempfile::tempdir().unwrap(),
        clock: HeldClock::new(),
        whole: String::new(),
    })
    .await;
}

// SP-1, SP-2
#[tokio::test]
async fn spiffe_conforms() {
    conforms(SpiffeFixture {
        agent: Agent::new(),
        secrets: Vec::new(),
    })
    .await;
}
