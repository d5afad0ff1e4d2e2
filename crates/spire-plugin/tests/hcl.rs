//! HCL 1 and its JSON form as the configuration files of SPIRE use them (SR-6).

#![expect(
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use ah_spire_plugin::hcl::{
    HclError, KeyStyle, MAX_DEPTH, MAX_SIZE, Object, Scalar, Value, parse, print,
};

/// The tree on one line: `key "label" = value;`, which shows quoted keys and texts alike in quotes.
fn shape(text: &str) -> String {
    shape_of(&parse(text).unwrap_or_else(|why| panic!("{text}\n{why}")))
}

fn shape_of(object: &Object) -> String {
    let mut shape = String::new();
    for item in &object.items {
        for key in &item.keys {
            match key.style {
                KeyStyle::Bare => shape += &key.name,
                KeyStyle::Quoted | KeyStyle::Json => shape += &format!("{:?}", key.name),
            }
            shape.push(' ');
        }
        shape += &format!("= {}; ", shape_of_value(&item.value));
    }
    shape.trim_end().to_owned()
}

fn shape_of_value(value: &Value) -> String {
    match value {
        Value::Literal(literal) => match &literal.scalar {
            Scalar::Number(text) => (**text).clone(),
            Scalar::Float(text) => format!("{text}f"),
            Scalar::Bool(value) => value.to_string(),
            Scalar::Text(text) => format!("{:?}", **text),
        },
        Value::List(list) => {
            let values: Vec<String> = list.values.iter().map(shape_of_value).collect();
            format!("[{}]", values.join(","))
        }
        Value::Object(object) => format!("{{ {} }}", shape_of(object)),
    }
}

fn error(text: &str) -> (usize, usize, String) {
    match parse(text) {
        Err(HclError { position, message }) => (position.line, position.column, message),
        Ok(object) => panic!("{text} was read as {}", shape_of(&object)),
    }
}

fn text_of(text: &str) -> String {
    let object = parse(&format!("k = {text}")).unwrap_or_else(|why| panic!("{text}\n{why}"));
    match &object.items[0].value {
        Value::Literal(literal) => match &literal.scalar {
            Scalar::Text(text) => (**text).clone(),
            _ => panic!("{text}"),
        },
        _ => panic!("{text}"),
    }
}

// SR-6
#[test]
fn several_attributes_stand_on_one_line() {
    assert_eq!(
        shape(r#"server { bind_address = "0.0.0.0" bind_port = "8081" data_dir="/x" }"#),
        r#"server = { bind_address = "0.0.0.0"; bind_port = "8081"; data_dir = "/x"; };"#
    );
    assert_eq!(shape("a=1b=2,c=3,"), "a = 1; b = 2; c = 3;");
}

// SR-6
#[test]
fn keys_are_bare_or_quoted_and_blocks_have_labels() {
    assert_eq!(
        shape(
            r#"NodeAttestor "join_token" { plugin_data {} } "quoted" = 1 a-b.c_d = 2 "x" "y" z { }"#
        ),
        r#"NodeAttestor "join_token" = { plugin_data = {  }; }; "quoted" = 1; a-b.c_d = 2; "x" "y" z = {  };"#
    );
}

// SR-6
#[test]
fn an_assigned_block_is_a_block() {
    assert_eq!(shape("plugin_data = {}"), shape("plugin_data {}"));
    assert_eq!(shape("a = { b = 1 }"), shape("a { b = 1 }"));
}

// SR-6
#[test]
fn comments_have_three_forms() {
    let text = "# one\n// two\na = 1 # three\n/* four\nfive **/ b /* six */ = // seven\n 2 /**/ c = [1, # eight\n 2]";
    assert_eq!(shape(text), "a = 1; b = 2; c = [1,2];");
}

// SR-6
#[test]
fn numbers_keep_how_they_were_written() {
    assert_eq!(
        shape("a=0 b=-7 c=0x1F d=0644 e=1.5 f=-1e3 g=2.5E-2 h=.5 i=0.25 j=08"),
        "a = 0; b = -7; c = 0x1F; d = 0644; e = 1.5f; f = -1e3f; g = 2.5E-2f; h = .5f; i = 0.25f; j = 08;"
    );
}

#[test]
fn lists_nest_and_forgive_commas() {
    assert_eq!(
        shape(r#"a = [] b = [,1,,"x",] c = [[1,2] [3]] d = [{x=1}, {y=2},]"#),
        r#"a = []; b = [1,"x"]; c = [[1,2],[3]]; d = [{ x = 1; },{ y = 2; }];"#
    );
}

#[test]
fn texts_have_go_escapes() {
    let cases = [
        (r#""""#, ""),
        (r#""a\tb\n\"c\"\\""#, "a\tb\n\"c\"\\"),
        (r#""\a\b\f\r\v""#, "\u{7}\u{8}\u{c}\r\u{b}"),
        (r#""\x41\101\u00e9\U0001F600""#, "AAé😀"),
        (r#""\xc3\xa9""#, "é"),
        (r#""\ud800""#, "\u{fffd}"),
        ("\"grüße 世界\"", "grüße 世界"),
    ];
    for (text, value) in cases {
        assert_eq!(text_of(text), value, "{text}");
    }
}

#[test]
fn interpolations_are_left_as_they_are() {
    let cases = [
        (r#""${file("x")}""#, r#"${file("x")}"#),
        (r#""a ${ {b} \" } \n""#, "a ${ {b} \\\" } \n"),
        ("\"${a\nb}\"", "${a\nb}"),
        (r#""$x $$ {}""#, "$x $$ {}"),
    ];
    for (text, value) in cases {
        assert_eq!(text_of(text), value, "{text}");
    }
}

// SR-6
#[test]
fn heredocs_keep_or_lose_their_indentation() {
    assert_eq!(text_of("<<EOF\none\n  two\n\nEOF\n"), "one\n  two\n\n");
    assert_eq!(text_of("<<EOF\nEOF\n"), "");
    assert_eq!(text_of("<<EOF\n  one\n  EOF\n"), "  one\n  ");
    assert_eq!(
        text_of("<<-EOF\n    one\n      two\n    EOF\n"),
        "one\n  two\n"
    );
    assert_eq!(
        text_of("<<-EOF\n    one\n  two\n    EOF\n"),
        "    one\n  two\n"
    );
    assert_eq!(
        text_of("<<-EOF\n  one\n\n  two\n  EOF\n"),
        "  one\n\n  two\n"
    );
    assert_eq!(text_of("<<EOF\n\"q\" \\n ${x}\nEOF\n"), "\"q\" \\n ${x}\n");
    assert_eq!(text_of("<<X1_y\r\none\r\nX1_y\r\n"), "one\n");
    assert_eq!(
        shape("a = <<EOF\nx\nEOF\nb = [<<E\ny\nE\n, 1]"),
        r#"a = "x\n"; b = ["y\n",1];"#
    );
}

// SR-6
#[test]
fn windows_line_ends_count_as_line_ends() {
    assert_eq!(shape("a = 1\r\nb = 2\r\n"), "a = 1; b = 2;");
    assert_eq!(error("a = 1\r\nb ! 2").0, 2);
}

// SR-6
#[test]
fn errors_give_place_and_what_was_expected() {
    let cases = [
        (
            "a = ",
            1,
            5,
            "expected a value after \"=\", found the end of the text",
        ),
        (
            "a = foo",
            1,
            5,
            "expected a value after \"=\", found \"foo\"; texts need double quotes",
        ),
        (
            "agent {\n  a = 1\n",
            3,
            1,
            "expected a key or \"}\", found the end of the text",
        ),
        ("}", 1, 1, "expected a key, found \"}\""),
        (
            "a b = 1",
            1,
            5,
            "expected \"{\" after \"a\" and its label, found \"=\"",
        ),
        ("= 1", 1, 1, "expected a key, found \"=\""),
        (
            "{ a = 1 }",
            1,
            3,
            "expected a key in double quotes or \"}\"",
        ),
        (
            "a",
            1,
            2,
            "expected \"=\" or \"{\" after the key \"a\", found the end of the text",
        ),
        ("a {{}}", 1, 4, "expected a key or \"}\", found \"{\""),
        (
            "a = [1 2]",
            1,
            8,
            "expected \",\" or \"]\" in a list, found a number",
        ),
        (
            "a = [1, x]",
            1,
            9,
            "expected a value or \"]\" in a list, found \"x\"",
        ),
        ("a = 1,, b = 2", 1, 7, "expected a key, found \",\""),
        (
            "a = \"x\nb = 1",
            1,
            5,
            "the quoted text is not closed on its line; expected '\"'",
        ),
        (
            "ä = \"\\q\"",
            1,
            6,
            "illegal escape in a text: \"\\q\"; write \"\\\\\" for a backslash",
        ),
        (
            "a = \"\\xff\"",
            1,
            5,
            "the escapes of the text do not make up UTF-8",
        ),
        (
            "a = \"\\777\"",
            1,
            6,
            "illegal escape in a text: expected three octal digits, at most \\377",
        ),
        (
            "\n\n  a = 'x'",
            3,
            7,
            "unexpected character '\\''; texts need double quotes",
        ),
        (
            "a = 1 / b",
            1,
            7,
            "expected a comment, \"//\" or \"/*\", after \"/\"",
        ),
        (
            "a = 1 /* b",
            1,
            7,
            "the comment is not closed; expected \"*/\"",
        ),
        ("a = 0x", 1, 7, "expected hexadecimal digits after \"0x\""),
        ("a = 1e", 1, 7, "expected digits in the exponent"),
        (
            "a = -",
            1,
            5,
            "expected a value, found \"-\" without a number",
        ),
        ("a = <EOF", 1, 6, "expected a second \"<\" for a heredoc"),
        (
            "a = <<\n",
            1,
            7,
            "expected a word after \"<<\" that ends the heredoc",
        ),
        (
            "a = <<E F\n",
            1,
            8,
            "expected the end of the line after the word that opens a heredoc",
        ),
        (
            "a = <<EOF\nb\n",
            1,
            5,
            "the heredoc is not closed; expected a line with EOF alone",
        ),
        (
            "a = \u{0}",
            1,
            5,
            "unexpected character '\\0'; texts need double quotes",
        ),
        ("true = 1", 1, 1, "expected a key, found \"true\""),
    ];
    for (text, line, column, message) in cases {
        assert_eq!(error(text), (line, column, message.to_owned()), "{text}");
    }
}

#[test]
fn errors_show_no_texts() {
    for text in [
        r#"join_token "hunter2""#,
        r#"a = ["hunter2" "hunter2"]"#,
        r#"{"a": ["hunter2" "hunter2"]}"#,
    ] {
        assert!(!error(text).2.contains("hunter2"), "{text}");
    }
}

#[test]
fn size_and_depth_are_bounded() {
    let (_, _, message) = error(&" ".repeat(MAX_SIZE + 1));
    assert!(message.contains("bytes"), "{message}");
    let blocks = |depth: usize| "a {".repeat(depth) + &"}".repeat(depth);
    let lists = |depth: usize| format!("a = {}{}", "[".repeat(depth), "]".repeat(depth));
    for nested in [&blocks as &dyn Fn(usize) -> String, &lists] {
        assert!(parse(&nested(MAX_DEPTH)).is_ok());
        assert!(error(&nested(MAX_DEPTH + 1)).2.contains("nested"));
        assert!(error(&nested(100_000)).2.contains("nested"));
    }
    assert!(error(&r#"{"a":"#.repeat(100_000)).2.contains("nested"));
}

#[test]
fn json_says_the_same() {
    let json = r#" {
        "agent": { "data_dir": "./x", "server_port": 8081, "on": true, "none": null, "list": ["a", "b",] },
        "plugins": {
            "NodeAttestor": { "join_token": { "plugin_data": {} } },
            "KeyManager": [ { "memory": { "plugin_data": { "a": 1 } } } ]
        },
        "telemetry": { "Statsd": [ { "address": "a" }, { "address": "b" } ] },
    } "#;
    assert_eq!(
        shape(json),
        r#""agent" = { "data_dir" = "./x"; "server_port" = 8081; "on" = true; "none" = ""; "list" = ["a","b"]; }; "#
            .to_owned()
            + r#""plugins" = { "NodeAttestor" "join_token" "plugin_data" = {  }; "#
            + r#""KeyManager" "memory" "plugin_data" = { "a" = 1; }; }; "#
            + r#""telemetry" = { "Statsd" = { "address" = "a"; }; "Statsd" = { "address" = "b"; }; };"#
    );
}

#[test]
fn json_texts_have_json_escapes() {
    assert_eq!(
        shape(r#"{"a": "\"\\\/\b\f\n\r\t\u00e9\ud83d\ude00${x\"y}"}"#),
        r#""a" = "\"\\/\u{8}\u{c}\n\r\té😀${x\"y}";"#
    );
}

#[test]
fn json_errors_give_their_place() {
    let cases = [
        ("{\n \"a\" 1}", 2, 6, "expected \":\" after the key \"a\""),
        (
            "{\"a\": 1 \"b\": 2}",
            1,
            9,
            "expected \",\" or \"}\" in an object",
        ),
        ("{\"a\": [1 2]}", 1, 10, "expected \",\" or \"]\" in a list"),
        (
            "{\"a\": 01}",
            1,
            7,
            "a number in JSON does not begin with 0",
        ),
        (
            "{\"a\": tru}",
            1,
            7,
            "expected a value: a text, number, true, false, null, \"{\" or \"[\"",
        ),
        (
            "{\"a\": \"\\q\"}",
            1,
            8,
            "illegal escape in a text; write \"\\\\\" for a backslash",
        ),
        (
            "{\"a\": \"\\ud800\\u0041\"}",
            1,
            8,
            "the second half of the character is none",
        ),
        (
            "{} {}",
            1,
            4,
            "expected the end of the text after the closing \"}\"",
        ),
        ("{", 1, 2, "expected a key in double quotes or \"}\""),
    ];
    for (text, line, column, message) in cases {
        assert_eq!(error(text), (line, column, message.to_owned()), "{text}");
    }
}

#[test]
fn what_is_printed_reads_back_the_same() {
    let texts = [
        r#"a "b" c { d = [1, "x", { y = "z" }, [true]] "e f" = 0x1F g { } h = 1.5 }"#,
        "a = \"\\\"\\\\\\n\\t\\u0001${x \\\" y}\"\nb = <<EOF\n${unclosed\nEOF\n",
        r#"{"a": {"b": {"c": 1}}, "true": "${", "d": [{"e": 1}]}"#,
    ];
    for text in texts {
        let first = parse(text).unwrap();
        let printed = print(&first);
        let second = parse(&printed).unwrap_or_else(|why| panic!("{}\n{why}", *printed));
        assert_eq!(shape_of(&first), shape_of(&second), "{}", *printed);
    }
}

mod properties {
    use proptest::prelude::*;

    use super::*;

    /// Texts that are nearly configurations.
    fn fragments() -> impl Strategy<Value = String> {
        let fragment = prop::sample::select(vec![
            "a",
            "agent",
            "\"k\"",
            " = ",
            "=",
            "{",
            "}",
            "[",
            "]",
            ",",
            "\n",
            " ",
            "1",
            "0x1f",
            "-2.5e3",
            "\"x${y}\"",
            "\"",
            "\\",
            "<<EOF\n",
            "<<-E\n",
            "EOF\n",
            "  E\n",
            "# c\n",
            "/* */",
            "//",
            "true",
            "${",
            "é",
            "\u{0}",
            ":",
            "\\u12",
            "null",
            ".",
            "e",
            "\r\n",
        ]);
        prop::collection::vec(fragment, 0..60).prop_map(|parts| parts.concat())
    }

    fn value(depth: u32) -> BoxedStrategy<String> {
        let leaf = prop_oneof![
            any::<i64>().prop_map(|number| number.to_string()),
            any::<bool>().prop_map(|value| value.to_string()),
            "[^\\\\\"$\\n\\r\\p{Cc}]{0,12}".prop_map(|text| format!("\"{text}\"")),
            "[a-z$ {}\\\\\"]{0,8}\n".prop_map(|text| format!("<<EOF\n{text}EOF\n")),
        ];
        leaf.prop_recursive(depth, 24, 4, |inner| {
            let key = "[a-z_]{1,6}x";
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4)
                    .prop_map(|values| format!("[{}]", values.join(","))),
                prop::collection::vec((key, inner), 0..4).prop_map(|items| {
                    let items: Vec<String> = items
                        .iter()
                        .map(|(key, value)| format!("{key} = {value}"))
                        .collect();
                    format!("{{{}}}", items.join(" "))
                }),
            ]
        })
        .boxed()
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "\\PC{0,200}") {
            let _ = parse(&text);
            let _ = parse(&format!("{{{text}"));
        }

        #[test]
        fn no_fragments_panic_and_what_is_read_is_printed(text in fragments()) {
            for text in [text.clone(), format!("{{{text}")] {
                if let Ok(object) = parse(&text) {
                    let printed = print(&object);
                    let again = parse(&format!("\n{}", *printed)).map_err(|why| TestCaseError::fail(why.to_string()))?;
                    prop_assert_eq!(shape_of(&object).replace('"', ""), shape_of(&again).replace('"', ""));
                }
            }
        }

        #[test]
        fn configurations_survive_printing(value in value(4)) {
            let object = parse(&format!("k = {value}")).map_err(|why| TestCaseError::fail(format!("{value}: {why}")))?;
            let again = parse(&print(&object)).map_err(|why| TestCaseError::fail(why.to_string()))?;
            prop_assert_eq!(shape_of(&object), shape_of(&again));
        }
    }
}
