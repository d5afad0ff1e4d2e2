//! Whatever bytes a peer presents as its chain: no panic, and nothing but the original passes.

use std::sync::LazyLock;
use std::time::SystemTime;

use ah_testkit::ca::{TestCa, TestLeaf};
use ah_tls::{Policy, Trust, parse_spiffe_id, svid_faults, verify_executor};
use proptest::prelude::*;
use rustls_pki_types::CertificateDer;

struct Pki {
    trust: Trust,
    leaf: TestLeaf,
}

static PKI: LazyLock<Pki> = LazyLock::new(|| {
    let ca = TestCa::new("example.org");
    let leaf = ca
        .intermediate()
        .issue()
        .leaf()
        .spiffe("spiffe://example.org/a")
        .issue();
    Pki {
        trust: Trust::new(&ca.svid_bundles()),
        leaf,
    }
});

fn passes(chain: &[CertificateDer<'_>]) -> bool {
    let _ = svid_faults(chain);
    verify_executor(chain, &PKI.trust, &Policy::default(), SystemTime::now()).is_ok()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_changed_byte_anywhere_in_the_chain_is_refused(
        which in 0..2usize,
        at in any::<prop::sample::Index>(),
        flip in 1..=255u8,
    ) {
        let mut chain = PKI.leaf.chain().to_vec();
        prop_assert!(passes(&chain));
        let mut der = chain[which].to_vec();
        let at = at.index(der.len());
        der[at] ^= flip;
        chain[which] = der.into();
        prop_assert!(!passes(&chain), "byte {at} of certificate {which}");
    }

    #[test]
    fn a_cut_chain_and_random_bytes_are_refused(
        length in any::<prop::sample::Index>(),
        noise in prop::collection::vec(any::<u8>(), 0..600),
    ) {
        let der = PKI.leaf.der();
        let cut = der[..length.index(der.len())].to_vec();
        prop_assert!(!passes(&[cut.into()]));
        prop_assert!(!passes(&[noise.into()]));
    }

    #[test]
    fn an_id_that_is_read_prints_as_it_was(uri in "spiffe://[a-zA-Z0-9.%@:-]{0,12}(/[a-zA-Z0-9.%_-]{0,4}){0,4}[?#]?") {
        // SV-7: nothing is folded or repaired on the way.
        if let Ok(id) = parse_spiffe_id(&uri) {
            prop_assert_eq!(id.to_string(), uri);
        }
    }
}
