# Readapt: one entry point for people and for CI. `make help` lists the targets.
SHELL := /bin/bash
PY := .venv/bin/python
CACHE ?= $(or $(READAPT_CACHE),$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/readapt)
export READAPT_CACHE := $(CACHE)
export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false
# As in the runtime image: waiting threads that spin make two busy processes several times slower.
export OMP_WAIT_POLICY := PASSIVE
# Without bytecode each of the hundreds of processes that tests start compiles torch and transformers again.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
# node and e2e own the machine while they run.
.NOTPARALLEL:
.PHONY: help allowed venv machine check unit control-plane node e2e test fault crds lock images demo study cluster-up cluster-down clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

venv: .venv/.ready  ## .venv with the locked dependencies
.venv/.ready: requirements/dev.txt requirements/uv.txt pyproject.toml
	@scripts/setup-python.sh

check: venv  ## format, lint, types, import rules
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	@mkdir -p $(CACHE)
	flock $(CACHE)/mypy.lock .venv/bin/mypy --cache-dir $(CACHE)/mypy -p readapt_api -p readapt_operator -p readapt_runtime -p readapt_kernels -p readapt_cluster -p readapt_demo
	.venv/bin/lint-imports

unit: venv  ## tests that need nothing but Python
	PIN_WORKERS=1 .venv/bin/pytest -q -n auto --dist loadfile -m "not control_plane and not fault" tests

control-plane: venv  ## tests against a real etcd, kube-apiserver and kube-controller-manager; bad input with real Jobs
	.venv/bin/pytest -q -n auto --dist loadfile -m "control_plane and not fault" tests

node: machine  ## the local node: up, pods, DNS, services, killed in the middle, down without a trace (root)
	.venv/bin/pytest -v e2e/test_cluster_node.py

e2e: machine  ## the thread on a real node: images, Helm, an upgrade under load, a roll-back (root)
	.venv/bin/pytest -v --capture=no e2e/test_thread.py

# Before minutes and gigabytes are spent; where there is no such Python yet, the same is asked after setup.
allowed:
	@! python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || PYTHONPATH=e2e/cluster python3 -S -m readapt_cluster check $(REUSE)

machine: allowed venv
	@$(PY) -m readapt_cluster check
	@$(PY) -m readapt_demo --check

test: machine check unit control-plane node e2e  ## everything above (root)

fault: venv  ## whole upgrades, the operator killed at its writes, on a real API server; servers and ranks killed at work
	.venv/bin/pytest -v -m fault tests

crds: venv  ## CRDs from the models, into crds/ and the chart
	$(PY) -m readapt_api.schema crds charts/readapt/files/crds

lock: venv  ## lock files from pyproject.toml
	PATH="$(CURDIR)/.venv/bin:$$PATH" scripts/lock.sh

images: venv  ## both container images with buildah (root)
	scripts/build-images.sh

cluster-up: venv  ## a Kubernetes node on this machine (root)
	$(PY) -m readapt_cluster up

cluster-down: venv  ## stops it and leaves nothing behind; PURGE=1 removes its images and logs too
	$(PY) -m readapt_cluster down $(if $(PURGE),--purge)

demo: REUSE := --reuse
demo: allowed venv  ## a base upgrade end to end on a local cluster (root); DATA=DIR takes your data
	$(PY) -m readapt_demo $(if $(DATA),--data "$(DATA)")

study: venv  ## ways to carry adapters over a move, held against each other, into out/study; DATA=DIR, SMALL=1
	$(PY) benchmarks/adaptation/study.py --out out/study $(if $(DATA),--data "$(DATA)") $(if $(SMALL),--small)

clean: venv  ## removes what the build made here; the cache stays
	rm -rf dist out .ruff_cache .pytest_cache
