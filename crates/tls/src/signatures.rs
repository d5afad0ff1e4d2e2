//! Signatures on certificates, each verified once.
//!
//! An executor comes back with the certificate that it left with, and verifying the signature on that is a seventh of
//! what its session costs. Whether a signature is right depends on its bytes alone, so the answer is remembered. All else
//! is looked at each time: the time, trust, names, rules and revocations. A signature that a peer makes in its handshake
//! is new each time and is verified each time.

use std::collections::HashSet;
use std::sync::{LazyLock, Mutex, PoisonError};

use rustls_pki_types::{AlgorithmIdentifier, InvalidSignature, SignatureVerificationAlgorithm};
use sha2::{Digest, Sha256};

use crate::verify::ALGORITHMS;

/// The signatures that we accept on certificates.
pub(crate) fn algorithms() -> &'static [&'static dyn SignatureVerificationAlgorithm] {
    static EACH: LazyLock<Vec<Remembering>> = LazyLock::new(|| {
        let all = ALGORITHMS.all.iter();
        all.map(|algorithm| Remembering::new(*algorithm)).collect()
    });
    static ALL: LazyLock<Vec<&'static dyn SignatureVerificationAlgorithm>> =
        LazyLock::new(|| EACH.iter().map(|one| one as _).collect());
    &ALL
}

/// Good signatures of one algorithm that are remembered for sure; twice as many at most. A digest takes some 50 bytes.
const MOST: usize = 16_384;

/// An algorithm that does the arithmetic of the same signature once.
#[derive(Debug)]
struct Remembering {
    algorithm: &'static dyn SignatureVerificationAlgorithm,
    good: Mutex<Good>,
}

/// Digests of key, message and signature that belong together. Who was not seen for a whole generation is forgotten.
#[derive(Debug, Default)]
struct Good {
    now: HashSet<[u8; 32]>,
    before: HashSet<[u8; 32]>,
}

impl Good {
    fn has(&mut self, digest: &[u8; 32]) -> bool {
        if self.now.contains(digest) {
            return true;
        }
        let was = self.before.contains(digest);
        if was {
            self.add(*digest);
        }
        was
    }

    fn add(&mut self, digest: [u8; 32]) {
        if self.now.len() >= MOST {
            self.before = std::mem::take(&mut self.now);
        }
        self.now.insert(digest);
    }
}

impl Remembering {
    fn new(algorithm: &'static dyn SignatureVerificationAlgorithm) -> Self {
        Self {
            algorithm,
            good: Mutex::default(),
        }
    }

    /// Runs on the two sets, which are whole after every statement: a poisoned lock guards nothing worse.
    fn good<T>(&self, look: impl FnOnce(&mut Good) -> T) -> T {
        look(&mut self.good.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl SignatureVerificationAlgorithm for Remembering {
    fn verify_signature(
        &self,
        public_key: &[u8],
        message: &[u8],
        signature: &[u8],
    ) -> Result<(), InvalidSignature> {
        let digest = digest([public_key, message, signature]);
        if self.good(|good| good.has(&digest)) {
            return Ok(());
        }
        self.algorithm
            .verify_signature(public_key, message, signature)?;
        self.good(|good| good.add(digest));
        Ok(())
    }

    fn public_key_alg_id(&self) -> AlgorithmIdentifier {
        self.algorithm.public_key_alg_id()
    }

    fn signature_alg_id(&self) -> AlgorithmIdentifier {
        self.algorithm.signature_alg_id()
    }

    fn fips(&self) -> bool {
        self.algorithm.fips()
    }
}

/// Each part with its length, so that no byte can move from one to the next.
fn digest(parts: [&[u8]; 3]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    hash.finalize().into()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// Takes a signature that says `good`, and counts how often it is asked.
    #[derive(Debug, Default)]
    struct Counting(AtomicUsize);

    impl SignatureVerificationAlgorithm for Counting {
        fn verify_signature(
            &self,
            _: &[u8],
            _: &[u8],
            signature: &[u8],
        ) -> Result<(), InvalidSignature> {
            self.0.fetch_add(1, Ordering::Relaxed);
            if signature.starts_with(b"good") {
                Ok(())
            } else {
                Err(InvalidSignature)
            }
        }

        fn public_key_alg_id(&self) -> AlgorithmIdentifier {
            rustls_pki_types::alg_id::ECDSA_P256
        }

        fn signature_alg_id(&self) -> AlgorithmIdentifier {
            rustls_pki_types::alg_id::ECDSA_SHA256
        }
    }

    fn counting() -> (&'static Counting, Remembering) {
        let counting: &Counting = Box::leak(Box::default());
        (counting, Remembering::new(counting))
    }

    #[test]
    fn a_signature_is_verified_once_and_a_byte_elsewhere_makes_it_another() {
        let (asked, algorithm) = counting();
        for _ in 0..3 {
            assert!(algorithm.verify_signature(b"key", b"text", b"good").is_ok());
        }
        assert_eq!(asked.0.load(Ordering::Relaxed), 1);
        for (key, text, signature) in [
            (b"keyt".as_slice(), b"ext".as_slice(), b"good".as_slice()),
            (b"kez", b"text", b"good"),
            (b"key", b"texu", b"good"),
            (b"key", b"text", b"good!"),
        ] {
            let before = asked.0.load(Ordering::Relaxed);
            assert!(algorithm.verify_signature(key, text, signature).is_ok());
            assert_eq!(asked.0.load(Ordering::Relaxed), before + 1);
        }
    }

    #[test]
    fn a_wrong_signature_is_wrong_each_time() {
        let (asked, algorithm) = counting();
        for round in 1..4 {
            assert!(algorithm.verify_signature(b"key", b"text", b"bad").is_err());
            assert_eq!(asked.0.load(Ordering::Relaxed), round);
        }
    }

    #[test]
    fn those_seen_of_late_are_remembered_and_no_more_than_twice_as_many() {
        let mut good = Good::default();
        let numbered = |n: usize| digest([&n.to_be_bytes(), &[], &[]]);
        for n in 0..4 * MOST {
            good.add(numbered(n));
            // One that comes back is not forgotten.
            assert!(good.has(&numbered(0)));
            assert!(good.now.len() + good.before.len() <= 2 * MOST);
        }
        assert!((3 * MOST + MOST / 2..4 * MOST).all(|n| good.has(&numbered(n))));
        assert!(!good.has(&numbered(1)));
    }
}
