//! gRPC server reflection v1 and v1alpha (public UDS), as section 4 of the inventory has it.

use ah_spire_wire::Channel;
use prost::Message;
use prost_types::FileDescriptorProto;
use tonic::Code;
use tonic_reflection::pb::{v1, v1alpha};

use super::rig::Rig;

/// What an answer of either version holds, which are alike but for their types.
macro_rules! ask {
    ($rig:expr, $version:ident, $request:expr) => {{
        use $version::server_reflection_client::ServerReflectionClient;
        use $version::server_reflection_request::MessageRequest;
        use $version::server_reflection_response::MessageResponse;
        let mut client = ServerReflectionClient::with_origin($rig.channel(), Channel::origin());
        let request = $version::ServerReflectionRequest {
            host: String::new(),
            message_request: Some($request),
        };
        let requests = tokio_stream::iter([request]);
        let mut answers = $rig
            .run(client.server_reflection_info(requests))
            .unwrap()
            .into_inner();
        let answer = $rig.run(answers.message()).unwrap().unwrap();
        match answer.message_response.unwrap() {
            MessageResponse::ListServicesResponse(list) => {
                list.service.into_iter().map(|it| it.name).collect()
            }
            MessageResponse::FileDescriptorResponse(files) => files
                .file_descriptor_proto
                .iter()
                .map(|file| {
                    FileDescriptorProto::decode(&**file)
                        .unwrap()
                        .name()
                        .to_owned()
                })
                .collect::<Vec<_>>(),
            other => panic!("{other:?}"),
        }
    }};
}

#[test]
fn the_socket_says_what_it_serves_in_both_versions() {
    let rig = Rig::new();
    let served = [
        "SpiffeWorkloadAPI",
        "envoy.service.secret.v3.SecretDiscoveryService",
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
    ];
    let all = String::new;
    let listed = ask!(rig, v1, MessageRequest::ListServices(all()));
    assert_eq!(listed, served);
    let listed = ask!(rig, v1alpha, MessageRequest::ListServices(all()));
    assert_eq!(listed, served);
    for (symbol, file) in [
        (served[0], "workload.proto"),
        (served[1], "envoy_secret.proto"),
        (served[3], "reflection_v1.proto"),
        ("google.protobuf.Struct", "google/protobuf/struct.proto"),
    ] {
        let symbol = || symbol.to_owned();
        let described = ask!(rig, v1, MessageRequest::FileContainingSymbol(symbol()));
        assert!(described[0].ends_with(file), "{described:?}");
        let described = ask!(rig, v1alpha, MessageRequest::FileContainingSymbol(symbol()));
        assert!(described[0].ends_with(file), "{described:?}");
    }
}

#[test]
fn what_is_off_is_not_listed() {
    let rig = Rig::with(|config| {
        config.disabled = true;
        config.sds = None;
    });
    let listed = ask!(rig, v1, MessageRequest::ListServices(String::new()));
    assert_eq!(listed[0], "grpc.health.v1.Health");
}

#[test]
fn an_unknown_symbol_and_an_unknown_service_are_told() {
    let rig = Rig::new();
    let mut client = v1::server_reflection_client::ServerReflectionClient::with_origin(
        rig.channel(),
        Channel::origin(),
    );
    let request = v1::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(
            v1::server_reflection_request::MessageRequest::FileContainingSymbol("no.Such".into()),
        ),
    };
    let answers = rig.run(client.server_reflection_info(tokio_stream::iter([request])));
    let mut answers = answers.unwrap().into_inner();
    let error = rig.run(answers.message()).err().unwrap();
    assert_eq!(error.code(), Code::NotFound);
}
