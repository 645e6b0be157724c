# Everything runs in .venv, which `make install` creates with the PYTHON named here.
PYTHON ?= python3.11
VENV ?= .venv
RUN := $(VENV)/bin/python
READY := $(VENV)/.ready

.PHONY: install quickstart test test-slow test-gpu bench-gpu docs lint format clean export-onnx

install: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

quickstart: install  ## train a small network on the images that come along, evaluate it, draw its predictions
	$(RUN) main.py --config=configs/nuclei_panoptic.py:quick --workdir=runs/quickstart
	$(RUN) main.py --mode=predict --checkpoint=runs/quickstart --workdir=runs/quickstart \
		--images=maskdino_jax/data/samples/nuclei/val_tiles

test: install  ## the fast tests
	$(RUN) -m pytest -n 2 --dist loadfile

test-slow: install  ## minutes each
	$(RUN) -m pytest -m slow -n 2 --dist loadfile

test-gpu:  ## on a machine with an NVIDIA GPU; uses the present environment
	MASKDINO_TEST_PLATFORM=cuda,cpu python3 -m pytest -m gpu

bench-gpu:  ## on a machine with an NVIDIA GPU, at most 10 minutes; writes docs/benchmarks
	timeout 600 python3 benchmarks/deform_attn.py --output=docs/benchmarks

docs: install  ## the API reference: build/api/index.html
	$(RUN) docs/reference.py build/api

ONNX_VENV ?= .venv-onnx
CHECKPOINT ?= runs/quickstart

$(ONNX_VENV)/.ready: pyproject.toml constraints-onnx.txt
	$(PYTHON) -m venv $(ONNX_VENV)
	$(ONNX_VENV)/bin/python -m pip install --quiet --constraint constraints-onnx.txt --editable ".[onnx]"
	touch $@

export-onnx: $(ONNX_VENV)/.ready  ## CHECKPOINT as ONNX, with CANVAS=HEIGHTxWIDTH if given, into WORKDIR/export
	$(ONNX_VENV)/bin/python main.py --mode=export --format=onnx --checkpoint=$(CHECKPOINT) \
		--workdir=$(or $(WORKDIR),$(CHECKPOINT)) $(if $(CANVAS),--canvas=$(CANVAS))

lint: install
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/lint-imports

format: install
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .import_linter_cache build *.egg-info
