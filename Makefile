# Python >= 3.11 with pip and venv is all that a machine needs; every target that needs packages installs them first.
# pip's own settings (PIP_INDEX_URL, PIP_FIND_LINKS, ...) are honoured; PYTHON=python3.12 chooses an interpreter.

PYTHON ?= python3
# Two workers with one thread each finish sooner than one process with two threads, and sums come out the same anywhere.
TEST_WORKERS ?= 2
PYTEST = OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 $(1)/bin/python -m pytest -n $(TEST_WORKERS) --dist worksteal
SHELL := /bin/sh
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-slow test-oldest lint bench clean FORCE

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: .venv/installed ## set up, then watch GRPO teach a tiny model to think (a minute or two on two cores)
	@.venv/bin/python -m recipes.grpo_walk

test: .venv/installed ## set up, then run the tests and doctests, except those marked slow
	@$(call PYTEST,.venv) -m "not slow"

test-slow: .venv/installed ## run the tests marked slow: learning curves and the full matrices of faults
	@$(call PYTEST,.venv) -m slow

test-oldest: .venv-oldest/installed ## the tests on the oldest supported versions (gigabytes to download where torch brings CUDA)
	@$(call PYTEST,.venv-oldest) -m "not slow"

lint: .venv/installed ## check style, format and types
	@.venv/bin/python -m ruff check
	@.venv/bin/python -m ruff format --check
	@.venv/bin/python -m basedpyright

bench: .venv/installed-bench ## compare with the peers, half an hour or more (BENCH_ARGS=--quick: does it still run?)
	@.venv/bin/python -m benchmarks.reading_path
	@.venv/bin/python -m benchmarks.tabular_speed $(BENCH_ARGS)
	@.venv/bin/python -m benchmarks.sampler_vs_generate $(BENCH_ARGS)
	@.venv/bin/python -m benchmarks.grpo_walk_vs_trl $(BENCH_ARGS)
	@.venv/bin/python -m benchmarks.ppo_beside_grpo $(BENCH_ARGS)
	@.venv/bin/python -m benchmarks.pairs_vs_trl $(BENCH_ARGS)
	@.venv/bin/python -m benchmarks.grpo_step_vs_trl $(BENCH_ARGS)
	@.venv/bin/python -m benchmarks.logprobs $(BENCH_ARGS)
	@.venv/bin/python -m benchmarks.growth $(BENCH_ARGS)

clean: ## remove the virtual environments and caches; runs stay
	rm -rf .venv .venv-oldest dist build .pytest_cache .ruff_cache .hypothesis
	find align classic_rl recipes tests benchmarks -name __pycache__ -prune -exec rm -rf {} +

# A stamp holds the place where its environment was made: scripts and the editable install name that place, so an
# environment that was moved, or whose Python is gone, is made again.
stale = $(shell [ ! -e $(1)/installed ] || { [ "$$(cat $(1)/installed)" = "$(CURDIR)" ] && $(1)/bin/python -c 'import pip'; } 2>/dev/null || echo FORCE)

.venv/installed: pyproject.toml constraints.txt $(call stale,.venv)
	@$(call install,.venv,constraints.txt,dev)

.venv/installed-bench: .venv/installed
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[bench]' && touch $@

.venv-oldest/installed: pyproject.toml constraints-oldest.txt $(call stale,.venv-oldest)
	@$(call install,.venv-oldest,constraints-oldest.txt,test)

# $(call install,environment,constraints,extra)
define install
command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) was not found: install Python 3.11 or later, or name yours: make PYTHON=/path/to/python" >&2; exit 1; }; \
$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$$($(PYTHON) --version) is too old: Python 3.11 or later is needed. Name one: make PYTHON=python3.12" >&2; exit 1; }; \
if [ -e $(1)/installed ] && [ "$$(cat $(1)/installed)" != "$(CURDIR)" ] || ! $(1)/bin/python -c 'import pip' 2>/dev/null; then \
	rm -rf $(1); \
	$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "$(PYTHON) has no venv module: install it (on Debian and Ubuntu: apt install python3-venv)" >&2; exit 1; }; \
	echo "making $(1)"; \
	$(PYTHON) -m venv $(1) || exit 1; \
fi; \
echo "installing into $(1) (the first time: a few hundred megabytes; gigabytes where torch comes with CUDA)"; \
$(1)/bin/python -m pip install --quiet --disable-pip-version-check --constraint $(2) --editable '.[$(3)]' && echo "$(CURDIR)" > $(1)/installed
endef
