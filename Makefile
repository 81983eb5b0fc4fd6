# `make` lists the targets.

VERSION   ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
BUILT     ?= $(shell TZ=UTC git log -1 --date=format-local:%Y-%m-%dT%H:%M:%SZ --format=%cd 2>/dev/null || echo 2026-11-01T00:00:00Z)
LDFLAGS    = -s -w -X main.version=$(VERSION) -X main.built=$(BUILT)
GOBUILD    = go build -trimpath -ldflags '$(LDFLAGS)'
STATICCHECK = honnef.co/go/tools/cmd/staticcheck@v0.8.2
PLATFORMS  = amd64 arm64 arm riscv64
FUZZTIME  ?= 5000x

SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -c

.PHONY: help build lint test test32 fuzz cross bench prove package inspect boot ci clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9]+:.*## /{printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: ## the gateway for this machine: ./drawbridge
	$(GOBUILD) -o drawbridge ./cmd/drawbridge

lint: ## gofmt, vet, staticcheck, go mod tidy -diff
	@out=$$(gofmt -l .); [ -z "$$out" ] || { echo "gofmt would change:"; echo "$$out"; exit 1; }
	go vet ./...
	go run $(STATICCHECK) ./...
	go mod tidy -diff

test: ## every test, against real peers where they are installed
	go test -race -shuffle=on -timeout 15m ./...

test32: ## the same as a 32-bit program without cgo
	CGO_ENABLED=0 GOARCH=386 go test -timeout 15m ./...

fuzz: ## every parser of outside bytes, FUZZTIME each: a count such as 5000x, or a time such as 10m
	.ci/fuzz $(FUZZTIME)

cross: ## build for every platform that is shipped, into dist/
	@for a in $(PLATFORMS); do \
		echo "build linux/$$a"; \
		CGO_ENABLED=0 GOOS=linux GOARCH=$$a GOARM=7 $(GOBUILD) -o dist/drawbridge-linux-$$a ./cmd/drawbridge || exit 1; \
	done

bench: ## speed and memory, as ratios against a peer in the same run; PKG=./dir for one package
	go test -p 1 -run '^$$' -bench '^Benchmark(Beside|Footprint)' -benchtime 1x -count 1 -timeout 60m -v $(or $(PKG),./...) | grep -E '^(bench: |--- FAIL|FAIL|panic)|_test.go:'

prove: ## the heavy proofs: kills, power cuts, floods; one line per claim
	DRAWBRIDGE_PROVE=1 go test -p 1 -count 1 -timeout 90m -run '^TestProve' -v $(or $(PKG),./...) | grep -E 'prove: |^(---|ok|FAIL|panic)'
	@[ -n "$(PKG)" ] || packaging/emulate

package: ## deb and rpm for this machine's architecture, into dist/
	packaging/build

boot: package ## install the deb under a real systemd and live through the package's life
	packaging/boot dist/*_$$(dpkg --print-architecture).deb

inspect: package ## lintian, deb beside rpm, and the same packages built again elsewhere
	packaging/inspect dist/*_$$(dpkg --print-architecture).deb dist/*.rpm

ci: lint test test32 fuzz cross inspect boot ## what must hold before a change lands

clean: ## remove what was built
	rm -rf drawbridge dist
