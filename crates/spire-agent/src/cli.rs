//! The commands that ask an agent: upstream's, with its flags and output, and `api explain`.
//!
//! What upstream prints of a refused call (`rpc error: code = … desc = …`) stays the first line, since scripts look for
//! it; what to do about it comes below. A socket that cannot be used is told in this project's own words.

use std::process::ExitCode;

use ah_spire_plugin::agent::run_flags;
use ah_spire_plugin::goflag::{Cli, FlagSet, Flags, Invocation};

use failure::Failure;

mod admin;
mod call;
mod debug;
mod explain;
mod failure;
mod fetch_jwt;
mod fetch_x509;
mod gotext;
mod healthcheck;
mod logger;
mod output;
mod socket;
mod svids;
mod validate_jwt;
mod watch;

/// A command of `spire-agent` that talks to a running agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// `api fetch`, `api fetch x509`
    FetchX509,
    /// `api fetch jwt`
    FetchJwt,
    /// `api validate jwt`
    ValidateJwt,
    /// `api watch`
    Watch,
    /// `api explain`
    Explain,
    /// `healthcheck`
    Healthcheck,
    /// `logger get`
    GetLogger,
    /// `logger set`
    SetLogLevel,
    /// `logger reset`
    ResetLogLevel,
    /// `debug getinfo`
    GetInfo,
}

impl Command {
    /// Adds these commands to a program's; `name` is what the program calls them.
    #[must_use]
    pub fn add_to<C: Clone>(mut cli: Cli<C>, name: impl Fn(Self) -> C) -> Cli<C> {
        for command in [
            Self::FetchX509,
            Self::FetchJwt,
            Self::ValidateJwt,
            Self::Watch,
            Self::Explain,
            Self::Healthcheck,
            Self::GetLogger,
            Self::SetLogLevel,
            Self::ResetLogLevel,
            Self::GetInfo,
        ] {
            let (paths, synopsis, flags) = command.definition();
            for path in paths {
                cli = cli.command(name(command), path, synopsis, flags.clone());
            }
        }
        cli
    }

    fn definition(self) -> (&'static [&'static str], &'static str, FlagSet) {
        match self {
            Self::FetchX509 => (
                &["api fetch", "api fetch x509"],
                "Fetches X509 SVIDs from the Workload API",
                fetch_x509::flags(),
            ),
            Self::FetchJwt => (
                &["api fetch jwt"],
                "Fetches a JWT SVID from the Workload API",
                fetch_jwt::flags(),
            ),
            Self::ValidateJwt => (
                &["api validate jwt"],
                "Validates a JWT SVID",
                validate_jwt::flags(),
            ),
            Self::Watch => (
                &["api watch"],
                "Attaches to the Workload API and prints updates as they're received",
                watch::flags(),
            ),
            Self::Explain => (
                &["api explain"],
                "Tells which entries match a process, and what the nearest ones lack",
                explain::flags(),
            ),
            Self::Healthcheck => (
                &["healthcheck"],
                "Determines agent health status",
                healthcheck::flags(),
            ),
            Self::GetLogger => (
                &["logger get"],
                "Gets the logger details",
                admin::flags("logger get"),
            ),
            Self::SetLogLevel => (
                &["logger set"],
                "Sets the logger details",
                logger::set_flags(),
            ),
            Self::ResetLogLevel => (
                &["logger reset"],
                "Reset the logger details to launch level",
                admin::flags("logger reset"),
            ),
            Self::GetInfo => (
                &["debug getinfo"],
                "Prints debug information about the agent",
                admin::flags("debug getinfo"),
            ),
        }
    }

    /// Runs the command to its end. Errors go to stderr.
    #[must_use]
    pub fn run(self, flags: &Flags) -> ExitCode {
        match self.execute(flags) {
            Ok(()) => ExitCode::SUCCESS,
            Err(failure) => {
                eprintln!("{failure}");
                ExitCode::FAILURE
            }
        }
    }

    fn execute(self, flags: &Flags) -> Result<(), Failure> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| Failure::new(format!("error: cannot start: {error}")))?;
        runtime.block_on(async {
            match self {
                Self::FetchX509 => fetch_x509::run(flags).await,
                Self::FetchJwt => fetch_jwt::run(flags).await,
                Self::ValidateJwt => validate_jwt::run(flags).await,
                Self::Watch => watch::run(flags).await,
                Self::Explain => explain::run(flags).await,
                Self::Healthcheck => healthcheck::run(flags).await,
                Self::GetLogger => logger::get(flags).await,
                Self::SetLogLevel => logger::set(flags).await,
                Self::ResetLogLevel => logger::reset(flags).await,
                Self::GetInfo => debug::getinfo(flags).await,
            }
        })
    }
}

/// What the program can be asked to do.
#[derive(Clone)]
enum Program {
    Run,
    Validate,
    Man,
    Ask(Command),
}

/// `spire-agent` with `arguments`, the program's name left out.
#[must_use]
pub fn run(arguments: &[String]) -> ExitCode {
    let cli = Cli::new("spire-agent", env!("CARGO_PKG_VERSION"))
        .command(Program::Run, "run", "Runs the agent", run_flags("run"))
        .command(
            Program::Validate,
            "validate",
            "Validates a SPIRE agent configuration file",
            run_flags("validate"),
        )
        .with_manual(Program::Man);
    let cli = Command::add_to(cli, Program::Ask);
    match cli.parse(arguments) {
        Invocation::Run { command, flags } => match command {
            Program::Run => crate::run::run(&flags),
            Program::Validate => crate::run::validate(&flags),
            Program::Man => ExitCode::from(u8::from(!cli.write_manual(&flags))),
            Program::Ask(command) => command.run(&flags),
        },
        Invocation::Exit(exit) => {
            eprint!("{}", exit.text);
            ExitCode::from(exit.code)
        }
    }
}
