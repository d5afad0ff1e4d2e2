//! What the names of control groups say.

/// A container's ID has this many hexadecimal digits.
const ID_DIGITS: usize = 64;

/// The groups of digits in a UID (RFC 9562 §4).
const UID_GROUPS: [usize; 5] = [8, 4, 4, 4, 12];

/// What one path says.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::workload) struct Place<'a> {
    pub(in crate::workload) container: &'a str,
    pub(in crate::workload) pod: Option<String>,
}

/// The container that `path` is in: its last word that is an ID. With `pods`, also the pod, before it.
pub(in crate::workload) fn place(path: &str, pods: bool) -> Option<Place<'_>> {
    let mut end = path.len();
    for container in path.rsplit(|c| !is_word(c)) {
        let above = path.get(..end.checked_sub(container.len())?)?;
        if is_id(container) {
            let pod = above.rsplit('/').filter(|_| pods).find_map(pod_in);
            let pod = pod.map(|uid| uid.replace('_', "-"));
            return Some(Place { container, pod });
        }
        end = above.char_indices().next_back()?.0;
    }
    None
}

fn is_id(text: &str) -> bool {
    text.len() == ID_DIGITS && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

/// The UID after `pod` in `name`. The kubelet writes `_` for `-` where systemd manages the groups.
fn pod_in(name: &str) -> Option<&str> {
    name.match_indices("pod").find_map(|(at, pod)| {
        let before = name.get(..at)?.chars().next_back();
        let rest = name.get(at + pod.len()..)?;
        let length = uid_length(rest, |rest| rest.strip_prefix(['-', '_']))?;
        let after = rest.get(length..)?.chars().next();
        let alone = !before.is_some_and(is_word) && !after.is_some_and(is_word);
        alone.then(|| rest.get(..length)).flatten()
    })
}

/// How many bytes at the start of `text` are a UID, by what `separate` leaves of the text between two groups.
fn uid_length(text: &str, separate: impl Fn(&str) -> Option<&str>) -> Option<usize> {
    let mut rest = text;
    for (index, digits) in UID_GROUPS.into_iter().enumerate() {
        if index > 0 {
            rest = separate(rest)?;
        }
        let group = rest.get(..digits)?;
        if !group.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        rest = rest.get(digits..)?;
    }
    Some(text.len() - rest.len())
}

/// As [`place`], by the rules that `use_new_container_locator = false` stands for: the ID ends the path, but for
/// `.scope`, and the pod's UID is before it with nothing but names between; or the name is `crio-` and the ID.
pub(in crate::workload) fn legacy(path: &str) -> Option<Place<'_>> {
    let path = path.strip_suffix(".scope").unwrap_or(path);
    let from = path.len().checked_sub(ID_DIGITS)?;
    let container = path.get(from..).filter(|id| is_id(id))?;
    let above = path.get(..from)?;
    let head = above.strip_suffix(is_punctuation)?;
    let pods = above.match_indices("pod").filter_map(|(at, pod)| {
        let led = above.get(..at)?.ends_with(is_punctuation);
        let rest = above.get(at + pod.len()..).filter(|_| led)?;
        uid_of_legacy(rest)
    });
    match pods.last() {
        Some((uid, tail)) => {
            let names = tail.strip_suffix(is_punctuation);
            // Each name between has a character at least.
            let named =
                names.is_none_or(|names| names.split(is_punctuation).all(|name| !name.is_empty()));
            let pod = uid.replace(is_punctuation, "-");
            named.then_some(Place {
                container,
                pod: Some(pod),
            })
        }
        None => head.ends_with("crio").then_some(Place {
            container,
            pod: None,
        }),
    }
}

/// A UID at the start of `text`, with any separators or none, and what follows the punctuation after it.
fn uid_of_legacy(text: &str) -> Option<(&str, &str)> {
    let length = uid_length(text, |rest| {
        Some(rest.strip_prefix(is_punctuation).unwrap_or(rest))
    })?;
    let (uid, rest) = text.split_at_checked(length)?;
    Some((uid, rest.strip_prefix(is_punctuation)?))
}

fn is_punctuation(c: char) -> bool {
    c.is_ascii_punctuation()
}

/// The root of a mount of control groups, unless it shows all of them. An empty field, such as a source that is not
/// there, is a field too.
pub(super) fn cgroup_mount(line: &str) -> Option<&str> {
    let fields: Vec<&str> = line.split(' ').collect();
    let end = fields.iter().skip(6).position(|field| *field == "-")? + 6;
    let kind = *fields.get(end + 1)?;
    let root = *fields.get(3)?;
    (matches!(kind, "cgroup" | "cgroup2") && root != "/").then_some(root)
}
