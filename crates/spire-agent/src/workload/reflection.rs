//! gRPC server reflection: what a socket serves, for tools such as grpcurl.

use ah_identity_provider::{Code, Explained};
use ah_spire_wire::DESCRIPTORS;
use tonic::service::Routes;
use tonic_reflection::pb::{v1, v1alpha};
use tonic_reflection::server::{Builder, Error};

use super::{Config, health, sds, service};

/// The names of both versions of the service.
pub(crate) const SERVICES: [&str; 2] = [
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
];

/// What `config` has served.
pub(super) fn names(config: &Config) -> impl Iterator<Item = &'static str> + Clone {
    let workload_api = (!config.disabled).then_some(service::SERVICE);
    let sds = config.sds.as_ref().map(|_| sds::SERVICE);
    let names = workload_api.into_iter().chain(sds);
    names.chain([health::SERVICE])
}

/// Both versions, about services of these names and themselves.
pub(crate) fn routes(
    names: impl IntoIterator<Item = &'static str, IntoIter: Clone>,
) -> Result<Routes, Explained> {
    build(names.into_iter()).map_err(|error| {
        let cause = match error {
            Error::DecodeError(error) => error.to_string(),
            Error::InvalidFileDescriptorSet(why) => why,
        };
        Explained::new(Code::Other, "the descriptions of the APIs cannot be read").cause(cause)
    })
}

fn build(names: impl Iterator<Item = &'static str> + Clone) -> Result<Routes, Error> {
    let builder = || {
        let described = [
            DESCRIPTORS,
            v1::FILE_DESCRIPTOR_SET,
            v1alpha::FILE_DESCRIPTOR_SET,
        ];
        let builder = described.iter().fold(
            Builder::configure().include_reflection_service(false),
            |builder, set| builder.register_encoded_file_descriptor_set(set),
        );
        let names = names.clone().chain(SERVICES);
        names.fold(builder, Builder::with_service_name)
    };
    Ok(Routes::new(builder().build_v1()?).add_service(builder().build_v1alpha()?))
}
