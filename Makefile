# The front door; CMake is the machine behind it. Bare `make` names the targets.
.PHONY: help setup build test demo bench sanitize tsan fuzz clean
SHELL := /bin/sh
ENV := . tools/env &&
JOBS ?= $(shell nproc 2>/dev/null || echo 2)

help:
	@echo 'make demo      set up, train a plugin on the example rows, show what it knows'
	@echo 'make bench     every benchmark, hours on a quiet machine, into bench/out (SMOKE=1: minutes, only to see that they work)'
	@echo 'make test      set up, run all tests (C, sanitizers, end to end)'
	@echo "make soak      the long forms of tests, hours: build/soak/table.txt (SOAK='--short', SOAK='--only cuts,replicas --seed 7')"
	@echo 'make build     build/spa-cloud and build/spa'
	@echo 'make install   programs, libspa, man pages and completions under PREFIX (/usr/local); DESTDIR counts'
	@echo 'make setup     only what the machine needs: packages, libllama, the demo model'
	@echo 'make sanitize  the C tests under ASan and UBSan; make tsan: the threads under TSan'
	@echo 'make fuzz      build and run the fuzz targets (FUZZ_S=60 seconds each, two at a time; clang)'
	@echo 'make coverage  lines of every reader of outside bytes that tests and kept corpora reach'
	@echo 'make cross     core and its tests for ARM (64 and 32 bits) and RISC-V under qemu (QUICK=1: without the two slowest)'
	@echo 'make size      code, data and stack of the core, function by function'
	@echo 'make clean     remove build/ (downloads and libllama stay in the cache)'

setup:
	@tools/setup

build:
	@tools/setup --no-tests
	@$(ENV) cmake --preset release -DSPA_TESTS=OFF >/dev/null && cmake --build build -j $(JOBS)

demo: build
	@$(ENV) tools/demo build "$$SPA_MODEL"

bench: setup build
	@$(ENV) python3 bench/all $(if $(SMOKE),--smoke --model tests/golden/tiny.base.gguf)

test: setup
	@$(ENV) cmake --preset release -DSPA_TESTS=ON >/dev/null && cmake --build build -j $(JOBS)
	@ctest --test-dir build --output-on-failure
	@$(MAKE) --no-print-directory sanitize tsan
	@$(ENV) SPA_BUILD=build "$$SPA_PYTHON" -m pytest -q -n 2 --dist loadfile tests/e2e

sanitize: setup
	@$(ENV) cmake --preset sanitize >/dev/null && cmake --build build/sanitize -j $(JOBS)
	@ctest --test-dir build/sanitize --output-on-failure

tsan: setup
	@$(ENV) cmake --preset tsan >/dev/null && cmake --build build/tsan -j $(JOBS) --target test_threads test_lead test_chat test_metrics
	@ctest --test-dir build/tsan --output-on-failure -R "test_threads|test_lead|test_chat|test_metrics"

FUZZ_S ?= 60
fuzz:
	@tools/fuzz $(FUZZ_S)

.PHONY: coverage
coverage: setup
	@$(ENV) tools/coverage --limit 95

.PHONY: cross size
cross:
	@tools/cross/run $(if $(QUICK),--quick)

size: build
	@tools/size build/CMakeFiles/spa_core.dir --limit 8192

.PHONY: soak
soak: setup
	@$(ENV) cmake --preset release -DSPA_TESTS=ON >/dev/null && cmake --build build -j $(JOBS)
	@$(ENV) cmake --preset sanitize >/dev/null && cmake --build build/sanitize -j $(JOBS) --target spa spa_faults
	@$(ENV) SPA_BUILD=build "$$SPA_PYTHON" tools/soak $(SOAK)

.PHONY: install
PREFIX ?= /usr/local
install: build
	@cmake --install build --prefix "$(PREFIX)" >/dev/null

clean:
	rm -rf build
