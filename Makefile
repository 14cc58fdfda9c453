# mixq: `make chat` opens a chat with the demo model, `make test` runs what CI runs.

PYTHON ?= python3
VENV   ?= .venv
# torch is installed first, so that no other package chooses its build. Override it to use another one:
#   make chat TORCH="torch==2.13.0 --index-url URL-OF-A-CUDA-BUILD"
TORCH  ?= torch==2.13.0
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: chat install test test-fast check format coverage native native-clang sanitize neon emulated accept demo wheel clean
.DELETE_ON_ERROR:

chat: install
	@$(BIN)/mixq chat

install: $(VENV)/.installed

$(VENV)/.torch:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "mixq needs Python 3.11 or newer; choose one with: make PYTHON=python3.11")'
	@echo "Setting up $(VENV) (once; a minute or two)" >&2
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) install --quiet $(TORCH)
	@touch $@

$(VENV)/.installed: $(VENV)/.torch pyproject.toml
	@$(PIP) install --quiet --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.installed
	@$(PIP) install --quiet --editable '.[dev]'
	@$(PIP) install --quiet --no-deps --upgrade --target $(VENV)/compressed-tensors-0.17 'compressed-tensors==0.17.*'
	@touch $@

# Lint, types and tests: minutes.
test: check
	$(BIN)/python -m pytest -n 2 -m 'not accept'

# The tests affected by your changes; if nothing has changed, the unit tests: under a minute.
test-fast: $(VENV)/.dev
	@$(BIN)/python -m tests.fast

# Like `make test`, but also lists the lines that no test ran; a third slower.
coverage: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2 --cov --cov-report=term -m 'not accept'

# mypy reads the package as it is installed: quantize/ and models/ are parts of mixq.
check: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	@rm -rf build/types && mkdir -p build/types/mixq
	@cd build/types/mixq && ln -s ../../../mixq/* ../../../quantize ../../../models .
	MYPYPATH=build/types $(BIN)/mypy -p mixq

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Compile the changed files of the native library, in place. Uses CXX and CXXFLAGS.
native: $(VENV)/.dev
	@$(BIN)/python mixq/kernels/build_native.py

# The four targets below run the kernels from C++ (tests/native). Minutes each; not part of `make test`.
DRIVE = $(MAKE) --no-print-directory -C tests/native run PYTHON=$(abspath $(BIN)/python)

# Built by clang: no warnings, right results.
native-clang: $(VENV)/.dev
	$(DRIVE) CXX=clang++

# Address, undefined-behaviour and thread sanitizers over the kernels and the pool, with both compilers.
sanitize: $(VENV)/.dev
	for cxx in g++ clang++; do \
	    $(DRIVE) CXX=$$cxx DIR=$(CURDIR)/build/native/$$cxx-memory ARGS=30 \
	        EXTRA="-O1 -g -fsanitize=address,undefined,float-cast-overflow -fno-sanitize-recover=all" || exit; \
	    for program in stress_pool driver; do \
	        $(DRIVE) CXX=$$cxx DIR=$(CURDIR)/build/native/$$cxx-threads PROGRAM=$$program ARGS= \
	            EXTRA="-O1 -g -fsanitize=thread" || exit; \
	    done; \
	done

# The ARM kernels, in an emulator: apt-get install g++-aarch64-linux-gnu qemu-user-static
neon: $(VENV)/.dev
	$(DRIVE) CXX=aarch64-linux-gnu-g++ EXTRA=-static RUN="qemu-aarch64-static -cpu max" ARGS=20

# The kernels for AVX-VNNI, AVX-512 and AMX on a CPU without them, emulated: apt-get install libsimde-dev
emulated: $(VENV)/.dev
	$(DRIVE) DIR=$(CURDIR)/build/native/emulated EXTRA="-O1 -DMIXQ_EMULATED=1 -I$(CURDIR)/tests/native/emulated -Wno-psabi -Wno-ignored-attributes -Wno-unused-parameter" ARGS=20

# Measures and writes the tables in tests/accept/results. Hours.
accept: $(VENV)/.dev
	$(BIN)/python -m pytest -m accept -s

# Train the demo model again, from the start: about two hours on two cores.
demo: $(VENV)/.dev
	$(BIN)/python models/train_demo.py

wheel: $(VENV)/.dev
	$(BIN)/python -m build --wheel

clean:
	rm -rf build dist *.egg-info .coverage .mypy_cache .ruff_cache .pytest_cache
