PYTHON = .venv/bin/python

.PHONY: test deep fuzz lint types format demo clean

.venv: pyproject.toml
	python3 -m venv .venv
	.venv/bin/pip install -q -e '.[dev]'
	touch .venv

test: .venv
	$(PYTHON) -m pytest

deep: .venv
	KNAPPER_PROFILE=deep $(PYTHON) -m pytest tests/test_convolution_bits.py tests/test_sparse_bits.py

fuzz: .venv
	$(PYTHON) tests/fuzz.py --minutes 60

lint: .venv
	.venv/bin/ruff check
	.venv/bin/ruff format --check

types: .venv
	.venv/bin/mypy -p knapper

format: .venv
	.venv/bin/ruff check --fix
	.venv/bin/ruff format

demo: .venv
	.venv/bin/knapper demo

clean:
	rm -rf .venv build dist *.egg-info knapper-demo
