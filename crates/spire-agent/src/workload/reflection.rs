//! gRPC server reflection: what the socket serves, for tools such as grpcurl.

use ah_identity_provider::{Code, Explained};
use ah_spire_wire::DESCRIPTORS;
use tonic::service::Routes;
use tonic_reflection::pb::{v1, v1alpha};
use tonic_reflection::server::{Builder, Error};

use super::{Config, health, sds, service};

/// The names of both versions of the service.
pub(super) const SERVICES: [&str; 2] = [
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
];

/// Both versions, about what `config` has served.
pub(super) fn routes(config: &Config) -> Result<Routes, Explained> {
    build(config).map_err(|error| {
        let cause = match error {
            Error::DecodeError(error) => error.to_string(),
            Error::InvalidFileDescriptorSet(why) => why,
        };
        Explained::new(Code::Other, "the descriptions of the APIs cannot be read").cause(cause)
    })
}

fn build(config: &Config) -> Result<Routes, Error> {
    let builder = || {
        let workload_api = (!config.disabled).then_some(service::SERVICE);
        let sds = config.sds.as_ref().map(|_| sds::SERVICE);
        let names = workload_api.into_iter().chain(sds);
        let names = names.chain([health::SERVICE]).chain(SERVICES);
        let described = [
            DESCRIPTORS,
            v1::FILE_DESCRIPTOR_SET,
            v1alpha::FILE_DESCRIPTOR_SET,
        ];
        let builder = described.iter().fold(
            Builder::configure().include_reflection_service(false),
            |builder, set| builder.register_encoded_file_descriptor_set(set),
        );
        names.fold(builder, Builder::with_service_name)
    };
    Ok(Routes::new(builder().build_v1()?).add_service(builder().build_v1alpha()?))
}
