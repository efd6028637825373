# Two commands: `make demo` (the whole journey on a small real corpus) and `make test`.
# Both make their own environment in $(VENV) and touch nothing else; run them as often as you like.

PYTHON ?= python3
VENV   ?= .venv-infty
DEMO   ?= demo
DEMO_ADAPT ?= demo-adapt
BOOKS  ?=
MODEL  ?=
STEPS  ?= 100
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.infty-installed

.PHONY: help demo demo-adapt test test-fast check format lint types env machine clean

help:
	@echo "make demo          books in, trained model out, in about 5 minutes on 2 CPU cores"
	@echo "                   BOOKS=folder  use your own .txt books;  DEMO=folder  where results go"
	@echo "make demo-adapt    a memory for a small pretrained model, which is fetched (93 MB)"
	@echo "                   MODEL=folder  your own;  STEPS=100  how long its memory learns;  BOOKS, DEMO_ADAPT"
	@echo "make test          run all tests"
	@echo "make test-fast     run those that start no processes and no Slurm, in about 2 minutes"
	@echo "make env           only make the environment ($(VENV));  VENV=folder, PYTHON=python3.12"
	@echo "make check         formatting, lint and types: what a change must pass beside the tests"
	@echo "make format        format what is set to be formatted, and sort imports"
	@echo "make clean         remove what these commands made ($(VENV), and $(DEMO) and $(DEMO_ADAPT) if the demos made them)"

demo: $(STAMP)
	@$(BIN)/python -m infty_tools.demo --folder "$(DEMO)" $(if $(BOOKS),--books "$(BOOKS)")

demo-adapt: $(STAMP)
	@$(BIN)/python -m infty_tools.demo_adapt --folder "$(DEMO_ADAPT)" --steps "$(STEPS)" \
		$(if $(MODEL),--model "$(MODEL)") $(if $(BOOKS),--books "$(BOOKS)")

test: $(STAMP)
	@$(BIN)/python -m pytest tests $(ARGS)

test-fast: $(STAMP)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests -m "not multiprocess and not slurm" -n auto --maxprocesses 8 --dist loadfile $(ARGS)

check: lint types

lint: $(STAMP)
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/ruff check .

types: $(STAMP)
	@$(BIN)/mypy

format: $(STAMP)
	@$(BIN)/ruff check --select I --fix --quiet .
	@$(BIN)/ruff format .

env: $(STAMP)

machine:
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) is missing: install Python 3.10 or newer, or name one: make demo PYTHON=/path/to/python3"; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "error: $(PYTHON) is $$($(PYTHON) -V): infty needs Python 3.10 or newer (make demo PYTHON=python3.12)"; exit 2; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "error: $(PYTHON) has no venv module: install it (Debian, Ubuntu: apt-get install python3-venv)"; exit 2; }
	@command -v c++ >/dev/null || command -v g++ >/dev/null || { echo "error: a C++ compiler is missing: install one (Debian, Ubuntu: apt-get install g++)"; exit 2; }
	@if [ -e "$(VENV)" ] && [ ! -e "$(VENV)/.infty" ]; then echo "error: $(VENV) exists and was not made by this Makefile; leaving it alone. Name another: make demo VENV=.venv2"; exit 2; fi

$(STAMP): pyproject.toml | machine
	@echo "making the environment in $(VENV) (once; about 1.5 GB)"
	@mkdir -p $(VENV) && touch $(VENV)/.infty
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[mpi,test]'
	@touch $(STAMP)

clean:
	@if [ -e "$(VENV)/.infty" ]; then rm -rf "$(VENV)"; fi
	@if [ -e "$(DEMO)/.infty-demo" ]; then rm -rf "$(DEMO)"; fi
	@if [ -e "$(DEMO_ADAPT)/.infty-demo" ]; then rm -rf "$(DEMO_ADAPT)"; fi
