# Two commands on a fresh machine: `make quickstart` and `make test`. Both set up what is missing first.
# PYTHON=/path/to/python3.12 picks the interpreter; ARGS="-k losses" goes to pytest.

PY := .venv/bin/python
export PYTHON

.PHONY: quickstart test setup doctor

quickstart: data/digits_train.json
	$(PY) -m fastlsr.train --cfg configs/quickstart.yaml

test: setup
	$(PY) -m pytest $(ARGS)

setup:
	@bash scripts/setup.sh

doctor: setup
	$(PY) -m fastlsr.doctor

# The manifest of the training split is what the writer leaves last, so it stands for all four files.
data/digits_train.json: | setup
	$(PY) data_prep/write_ffcv.py digits
