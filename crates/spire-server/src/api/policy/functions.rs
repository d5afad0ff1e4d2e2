//! The functions that a policy calls, by its syntax tree. `regorus` looks for a function only when it gets to the call,
//! and follows one that calls itself until the stack ends, so both are looked for before anything is judged.

use std::collections::{BTreeMap, BTreeSet};

use regorus::Engine;
use regorus::unstable::BUILTINS;
use serde_json::Value;

/// How the policy's own functions may be called with the whole name.
const OWN: &str = "data.spire.";

/// What cannot be called, after its place: `line:column: why`.
pub(super) fn check(engine: &Engine) -> Result<(), String> {
    let tree = engine
        .get_ast_as_json()
        .map_err(|error| error.to_string())?;
    let tree = serde_json::from_str::<Value>(&tree)
        .map_err(|error| format!("1:1: expressions are nested too deeply: {error}"))?;
    let mut found = Functions::default();
    found.look(&tree, None);
    found.check()
}

/// The functions of a policy.
#[derive(Default)]
struct Functions {
    defined: BTreeSet<String>,
    calls: Vec<Call>,
}

struct Call {
    function: String,
    /// `line:column`
    place: String,
    /// The function that calls.
    within: Option<String>,
}

impl Functions {
    fn look(&mut self, node: &Value, within: Option<&str>) {
        match node {
            Value::Array(all) => all.iter().for_each(|node| self.look(node, within)),
            Value::Object(all) => {
                for (kind, node) in all {
                    let mut within = within.map(str::to_owned);
                    match kind.as_str() {
                        "Call" => self.calls.extend(call(node, within.clone())),
                        "Spec" => {
                            let head = node.get("head").and_then(|head| head.get("Func"));
                            let name = head.and_then(|head| name_in(head.get("refr")?));
                            self.defined.extend(name.clone());
                            within = name.or(within);
                        }
                        "Default" => self.defined.extend(node.get("refr").and_then(name_in)),
                        _ => {}
                    }
                    self.look(node, within.as_deref());
                }
            }
            _ => {}
        }
    }

    fn check(&self) -> Result<(), String> {
        let mut calls = BTreeMap::<&str, BTreeSet<&str>>::new();
        for call in &self.calls {
            match (self.own(&call.function), &call.within) {
                (Some(own), Some(within)) => {
                    calls.entry(within).or_default().insert(own);
                }
                (Some(_), None) => {}
                (None, _) if is_there(&call.function) => {}
                (None, _) => {
                    let Call {
                        function, place, ..
                    } = call;
                    return Err(format!("{place}: there is no function \"{function}\" here"));
                }
            }
        }
        for call in &self.calls {
            let (Some(own), Some(within)) = (self.own(&call.function), &call.within) else {
                continue;
            };
            if reaches(&calls, own, within) {
                let place = &call.place;
                return Err(format!("{place}: function \"{within}\" calls itself"));
            }
        }
        Ok(())
    }

    /// The policy's own function of that name.
    fn own<'a>(&self, name: &'a str) -> Option<&'a str> {
        let name = name.strip_prefix(OWN).unwrap_or(name);
        self.defined.contains(name).then_some(name)
    }
}

/// Whether a call of `from` comes to `to`.
fn reaches(calls: &BTreeMap<&str, BTreeSet<&str>>, from: &str, to: &str) -> bool {
    let mut seen = BTreeSet::new();
    let mut ahead = vec![from];
    while let Some(next) = ahead.pop() {
        if next == to {
            return true;
        }
        if seen.insert(next) {
            ahead.extend(calls.get(next).into_iter().flatten().copied());
        }
    }
    false
}

/// A function of the language.
fn is_there(name: &str) -> bool {
    BUILTINS.contains_key(name) || name == "print"
}

fn call(node: &Value, within: Option<String>) -> Option<Call> {
    let number = |key: &str| node.get("span")?.get(key)?.as_u64();
    let numbers = ["line", "col"].map(|key| number(key).unwrap_or_default());
    Some(Call {
        function: name_in(node.get("fcn")?)?,
        place: numbers.map(|it| it.to_string()).join(":"),
        within,
    })
}

/// `regex.match`
fn name_in(node: &Value) -> Option<String> {
    if let Some(variable) = node.get("Var") {
        return Some(variable.get("value")?.as_str()?.to_owned());
    }
    let dotted = node.get("RefDot")?;
    let before = name_in(dotted.get("refr")?)?;
    let last = dotted.get("field")?.get(1)?.as_str()?;
    Some(format!("{before}.{last}"))
}
