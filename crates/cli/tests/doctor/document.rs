//! The troubleshooting guide has every error of the contract, and sends its reader to a check that there is.

use std::collections::BTreeSet;
use std::path::Path;

fn document() -> String {
    page("docs/troubleshooting.md")
}

fn page(path: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    std::fs::read_to_string(root.join(path)).unwrap()
}

/// The rows of the table whose head begins with `first`, each as its cells.
fn rows(document: &str, first: &str) -> Vec<Vec<String>> {
    let head = format!("| {first} |");
    let lines = document.lines().skip_while(|line| !line.starts_with(&head));
    let rows = lines.skip(2).take_while(|line| line.starts_with('|'));
    let cells = |row: &str| {
        let row = row.replace("\\|", "¦");
        let inner = row.trim_matches('|').split('|');
        inner.map(|cell| cell.trim().to_owned()).collect()
    };
    rows.map(cells).collect()
}

/// What stands in backquotes.
fn quoted(cell: &str) -> impl Iterator<Item = &str> {
    cell.split('`').skip(1).step_by(2)
}

/// A text without its examples: `<30s>` becomes `<>`.
fn without_examples(text: &str) -> String {
    let mut parts = text.split('<');
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |text, part| {
        let rest = part.split_once('>').map_or(part, |(_, rest)| rest);
        format!("{text}<>{rest}")
    })
}

#[test]
fn every_error_of_the_contract_is_in_the_document() {
    // ER-1 to ER-23; ER-24 is what has no text of its own.
    let document = document();
    let told: BTreeSet<String> = rows(&document, "text")
        .iter()
        .flat_map(|row| row[..2].iter())
        .flat_map(|cell| quoted(cell))
        .map(without_examples)
        .collect();
    let mut numbers = BTreeSet::new();
    let fixture = include_str!("../fixtures/error-texts.txt");
    for line in fixture.lines().filter(|line| !line.starts_with('#')) {
        let (id, text) = line.split_once(' ').unwrap();
        numbers.insert(id.strip_prefix("ER-").unwrap().parse::<u32>().unwrap());
        assert!(told.contains(&without_examples(text)), "{line}: {told:#?}");
    }
    assert!(numbers.into_iter().eq(1..=23));
}

#[test]
fn every_error_names_checks_that_there_are() {
    // ER-25: that they are the doctor's own is held by each set-up that works.
    let document = document();
    let checks = rows(&document, "check");
    let checks: BTreeSet<&str> = checks.iter().flat_map(|row| quoted(&row[0])).collect();
    let errors = rows(&document, "text");
    assert!(errors.len() > 20, "{errors:?}");
    for row in &errors {
        let named: Vec<&str> = quoted(&row[2]).collect();
        // The SPIRE agent's own error is none that the doctor could look at.
        let of_another = row[0].contains("spire server");
        assert_eq!(named.is_empty(), of_another, "{row:?}");
        for name in named {
            assert!(checks.contains(name), "no check {name}: {row:?}");
        }
    }
}

/// Whether `line` is `text` with something in the place of each example.
fn is_of(line: &str, text: &str) -> bool {
    let without = without_examples(text);
    let mut parts = without.split("<>");
    let rest = line.strip_prefix(parts.next().unwrap_or_default());
    rest.and_then(|rest| parts.try_fold(rest, |rest, part| Some(rest.split_once(part)?.1)))
        .is_some()
}

#[test]
fn every_error_of_the_contract_is_provoked_in_a_document() {
    // That the blocks are run and end so is held by the documents' own test.
    let blocks = ah_testkit::document::blocks(&page("docs/errors.md"));
    let shown: Vec<&str> = blocks
        .iter()
        .filter_map(|block| block.shown.as_deref())
        .flat_map(str::lines)
        .map(|line| line.trim_start())
        .map(|line| {
            ["error: ", "cause: ", "reason  "]
                .iter()
                .find_map(|lead| line.strip_prefix(lead))
                .unwrap_or(line)
        })
        .collect();
    let fixture = include_str!("../fixtures/error-texts.txt");
    for line in fixture.lines().filter(|line| !line.starts_with('#')) {
        let (_, text) = line.split_once(' ').unwrap();
        assert!(
            shown.iter().any(|shown| is_of(shown, text)),
            "{line}: {shown:#?}"
        );
    }
    // And each row of the table leads there.
    for row in rows(&document(), "text") {
        assert!(row[3].starts_with("[so](errors.md#"), "{row:?}");
    }
}
