//! Names and labels that Prometheus takes.

/// The parts of a name, joined; what may not be in a name is an underscore.
pub(super) fn flatten(parts: &[&str]) -> String {
    let mut name = String::new();
    for c in parts.join("_").chars() {
        let fits = c.is_ascii_alphabetic() || c == '_' || c == ':';
        let later = c.is_ascii_digit() && !name.is_empty();
        name.push(if fits || later { c } else { '_' });
    }
    name
}

/// A label's name or value as upstream makes it: each run of characters outside `[0-9A-Za-z_]`, with one underscore
/// after it, becomes one underscore.
pub(super) fn sanitize(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut replaced = false;
    for c in text.chars() {
        if !c.is_ascii_alphanumeric() && c != '_' {
            if !replaced {
                out.push('_');
            }
            replaced = true;
        } else if replaced && c == '_' {
            replaced = false;
        } else {
            out.push(c);
            replaced = false;
        }
    }
    out
}

/// A label's value between its quotes.
pub(super) fn quoted(value: &str) -> String {
    value
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_underscores_for_what_prometheus_does_not_take() {
        // Inventory §10: `.` and `-` are `_`.
        assert_eq!(flatten(&["my.spire-x", "a b", "c"]), "my_spire_x_a_b_c");
        assert_eq!(flatten(&["9lives", "c1"]), "_lives_c1");
    }

    #[test]
    fn labels_are_made_fit_as_upstream_makes_them() {
        // Inventory §10
        assert_eq!(sanitize("example.org"), "example_org");
        assert_eq!(sanitize("1.14.1-dev-unk"), "1_14_1_dev_unk");
        assert_eq!(sanitize("a.-_b"), "a_b");
        assert_eq!(sanitize("a.__b"), "a__b");
        assert_eq!(sanitize("_a_"), "_a_");
        assert_eq!(sanitize("é"), "_");
    }

    #[test]
    fn a_value_cannot_leave_its_quotes() {
        assert_eq!(quoted("a\"b\\c\nd"), "a\\\"b\\\\c\\nd");
    }
}
