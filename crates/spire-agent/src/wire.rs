//! gRPC as far as APIs that hand out keys need it: messages in; one out, or a stream of them, in bytes that are wiped.

mod fields;

use bytes::{BufMut, Bytes};
use futures_util::{Stream, StreamExt, stream};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use http_body_util::StreamBody;
use hyper::body::{Frame, Incoming};
use prost::Message;
use tokio::sync::watch;
use tonic::body::Body;
use tonic::codec::{Codec, Streaming};
use tonic::{Code, Status};
use tonic_prost::ProstCodec;
use zeroize::Zeroizing;

pub(crate) use fields::Fields;

/// The largest request, in bytes: a JWT-SVID, or a long list of audiences.
pub(crate) const MAX_REQUEST_BYTES: usize = 64 * 1024;

/// The one message of `request`.
pub(crate) async fn message<M>(request: Request<Incoming>) -> Result<M, Status>
where
    M: Message + Default + 'static,
{
    message_up_to(request, MAX_REQUEST_BYTES).await
}

/// The one message of `request`, of `limit` bytes at most.
pub(crate) async fn message_up_to<M>(request: Request<Incoming>, limit: usize) -> Result<M, Status>
where
    M: Message + Default + 'static,
{
    match messages(request, limit).message().await {
        Ok(Some(message)) => Ok(message),
        Ok(None) => Err(Status::internal("the request holds no message")),
        Err(error) if error.code() == Code::OutOfRange => Err(Status::resource_exhausted(format!(
            "the request is larger than {} KiB",
            limit / 1024
        ))),
        Err(error) => Err(error),
    }
}

/// The messages of `request`, each of `limit` bytes at most.
pub(crate) fn messages<M>(request: Request<Incoming>, limit: usize) -> Streaming<M>
where
    M: Message + Default + 'static,
{
    let decoder = ProstCodec::<M, M>::default().decoder();
    Streaming::new_request(decoder, request.into_body(), None, Some(limit))
}

/// `message` with the header of its frame. Wiped when its last copy goes.
pub(crate) fn framed(message: &[u8]) -> Bytes {
    let mut frame = Zeroizing::new(Vec::with_capacity(message.len() + 5));
    frame.put_u8(0);
    frame.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    frame.put_slice(message);
    Bytes::from_owner(frame)
}

/// The answer of a call that has one.
pub(crate) fn unary(answer: Result<Bytes, Status>) -> Response<Body> {
    match answer {
        Ok(message) => streaming(stream::iter([Ok(message)])),
        Err(status) => status.into_http(),
    }
}

/// The answer of a call that has many, or why it has none.
pub(crate) fn answered(
    stream: Result<impl Stream<Item = Result<Bytes, Status>> + Send + 'static, Status>,
) -> Response<Body> {
    match stream {
        Ok(stream) => streaming(stream),
        Err(status) => status.into_http(),
    }
}

/// Messages until the end or an error; it is asked for the next when there is room for it.
pub(crate) fn streaming(
    messages: impl Stream<Item = Result<Bytes, Status>> + Send + 'static,
) -> Response<Body> {
    let end = stream::iter([Err(Status::ok(""))]);
    // Whatever ends it is told in the trailers, and nothing comes after them.
    let frames = messages.chain(end).scan(false, |ended, message| {
        let frame = (!*ended).then(|| match message {
            Ok(message) => Ok::<_, Status>(Frame::data(message)),
            Err(status) => {
                *ended = true;
                Ok(Frame::trailers(trailers(&status)))
            }
        });
        std::future::ready(frame)
    });
    let mut response = Response::new(Body::new(StreamBody::new(Box::pin(frames))));
    let mut kind = HeaderValue::from_static("application/grpc");
    // Kept out of the connection's table of headers (RFC 7541 §6.2.3): an open stream would hold it for nothing.
    kind.set_sensitive(true);
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

/// What `encode` makes of the present value and of each later one, when there is room for it: who reads slowly skips what
/// is out of date. A value that it makes nothing of is passed over; an error ends the stream.
pub(crate) fn told<T: Clone + Send + Sync + 'static>(
    values: watch::Receiver<T>,
    encode: impl FnMut(&T) -> Result<Option<Bytes>, Status> + Send + 'static,
) -> impl Stream<Item = Result<Bytes, Status>> + Send + 'static {
    let mut values = values;
    values.mark_changed();
    stream::unfold(Some((values, encode)), |state| async move {
        let (mut values, mut encode) = state?;
        loop {
            if values.changed().await.is_err() {
                return Some((Err(Status::unavailable("the agent is stopping")), None));
            }
            let value = values.borrow_and_update().clone();
            match encode(&value) {
                Ok(Some(message)) => return Some((Ok(message), Some((values, encode)))),
                Ok(None) => {}
                Err(status) => return Some((Err(status), None)),
            }
        }
    })
}

fn trailers(status: &Status) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    if status.add_header(&mut trailers).is_err() {
        trailers.insert("grpc-status", HeaderValue::from_static("13"));
    }
    trailers
}

/// SV-69: the header of the API `name`, exactly one, and exactly `true`.
pub(crate) fn has_header(request: &Request<Incoming>, name: &str) -> bool {
    let mut values = request.headers().get_all(name).iter();
    values.next().is_some_and(|value| value == "true") && values.next().is_none()
}

/// Why `request` is no gRPC call.
pub(crate) fn not_grpc(request: &Request<Incoming>) -> Option<Response<Body>> {
    let kind = request.headers().get(header::CONTENT_TYPE);
    let grpc = kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"));
    let code = match (request.method() == http::Method::POST, grpc) {
        (true, true) => return None,
        (false, _) => StatusCode::METHOD_NOT_ALLOWED,
        (true, false) => StatusCode::UNSUPPORTED_MEDIA_TYPE,
    };
    let mut response = Response::new(Body::empty());
    *response.status_mut() = code;
    Some(response)
}
