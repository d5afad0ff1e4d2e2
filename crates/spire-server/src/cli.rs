//! The command line: upstream's commands, flags, texts and exit codes, so that scripts go on working.

/// The table's form of `async fn run(call: &mut Call<'_>) -> Result<(), Failure>`.
macro_rules! run {
    ($path:path) => {
        Run {
            start: |call| Running(Box::pin($path(call))),
            shows: true,
        }
    };
}

mod agent;
mod bundle;
mod daemon;
mod debug;
mod entry;
mod entry_file;
mod entry_sync;
mod federation;
mod healthcheck;
mod json;
mod jwt;
mod local_authority;
mod logger;
mod matching;
mod output;
mod rotation;
mod server;
mod token;
mod wit;
mod x509;

use std::future::Future;
use std::pin::Pin;

use ah_spire_plugin::goflag::{Cli, FlagSet, Flags, Invocation};
use ah_spire_plugin::server::run_flags;
use tonic::{Code, Status};

use self::output::Output;
use self::server::Server;

/// What `--version` says: the upstream release whose interfaces this server has.
const VERSION: &str = "1.14.1";

/// Why a command failed, as one line for people.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Failure(String);

impl Failure {
    fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// `what: why`
    fn because(what: &str, why: impl std::fmt::Display) -> Self {
        Self(format!("{what}: {why}"))
    }

    /// With what was tried before it.
    fn during(self, what: &str) -> Self {
        Self(format!("{what}: {}", self.0))
    }
}

impl From<String> for Failure {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl From<&str> for Failure {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        Self(format!(
            "rpc error: code = {} desc = {}",
            code_name(status.code()),
            status.message()
        ))
    }
}

/// As gRPC for Go prints a code.
fn code_name(code: Code) -> String {
    match code {
        Code::Ok => "OK".to_owned(),
        Code::Cancelled => "Canceled".to_owned(),
        other => format!("{other:?}"),
    }
}

/// What one command needs.
struct Call<'a> {
    flags: &'a Flags,
    server: Server,
    out: Output,
}

/// What a command line can ask for.
#[derive(Clone, Copy)]
enum Command {
    /// `run`
    Daemon,
    /// `validate`
    Validate,
    /// `man`
    Man,
    /// What talks to a server.
    Client(Run),
}

/// Runs a command against a server. Boxed, so that commands of many sizes stand in one table.
#[derive(Clone, Copy)]
struct Run {
    start: for<'a> fn(&'a mut Call<'_>) -> Running<'a>,
    /// Whether it has `-output`.
    shows: bool,
}

/// A command under way.
struct Running<'a>(Pin<Box<dyn Future<Output = Result<(), Failure>> + Send + 'a>>);

/// Runs the command line `arguments` (without the program's name) to its exit code.
pub async fn main(arguments: &[String]) -> u8 {
    let (command, flags) = match tree().parse(arguments) {
        Invocation::Run { command, flags } => (command, flags),
        Invocation::Exit(exit) => {
            output::to_stderr(exit.text.as_bytes());
            return exit.code;
        }
    };
    let command = match command {
        Command::Daemon => return daemon::run(&flags).await,
        Command::Validate => return daemon::validate(&flags).await,
        Command::Man => return u8::from(!tree().write_manual(&flags)),
        Command::Client(run) => run,
    };
    let mut call = Call {
        server: Server::new(&flags),
        out: Output::new(command.shows && flags.string("output") == "json"),
        flags: &flags,
    };
    let ended = (command.start)(&mut call).0.await;
    if let Err(failure) = &ended {
        call.out.error_line(&format!("Error: {}", failure.0));
    }
    call.out.flush();
    u8::from(ended.is_err())
}

fn tree() -> Cli<Command> {
    let cli = Cli::new("spire-server", VERSION)
        .command(Command::Daemon, "run", "Runs the server", run_flags("run"))
        .command(
            Command::Validate,
            "validate",
            "Validates a SPIRE server configuration file",
            run_flags("validate"),
        )
        .with_manual(Command::Man);
    let add = |cli: Cli<Command>, run, path: &str, synopsis: &str, flags: FlagSet| {
        let flags = flags.and(server::flags());
        cli.command(Command::Client(run), path, synopsis, flags)
    };
    let shows = |name: &str| FlagSet::new(name).and(output::flags());
    let cli = add(
        cli,
        run!(token::generate),
        "token generate",
        "Generates a join token",
        token::generate_flags(shows("generate")),
    );
    let cli = add(
        cli,
        run!(agent::list),
        "agent list",
        "Lists attested agents and their SPIFFE IDs",
        agent::filter_flags(shows("agent list")),
    );
    let cli = add(
        cli,
        run!(agent::count),
        "agent count",
        "Count attested agents",
        agent::filter_flags(shows("agent count")),
    );
    let cli = add(
        cli,
        run!(agent::show),
        "agent show",
        "Shows the details of an attested agent given its SPIFFE ID",
        agent::id_flag(shows("agent show"), "show"),
    );
    let cli = add(
        cli,
        run!(agent::evict),
        "agent evict",
        "Evicts an attested agent given its SPIFFE ID",
        agent::id_flag(shows("agent evict"), "evict"),
    );
    let cli = add(
        cli,
        run!(agent::ban),
        "agent ban",
        "Ban an attested agent given its SPIFFE ID",
        agent::id_flag(shows("agent ban"), "ban"),
    );
    let cli = add(
        cli,
        run!(agent::purge),
        "agent purge",
        "Purge expired agents that were attested using a non-TOFU security model based on a given time",
        agent::purge_flags(shows("agent purge")),
    );
    let cli = add(
        cli,
        run!(entry::create),
        "entry create",
        "Creates registration entries",
        entry::create_flags(shows("entry create")),
    );
    let cli = add(
        cli,
        run!(entry::update),
        "entry update",
        "Updates registration entries",
        entry::update_flags(shows("entry update")),
    );
    let cli = add(
        cli,
        run!(entry::show),
        "entry show",
        "Displays configured registration entries",
        entry::show_flags(shows("entry show")),
    );
    let cli = add(
        cli,
        run!(entry::count),
        "entry count",
        "Count registration entries",
        entry::filter_flags(shows("entry count"), "count"),
    );
    let cli = add(
        cli,
        run!(entry::delete),
        "entry delete",
        "Deletes registration entries",
        entry::delete_flags(shows("entry delete")),
    );
    let cli = add(
        cli,
        run!(entry_sync::sync),
        "entry sync",
        "Makes the registration entries those of a file",
        entry_sync::flags(shows("entry sync")),
    );
    let cli = add(
        cli,
        run!(bundle::show),
        "bundle show",
        "Prints server CA bundle to stdout",
        bundle::show_flags(shows("bundle show")),
    );
    let cli = add(
        cli,
        run!(bundle::list),
        "bundle list",
        "Lists federated bundle data",
        bundle::list_flags(shows("bundle list")),
    );
    let cli = add(
        cli,
        run!(bundle::set),
        "bundle set",
        "Creates or updates federated bundle data",
        bundle::set_flags(shows("bundle set")),
    );
    let cli = add(
        cli,
        run!(bundle::count),
        "bundle count",
        "Count bundles",
        shows("bundle count"),
    );
    let cli = add(
        cli,
        run!(bundle::delete),
        "bundle delete",
        "Deletes federated bundle data",
        bundle::delete_flags(shows("bundle delete")),
    );
    let cli = add(
        cli,
        run!(federation::create),
        "federation create",
        "Creates a dynamic federation relationship with a foreign trust domain",
        federation::relationship_flags(shows("federation create")),
    );
    let cli = add(
        cli,
        run!(federation::update),
        "federation update",
        "Updates a dynamic federation relationship with a foreign trust domain",
        federation::relationship_flags(shows("federation update")),
    );
    let cli = add(
        cli,
        run!(federation::list),
        "federation list",
        "Lists all dynamic federation relationships",
        shows("federation list"),
    );
    let cli = add(
        cli,
        run!(federation::show),
        "federation show",
        "Shows a dynamic federation relationship",
        federation::show_flags(shows("federation show")),
    );
    let cli = add(
        cli,
        run!(federation::delete),
        "federation delete",
        "Deletes a dynamic federation relationship",
        federation::id_flags(shows("federation delete")),
    );
    let cli = add(
        cli,
        run!(federation::refresh),
        "federation refresh",
        "Refreshes the bundle from the specified federated trust domain",
        federation::id_flags(shows("federation refresh")),
    );
    let cli = add(
        cli,
        run!(x509::mint),
        "x509 mint",
        "Mints an X509-SVID",
        x509::flags(shows("x509 mint")),
    );
    let cli = add(
        cli,
        run!(jwt::mint),
        "jwt mint",
        "Mints a JWT-SVID",
        jwt::flags(shows("jwt mint")),
    );
    let cli = if wit::is_listed() {
        add(
            cli,
            run!(wit::mint),
            "wit mint",
            "Mints a WIT-SVID",
            wit::flags(shows("wit mint")),
        )
    } else {
        cli
    };
    let cli = add(
        cli,
        run!(logger::get),
        "logger get",
        "Gets the logger details",
        shows("logger get"),
    );
    let cli = add(
        cli,
        run!(logger::set),
        "logger set",
        "Sets the logger details",
        logger::set_flags(shows("logger set")),
    );
    let cli = add(
        cli,
        run!(logger::reset),
        "logger reset",
        "Reset the logger details to launch level",
        shows("logger reset"),
    );
    let authorities = local_authority::commands(shows).into_iter();
    let cli = authorities.fold(cli, |cli, (run, path, synopsis, flags)| {
        add(cli, run, path, synopsis, flags)
    });
    let cli = add(
        cli,
        run!(debug::getinfo),
        "debug getinfo",
        "Prints debug information about the server",
        shows("debug getinfo"),
    );
    add(
        cli,
        Run {
            shows: false,
            ..run!(healthcheck::run)
        },
        "healthcheck",
        "Determines server health status",
        healthcheck::flags(FlagSet::new("healthcheck")),
    )
}
