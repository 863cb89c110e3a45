# The front door. Needs only python3 (3.11 or later), make and git.

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
# Groups and extras of pyproject.toml; `make install EXTRAS=cuda13` for a GPU.
EXTRAS ?= text

.PHONY: help install demo demo-image demo-video test test-slow check format benchmark clean

help:
	@echo "make demo       train a small transformer on built-in text (two minutes) and let it write"
	@echo "make demo-image train a conditional GAN on the built-in digits (three minutes), see runs/demo-image"
	@echo "make demo-video train a frame predictor on built-in digits in motion (three minutes), see runs/demo-video"
	@echo "make test       all tests but the slow ones; make test-slow: those"
	@echo "make check      format, lint, types, import rules and the fast tests"
	@echo "make format     apply the formatter"
	@echo "make benchmark  speed of the models, beside PyTorch where it is installed"
	@echo "make install    make the environment (EXTRAS=cuda12|cuda13|tpu for accelerators)"

install: $(VENV)/installed-$(EXTRAS)

$(VENV)/installed-$(EXTRAS): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --upgrade "pip>=25.1"
	$(RUN) -m pip install --quiet --constraint constraints.txt --editable ".[$(EXTRAS)]" --group dev
	@touch $@

demo: install
	$(RUN) -m train configs/text/demo.toml --workdir runs/demo
	$(RUN) -m tools.evaluate runs/demo
	$(RUN) -m tools.generate runs/demo --prompt "The import statement" --max-tokens 400
	$(RUN) -m tools.report runs/demo

demo-image: install
	$(RUN) -m train configs/image/demo.toml --workdir runs/demo-image
	$(RUN) -m tools.evaluate runs/demo-image
	$(RUN) -m tools.generate runs/demo-image --count 100 --seed 0
	$(RUN) -m tools.report runs/demo-image

demo-video: install
	$(RUN) -m train configs/video/demo.toml --workdir runs/demo-video
	$(RUN) -m tools.evaluate runs/demo-video
	$(RUN) -m tools.generate runs/demo-video --count 8
	$(RUN) -m tools.report runs/demo-video

test: install
	$(RUN) -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-slow: install
	$(RUN) -m pytest -m slow

check: install
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .
	$(RUN) -m pyright
	$(RUN) -m pytest tests/test_import_rules.py -m "fast or not slow" -q
	$(RUN) -m pytest -m fast -q

format: install
	$(RUN) -m ruff format .
	$(RUN) -m ruff check --fix .

benchmark: install
	$(RUN) -m benchmarks.text
	$(RUN) -m benchmarks.image
	$(RUN) -m benchmarks.video

clean:
	rm -rf $(VENV) .cache .pytest_cache .ruff_cache
