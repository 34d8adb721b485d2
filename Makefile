# Two commands on a fresh machine: `make quickstart` and `make test`. Both set up what is missing first.
# `make check` is what a change has to pass besides: ruff, mypy and a spelling check. `make doctor` looks at the machine.
# PYTHON=/path/to/python3.13 picks the interpreter; CPU=1 takes torch without CUDA; ARGS="-k losses" goes to pytest.

PY := .venv/bin/python
export PYTHON

.PHONY: quickstart test check setup doctor

DIGITS := $(foreach split,train test,data/digits_$(split).beton data/digits_$(split).json)

quickstart: $(DIGITS)
	$(PY) -m fastlsr.train --cfg configs/quickstart.yaml
	@echo "next, the same with one-hot labels: $(PY) -m fastlsr.train --cfg configs/quickstart.yaml --method.name=hard"

# A process for each core, up to 8, with one thread of torch each; most tests of a file stay together, for its fixtures.
test: setup
	OMP_NUM_THREADS=1 $(PY) -m pytest -n auto --maxprocesses 8 --dist worksteal $(ARGS)

check: setup
	$(PY) -m ruff format --check
	$(PY) -m ruff check
	$(PY) -m mypy
	$(PY) -m codespell_lib

setup:
	@bash scripts/setup.sh

doctor: setup
	$(PY) -m fastlsr.doctor

$(DIGITS) &: | setup
	$(PY) data_prep/write_ffcv.py digits --overwrite
