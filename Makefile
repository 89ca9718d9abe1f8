# `make demo` and `make test` set up what they need and run; `make help` lists the rest.
PYTHON ?= python3
BIN := .venv/bin
RESULTS := results/demo

.PHONY: help demo test test-cluster bench bench-gpu baseline check-baseline study weights lint lock report clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

.venv/installed: pyproject.toml constraints.txt
	@case "$$PWD" in *[[:space:]\'\"]*) \
		echo "$$PWD: blanks or quotes in its path, which pip's scripts cannot run from; move the clone"; \
		exit 1;; esac
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11, 4))' || \
		{ echo "$(PYTHON) is older than Python 3.11.4; name a newer one: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,baselines,slurm,distributed]'
	@touch $@

demo: .venv/installed ## train, restore, score and judge everything on embedded images (minutes)
	@echo "This takes seven to fifteen minutes on 2 cores. A stopped run goes on where it was: make demo"
	@$(BIN)/python -m rerg.watch --cores all
	@echo
	@cat $(RESULTS)/claims.md
	@echo
	@echo "Tables in $(RESULTS)/tables, figures in $(RESULTS)/figures, scores in $(RESULTS)/scores.csv."
	@echo "One page with everything: make report"

test: .venv/installed ## run the tests, two files at a time
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-cluster: .venv/installed ## run on a real Slurm on this machine (minutes; root, Debian or Ubuntu)
	$(BIN)/python -m pytest -rs --durations=0 tests/cluster

bench: .venv/installed ## measure speed on the demo's models, after a demo where there is none (10 to 25 minutes)
	@test -e $(RESULTS)/claims.md || { echo 'no finished $(RESULTS): the demo comes first'; $(MAKE) demo; }
	$(BIN)/python -m benchmarks $(RESULTS)

bench-gpu: .venv/installed ## measure what this machine's GPU does with networks, solvers and trainings (4 minutes)
	$(BIN)/python -m benchmarks.gpu

NEW := workflow/baselines/$(NAME)

baseline: ## write the folder of a new baseline: make baseline NAME=mine
	@case '$(NAME)' in ''|[!a-zA-Z]*|*[!a-zA-Z0-9_-]*) \
		echo 'NAME: expected a letter, then letters, digits, - and _: make baseline NAME=mine'; exit 1;; esac
	@case "$$(echo '$(NAME)' | tr A-Z a-z)" in initial|truth|null|true|false|yes|no|on|off) \
		echo '$(NAME): a row of every table, or no text in YAML; choose another name'; exit 1;; esac
	@test ! -e rerg/variants/$(NAME).py || { echo '$(NAME) is the name of a variant; choose another name'; exit 1; }
	@test ! -e $(NEW) || { echo '$(NEW) is there already'; exit 1; }
	@mkdir $(NEW)
	@for suffix in py yaml; do \
		sed 's/NAME/$(NAME)/' workflow/template/NAME.$$suffix > $(NEW)/$(NAME).$$suffix; done
	@echo 'wrote $(NEW); try it: make check-baseline NAME=$(NAME)'

check-baseline: .venv/installed ## hold a baseline against the contract: make check-baseline NAME=mine
	@$(BIN)/python -m rerg.check '$(NAME)'

study: .venv/installed ## run the study whose scores ship, on BSDS500 (hours; downloads the images)
	$(BIN)/snakemake --cores all --configfile config/study.yaml --config stored=false

weights: .venv/installed ## train the RERG that ships, on BSDS500 (an hour; downloads the images)
	$(BIN)/snakemake --cores all --configfile config/shipped.yaml
	$(BIN)/python -m rerg.ship results/shipped

report: .venv/installed ## one HTML with all tables, figures and claims of the demo
	$(BIN)/snakemake --report $(RESULTS)/report.html

lint: .venv/installed ## check format and style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/snakefmt --check Snakefile workflow
	$(BIN)/snakemake --lint

lock: ## renew constraints.txt from the newest versions that pyproject.toml admits
	rm -rf .venv-lock && $(PYTHON) -m venv .venv-lock
	.venv-lock/bin/pip install --quiet --disable-pip-version-check '.[test,baselines,slurm,distributed]'
	.venv-lock/bin/pip freeze --exclude rerg > constraints.txt
	rm -rf .venv-lock

clean: ## remove the environment and the demo's results
	rm -rf .venv $(RESULTS)
