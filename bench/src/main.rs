//! Benchmarks: bare servers, a load generator, and the suite that compares them and prints the table of bars.

mod handshake;
mod load;
mod pki;
mod procfs;
mod product;
mod serve;
mod spire;
mod suite;
mod tls;

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Measures the access point against bare servers and peers.
#[derive(Parser, Debug)]
#[command(name = "ah-bench")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Make an authority and a server identity for the other commands.
    Pki {
        /// Folder to write to.
        dir: PathBuf,
    },
    /// Run a bare server.
    #[command(subcommand)]
    Serve(serve::Serve),
    /// Put load on a server.
    #[command(subcommand)]
    Load(load::Load),
    /// Measure handshakes in memory, without and with SPIFFE validation.
    Handshake(handshake::Handshake),
    /// Measure a SPIRE server and agent, beside a peer's.
    Spire(spire::Spire),
    /// Do the bare work that `spire` compares a server and an agent with.
    #[command(subcommand)]
    Bare(spire::Bare),
    /// Measure the bars and print their table.
    Suite(suite::Suite),
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("ah-bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> io::Result<ExitCode> {
    procfs::raise_descriptor_limit()?;
    match command {
        Command::Pki { dir } => {
            std::fs::create_dir_all(&dir)?;
            pki::Authority::create(&pki::Files::at(&dir))?;
        }
        Command::Serve(serve) => single_threaded()?.block_on(serve.run())?,
        Command::Load(load) => single_threaded()?.block_on(load.run())?,
        Command::Handshake(handshake) => println!("{}", serde_json::to_string(&handshake.run()?)?),
        Command::Spire(spire) => return single_threaded()?.block_on(spire.run()),
        Command::Bare(bare) => single_threaded()?.block_on(bare.run())?,
        Command::Suite(suite) => return suite.run(),
    }
    Ok(ExitCode::SUCCESS)
}

/// One thread for one core.
fn single_threaded() -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
}
