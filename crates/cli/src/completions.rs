//! Completions and man pages, made from the definition that parses.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::Command;
use clap_complete::Shell;

/// Writes the completion script of `shell`.
pub fn write_completions(shell: Shell, out: &mut dyn Write) -> io::Result<()> {
    // The generator panics when it cannot write, so that it writes to memory.
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut crate::args::definition(), "ah", &mut script);
    out.write_all(&script)
}

/// Writes one page for each command into `directory`, which is made when missing, and names the files.
pub fn write_man_pages(directory: &Path) -> io::Result<Vec<PathBuf>> {
    std::fs::create_dir_all(directory)?;
    let mut command = crate::args::definition().disable_help_subcommand(true);
    command.build();
    let mut written = Vec::new();
    pages(&command, "ah", directory, &mut written)?;
    Ok(written)
}

fn pages(
    command: &Command,
    name: &str,
    directory: &Path,
    written: &mut Vec<PathBuf>,
) -> io::Result<()> {
    let path = directory.join(format!("{name}.1"));
    let page = command
        .clone()
        .display_name(name.to_owned())
        .bin_name(name.replace('-', " "));
    let mut text = Vec::new();
    clap_mangen::Man::new(page)
        .title(name.to_uppercase())
        .manual("Agent Harbor")
        .render(&mut text)?;
    std::fs::write(&path, text)?;
    written.push(path);
    for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
        pages(
            sub,
            &format!("{name}-{}", sub.get_name()),
            directory,
            written,
        )?;
    }
    Ok(())
}
