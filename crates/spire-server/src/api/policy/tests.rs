//! Policies in Rego (inventory section 5, `auth_opa_policy_engine`).

use std::fs;
use std::path::Path;
use std::sync::Arc;

use ah_spire_plugin::server::OpaPolicy;
use ah_spire_wire::DESCRIPTORS;
use ah_spire_wire::server::{agent, bundle, entry, logger, trustdomain};
use ah_spire_wire::types;
use prost::Message;
use prost_reflect::DescriptorPool;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::request::Requests;
use super::{Allowed, NOBODY, Question, RegoPolicy, allowed};

const CREATE: &str = "/spire.api.server.entry.v1.Entry/BatchCreateEntry";
const DELETE: &str = "/spire.api.server.entry.v1.Entry/BatchDeleteEntry";

fn open(folder: &Path, rego: &str, data: Option<&str>) -> Result<RegoPolicy, String> {
    let (rego_path, data_path) = (folder.join("p.rego"), folder.join("d.json"));
    fs::write(&rego_path, rego).unwrap();
    let policy_data_path = data.map(|data| {
        fs::write(&data_path, data).unwrap();
        data_path
    });
    RegoPolicy::load(&OpaPolicy {
        rego_path,
        policy_data_path,
    })
}

/// A policy of these rules, with upstream's defaults below them.
fn policy(rules: &str, data: &Value) -> RegoPolicy {
    let folder = TempDir::new().unwrap();
    open(folder.path(), &whole(rules), Some(&data.to_string())).unwrap()
}

fn whole(rules: &str) -> String {
    let names = [
        "allow",
        "allow_if_local",
        "allow_if_admin",
        "allow_if_downstream",
        "allow_if_agent",
    ];
    let fields = names.map(|name| format!("\"{name}\": {name},")).join(" ");
    let defaults = names
        .map(|name| format!("default {name} = false\n"))
        .concat();
    format!("package spire\nresult = {{ {fields} }}\n{defaults}{rules}")
}

fn question(caller: &str, method: &str, request: Value) -> Question {
    Question {
        caller: caller.into(),
        program: String::new(),
        method: method.into(),
        request,
    }
}

fn create(caller: &str, path: &str, admin: bool) -> Question {
    let request = entry::BatchCreateEntryRequest {
        entries: vec![types::Entry {
            spiffe_id: Some(types::Spiffeid {
                trust_domain: "example.org".into(),
                path: path.into(),
            }),
            admin,
            ..types::Entry::default()
        }],
        ..Default::default()
    };
    question(caller, CREATE, read(CREATE, &request))
}

fn read(path: &str, request: &impl Message) -> Value {
    let requests = Requests::new().unwrap();
    requests.read(path, &request.encode_to_vec()).unwrap()
}

#[test]
fn the_example_policy_says_what_the_built_in_one_says() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/spire-policy");
    let policy = RegoPolicy::load(&OpaPolicy {
        rego_path: folder.join("policy.rego"),
        policy_data_path: Some(folder.join("policy_data.json")),
    });
    let policy = policy.unwrap();
    let services = DescriptorPool::decode(DESCRIPTORS).unwrap();
    let mut given = 0;
    for service in services.services() {
        for method in service.methods() {
            let path = format!("/{}/{}", service.full_name(), method.name());
            let told = policy.judge(&question("", &path, Value::Null)).unwrap();
            assert_eq!(told, allowed(&path), "{path}");
            given += usize::from(told != NOBODY);
        }
    }
    assert!(given > 60, "{given}");
}

// What `encoding/json` of Go makes of upstream's messages.
#[test]
fn requests_look_as_with_upstream() {
    let list = "/spire.api.server.agent.v1.Agent/ListAgents";
    let request = agent::ListAgentsRequest {
        filter: Some(agent::list_agents_request::Filter {
            by_banned: Some(false),
            by_can_reattest: Some(true),
            ..Default::default()
        }),
        page_size: 5,
        ..Default::default()
    };
    let told = json!({
        "filter": { "by_banned": {}, "by_can_reattest": { "value": true } },
        "page_size": 5,
    });
    assert_eq!(read(list, &request), told);
    assert_eq!(read(list, &agent::ListAgentsRequest::default()), json!({}));

    let append = "/spire.api.server.bundle.v1.Bundle/AppendBundle";
    let request = bundle::AppendBundleRequest {
        x509_authorities: vec![types::X509Certificate {
            asn1: vec![1, 2, 3].into(),
            tainted: false,
        }],
        ..Default::default()
    };
    let told = json!({ "x509_authorities": [{ "asn1": "AQID" }] });
    assert_eq!(read(append, &request), told);

    let level = "/spire.api.server.logger.v1.Logger/SetLogLevel";
    let request = logger::SetLogLevelRequest {
        new_level: types::LogLevel::Debug.into(),
    };
    let number = i32::from(types::LogLevel::Debug);
    assert_eq!(read(level, &request), json!({ "new_level": number }));

    let federate = "/spire.api.server.trustdomain.v1.TrustDomain/BatchCreateFederationRelationship";
    let relationship = types::FederationRelationship {
        trust_domain: "partner.test".into(),
        ..Default::default()
    };
    let with = types::FederationRelationship {
        bundle_endpoint_profile: Some(
            types::federation_relationship::BundleEndpointProfile::HttpsSpiffe(
                types::HttpsspiffeProfile {
                    endpoint_spiffe_id: "spiffe://partner.test/server".into(),
                },
            ),
        ),
        ..relationship.clone()
    };
    let request = trustdomain::BatchCreateFederationRelationshipRequest {
        federation_relationships: vec![relationship, with],
        ..Default::default()
    };
    let profile =
        json!({ "HttpsSpiffe": { "endpoint_spiffe_id": "spiffe://partner.test/server" } });
    let told = json!({ "federation_relationships": [
        { "trust_domain": "partner.test", "BundleEndpointProfile": null },
        { "trust_domain": "partner.test", "BundleEndpointProfile": profile },
    ] });
    assert_eq!(read(federate, &request), told);

    // Streams have none, and neither have methods that nobody knows.
    let requests = Requests::new().unwrap();
    for stream in [
        "/spire.api.server.agent.v1.Agent/AttestAgent",
        "/grpc.health.v1.Health/Watch",
        "/no.such.Service/Method",
    ] {
        assert!(!requests.is_shown(stream));
        assert_eq!(requests.read(stream, b"\xff").unwrap(), Value::Null);
    }
    assert!(requests.read(list, b"\xff").is_err());
}

// The examples of upstream's document on the policy engine: who may create what, where.
#[test]
fn entries_are_created_where_the_caller_belongs() {
    let rules = "
allow = true if check_namespace

check_namespace if {
    input.full_method == \"/spire.api.server.entry.v1.Entry/BatchCreateEntry\"
    b = data.namespaces[_]
    b.user == input.caller
    regex.match(b.within, input.req.entries[_].spiffe_id.path)
    outside := object.get(b, \"without\", [])
    hits := {entry | entry := input.req.entries[_]; regex.match(outside[_], entry.spiffe_id.path)}
    count(hits) == 0
}
";
    let data = json!({ "namespaces": [
        { "user": "spiffe://example.org/finance", "within": "^/finance", "without": ["^/finance/emea"] },
        { "user": "spiffe://example.org/emea", "within": "^/finance/emea" },
    ] });
    let policy = policy(rules, &data);
    for (caller, path, may) in [
        ("finance", "/finance/a", true),
        ("finance", "/finance/emea/a", false),
        ("finance", "/hr", false),
        ("emea", "/finance/emea/a", true),
        ("emea", "/finance/a", false),
        ("stranger", "/finance/a", false),
    ] {
        let caller = format!("spiffe://example.org/{caller}");
        let told = policy.judge(&create(&caller, path, false)).unwrap();
        assert_eq!(told.anybody, may, "{caller} {path}");
        assert_eq!(
            Allowed {
                anybody: false,
                ..told
            },
            NOBODY
        );
    }
}

// The same document: no admin flag, and deletion by some alone.
#[test]
fn flags_callers_and_programs_are_looked_at() {
    let rules = "
allow_if_local if {
    input.full_method == \"/spire.api.server.entry.v1.Entry/BatchCreateEntry\"
    count({entry | entry := input.req.entries[_]; entry.admin == true}) == 0
}

allow if {
    input.full_method == \"/spire.api.server.entry.v1.Entry/BatchDeleteEntry\"
    input.caller in data.deleters
}

allow if input.caller_file_path == \"/usr/bin/controller\"
";
    let policy = policy(
        rules,
        &json!({ "deleters": ["spiffe://example.org/deleter"] }),
    );
    let judge = |question| policy.judge(&question).unwrap();
    assert!(judge(create("", "/a", false)).local);
    assert!(!judge(create("", "/a", true)).local);
    let delete = |caller| question(caller, DELETE, json!({ "ids": ["1"] }));
    assert!(judge(delete("spiffe://example.org/deleter")).anybody);
    assert_eq!(judge(delete("spiffe://example.org/other")), NOBODY);
    assert_eq!(judge(delete("")), NOBODY);
    let program = Question {
        program: "/usr/bin/controller".into(),
        ..delete("")
    };
    assert!(judge(program).anybody);
}

#[test]
fn what_is_wrong_with_a_policy_is_told_with_file_and_line() {
    let folder = TempDir::new().unwrap();
    let here = folder.path().display();
    let refused = |rego: &str, data: Option<&str>| open(folder.path(), rego, data).err().unwrap();
    let of = |rules: &str| refused(&whole(rules), None);
    // Rego v0, as upstream refuses it.
    let error = refused(
        "package spire\n\nallow = true {\n  input.caller == \"a\"\n}\n",
        None,
    );
    assert_eq!(
        error,
        format!(
            "experimental.auth_opa_policy_engine: rego_path {here}/p.rego:3:14: `if` keyword is required before rule body; policies are Rego v1, with `if` before the body of a rule"
        )
    );
    let error = of("allow if re_match(\"^/a\", input.caller)");
    let place = format!("{here}/p.rego:8:18: there is no function \"re_match\" here");
    assert!(error.ends_with(&place), "{error}");
    // Where no sample gets to.
    let error = of("allow if {\n  input.caller == \"never\"\n  http.send({}).status == 200\n}");
    assert!(
        error.contains("p.rego:10:") && error.contains("http.send"),
        "{error}"
    );
    // As upstream refuses it; here it would end the process.
    let error =
        of("a(x) := b(x)\nb(x) := data.spire.a(x)\nallow if { input.caller == \"never\"; a(1) }");
    assert!(
        error.ends_with("p.rego:8:10: function \"a\" calls itself"),
        "{error}"
    );
    // What the policy itself defines is there.
    let helped = "is_a(x) if x == \"a\"\nallow if is_a(input.caller)\nallow if data.spire.is_a(input.caller_file_path)";
    assert!(open(folder.path(), &whole(helped), None).is_ok());

    let error = refused("package other\nresult = {}\n", None);
    assert!(
        error.contains("p.rego") && error.contains("`package spire`"),
        "{error}"
    );
    let error = refused("package spire\nresult = { \"allow\": true }\n", None);
    assert!(
        error.contains("asked about /spire.api.server.bundle"),
        "{error}"
    );
    assert!(error.contains("no boolean \"allow_if_local\""), "{error}");
    let error = refused("package spire\nresult = 7\n", None);
    assert!(
        error.contains("its result is undefined, or no object"),
        "{error}"
    );
    let error = of("allow = 3 if input.caller == \"spiffe://sample.test/a\"");
    assert!(error.contains("no boolean \"allow\""), "{error}");

    let error = refused(&whole(""), Some("{\n  \"a\": 1,\n  b\n}"));
    assert!(
        error.contains(&format!("policy_data_path {here}/d.json:3:3: ")),
        "{error}"
    );
    let error = refused(&whole(""), Some("[]"));
    assert!(
        error.contains("d.json:1:1: it has to be a JSON object"),
        "{error}"
    );
    let missing = RegoPolicy::load(&OpaPolicy {
        rego_path: "/no/such.rego".into(),
        policy_data_path: None,
    });
    let error = missing.err().unwrap();
    assert!(
        error.contains("rego_path /no/such.rego: No such file"),
        "{error}"
    );
}

// A rule that contradicts itself for some calls, or thinks for too long: they are refused, and all others are judged.
#[tokio::test]
async fn an_error_at_a_call_allows_nothing() {
    let rules = "
allow = true if input.caller == \"b\"
allow = false if input.caller == \"b\"
allow if input.caller == \"a\"

# As with upstream, what a function cannot take lets in nobody; here it refuses.
forbidden(path) if to_number(path) > 7
allow if { input.caller == \"c\"; not forbidden(input.full_method) }

allow if {
    input.caller == \"d\"
    all := numbers.range(1, 10000)
    count([1 | some a in all; some b in all; some c in all; a + b == c]) > 0
}
";
    let policy = Arc::new(policy(rules, &json!({})));
    let judge = async |caller| policy.allowed(question(caller, CREATE, Value::Null)).await;
    assert!(judge("a").await.unwrap().anybody);
    assert_eq!(judge("z").await.unwrap(), NOBODY);
    for (caller, why) in [
        ("b", "rule conflicts with the following rule"),
        ("c", "number"),
        ("d", "exceeded time limit"),
    ] {
        let refused = judge(caller).await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::Unknown);
        let told = refused.message();
        assert!(told.starts_with("policy: ") && told.contains(why), "{told}");
        assert!(!told.contains("p.rego"), "{told}");
    }
    // Where it lies is for the server's log.
    for caller in ["b", "c"] {
        let logged = policy.judge(&question(caller, CREATE, Value::Null));
        let logged = logged.unwrap_err().to_string();
        assert!(logged.contains("p.rego:"), "{logged}");
    }
}
