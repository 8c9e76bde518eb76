# pgedge. `make help` lists the targets; `make check` is what the build server runs.

GO ?= go
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
COMMIT  ?= $(shell git rev-parse --short=12 HEAD 2>/dev/null || echo unknown)
LDFLAGS := -X main.version=$(VERSION) -X main.commit=$(COMMIT)

# The version is stamped above. The go command's own stamp fails in a checkout that belongs to another user.
export GOFLAGS := $(strip $(GOFLAGS) -buildvcs=false)

FUZZTIME ?= 10s
TESTTIMEOUT ?= 15m
PKG ?= ./...
TESTFLAGS ?=
SCENARIO ?= relay
BENCHFLAGS ?=

# golangci-lint would compile about 240 modules, minutes on two cores, to run mostly what these three run. staticcheck is
# pinned in tools/go.mod, which keeps its dependencies out of ours; staticcheck.conf lists its rules with reasons. benchstat
# is pinned there too.
STATICCHECK := $(GO) tool -modfile=tools/go.mod staticcheck

.PHONY: help
help: ## list the targets
	@echo "usage: make TARGET"
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## (.*)/\1\t\2/' | while IFS=$$'\t' read -r t d; do printf '  %-12s %s\n' "$$t" "$$d"; done

.PHONY: demo
demo: ## watch a revoked user's running UPDATE be stopped (needs Postgres; installs it if it may)
	@tools/need.sh postgres
	@$(MAKE) --no-print-directory build
	bin/pgedge demo

# Fleets of processes come last and alone: their leases do not wait for a crowded machine.
.PHONY: test
test: ## vet and all tests with the race detector, against a real Postgres (PKG=./engine/ TESTFLAGS='-run X -v')
	@tools/need.sh postgres cc spin haproxy ip
	$(GO) vet $(PKG)
	@race=-race; \
	if ! tools/race-ok.sh; then race=; echo "test: cgo is off or there is no working C compiler, so the race detector is OFF"; fi; \
	all=$$($(GO) list $(PKG)); \
	crowd=$$(grep -v '^pgedge/internal/fleet$$' <<<"$$all" || true); \
	fleet=$$(grep '^pgedge/internal/fleet$$' <<<"$$all" || true); \
	failed=0; \
	for packages in "$$crowd" "$$fleet"; do \
		if [ -n "$$packages" ]; then $(GO) test $$race -timeout $(TESTTIMEOUT) $(TESTFLAGS) $$packages || failed=1; fi; \
	done; \
	exit $$failed

.PHONY: check
check: lint test ## what the build server runs: lint and test

.PHONY: lint
lint: ## gofmt, go vet, staticcheck
	@bad=$$(gofmt -l .); \
	if [ -n "$$bad" ]; then echo "lint: these files need gofmt:"; echo "$$bad"; exit 1; fi
	$(GO) vet ./...
	$(STATICCHECK) ./...

.PHONY: build
build: ## build bin/pgedge
	$(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/pgedge ./cmd/pgedge

.PHONY: run
run: build ## run a node in front of UPSTREAM=postgres://control:secret@host:5432
	@if [ -z "$(UPSTREAM)" ]; then echo "run: say which server: make run UPSTREAM=postgres://host:5432" >&2; exit 2; fi
	bin/pgedge serve --upstream '$(UPSTREAM)'

.PHONY: model
model: ## check the model of the protocol in docs/model with spin, and that it sees what is broken on purpose
	@tools/need.sh spin cc
	@tools/model.sh

SEEDS ?= 5000
SEED ?= 1
.PHONY: sim
sim: ## simulate SEEDS=5000 runs of a fleet, from SEED=1 on, and stop at the first that breaks a guarantee
	$(GO) run ./internal/sim/cmd -seed $(SEED) -seeds $(SEEDS)

SOAK ?= 10m
SOAKSEED ?= 0
.PHONY: soak
soak: ## kill, stop and partition a fleet at random for SOAK (10m) and check every promise (SOAKSEED=n repeats the choices)
	@tools/need.sh postgres haproxy ip
	$(GO) test -count 1 -timeout 0 -v -run 'TestSoak$$' ./internal/fleet -soak $(SOAK) -seed $(SOAKSEED)

.PHONY: fuzz
fuzz: ## run every fuzz target for FUZZTIME (10s) each
	tools/fuzz.sh $(FUZZTIME)

.PHONY: bench-deps
bench-deps: ## install what the benchmarks compare with: PgBouncer and HAProxy, newer than the distribution's where possible
	@tools/need.sh postgres
	@tools/bench-deps.sh

.PHONY: bench
bench: ## measure beside the peers: SCENARIO=relay, or all; BENCHFLAGS='-quick -profile' (docs/performance.md)
	@tools/need.sh postgres
	$(GO) run ./bench $(SCENARIO) $(BENCHFLAGS)

BASE ?=
BENCH ?= .
BENCHCOUNT ?= 6
BENCHTIME ?= 200ms
BENCHPKG ?= ./codec ./revoke ./engine
.PHONY: benchstat
benchstat: ## compare the Go benchmarks of this tree with those of BASE (default: where it left origin/main, or HEAD)
	@GO='$(GO)' tools/benchstat.sh '$(BASE)' '$(BENCH)' $(BENCHCOUNT) $(BENCHTIME) $(BENCHPKG)

.PHONY: clean
clean: ## remove what was built
	rm -rf bin
