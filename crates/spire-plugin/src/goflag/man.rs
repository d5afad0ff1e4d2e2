//! Manual pages, from the definitions that command lines are read by.

use std::io;
use std::path::{Path, PathBuf};

use roff::{Roff, bold, italic, roman};

use super::FlagSet;
use super::cli::Page;
use super::usage;

/// Writes a page for each command and group of a program into `directory`, which is made when missing, and names the
/// files.
pub(super) fn write(pages: &[Page<'_>], directory: &Path) -> io::Result<Vec<PathBuf>> {
    std::fs::create_dir_all(directory)?;
    let written = pages.iter().map(|page| {
        let path = directory.join(format!("{}.1", page.words.replace(' ', "-")));
        std::fs::write(&path, of(page))?;
        Ok(path)
    });
    written.collect()
}

/// Tells on stderr what became of pages in `directory`, and returns whether it went well.
pub(super) fn told(directory: &str, written: io::Result<Vec<PathBuf>>) -> bool {
    match written {
        Ok(written) => eprintln!("{} pages written to {directory}", written.len()),
        Err(error) => {
            eprintln!(
                "error: cannot write manual pages to {directory}\n  cause: {error}\n  hint: name a directory that this user may write to with -dir"
            );
            return false;
        }
    }
    true
}

fn of(page: &Page<'_>) -> String {
    let name = page.words.replace(' ', "-");
    let mut text = Roff::new();
    // No date: the same commit gives the same bytes.
    text.control(
        "TH",
        [
            name.to_uppercase().as_str(),
            "1",
            " ",
            page.version,
            "Agent Harbor",
        ],
    );
    text.control("SH", ["NAME"]);
    let synopsis = match page.synopsis {
        "" => "one of the commands below".to_owned(),
        // As in an index of manual pages.
        synopsis => synopsis
            .chars()
            .take(1)
            .flat_map(char::to_lowercase)
            .chain(synopsis.chars().skip(1))
            .collect(),
    };
    text.text([roman(format!("{name} - {synopsis}"))]);
    text.control("SH", ["SYNOPSIS"]);
    let mut line = vec![bold(page.words.as_str())];
    if page.flags.is_some() {
        line.extend([roman(" ["), italic("flags"), roman("]")]);
    }
    if !page.below.is_empty() && page.flags.is_none() {
        line.extend([
            roman(" "),
            italic("command"),
            roman(" ["),
            italic("flags"),
            roman("]"),
        ]);
    }
    text.text(line);
    if let Some(flags) = page.flags {
        options(&mut text, flags);
    }
    if !page.below.is_empty() {
        text.control("SH", ["COMMANDS"]);
        for (word, synopsis) in &page.below {
            text.control("TP", []);
            let page = format!("{name}-{word}");
            text.text([bold(page), roman("(1)")]);
            text.text([roman(if synopsis.is_empty() {
                "has commands of its own"
            } else {
                synopsis
            })]);
        }
    }
    text.render()
}

fn options(text: &mut Roff, flags: &FlagSet) {
    text.control("SH", ["OPTIONS"]);
    text.text([roman(
        "One dash or two; a value stands behind a blank or an equals sign.",
    )]);
    for shown in usage::shown(&flags.flags) {
        text.control("TP", []);
        let mut head = vec![bold(format!("-{}", shown.name))];
        if !shown.value.is_empty() {
            head.extend([roman(" "), italic(shown.value)]);
        }
        text.text(head);
        let mut told = shown.usage;
        if let Some(default) = shown.default {
            told = format!("{told} (default {default})");
        }
        // A line end of the usage is none of the page.
        text.text([roman(told.split_whitespace().collect::<Vec<_>>().join(" "))]);
    }
}

#[cfg(test)]
mod tests {
    use super::super::Cli;
    use super::*;

    #[test]
    fn every_command_and_group_has_a_page_with_all_its_flags() {
        let flags = FlagSet::new("entry create")
            .string("parentID", "", "The SPIFFE ID of\nthis record's parent")
            .string("socketPath", "/tmp/a.sock", "Path")
            .bool("node", false, ".starts with what roff takes for an order");
        let cli = Cli::new("spire-server", "1.14.1")
            .command((), "entry create", "Creates entries", flags)
            .command((), "run", "Runs the server", FlagSet::new("run"));
        let directory = tempfile::tempdir().unwrap();
        let written = cli.write_man_pages(&directory.path().join("man1")).unwrap();
        let names: Vec<_> = written
            .iter()
            .map(|path| path.file_name().unwrap().to_str().unwrap())
            .collect();
        assert_eq!(
            names,
            [
                "spire-server.1",
                "spire-server-entry.1",
                "spire-server-entry-create.1",
                "spire-server-run.1"
            ]
        );
        let text = |at: usize| std::fs::read_to_string(&written[at]).unwrap();
        let page = text(2);
        for part in [
            "spire\\-server\\-entry\\-create \\- creates entries",
            "\\-parentID",
            "The SPIFFE ID of this record\\*(Aqs parent",
            "(default \"/tmp/a.sock\")",
            "\\&.starts with",
        ] {
            assert!(page.contains(part), "no {part}:\n{page}");
        }
        assert!(text(0).contains("spire\\-server\\-entry"), "{}", text(0));
        assert!(
            text(1).contains("spire\\-server\\-entry\\-create"),
            "{}",
            text(1)
        );
    }
}
