# make demo and make test set everything up by themselves, on any machine with Python 3.11.

PYTHON ?= python3.11
VENV ?= .venv
# torch first and alone: on a machine whose index has a CPU build or one for its CUDA, this line decides which it is.
TORCH ?= torch==2.13.0
BIN := $(VENV)/bin
OUT ?= out/demo
# Test processes; each takes up to 3 GiB, and those that test a cluster start one.
TESTERS ?= 2

.PHONY: help demo test lint format clean

help: ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; set PYTHON=")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -c constraints.txt $(TORCH)
	$(BIN)/pip install -q -c constraints.txt -e .[test]
	touch $@

demo: $(VENV)/.installed ## inpaint the sample photographs on a local Ray, and draw a picture of the results
	$(BIN)/python -m jobs.inpaint --config configs/demo.yaml --output.url=$(OUT)/result
	$(BIN)/python -m jobs.audit --deep $(OUT)/result
	$(BIN)/python -m jobs.report $(OUT)/result
	@echo
	@echo "Results:  $(OUT)/result/results/*.parquet, metrics/ and errors/ beside them"
	@echo "Picture:  $(OUT)/result/report/contact_sheet.png   Page: $(OUT)/result/report/index.html"
	@echo "The checkpoint is the project's own small one (configs/demo-checkpoint); holes fill smoothly, nothing is invented."

test: $(VENV)/.installed ## run the tests
	$(BIN)/python -m pytest -n $(TESTERS) --dist loadfile

lint: $(VENV)/.installed ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed ## put the code into its style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove what make made: the virtual environment and out/
	rm -rf $(VENV) out
