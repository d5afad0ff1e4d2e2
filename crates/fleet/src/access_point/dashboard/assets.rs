//! Style, script and icon, in the binary. Their paths carry their hash, so that a browser keeps them for good.

use std::sync::LazyLock;

use axum::extract::Path;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use sha2::{Digest, Sha256};

/// One file.
pub(super) struct Asset {
    kind: &'static str,
    body: &'static str,
    /// Where a page finds it.
    pub(super) path: String,
}

impl Asset {
    fn new(name: &'static str, kind: &'static str, body: &'static str) -> Self {
        let hash = Sha256::digest(body);
        let hash: String = hash.iter().take(8).map(|b| format!("{b:02x}")).collect();
        Self {
            kind,
            body,
            path: format!("/assets/{hash}/{name}"),
        }
    }
}

/// How pages look.
pub(super) static STYLE: LazyLock<Asset> = LazyLock::new(|| {
    let body = include_str!("assets/dashboard.css");
    Asset::new("dashboard.css", "text/css; charset=utf-8", body)
});
/// What keeps pages current.
pub(super) static SCRIPT: LazyLock<Asset> = LazyLock::new(|| {
    let body = include_str!("assets/dashboard.js");
    Asset::new("dashboard.js", "text/javascript; charset=utf-8", body)
});
/// What a tab shows.
pub(super) static ICON: LazyLock<Asset> = LazyLock::new(|| {
    let body = include_str!("assets/icon.svg");
    Asset::new("icon.svg", "image/svg+xml", body)
});

/// Open to everybody: the sign-in page needs them, and they tell nothing.
pub(super) async fn serve(Path((hash, file)): Path<(String, String)>) -> Response {
    let wanted = format!("/assets/{hash}/{file}");
    let found = [&*STYLE, &*SCRIPT, &*ICON]
        .into_iter()
        .find(|asset| asset.path == wanted);
    match found {
        Some(asset) => (
            [
                (header::CONTENT_TYPE, asset.kind),
                (header::CACHE_CONTROL, "public, max-age=31536000, immutable"),
            ],
            asset.body,
        )
            .into_response(),
        None => StatusCode::NOT_FOUND.into_response(),
    }
}
