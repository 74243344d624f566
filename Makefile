# Two words do everything, set-up included: `make demo` and `make test`. Both are safe to repeat.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN ?= runs/demo
PYTEST ?= -m "not long and not slow"
TESTERS ?= 2
# Ray's workers give way to all other processes (niceness 15): a test that computes beside would let them starve.
FAIR := RAY_worker_niceness=0

.PHONY: demo test test-slow lint manifests setup setup-dev clean

demo: setup  ## the main job, whole, on generated video files
	$(BIN)/python jobs/run.py rehearsal --run $(RUN)

test: setup-dev  ## the tests; PYTEST= runs the long ones too, TESTERS=0 all in one process
	$(BIN)/python -m pip check
	$(FAIR) $(BIN)/python -m pytest -n $(TESTERS) --dist loadfile $(PYTEST)

test-slow: setup-dev  ## image and Kubernetes API server, built and asked; further cases of long tests; as root on Debian
	bash .ci/system $(PYTHON) buildah debootstrap openssl
	bash .ci/apiserver
	$(FAIR) $(BIN)/python -m pytest -m slow

lint: setup-dev  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(BIN)/pyright
	$(BIN)/hadolint Dockerfile

manifests:  ## write cluster/rendered/ afresh
	bash .ci/kustomize render

setup: $(VENV)/ready
setup-dev: $(VENV)/ready-dev

$(VENV)/ready: requirements.txt pyproject.toml .ci/system $(wildcard finepseudo/align/kernels/*.cpp finepseudo/align/kernels/*.h)
	bash .ci/system $(PYTHON)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check setuptools -r requirements.txt -c tests/requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	$(BIN)/python -m finepseudo.train.engine
	touch $@

$(VENV)/ready-dev: $(VENV)/ready tests/requirements.lock .ci/kustomize
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r tests/requirements.lock
	bash .ci/kustomize
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info finepseudo/align/kernels/_cpu.*
