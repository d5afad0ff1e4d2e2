//! Selectors, and how filters match.

use ah_spire_wire::types::{
    FederatesWithMatch, Selector, SelectorMatch,
    federates_with_match::MatchBehavior as FederatesMatch,
    selector_match::MatchBehavior as SelectorsMatch,
};

use super::Failure;

/// `type:value`; the value may hold colons.
pub(super) fn selector(text: &str) -> Result<Selector, Failure> {
    let (kind, value) = text.split_once(':').ok_or_else(|| {
        Failure(format!(
            "selector \"{text}\" must be formatted as type:value"
        ))
    })?;
    Ok(Selector {
        r#type: kind.to_owned(),
        value: value.to_owned(),
    })
}

/// A filter by selectors; `None` without any. `unknown` names a way to match that is none, `wrong` a bad selector.
pub(super) fn selectors(
    texts: &[String],
    how: &str,
    unknown: impl Fn(&str) -> Failure,
    wrong: impl Fn(&str) -> String,
) -> Result<Option<SelectorMatch>, Failure> {
    if texts.is_empty() {
        return Ok(None);
    }
    let how = match how {
        "exact" => SelectorsMatch::MatchExact,
        "any" => SelectorsMatch::MatchAny,
        "superset" => SelectorsMatch::MatchSuperset,
        "subset" => SelectorsMatch::MatchSubset,
        other => return Err(unknown(other)),
    };
    let mut selectors = Vec::with_capacity(texts.len());
    for text in texts {
        let selector = selector(text).map_err(|failure| failure.during(&wrong(text)))?;
        selectors.push(selector);
    }
    Ok(Some(SelectorMatch {
        selectors,
        r#match: how.into(),
    }))
}

/// A filter by trust domains; `None` without any.
pub(super) fn domains(names: &[String], how: &str) -> Result<Option<FederatesWithMatch>, Failure> {
    if names.is_empty() {
        return Ok(None);
    }
    let how = match how {
        "exact" => FederatesMatch::MatchExact,
        "any" => FederatesMatch::MatchAny,
        "superset" => FederatesMatch::MatchSuperset,
        "subset" => FederatesMatch::MatchSubset,
        other => return Err(Failure(format!("match behavior \"{other}\" unknown"))),
    };
    Ok(Some(FederatesWithMatch {
        trust_domains: names.to_vec(),
        r#match: how.into(),
    }))
}

/// `count` things.
pub(super) fn counted(count: usize, one: &'static str, many: &'static str) -> &'static str {
    if count == 1 { one } else { many }
}
