//! What every identity provider must do: the conformance suite of the provider seam.
