# What a newcomer needs: `make demo`, `make test`. Both work in a fresh clone with nothing but Python 3.10 to 3.13.
PYTHON ?= python3
EXTRAS ?= dev,viz
BENCHMARKS ?= attention layers graph_layers small_graphs search reorder windows sparse_conv serialization
PIP = .venv/bin/python -m pip --disable-pip-version-check

.PHONY: demo test bench lint clean

# The second time there is nothing left to do, and it says what the first found.
demo: parts.png
	@cat demo/report.txt
	@echo "its parts: parts.ply, parts.png, parts.html; make clean deletes all this"

parts.png: demo/report.txt
	.venv/bin/geoattn segment demo/person.obj --model demo -o parts.ply --picture parts.png --page parts.html

demo/report.txt: | .venv/installed-viz
	.venv/bin/python examples/segment_bodies.py --output demo

test: .venv/installed-$(EXTRAS)
	.venv/bin/python -m pytest -n logical --dist worksteal

# `make bench ARGS="--seconds 5"` takes hours on two quiet cores (graph_layers alone: one); ARGS=--quick shows in two minutes that everything runs.
bench: .venv/installed-$(EXTRAS)
	status=0; for name in $(BENCHMARKS); do \
		.venv/bin/python -m benchmarks.$$name $(ARGS) || status=1; \
	done; exit $$status

lint: .venv/installed-$(EXTRAS)
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

.venv/installed-%: pyproject.toml constraints.txt setup.py $(wildcard geoattn/ops/backends/csrc/*)
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	$(PIP) install -c constraints.txt -e '.[$*]'
	touch $@

clean:
	rm -rf .venv demo parts.ply parts.png parts.html
