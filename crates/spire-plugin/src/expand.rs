//! `-expandEnv`: variables of the environment in a configuration file.

use zeroize::Zeroizing;

/// Replaces `$NAME` and `${NAME}` as Go's `os.ExpandEnv` does. What is not set becomes nothing; `$$` becomes `$`;
/// `${}` and a `${` that is not closed vanish.
#[must_use]
pub fn expand(text: &str, variable: &dyn Fn(&str) -> Option<String>) -> Zeroizing<String> {
    let mut expanded = Zeroizing::new(String::with_capacity(text.len()));
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('$') {
        expanded.push_str(before);
        rest = after;
        if after.is_empty() {
            expanded.push('$');
            break;
        }
        let (name, tail) = name(after);
        match name {
            Name::Variable("$") => expanded.push('$'),
            Name::Variable(name) => {
                expanded.push_str(&variable(name).map(Zeroizing::new).unwrap_or_default())
            }
            Name::Bad => {}
            Name::None => expanded.push('$'),
        }
        rest = tail;
    }
    expanded.push_str(rest);
    expanded
}

enum Name<'a> {
    Variable(&'a str),
    /// To be dropped.
    Bad,
    /// A dollar sign for its own sake.
    None,
}

/// What follows a dollar sign, and the rest.
fn name(text: &str) -> (Name<'_>, &str) {
    if let Some(braced) = text.strip_prefix('{') {
        return match braced.split_once('}') {
            Some(("", tail)) => (Name::Bad, tail),
            Some((name, tail)) => (Name::Variable(name), tail),
            None => (Name::Bad, braced),
        };
    }
    let special = |c: char| c.is_ascii_digit() || "*#$@!?-".contains(c);
    let end = match text.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')) {
        _ if text.starts_with(special) => 1,
        Some(end) => end,
        None => text.len(),
    };
    match text.split_at_checked(end) {
        Some(("", tail)) => (Name::None, tail),
        Some((name, tail)) => (Name::Variable(name), tail),
        None => (Name::None, text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expanded(text: &str) -> String {
        let variable = |name: &str| match name {
            "A" => Some("alpha".to_owned()),
            "A_1" => Some("under".to_owned()),
            "*" => Some("all".to_owned()),
            "ü" => Some("umlaut".to_owned()),
            _ => None,
        };
        (*expand(text, &variable)).clone()
    }

    #[test]
    fn variables_are_replaced_as_go_does() {
        let cases = [
            ("$A", "alpha"),
            ("${A}", "alpha"),
            ("x$A-$A_1.y", "xalpha-under.y"),
            ("${A}1 $A1", "alpha1 "),
            ("$$A $$", "$A $"),
            ("a $ b", "a $ b"),
            ("cost: 5$", "cost: 5$"),
            ("${}x", "x"),
            ("${A", "A"),
            ("$12", "2"),
            ("$*A ${*}", "allA all"),
            ("${ü} $ü", "umlaut $ü"),
            ("é$A", "éalpha"),
        ];
        for (text, wanted) in cases {
            assert_eq!(expanded(text), wanted, "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_text_panics(text in "[$a-zA-Z{}é*1 ]{0,40}") {
            expanded(&text);
        }
    }
}
