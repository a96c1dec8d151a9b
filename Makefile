# psi: untrusted Python in a real container. `make help` lists the targets.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

VERSION := $(shell cat VERSION)
PYTHON  ?= /usr/bin/python3.11
PREFIX  ?= /usr/local
BIN     := bin
BUILD   := build
TOOLS   := $(BUILD)/tools
# a Go that setup had to fetch comes first
export PATH := $(CURDIR)/$(BUILD)/go/bin:$(PATH)

TAGS    := seccomp,netgo,osusergo,urfave_cli_no_docs
LDFLAGS := -s -w -linkmode external -extldflags -static -X main.version=$(VERSION)
GOBUILD := go build -trimpath -tags '$(TAGS)' -ldflags '$(LDFLAGS)'
GOLANGCI := v2.12.2
RUN     ?=

.PHONY: help setup build rootfs demo test test-all test-host test-vm lint generate bench bench-quick install uninstall clean
.PHONY: setup-build check-generated check-leaks $(BIN)/psi-runtime $(BIN)/psi-shim

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## install what is missing to build and test: Debian packages and a Go (needs root; a no-op the second time)
	@scripts/setup all

setup-build:
	@scripts/setup

build: setup-build $(BIN)/psi-runtime $(BIN)/psi-shim ## build bin/psi-runtime and bin/psi-shim (static)

$(BIN)/psi-runtime $(BIN)/psi-shim:
	@$(GOBUILD) -o $@ ./cmd/$(@F)

rootfs: build ## build the minimal Python root file system, build/rootfs
	@scripts/rootfs "$(BIN)/psi-runtime" "$(PYTHON)" "$(BUILD)/rootfs"

demo: rootfs ## spawn guests in real containers and show what they do
	@PYTHONPATH=python $(PYTHON) examples/hello.py
	@PYTHONPATH=python $(PYTHON) examples/etl.py

test: setup rootfs lint check-generated ## lint, every test here, and the everyday tests on the second kernel
	@go run ./tests/run -beside 'go run -tags $(TAGS) ./tests/vm'
	@$(MAKE) check-leaks

test-all: setup rootfs lint check-generated ## as test, with every test on the second kernel too, and costs in instructions (long)
	@go run ./tests/run
	@go run -tags '$(TAGS)' ./tests/vm -timeout 3h all
	@go run -tags '$(TAGS)' ./tests/vm -count -run '^TestFileCost$$' internal/enforce
	@$(MAKE) check-leaks

test-host: setup rootfs ## tests on this machine only; RUN=TestName, SUITE=pkg/policy
	@go run ./tests/run $(if $(RUN),-run '$(RUN)') $(SUITE)

test-vm: setup rootfs ## tests on the second kernel only; RUN=TestName, SUITE=internal/container
	@go run -tags '$(TAGS)' ./tests/vm $(if $(RUN),-run '$(RUN)') $(SUITE)

lint: setup $(TOOLS)/golangci-lint-$(GOLANGCI) ## gofmt, golangci-lint, mypy --strict, shellcheck
	@test -z "$$(gofmt -l bpf cmd examples internal pkg rootfs tests)" || { gofmt -d bpf cmd examples internal pkg rootfs tests; echo 'lint: run gofmt -w on these files' >&2; exit 1; }
	@GOLANGCI_LINT_CACHE=$(CURDIR)/$(BUILD)/lint $(TOOLS)/golangci-lint-$(GOLANGCI) run --build-tags '$(TAGS)' ./...
	@scripts/lint-python
	@shellcheck scripts/* .ci/run

$(TOOLS)/golangci-lint-$(GOLANGCI):
	@echo "building golangci-lint $(GOLANGCI) (once, a minute or two)"
	@GOBIN=$(CURDIR)/$(TOOLS) go install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI)
	@mv $(TOOLS)/golangci-lint $@

generate: setup ## compile bpf/*.bpf.c, psi-init and the zygote's module, and write the Go that loads them
	@go generate ./bpf/... ./internal/confine/... ./internal/container

check-generated: generate
	@git diff --exit-code --stat -- bpf internal/confine internal/container/zygote || { echo 'generated files differ: run `make generate` and commit the result' >&2; exit 1; }

check-leaks:
	@scripts/check-leaks

bench: setup rootfs ## measure against the peers; writes build/bench/report.md, report.json and charts
	@scripts/setup bench
	@$(PYTHON) bench/run.py --output $(BUILD)/bench

bench-quick: rootfs ## the same with few runs and without engines, in less than a minute
	@$(PYTHON) bench/run.py --output $(BUILD)/bench --quick

install: rootfs ## install both programs, the root file system and the Python package's files below PREFIX
	@scripts/install "$(PREFIX)" "$(PYTHON)"

uninstall: ## remove what install put there
	@scripts/install --remove "$(PREFIX)" "$(PYTHON)"

clean: ## remove what was built here
	@rm -rf $(BIN) $(BUILD) python/build python/*.egg-info
