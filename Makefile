# Two commands matter: `make lab` opens the course, `make test` runs everything CI runs.
PYTHON ?= python3
RUN = .venv/bin/python
# Waiting threads sleep: beside another busy program, threads that spin while they wait take ten times as long.
export OMP_WAIT_POLICY = passive
NBVAL = RLCOURSE_PROGRESS=0 $(RUN) -m pytest --nbval --nbval-current-env --nbval-cell-timeout=300 \
    --nbval-sanitize-with=tests/sanitize.cfg --durations=5

.PHONY: lab test notebooks site browser bench peers
lab: .venv/ready-lab
	.venv/bin/jupyter lab --notebook-dir=notebooks

test: .venv/ready-test
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m pytest
	$(NBVAL) notebooks/*.ipynb
	RLCOURSE_STRICT=1 $(NBVAL) notebooks/solutions

notebooks: .venv/ready-test  # execute every lesson in place and make its solutions again
	RLCOURSE_PROGRESS=0 $(RUN) notebooks/solutions/make.py

site: .venv/ready-test  # the course as a web site in build/site, from the stored outputs
	$(RUN) -m sphinx -q -W --keep-going -c site -d build/doctrees . build/site
	@echo "open build/site/index.html"

browser: .venv/ready-browser  # the site and JupyterLab in Chromium (apt install chromium, or playwright install chromium)
	$(RUN) -m pytest -m browser tests/browser

bench: .venv-peers/ready  # ours, TRL, a bare loop and the floor in turn: notebooks/14_side_by_side.csv (15 minutes)
	env -u OMP_WAIT_POLICY .venv-peers/bin/python tests/bench/side_by_side.py  # alone on the machine: threads may spin

peers: .venv-peers/ready  # the comparisons with other libraries, in an environment of their own
	.venv-peers/bin/python -m pytest -m peers tests/peers

.venv-peers/ready: pyproject.toml constraints.txt
	test -x .venv-peers/bin/python || $(PYTHON) -m venv .venv-peers
	.venv-peers/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[test]" "stable-baselines3==2.9.2" "trl==1.12.0"
	touch $@

EXTRAS_test = [test,teach,site]
EXTRAS_browser = [test,teach,site,browser]
.venv/ready-%: pyproject.toml constraints.txt
	test -x $(RUN) || $(PYTHON) -m venv .venv
	.venv/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".$(EXTRAS_$*)"
	$(RUN) -m rlcourse.data
	touch $@
