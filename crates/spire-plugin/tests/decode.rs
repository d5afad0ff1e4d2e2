//! How values become fields: the looseness and the strictness of HashiCorp's decoder (SR-3, SR-6).

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::collections::BTreeMap;

use ah_spire_plugin::config_block;
use ah_spire_plugin::decode::{Deferred, from_object};
use ah_spire_plugin::hcl::{parse, print};

config_block! {
    struct Sink {
        address: String = "address",
        env: String = "env",
    }
}

config_block! {
    struct Inner {
        port: i64 = "port",
        names: Vec<String> = "names",
    }
}

config_block! {
    struct Outer {
        text: String = "text",
        number: i64 = "number",
        ratio: f64 = "ratio",
        on: bool = "on",
        maybe: Option<bool> = "maybe",
        inner: Inner = "inner",
        optional: Option<Inner> = "optional",
        sinks: Vec<Sink> = "Sinks",
        by_name: BTreeMap<String, Inner> = "by_name",
        later: Deferred = "later",
    }
}

fn read(text: &str) -> Outer {
    from_object(&parse(text).unwrap()).unwrap_or_else(|why| panic!("{text}\n{why}"))
}

fn error(text: &str) -> String {
    match from_object::<Outer>(&parse(text).unwrap()) {
        Err(why) => why.to_string(),
        Ok(_) => panic!("{text} was decoded"),
    }
}

// SR-3
#[test]
fn a_number_may_be_a_text_and_a_text_a_number() {
    let outer = read(r#"number = "8081" text = 10255 ratio = 2"#);
    assert_eq!(
        (outer.number, outer.text.as_str(), outer.ratio),
        (8081, "10255", 2.0)
    );
    assert_eq!(read("number = 0x1F91").number, 8081);
    assert_eq!(read(r#"number = "-0o17""#).number, -15);
    assert_eq!(read("text = <<E\na\nE\n").text, "a\n");
}

#[test]
fn what_is_neither_is_refused_with_its_place() {
    let cases = [
        (
            r#"on = "true""#,
            "line 1, column 6: on: expected true or false without quotes, found a text",
        ),
        (
            "on = 1",
            "line 1, column 6: on: expected true or false without quotes, found a number",
        ),
        (
            "text = true",
            "line 1, column 8: text: expected a text in quotes, found true or false",
        ),
        (
            "text = 1.5",
            "line 1, column 8: text: expected a text in quotes, found a number with a fraction",
        ),
        (
            "text { }",
            "line 1, column 6: text: expected a text in quotes, found a block",
        ),
        (
            "text = [\"a\"]",
            "line 1, column 8: text: expected a text in quotes, found a list",
        ),
        (
            "number = 1.5",
            "line 1, column 10: number: expected a whole number, found a number with a fraction",
        ),
        (
            "number = 08",
            "line 1, column 10: number: expected a whole number, which it is not",
        ),
        (
            r#"number = """#,
            "line 1, column 10: number: expected a whole number, which it is not",
        ),
        (
            "number = 9223372036854775808",
            "line 1, column 10: number: expected a whole number, and it is out of range",
        ),
        (
            r#"ratio = "1.5""#,
            "line 1, column 9: ratio: expected a number, found a text",
        ),
        (
            "inner = 1",
            "line 1, column 9: inner: expected a block, found a number",
        ),
        (
            "inner = [{ port = 1 }]",
            "line 1, column 9: inner: expected a block, found a list",
        ),
        (
            "inner {\n  names = \"x\"\n}",
            "line 2, column 11: inner.names: expected a list, found a text",
        ),
        (
            "inner {\n  names = [\"x\", true]\n}",
            "line 2, column 17: inner.names[1]: expected a text in quotes, found true or false",
        ),
        (
            "Sinks = [1]",
            "line 1, column 10: Sinks[0]: expected a block, found a number",
        ),
    ];
    for (text, message) in cases {
        assert_eq!(error(text), message, "{text}");
    }
}

#[test]
fn what_comes_twice_is_replaced_added_to_or_merged() {
    let outer =
        read("number = 1 NUMBER = 2 inner { port = 1 names = [\"a\"] } inner { names = [\"b\"] }");
    assert_eq!(outer.number, 2);
    assert_eq!(
        (outer.inner.port, outer.inner.names),
        (1, vec!["a".to_owned(), "b".to_owned()])
    );
    let outer = read("optional { port = 3 } optional { }");
    assert_eq!(outer.optional.unwrap().port, 3);
    assert!(read("").optional.is_none() && read("").maybe.is_none());
    assert_eq!(read("maybe = false").maybe, Some(false));
}

#[test]
fn lists_of_blocks_have_several_forms() {
    let addresses = |text: &str| -> Vec<String> {
        read(text)
            .sinks
            .into_iter()
            .map(|sink| sink.address)
            .collect()
    };
    assert_eq!(
        addresses(r#"Sinks = [{ address = "a" }, { address = "b", env = "e" }]"#),
        ["a", "b"]
    );
    assert_eq!(
        addresses(r#"sinks { address = "a" } Sinks { address = "b" }"#),
        ["a", "b"]
    );
    assert_eq!(addresses(r#"Sinks = []"#), [""; 0]);
    assert_eq!(
        addresses(r#"{"Sinks": [{"address": "a", "env": "x"}, {"address": "b"}]}"#),
        ["a", "b"]
    );
    assert_eq!(addresses(r#"Sinks { address = "a" env = "e" }"#), ["a"]);
}

#[test]
fn labels_are_keys_of_a_map() {
    let ports = |text: &str| -> Vec<(String, i64)> {
        read(text)
            .by_name
            .into_iter()
            .map(|(name, inner)| (name, inner.port))
            .collect()
    };
    let expected = [("a".to_owned(), 1), ("b".to_owned(), 2)];
    assert_eq!(
        ports(r#"by_name "a" { port = 1 } by_name "b" { port = 2 }"#),
        expected
    );
    assert_eq!(
        ports(r#"by_name { "a" { port = 1 } b = { port = "2" } }"#),
        expected
    );
    assert_eq!(
        ports(r#"{"by_name": {"a": {"port": 1}, "b": {"port": 2}}}"#),
        expected
    );
}

#[test]
fn unknown_keys_are_found_where_upstream_finds_them() {
    let unknown = |text: &str| read(text).unknown.to_string();
    assert_eq!(
        unknown("text = \"x\"\n  oops = 1\noops = 2 Other {}"),
        "\"Other\" (line 3, column 10), \"oops\" (line 2, column 3; line 3, column 1)"
    );
    assert_eq!(unknown("TEXT = \"x\""), "");
    assert_eq!(
        read("inner {\n oops = 1 }").inner.unknown.to_string(),
        "\"oops\" (line 2, column 2)"
    );
    assert_eq!(
        unknown("txet = 1"),
        "\"txet\" (line 1, column 1; did you mean \"text\"?)"
    );
    // Not quoted ones, and labelled blocks only as the first item.
    assert_eq!(unknown(r#""oops" = 1"#), "");
    assert_eq!(
        unknown(r#"oops "label" { }"#),
        "\"oops\" (line 1, column 1)"
    );
    assert_eq!(unknown(r#"number = 1 oops "label" { }"#), "");
    assert_eq!(
        unknown(r#"by_name oops { }"#),
        "\"oops\" (line 1, column 9)"
    );
    // JSON: the key itself, not those inside it.
    assert_eq!(
        unknown(r#"{"oops": {"a": {"b": 1}}}"#),
        "\"oops\" (line 1, column 2)"
    );
    assert_eq!(unknown(r#"{"later": {"a": {"b": {}}}}"#), "");
}

#[test]
fn a_deferred_block_is_kept_and_not_given_twice() {
    let later = |text: &str| print(&read(text).later.0.unwrap()).trim().to_owned();
    assert_eq!(later("later { a = 1 }"), "a = 1");
    assert_eq!(later("later = { a = 1 }"), "a = 1");
    assert_eq!(
        later(r#"later "x" { a = 1 } later "y" { }"#),
        "\"x\" {\n  a = 1\n}\n\"y\" {}"
    );
    assert_eq!(
        error("later { }\nlater { }"),
        "line 2, column 7: later: given a second time; put everything into the first one (line 1, column 7)"
    );
    assert_eq!(
        error("later = 1"),
        "line 1, column 9: later: expected a block, found a number"
    );
}

mod properties {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn nothing_that_parses_panics(parts in prop::collection::vec(prop::sample::select(vec![
            "inner", "optional", "Sinks", "by_name", "later", "text", "number", "on", " \"l\"", " {", "} ", " = ",
            "[", "] ", ", ", "1 ", "\"x\" ", "true ", "{", "port = 1 ",
        ]), 0..40)) {
            if let Ok(object) = parse(&parts.concat()) {
                let _ = from_object::<Outer>(&object);
            }
        }
    }
}
