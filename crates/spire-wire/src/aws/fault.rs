//! What AWS says when it says no.

use bytes::Bytes;
use http::{HeaderMap, Response, StatusCode};
use serde::Deserialize;

/// Codes of calls that come too often, or at a bad moment (the list of AWS's SDKs).
const PASSING: [&str; 16] = [
    "BandwidthLimitExceeded",
    "EC2ThrottledException",
    "LimitExceededException",
    "PriorRequestNotComplete",
    "ProvisionedThroughputExceededException",
    "RequestLimitExceeded",
    "RequestThrottled",
    "RequestThrottledException",
    "RequestTimeout",
    "RequestTimeoutException",
    "SlowDown",
    "ThrottledException",
    "Throttling",
    "ThrottlingException",
    "TooManyRequestsException",
    "TransactionInProgressException",
];

/// Why AWS did not do what it was asked. Its text is for people; code decides on [`Fault::is`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct Fault {
    text: String,
    code: String,
    may_pass: bool,
}

impl Fault {
    /// Whether AWS's own code for it is this one, such as `NotFoundException`.
    pub fn is(&self, code: &str) -> bool {
        self.code == code
    }

    /// Whether the same call may do well a moment later.
    pub fn may_pass(&self) -> bool {
        self.may_pass
    }

    /// Nothing was answered.
    pub(super) fn unreached(text: String) -> Self {
        Self {
            text,
            code: String::new(),
            may_pass: true,
        }
    }

    /// `answer`, which is no success, of the service at `url`.
    pub(super) fn told(url: &str, answer: &Response<Bytes>) -> Self {
        let status = answer.status();
        let (code, message) = said(answer.headers(), answer.body());
        let told = if code.is_empty() && message.is_empty() {
            String::new()
        } else {
            format!(": {code}: {message}")
        };
        let gone = [
            StatusCode::INTERNAL_SERVER_ERROR,
            StatusCode::BAD_GATEWAY,
            StatusCode::SERVICE_UNAVAILABLE,
            StatusCode::GATEWAY_TIMEOUT,
            StatusCode::TOO_MANY_REQUESTS,
        ];
        Self {
            text: format!("{url}: {status}{told}"),
            may_pass: gone.contains(&status) || PASSING.contains(&code.as_str()),
            code,
        }
    }
}

impl From<String> for Fault {
    /// What will not pass by itself.
    fn from(text: String) -> Self {
        Self {
            text,
            code: String::new(),
            may_pass: false,
        }
    }
}

impl From<Fault> for String {
    fn from(fault: Fault) -> Self {
        fault.text
    }
}

/// The code and the message of an answer that says no; empty where there is none.
fn said(headers: &HeaderMap, body: &[u8]) -> (String, String) {
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Said {
        #[serde(rename = "__type", alias = "code")]
        code: String,
        #[serde(alias = "Message")]
        message: String,
    }
    let text = std::str::from_utf8(body).unwrap_or_default();
    let (mut code, message) = match serde_json::from_str::<Said>(text) {
        Ok(said) => (said.code, said.message),
        Err(_) => roxmltree::Document::parse(text)
            .map(|document| {
                let of = |name| {
                    let found = document
                        .descendants()
                        .find(|node| node.tag_name().name() == name);
                    let found = found.and_then(|node| node.text());
                    found.unwrap_or_default().to_owned()
                };
                (of("Code"), of("Message"))
            })
            .unwrap_or_default(),
    };
    if code.is_empty() {
        let header = headers.get("x-amzn-errortype");
        let header = header.and_then(|value| value.to_str().ok());
        code = header.unwrap_or_default().to_owned();
    }
    // `com.amazonaws.service#Exception` in some services, `Exception:http://…` in headers.
    let code = code.split(':').next().unwrap_or_default();
    let code = code.rsplit('#').next().unwrap_or_default();
    (code.to_owned(), message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: StatusCode, header: &str, body: &str) -> Response<Bytes> {
        let mut answer = Response::new(Bytes::copy_from_slice(body.as_bytes()));
        *answer.status_mut() = status;
        if !header.is_empty() {
            let header = header.parse().unwrap();
            answer.headers_mut().insert("x-amzn-ErrorType", header);
        }
        answer
    }

    #[test]
    fn refusals_are_told_in_awss_words() {
        for (header, body, expected) in [
            (
                "",
                r#"{"__type":"com.amazonaws#AccessDeniedException","Message":"no"}"#,
                ": AccessDeniedException: no",
            ),
            ("", r#"{"message":"no"}"#, ": : no"),
            (
                "",
                "<R><Error><Code>Throttling</Code><Message>slow</Message></Error></R>",
                ": Throttling: slow",
            ),
            (
                "ResourceNotFoundException:http://internal.amazon.com/",
                r#"{"message":"no such anchor"}"#,
                ": ResourceNotFoundException: no such anchor",
            ),
            ("", "<html><body/></html>", ""),
            ("", "text", ""),
        ] {
            let fault = Fault::told("u", &answer(StatusCode::BAD_REQUEST, header, body));
            assert_eq!(fault.to_string(), format!("u: 400 Bad Request{expected}"));
        }
    }

    #[test]
    fn what_may_pass_is_known_by_status_or_code() {
        let of = |status, code: &str| {
            let body = format!(r#"{{"__type":"{code}"}}"#);
            Fault::told("u", &answer(status, "", &body))
        };
        let slow = of(StatusCode::BAD_REQUEST, "ThrottlingException");
        assert!(slow.may_pass() && slow.is("ThrottlingException"));
        assert!(of(StatusCode::SERVICE_UNAVAILABLE, "").may_pass());
        assert!(!of(StatusCode::BAD_REQUEST, "AccessDeniedException").may_pass());
        assert!(!of(StatusCode::FORBIDDEN, "").may_pass());
    }
}
