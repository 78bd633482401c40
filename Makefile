# Two commands do all the set-up: `make demo` and `make test`. `make help` lists the rest.
# Build output goes to $CARGO_TARGET_DIR (default: target/).

CARGO  ?= cargo
TARGET := $(if $(CARGO_TARGET_DIR),$(abspath $(CARGO_TARGET_DIR)),$(CURDIR)/target)
# Chosen from the whole workspace, not as a package, so that what it depends on is compiled once for it and for the rest.
XTASK  := $(CARGO) run --quiet --release --bin xtask --
# What the programs carry: wasm functions, and kernel programs where this machine can build them.
EMBED  := CATCHMENT_EMBED_FUNCTIONS=$(TARGET)/functions CATCHMENT_EMBED_EBPF=$(TARGET)/ebpf
BUS    ?= embedded
SECONDS ?= 10
SEEDS  ?= 100

.PHONY: help setup doctor carried worker build failpoints benches demo demo-cluster demo-ebpf test test-runners fixtures chaos lint fuzz bench large docs clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## Find or install all that the other targets need, and say what was found
	$(XTASK) setup --all

doctor: ## Say what is there, in which version, and what would be taken; installs nothing
	$(XTASK) doctor

# `make demo` routes nothing through the kernel: it goes without kernel programs, unless some are there, which must not be
# older than the rest.
KERNEL := yes
demo: KERNEL := $(wildcard $(TARGET)/ebpf/*.o)

carried:
	$(TARGET)/release/xtask functions --install
	$(if $(KERNEL),$(TARGET)/release/xtask ebpf --install --optional,mkdir -p $(TARGET)/ebpf)

worker:
	$(CARGO) build --release --bin catchment-worker

# What is carried is mostly waited for (packages, one function after the other), so the worker is built beside it. xtask is
# built before both, because only one cargo at a time works in a build folder.
build: ## Build the two programs, functions and kernel programs embedded, into $(TARGET)/release
	$(CARGO) build --release --bin xtask
	@$(MAKE) --no-print-directory --jobs=2 carried worker KERNEL='$(KERNEL)'
	$(EMBED) $(CARGO) build --release --bin catchment

# What it is made of was compiled for the program above: this links once more.
failpoints: build ## The program that tests end, hold up and mislead about the time; nobody is handed it
	$(EMBED) $(CARGO) build --release --bin catchment-failpoints

benches: build
	$(EMBED) $(CARGO) build --release --bin catchment-benches

demo: build ## Ten real clients train one model on handwritten digits (BUS=nats: over a real NATS server)
	$(XTASK) demo --bus $(BUS)

demo-cluster: build ## The same on three nodes and two coordinators; a node and a coordinator die while it trains
	$(XTASK) demo --nodes 3

demo-ebpf: build ## The same with two runner processes: shows the routing map, and moves work between them in mid-round
	$(XTASK) demo --runners 2 --rounds 60

test: failpoints ## Everything: unit, property, simulation, and end to end on both buses
	$(EMBED) $(XTASK) test

test-runners: failpoints ## The end-to-end tests with two runner processes in every server (CATCHMENT_EBPF=on|off: who routes to them)
	$(EMBED) $(XTASK) test --runners 2

fixtures: build ## Write tests/fixtures again, with the program of the release that first wrote them
	$(EMBED) $(XTASK) test --fixtures

chaos: failpoints ## SEEDS (default 100) storms of a cluster; as root, links are cut, too (CHAOS_FROM=n: from that seed)
	CHAOS_SEEDS=$(SEEDS) $(CARGO) test --release --test chaos -- --nocapture

lint: ## Formatting, clippy, and licences, bans and sources of dependencies
	$(CARGO) fmt --all --check
	$(CARGO) fmt --check --manifest-path ebpf/Cargo.toml
	$(EMBED) $(CARGO) clippy --release --workspace --all-targets -- --deny warnings
	$(XTASK) deny

fuzz: ## Run every fuzz target for SECONDS (default 10) each
	$(XTASK) fuzz --seconds $(SECONDS)

bench: benches ## Measured claims, as Markdown tables (PEERS=python-with-flwr: Flower beside; SVG=file: charts)
	$(TARGET)/release/catchment-benches all $(if $(PEERS),--peers $(PEERS)) $(if $(SVG),--svg $(SVG))

large: benches ## A model with a tensor of more than 4 GiB, for real (20 GB of memory, 15 GB of disk, some minutes)
	$(TARGET)/release/catchment-benches large

docs: build ## Regenerate committed files (docs/openapi.json)
	$(TARGET)/release/catchment openapi > docs/openapi.json

clean: ## Remove build output of this workspace
	$(CARGO) clean
