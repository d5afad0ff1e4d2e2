//! `container_id_cgroup_matchers`: where the ID of a container stands in the path of a control group.

use crate::AttestError;
use crate::workload::container::several;

/// One name of a path.
#[derive(Debug, PartialEq, Eq)]
enum Part {
    /// `*`
    Any,
    /// `<id>`
    Id,
    Name(String),
}

/// Patterns of which one at most fits a path.
#[derive(Debug)]
pub(super) struct Matchers(Vec<Vec<Part>>);

impl Matchers {
    pub(super) fn new(patterns: &[String]) -> Result<Self, AttestError> {
        let mut read: Vec<Vec<Part>> = Vec::new();
        for pattern in patterns {
            let parts: Vec<Part> = pattern.split('/').map(part).collect();
            if parts.iter().filter(|part| **part == Part::Id).count() != 1 {
                return Err(AttestError::invalid(
                    format!(
                        "pattern {pattern:?} must contain the container id token \"<id>\" exactly once"
                    ),
                    "write it as in \"/docker/<id>\"",
                ));
            }
            if let Some(at) = read.iter().position(|other| fit_the_same(other, &parts)) {
                let other = patterns.get(at).map_or("", String::as_str);
                return Err(AttestError::invalid(
                    format!(
                        "patterns must not be ambiguous: {other:?} and {pattern:?} can fit the same path"
                    ),
                    "change container_id_cgroup_matchers so that each path fits one pattern",
                ));
            }
            read.push(parts);
        }
        Ok(Self(read))
    }

    /// The container that the control groups `paths` are of; none if no pattern fits any.
    pub(super) fn find(&self, paths: &[String]) -> Result<Option<String>, AttestError> {
        let mut found: Option<&str> = None;
        for path in paths {
            let Some(id) = self.0.iter().find_map(|pattern| id_in(pattern, path)) else {
                continue;
            };
            match found {
                _ if id.is_empty() => {
                    return Err(AttestError::internal(
                        "a pattern matched, but no container id was found",
                        format!(
                            "change the one of container_id_cgroup_matchers that fits {path:?}"
                        ),
                    ));
                }
                Some(before) if before != id => return Err(several("container IDs", before, id)),
                _ => found = Some(id),
            }
        }
        Ok(found.map(ToOwned::to_owned))
    }
}

fn part(text: &str) -> Part {
    match text {
        "*" => Part::Any,
        "<id>" => Part::Id,
        name => Part::Name(name.to_owned()),
    }
}

fn id_in<'a>(pattern: &[Part], path: &'a str) -> Option<&'a str> {
    let names: Vec<&str> = path.split('/').collect();
    if names.len() != pattern.len() {
        return None;
    }
    let mut id = None;
    for (part, name) in pattern.iter().zip(names) {
        match part {
            Part::Any => {}
            Part::Id => id = Some(name),
            Part::Name(expected) if expected == name => {}
            Part::Name(_) => return None,
        }
    }
    id
}

fn fit_the_same(one: &[Part], other: &[Part]) -> bool {
    let differ = |pair: (&Part, &Part)| matches!(pair, (Part::Name(a), Part::Name(b)) if a != b);
    one.len() == other.len() && !one.iter().zip(other).any(differ)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matchers(patterns: &[&str]) -> Result<Matchers, String> {
        let patterns: Vec<String> = patterns.iter().map(ToString::to_string).collect();
        Matchers::new(&patterns).map_err(|error| error.to_string())
    }

    #[test]
    fn the_id_is_where_the_pattern_has_it() {
        let matchers = matchers(&["/docker/<id>", "/my.slice/*/<id>/*"]).unwrap();
        let find = |paths: &[&str]| {
            let paths: Vec<String> = paths.iter().map(ToString::to_string).collect();
            matchers.find(&paths).map_err(|error| error.to_string())
        };
        assert_eq!(find(&["/", "/docker/a"]), Ok(Some("a".into())));
        assert_eq!(
            find(&["/my.slice/x/b/y", "/docker/b"]),
            Ok(Some("b".into()))
        );
        for paths in [&["/my.slice/b/y"][..], &["/docker/a/b"], &["docker/a"], &[]] {
            assert_eq!(find(paths), Ok(None), "{paths:?}");
        }
        let error = find(&["/docker/a", "/docker/b"]).unwrap_err();
        assert!(error.contains("multiple container IDs found"), "{error}");
        let error = find(&["/docker/"]).unwrap_err();
        assert!(error.contains("no container id was found"), "{error}");
    }

    #[test]
    fn a_pattern_has_one_id_and_fits_no_path_of_another() {
        for patterns in [&["/docker/*"][..], &["/<id>/<id>"], &[""]] {
            let error = matchers(patterns).unwrap_err();
            assert!(error.contains("exactly once"), "{error}");
        }
        for patterns in [
            ["/a/b/<id>", "/*/b/<id>"],
            ["/a/<id>", "/<id>/a"],
            ["/<id>", "/<id>"],
        ] {
            let error = matchers(&patterns).unwrap_err();
            assert!(error.contains("must not be ambiguous"), "{error}");
        }
        assert!(matchers(&["/a/<id>", "/b/<id>", "/a/<id>/c"]).is_ok());
    }
}
