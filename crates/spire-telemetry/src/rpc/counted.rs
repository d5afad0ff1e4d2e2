//! The service that counts. A call ends with the trailers of its answer.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use hyper::body::{Frame, SizeHint};
use pin_project_lite::pin_project;
use tonic::body::Body;
use tonic::{Code, Status};
use tower::Service;

use super::RpcMetrics;
use crate::metrics::Running;

/// What [`RpcMetrics`] makes of a service.
#[derive(Clone, Debug)]
pub struct Counted<S> {
    inner: S,
    metrics: RpcMetrics,
}

impl<S> Counted<S> {
    pub(super) fn new(inner: S, metrics: RpcMetrics) -> Self {
        Self { inner, metrics }
    }
}

impl<S, B> Service<Request<B>> for Counted<S>
where
    S: Service<Request<B>, Response = Response<Body>, Error = Infallible>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Answering<S::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        Answering {
            running: self.metrics.start(request.uri().path()),
            inner: self.inner.call(request),
        }
    }
}

pin_project! {
    /// Until the headers of the answer are there.
    pub struct Answering<F> {
        #[pin]
        inner: F,
        running: Option<Running>,
    }
}

impl<F> Future for Answering<F>
where
    F: Future<Output = Result<Response<Body>, Infallible>>,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let response = match ready!(this.inner.poll(context)) {
            Ok(response) => response,
            Err(never) => match never {},
        };
        let Some(running) = this.running.take() else {
            return Poll::Ready(Ok(response));
        };
        // An answer without messages has its status in the headers.
        if let Some(code) = code_in(response.headers()) {
            running.done(code);
            return Poll::Ready(Ok(response));
        }
        let counted = response.map(|inner| {
            Body::new(CountedBody {
                inner,
                running: Some(running),
            })
        });
        Poll::Ready(Ok(counted))
    }
}

fn code_in(headers: &HeaderMap) -> Option<Code> {
    Some(Status::from_header_map(headers)?.code())
}

/// An answer under way. One that is cut counts as canceled.
struct CountedBody {
    inner: Body,
    running: Option<Running>,
}

impl CountedBody {
    fn done(&mut self, code: Code) {
        if let Some(running) = self.running.take() {
            running.done(code);
        }
    }
}

impl hyper::body::Body for CountedBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = ready!(Pin::new(&mut self.inner).poll_frame(context));
        match &frame {
            Some(Ok(frame)) => {
                if let Some(trailers) = frame.trailers_ref() {
                    let code = code_in(trailers).unwrap_or(Code::Unknown);
                    self.done(code);
                }
            }
            Some(Err(status)) => {
                let code = status.code();
                self.done(code);
            }
            None => self.done(Code::Unknown),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests;
