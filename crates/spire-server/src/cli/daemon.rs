//! `run` and `validate`

use ah_spire_plugin::goflag::Flags;
use ah_spire_plugin::server::ServerConfig;

use super::Failure;
use super::output;

pub(super) async fn run(flags: &Flags) -> u8 {
    let ended = match load(flags) {
        Ok(config) => crate::run::run(config).await.map_err(Failure::from),
        Err(failure) => Err(failure),
    };
    told(ended)
}

pub(super) async fn validate(flags: &Flags) -> u8 {
    let checked = match load(flags) {
        Ok(config) => crate::run::validate(&config).await.map_err(Failure::from),
        Err(failure) => Err(failure),
    };
    if checked.is_ok() {
        output::to_stdout(b"SPIRE server configuration file is valid.\n");
    }
    told(checked)
}

fn load(flags: &Flags) -> Result<ServerConfig, Failure> {
    let environment = |name: &str| std::env::var(name).ok();
    ServerConfig::load(flags, &environment).map_err(|error| Failure::new(error.to_string()))
}

fn told(ended: Result<(), Failure>) -> u8 {
    match ended {
        Ok(()) => 0,
        Err(failure) => {
            output::to_stderr(format!("Error: {}\n", failure.0).as_bytes());
            1
        }
    }
}
