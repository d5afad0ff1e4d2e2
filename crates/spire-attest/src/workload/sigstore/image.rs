//! Names of images.

/// Where images are that name no registry.
const DOCKER_HUB: &str = "index.docker.io";

/// An image by its digest: `registry/repository@sha256:…`, as container engines name what they run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Image {
    /// Host, and port where there is one.
    pub(super) registry: String,
    pub(super) repository: String,
    /// 64 hexadecimal digits.
    pub(super) sha256: String,
}

impl Image {
    /// # Errors
    /// It is no such name.
    pub(super) fn parse(id: &str) -> Result<Self, String> {
        let wrong = |why: &str| format!("failed to parse image reference: {id:?} {why}");
        // Docker's shim for Kubernetes put a scheme before it.
        let name = id.split_once("://").map_or(id, |(_, name)| name);
        let (name, digest) = name
            .split_once('@')
            .ok_or_else(|| wrong("has no digest, so that nothing says which image it is"))?;
        let sha256 = digest.strip_prefix("sha256:").filter(|hex| is_sha256(hex));
        let sha256 = sha256.ok_or_else(|| wrong("has no SHA-256 for a digest"))?;
        let (registry, path) = match name.split_once('/') {
            Some((first, rest)) if is_registry(first) => (registry(first), rest),
            _ => (DOCKER_HUB.to_owned(), name),
        };
        // A tag beside the digest says nothing.
        let path = match path.rsplit_once(':') {
            Some((path, tag)) if !tag.contains('/') => path,
            _ => path,
        };
        let is_part = |part: &str| {
            let fits = |byte: u8| {
                byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._-".contains(&byte)
            };
            !part.is_empty() && !part.starts_with('.') && part.bytes().all(fits)
        };
        if !path.split('/').all(is_part) {
            return Err(wrong("names no repository"));
        }
        let host = |byte: u8| byte.is_ascii_alphanumeric() || b".-:[]".contains(&byte);
        if !registry.bytes().all(host) {
            return Err(wrong("names no registry"));
        }
        let official = registry == DOCKER_HUB && !path.contains('/');
        Ok(Self {
            repository: match official {
                true => format!("library/{path}"),
                false => path.to_owned(),
            },
            registry,
            sha256: sha256.to_owned(),
        })
    }

    /// The tag of what is said of the image: `sig` of its signatures, `att` of its attestations.
    pub(super) fn tag(&self, suffix: &str) -> String {
        format!("sha256-{}.{suffix}", self.sha256)
    }
}

/// As registries are called here, of a name that they go by.
pub(super) fn registry(name: &str) -> String {
    match name {
        "docker.io" => DOCKER_HUB.to_owned(),
        name => name.to_owned(),
    }
}

fn is_registry(first: &str) -> bool {
    first.contains(['.', ':']) || first == "localhost"
}

pub(super) fn is_sha256(hex: &str) -> bool {
    let fits = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    hex.len() == 64 && hex.bytes().all(fits)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "bf862e5f5eca0a73e7e538224578c5cf867ce2be91b5eaed22afc153c00363eb";

    #[test]
    fn names_of_images_are_read_as_container_engines_write_them() {
        for (name, registry, repository) in [
            ("nginx", DOCKER_HUB, "library/nginx"),
            ("docker.io/library/nginx", DOCKER_HUB, "library/nginx"),
            ("user/server:1.2", DOCKER_HUB, "user/server"),
            ("localhost:5000/server", "localhost:5000", "server"),
            (
                "docker-pullable://registry.example/a/b",
                "registry.example",
                "a/b",
            ),
            ("[::1]:5000/server:1", "[::1]:5000", "server"),
        ] {
            let image = Image::parse(&format!("{name}@sha256:{HEX}")).unwrap();
            assert_eq!(
                (&*image.registry, &*image.repository),
                (registry, repository)
            );
            assert_eq!(image.tag("sig"), format!("sha256-{HEX}.sig"));
        }
        for bad in [
            "registry.example/server:1.2".to_owned(),
            format!("sha256:{HEX}"),
            format!("registry.example/server@sha512:{HEX}"),
            format!("registry.example/server@sha256:{HEX}0"),
            format!("registry.example/../server@sha256:{HEX}"),
            format!("registry.example/Server@sha256:{HEX}"),
            format!("registry.example/a?b@sha256:{HEX}"),
            format!("user@registry.example/a@sha256:{HEX}"),
            format!("@sha256:{HEX}"),
        ] {
            assert!(Image::parse(&bad).is_err(), "{bad}");
        }
    }
}
