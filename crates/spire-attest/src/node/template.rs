//! `agent_path_template`: the part of Go's `text/template` that a path needs.
//!
//! Text, `{{ .Value }}`, strings, pipelines, and functions on strings, with Go's trimming and comments. Anything else is
//! an error when the template is read, so that no agent meets it.

use ah_identity_provider::hex;
use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, SHA256, digest};
use spiffe::{SpiffeId, TrustDomain};

use lex::{Lexer, Token};

use crate::error::AttestError;

mod lex;

/// What a template can ask for, each by a name after a dot.
pub(crate) trait Value: Sized {
    /// All names, as a message lists them.
    const KNOWN: &str;

    /// The value that `name`, which has its dots, stands for.
    fn named(name: &str) -> Option<Self>;

    /// What `index` finds at `place`, from 0 on, of the list `name`.
    fn element(_name: &str, _place: usize) -> Option<Self> {
        None
    }
}

/// A template that was read.
#[derive(Debug)]
pub(crate) struct Template<V> {
    parts: Vec<Part<V>>,
}

#[derive(Debug)]
enum Part<V> {
    Text(String),
    Pipeline(Operand<V>),
}

#[derive(Debug)]
enum Operand<V> {
    Text(String),
    Value(V),
    Call(Function, Vec<Operand<V>>),
}

/// A function of strings, as the SPRIG library defines it. The piped value is the last argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Function {
    Lower,
    Upper,
    Trim,
    TrimAll,
    TrimPrefix,
    TrimSuffix,
    NoSpace,
    Replace,
    Trunc(i64),
    Sha1Sum,
    Sha256Sum,
}

const KNOWN_FUNCTIONS: &str = "lower, upper, trim, trimAll, trimPrefix, trimSuffix, nospace, replace, trunc, sha1sum and sha256sum";

impl Function {
    fn named(name: &str) -> Option<Self> {
        Some(match name {
            "lower" => Self::Lower,
            "upper" => Self::Upper,
            "trim" => Self::Trim,
            "trimAll" => Self::TrimAll,
            "trimPrefix" => Self::TrimPrefix,
            "trimSuffix" => Self::TrimSuffix,
            "nospace" => Self::NoSpace,
            "replace" => Self::Replace,
            "trunc" => Self::Trunc(0),
            "sha1sum" => Self::Sha1Sum,
            "sha256sum" => Self::Sha256Sum,
            _ => return None,
        })
    }

    /// How many strings it takes.
    fn takes(self) -> usize {
        match self {
            Self::Replace => 3,
            Self::TrimAll | Self::TrimPrefix | Self::TrimSuffix => 2,
            _ => 1,
        }
    }

    fn apply(self, arguments: &[String]) -> String {
        let [.., text] = arguments else {
            return String::new();
        };
        let first = arguments.first().map_or("", String::as_str);
        match self {
            Self::Lower => text.to_lowercase(),
            Self::Upper => text.to_uppercase(),
            Self::Trim => text.trim().to_owned(),
            Self::TrimAll => text.trim_matches(|c| first.contains(c)).to_owned(),
            Self::TrimPrefix => text.strip_prefix(first).unwrap_or(text).to_owned(),
            Self::TrimSuffix => text.strip_suffix(first).unwrap_or(text).to_owned(),
            Self::NoSpace => text.split_whitespace().collect(),
            Self::Replace => {
                let new = arguments.get(1).map_or("", String::as_str);
                text.replace(first, new)
            }
            Self::Trunc(length) => truncated(text, length),
            Self::Sha1Sum => hex(digest(&SHA1_FOR_LEGACY_USE_ONLY, text.as_bytes()).as_ref()),
            Self::Sha256Sum => hex(digest(&SHA256, text.as_bytes()).as_ref()),
        }
    }
}

/// The first `length` bytes, or where it is below zero the last; all where there are fewer.
fn truncated(text: &str, length: i64) -> String {
    let size = usize::try_from(length.unsigned_abs()).unwrap_or(usize::MAX);
    let part = if length < 0 {
        text.len()
            .checked_sub(size)
            .and_then(|from| text.get(from..))
    } else {
        text.get(..size)
    };
    part.unwrap_or(text).to_owned()
}

impl<V: Value> Template<V> {
    /// What `agent_path_template` is set to, or `default` where it is not. `called` is its name in upstream's messages.
    pub(crate) fn configured(text: &str, default: &str, called: &str) -> Result<Self, AttestError> {
        let text = if text.is_empty() { default } else { text };
        Self::parse(text).map_err(|error| {
            AttestError::invalid(
                format!("failed to parse {called}: {text:?}: {error}"),
                format!("the default is {default}"),
            )
        })
    }

    /// Reads a template. The error is a text that says where and what.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some((before, action)) = rest.split_once("{{") {
            let at = text.len().saturating_sub(action.len());
            let mut lexer = Lexer::new(action);
            let before = if lexer.trims_before() {
                before.trim_end()
            } else {
                before
            };
            push(&mut parts, before);
            let told = |why: String| format!("at {:?}: {why}", excerpt(text, at));
            let pipeline = pipeline(&mut lexer).map_err(told)?;
            parts.extend(pipeline.map(Part::Pipeline));
            rest = lexer.rest();
        }
        push(&mut parts, rest);
        match parts.first() {
            Some(Part::Text(first)) if !first.starts_with('/') => {
                Err("path must have a leading slash".to_owned())
            }
            _ => Ok(Self { parts }),
        }
    }

    /// The SPIFFE ID of the agent in `trust_domain` that has the values which `of` gives. The error is a text.
    pub(crate) fn agent_id(
        &self,
        trust_domain: &TrustDomain,
        of: impl Fn(&V) -> Result<String, String>,
    ) -> Result<SpiffeId, String> {
        let path = self.render(&of)?;
        let suffix = || format!("invalid agent path suffix {path:?}");
        if !path.starts_with('/') {
            return Err(format!("{}: path must have a leading slash", suffix()));
        }
        let id = format!("spiffe://{trust_domain}/spire/agent{path}");
        SpiffeId::new(id).map_err(|error| format!("{}: {error}", suffix()))
    }

    fn render(&self, of: &impl Fn(&V) -> Result<String, String>) -> Result<String, String> {
        let mut out = String::new();
        for part in &self.parts {
            match part {
                Part::Text(text) => out.push_str(text),
                Part::Pipeline(operand) => out.push_str(&operand.value(of)?),
            }
        }
        Ok(out)
    }
}

fn push<V>(parts: &mut Vec<Part<V>>, text: &str) {
    if !text.is_empty() {
        parts.push(Part::Text(text.to_owned()));
    }
}

/// The beginning of the action that starts at `at`, braces included.
fn excerpt(text: &str, at: usize) -> String {
    let action = text.get(at.saturating_sub(2)..).unwrap_or_default();
    action.chars().take(40).collect()
}

impl<V> Operand<V> {
    fn value(&self, of: &impl Fn(&V) -> Result<String, String>) -> Result<String, String> {
        match self {
            Self::Text(text) => Ok(text.clone()),
            Self::Value(value) => of(value),
            Self::Call(function, arguments) => {
                let arguments = arguments.iter().map(|argument| argument.value(of));
                let arguments: Vec<_> = arguments.collect::<Result<_, _>>()?;
                Ok(function.apply(&arguments))
            }
        }
    }
}

/// What stands between the braces; none for a comment.
fn pipeline<V: Value>(lexer: &mut Lexer<'_>) -> Result<Option<Operand<V>>, String> {
    if lexer.comment()? {
        return Ok(None);
    }
    let mut piped: Option<Operand<V>> = None;
    loop {
        let mut words = Vec::new();
        let end = loop {
            match lexer.next()? {
                end @ (Token::Pipe | Token::End) => break end,
                word => words.push(word),
            }
        };
        piped = Some(command(words, piped.take())?);
        if matches!(end, Token::End) {
            return Ok(piped);
        }
    }
}

/// One stage of a pipeline.
fn command<V: Value>(words: Vec<Token>, piped: Option<Operand<V>>) -> Result<Operand<V>, String> {
    let mut words = words.into_iter();
    let first = words.next().ok_or("a value is missing")?;
    let Token::Word(name) = first else {
        if piped.is_some() {
            return Err("what follows | has to be a function".to_owned());
        }
        if words.next().is_some() {
            return Err("only a function takes arguments".to_owned());
        }
        return operand(first);
    };
    let unknown = || {
        format!(
            "{name} is not served; known are the functions {KNOWN_FUNCTIONS}, and the values {}",
            V::KNOWN
        )
    };
    if name == "index" && piped.is_none() {
        return element(words).ok_or_else(unknown);
    }
    let mut function = Function::named(&name).ok_or_else(unknown)?;
    if let Function::Trunc(length) = &mut function {
        let Some(Token::Number(number)) = words.next() else {
            return Err("trunc takes a number and a string".to_owned());
        };
        *length = number;
    }
    let mut arguments: Vec<_> = words.map(operand).collect::<Result<_, _>>()?;
    arguments.extend(piped);
    if arguments.len() != function.takes() {
        let takes = function.takes();
        let given = arguments.len();
        return Err(format!("{name} takes {takes} strings, not {given}"));
    }
    Ok(Operand::Call(function, arguments))
}

/// What `index` finds by a list and a place.
fn element<V: Value>(words: impl Iterator<Item = Token>) -> Option<Operand<V>> {
    let words: Vec<_> = words.collect();
    let [Token::Value(list), Token::Number(place)] = words.as_slice() else {
        return None;
    };
    let place = usize::try_from(*place).ok()?;
    V::element(list, place).map(Operand::Value)
}

fn operand<V: Value>(token: Token) -> Result<Operand<V>, String> {
    match token {
        Token::Text(text) => Ok(Operand::Text(text)),
        Token::Value(name) => {
            let value = V::named(&name);
            let value =
                value.ok_or_else(|| format!("{name} is not known; known are {}", V::KNOWN))?;
            Ok(Operand::Value(value))
        }
        Token::Word(word) => Err(format!("{word} cannot be an argument")),
        Token::Number(number) => Err(format!("{number} is no string")),
        Token::Pipe | Token::End => Err("a value is missing".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::node::x509pop::values::Value as Known;

    /// Pieces that templates are made of, put together in any way.
    fn pieces() -> impl Strategy<Value = String> {
        let piece = prop_oneof![
            Just("{{".to_owned()),
            Just("}}".to_owned()),
            Just("{{- ".to_owned()),
            Just(" -}}".to_owned()),
            Just("{{/* ".to_owned()),
            Just("*/".to_owned()),
            Just(".PluginName".to_owned()),
            Just(" trunc -3 ".to_owned()),
            Just("|".to_owned()),
            Just("\"\\".to_owned()),
            Just("`".to_owned()),
            ".{0,3}",
        ];
        proptest::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #[test]
        fn any_pieces_of_a_template_are_read_without_a_panic(text in pieces()) {
            let _ = Template::<Known>::parse(&text);
        }
    }

    fn error(template: &str) -> String {
        Template::<Known>::parse(template).unwrap_err()
    }

    #[test]
    fn what_is_not_served_is_named_with_what_is() {
        for (template, words) in [
            ("/{{ .Foo }}", vec![".Foo is not known", ".Fingerprint"]),
            ("/{{ .Subject }}", vec![".Subject is not known"]),
            ("/{{ .URISanSelectors }}", vec!["is not known"]),
            ("/{{ . }}", vec!["is not known"]),
            (
                "/{{ if .PluginName }}x{{ end }}",
                vec!["if is not served", "trimPrefix"],
            ),
            (
                "/{{ range .DNSNames }}x{{ end }}",
                vec!["range is not served"],
            ),
            (
                "/{{ printf \"%s\" .PluginName }}",
                vec!["printf is not served"],
            ),
            ("/{{ $x := .PluginName }}", vec!["\"$\" is not served"]),
            ("/{{ (lower .PluginName) }}", vec!["\"(\" is not served"]),
            ("/{{ }}", vec!["a value is missing"]),
            ("/{{ .PluginName | }}", vec!["a value is missing"]),
            (
                "/{{ .PluginName .Fingerprint }}",
                vec!["only a function takes arguments"],
            ),
            (
                "/{{ .PluginName | .Fingerprint }}",
                vec!["has to be a function"],
            ),
            ("/{{ lower }}", vec!["lower takes 1 strings, not 0"]),
            (
                "/{{ .PluginName | trimPrefix }}",
                vec!["trimPrefix takes 2 strings, not 1"],
            ),
            ("/{{ trunc .PluginName }}", vec!["trunc takes a number"]),
            ("/{{ lower 7 }}", vec!["7 is no string"]),
            ("/{{ lower upper }}", vec!["upper cannot be an argument"]),
            ("/{{ .PluginName", vec!["no }}"]),
            ("/{{ \"open }}", vec!["has no end"]),
            ("/{{ `open }}", vec!["has no end"]),
            ("/{{/* open }}", vec!["comment has no end"]),
            ("/{{", vec!["no }}"]),
            ("x/{{ .PluginName }}", vec!["leading slash"]),
        ] {
            let error = error(template);
            for word in words {
                assert!(error.contains(word), "{template}: {error}");
            }
        }
    }

    #[test]
    fn an_error_quotes_the_action_and_no_more() {
        let error = error(&format!("/x/{{{{ .Foo {} }}}}", "x".repeat(10_000)));
        assert!(error.starts_with("at \"{{ .Foo xxx"), "{error}");
        assert!(error.len() < 500);
    }

    #[test]
    fn what_is_shorter_is_left_whole() {
        for (length, cut) in [
            (2, "ab"),
            (-2, "cd"),
            (4, "abcd"),
            (-4, "abcd"),
            (9, "abcd"),
            (-9, "abcd"),
            (0, ""),
        ] {
            assert_eq!(truncated("abcd", length), cut, "{length}");
        }
        assert_eq!(truncated("abcd", i64::MIN), "abcd");
    }
}
