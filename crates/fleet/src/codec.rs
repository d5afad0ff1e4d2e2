//! Message codec with buffers sized for heartbeats, not for bulk data.

use prost::Message;
use tonic::codec::{BufferSettings, Codec};
use tonic_prost::{ProstCodec, ProstDecoder, ProstEncoder};

/// Largest message either side accepts, in bytes (stated in `fleet.proto`).
pub const MAX_MESSAGE_BYTES: usize = 65_536;

/// Start size of a stream's two buffers in bytes. A heartbeat has 12 bytes; tonic's default of 8 KiB each
/// would cost an idle executor more than its TLS connection does.
const BUFFER_BYTES: usize = 128;

/// The protobuf codec of the fleet protocol.
#[derive(Debug, Clone)]
pub(crate) struct FleetCodec<T, U>(ProstCodec<T, U>);

impl<T, U> Default for FleetCodec<T, U> {
    fn default() -> Self {
        Self(ProstCodec::default())
    }
}

impl<T, U> Codec for FleetCodec<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = ProstDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstCodec::<T, U>::raw_encoder(BufferSettings::new(BUFFER_BYTES, MAX_MESSAGE_BYTES))
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstCodec::<T, U>::raw_decoder(BufferSettings::new(BUFFER_BYTES, MAX_MESSAGE_BYTES))
    }
}
