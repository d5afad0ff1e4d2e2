//! The `ah` command: what can be typed, settings, rendering, errors and one file for each command.

pub mod admin_client;
pub mod args;
pub mod commands;
pub mod completions;
pub mod config;
pub mod doctor;
pub mod errors;
pub mod render;
pub mod settings;

use std::ffi::OsString;
use std::process::ExitCode;

use ah_daemon::layer::{Layers, Parsed};
use ah_daemon::logging::{LogEnvironment, LogError, LogSettings, Logging};
use ah_identity_provider::{Code, Explained};
use clap::FromArgMatches;
use clap::error::ErrorKind;

use args::{AgentCommand, Ah, AhCommand, AuditCommand};
use settings::{Check, DoctorSettings, Launch, Settings};

/// Log targets of this product (AP-15).
pub const LOG_TARGETS: &[&str] = &[
    "ah_cli",
    "ah_daemon",
    "ah_fleet",
    "ah_identity_provider",
    "ah_tls",
];

/// Runs the command that `arguments` (the program's name first) ask for, and says how to exit.
pub fn run(arguments: Vec<OsString>) -> ExitCode {
    let doctor = doctor::asked(&arguments);
    let layers = settings::layers(arguments);
    let parsed = match layers.parse() {
        Ok(parsed) => parsed,
        Err(error) => {
            let mut faults: Vec<Explained> =
                error.faults.iter().map(settings::file_fault).collect();
            return match error.error.kind() {
                ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
                    // A closed pipe means that the reader has seen enough.
                    let _ = error.error.print();
                    ExitCode::SUCCESS
                }
                ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
                    // The list of commands is what is wanted; that there is none is an error all the same.
                    println!("{}", error.error.render());
                    errors::fail(&[Explained::new(Code::Usage, "a command is missing")
                        .hint("choose one of the commands above")])
                }
                _ => {
                    if let Some(json) = doctor.filter(|_| !faults.is_empty()) {
                        return doctor::bad_settings(&faults, json);
                    }
                    faults.push(errors::explain(&error.error));
                    errors::fail(&faults)
                }
            };
        }
    };
    let Ah {
        command: AhCommand::Agent { command },
    } = match Ah::from_arg_matches(&parsed.matches) {
        Ok(ah) => ah,
        Err(error) => return errors::fail(&[errors::explain(&error)]),
    };
    match command {
        AgentCommand::AccessPoint(args) => {
            if let Some(printed) =
                config::print(config::ACCESS_POINT, &args.print, &layers, &parsed)
            {
                return printed;
            }
            let checks = [Check {
                name: "identity",
                faults: commands::access_point::check,
            }];
            let run = commands::access_point::run;
            launch(
                layers,
                &parsed,
                args.settings.process.validate,
                &checks,
                run,
            )
        }
        AgentCommand::Enroll(args) => {
            if let Some(printed) = config::print(config::ENROLL, &args.print, &layers, &parsed) {
                return printed;
            }
            let checks = [Check {
                name: "identity",
                faults: commands::enroll::check,
            }];
            let run = commands::enroll::run;
            launch(
                layers,
                &parsed,
                args.settings.process.validate,
                &checks,
                run,
            )
        }
        AgentCommand::Doctor(args) => {
            match Launch::<DoctorSettings>::new(layers, &parsed, settings::paths()) {
                Ok(launch) => doctor::run(&launch, args.json),
                Err(faults) => doctor::bad_settings(&faults, args.json),
            }
        }
        AgentCommand::Status(args) => commands::status::run(&args),
        AgentCommand::Fleet(args) => commands::fleet::run(&args),
        AgentCommand::Audit(args) => match args.command {
            AuditCommand::Verify { file, json } => commands::audit::verify(&file, json),
        },
        AgentCommand::Demo(args) => commands::demo::run(&args),
        AgentCommand::Completions(args) => commands::completions::print(&args),
        AgentCommand::Man(args) => commands::completions::man(&args),
    }
}

/// Resolves settings, then validates (AP-18) or runs. Each command brings its own runtime, since an
/// executor is content with one thread.
fn launch<S: Settings>(
    layers: Layers,
    parsed: &Parsed,
    validate: bool,
    checks: &[Check<S>],
    run: impl FnOnce(Launch<S>) -> ExitCode,
) -> ExitCode {
    match Launch::<S>::new(layers, parsed, settings::paths()) {
        Ok(launch) if !validate => run(launch),
        Ok(launch) => {
            let mut faults = launch.faults(checks);
            faults.extend(log_environment().err());
            if faults.is_empty() {
                print!("{}", launch.report(parsed));
                println!("valid");
                ExitCode::SUCCESS
            } else {
                errors::print(&faults);
                ExitCode::from(1)
            }
        }
        Err(faults) if validate => {
            errors::print(&faults);
            ExitCode::from(1)
        }
        Err(faults) => errors::fail(&faults),
    }
}

/// Starts logging as a command's settings say (AP-15).
pub fn start_logging(settings: LogSettings) -> Result<Logging, Explained> {
    Logging::start(settings, LOG_TARGETS, log_environment()?).map_err(|e| bad_log(&e))
}

fn log_environment() -> Result<LogEnvironment, Explained> {
    LogEnvironment::of_process().map_err(|e| bad_log(&e))
}

fn bad_log(error: &LogError) -> Explained {
    Explained::new(Code::Usage, error.to_string())
        .hint("write it like RUST_LOG=ah_identity_provider=debug,ah_cli=debug, or unset it")
}
