# Each target alone, on a fresh machine with Python >= 3.10 and a C++ compiler, makes the environment that it needs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
EXTENSION := $(wildcard kernels/cpu/*.cpp kernels/cpu/*.h)

EXTENSION_TESTS := $(wildcard tests/*.cpp)

.PHONY: demo test test-triton bench bench-compare gpu compile-kernels compile-kernels-all lint sanitize format build dist clean

demo: $(VENV)/.built  ## the notebook's runs and the question's loops against the plain ones; writes report.html
	$(BIN)/python -m matconv_fast demo --report report.html

# Two processes share the cores. PASSIVE: OpenMP's threads sleep where they wait, instead of taking the other's time.
test: $(VENV)/.built $(VENV)/.testers  ## the whole suite, doctests and README included
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -n 2

# Two processes: the interpreter is Python, one operation of a kernel after another.
test-triton: $(VENV)/.built $(VENV)/.testers  ## the suite on the Triton kernels, in Triton's interpreter
	OMP_WAIT_POLICY=PASSIVE TRITON_INTERPRET=1 $(BIN)/python -m pytest -n 2 -k triton

bench: $(VENV)/.built $(VENV)/.benchers  ## the benchmarks: results, docs/benchmarks.md, README's table; BENCH=quick: some
	$(BIN)/python benchmarks/bench.py

bench-compare: $(VENV)/.built $(VENV)/.benchers  ## a quick run against the committed results
	$(BIN)/python benchmarks/bench.py --compare

# $(PYTHON) is that of a CUDA image as it is, with torch, Triton and pytest: nothing is installed, nothing fetched. A
# stage that fails does not stop the others. rows are the benchmarks; racecheck is slow, and gets our kernels alone.
STAGE ?= info suite sync rows sanitizer
gpu:  ## checks and benchmarks on the GPU that is here, or STAGE=suite; writes benchmarks/results/<device>/gpu*.json
	@$(MAKE) --keep-going --no-print-directory $(STAGE:%=gpu-%)

ON_GPU := cd build/gpu && PYTHONPATH=.:../../benchmarks timeout 900 $(PYTHON) ../../benchmarks/gpu.py
GPU_TESTS := $(PYTHON) -m pytest -q -c ../../pyproject.toml --rootdir ../.. --noconftest -p no:cacheprovider -W default
GPU_TESTS += ../../tests/test_gpu.py
COMPUTE_SANITIZER := compute-sanitizer --error-exitcode 9 --target-processes all --tool
OUR_KERNELS = $(patsubst %,--kernel-name kne=%,$(shell grep -ohE '^def _[a-z_0-9]+_kernel' kernels/gpu/*.py | cut -c5-))

.PHONY: gpu-info gpu-suite gpu-sync gpu-rows gpu-sanitizer build/gpu
gpu-info gpu-suite gpu-sync gpu-rows gpu-sanitizer: build/gpu
gpu-info:
	$(ON_GPU) info $(PYTHON) -m matconv_fast info
gpu-suite:
	$(ON_GPU) suite $(GPU_TESTS) ../../tests/test_triton.py
gpu-sync:
	$(ON_GPU) sync $(GPU_TESTS) -k "wait or sync"
gpu-rows:
	$(ON_GPU)
gpu-sanitizer:
	$(ON_GPU) memcheck $(COMPUTE_SANITIZER) memcheck $(GPU_TESTS) -k equals
	$(ON_GPU) racecheck $(COMPUTE_SANITIZER) racecheck $(OUR_KERNELS) $(GPU_TESTS) -k equals

build/gpu:  # the package as an installation lays it out
	rm -rf $@/matconv_fast && mkdir -p $@/matconv_fast
	cp -r matconv_fast/[!k]* $@/matconv_fast && cp -r kernels $@/matconv_fast

COMPILE ?= --markdown docs/gpu_kernels.md
compile-kernels: $(VENV)/.installed  ## every Triton kernel for every GPU, without one: registers, spills, instructions
	$(BIN)/python tools/compile_kernels.py $(COMPILE)

# torch brings one Triton along; the others come after it.
TRITONS := 3.6.0 3.7.1 3.9.0
compile-kernels-all: $(TRITONS:%=compile-kernels-%)  ## that, and the suite in the interpreter, with each Triton that the package works with

.PHONY: $(TRITONS:%=compile-kernels-%)
$(TRITONS:%=compile-kernels-%): compile-kernels-%: build/triton-%/.installed
	OMP_WAIT_POLICY=PASSIVE TRITON_INTERPRET=1 build/triton-$*/bin/python -m pytest -n 2 -q -k triton
	build/triton-$*/bin/python tools/compile_kernels.py

build/triton-%/.installed: constraints.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install --quiet -c constraints.txt setuptools ninja numpy torch pytest pytest-xdist hypothesis plotly tqdm
	$(@D)/bin/pip install --quiet triton==$* "numpy<2.4"  # Triton 3.6 interprets with no later one
	PATH="$(abspath $(@D)/bin):$$PATH" $(@D)/bin/pip install --quiet --no-build-isolation --no-deps -e .
	touch $@

lint: $(VENV)/.built $(VENV)/.testers $(VENV)/.linters  ## style, and types: pyright looks the tests' packages up
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(EXTENSION) $(EXTENSION_TESTS)
	rm -rf build/typecheck
	$(BIN)/python setup.py -q build_py --build-lib build/typecheck
	$(BIN)/pyright --pythonpath $(BIN)/python

# -O1: at -O3 the sanitizers' checks around 200 kernel instances take minutes to compile. -g1: lines are named in what is
# reported, and compiling takes two thirds of -g's time.
# Threads share work in the same way on every instruction set, so one is enough under ThreadSanitizer. AVX-512 is compiled
# where it can run; elsewhere tests/sanitize_wide.cpp has its layout. With all of them for both it takes 6 minutes, not 3.
DRIVEN := isa_generic.cpp finish_chunk.cpp sanitize.cpp
SANITIZED_memory := $(DRIVEN) isa_avx2.cpp sanitize_wide.cpp $(if $(shell grep -m1 avx512bw /proc/cpuinfo),isa_avx512.cpp)
SANITIZED_thread := $(DRIVEN)
# Nesterov's update differs from the heavy ball's in registers alone, and would take a quarter of the time.
SANITIZE := $(CXX) -std=c++17 -O1 -g1 -ffp-contract=fast -Wno-psabi -pthread -fno-sanitize-recover=all
SANITIZE += '-DMCF_RULES(RULE)=RULE(heavy_ball, HeavyBall) RULE(adam, Adam)'
FLAGS_memory := -fsanitize=address,undefined
FLAGS_thread := -fsanitize=thread
vpath %.cpp kernels/cpu tests

sanitize: build/sanitize/memory/clean build/sanitize/thread/clean  ## the kernels under AddressSanitizer and UBSan, and under ThreadSanitizer

define SANITIZER
build/sanitize/$(1)/%.o: %.cpp $(EXTENSION)
	mkdir -p $$(@D)
	$(SANITIZE) $(FLAGS_$(1)) -c $$< -o $$@

build/sanitize/$(1)/clean: $(SANITIZED_$(1):%.cpp=build/sanitize/$(1)/%.o)
	$(SANITIZE) $(FLAGS_$(1)) $$^ -o $$(@D)/driver
	$$(@D)/driver
	touch $$@
endef
$(foreach kind,memory thread,$(eval $(call SANITIZER,$(kind))))

.DELETE_ON_ERROR:

format: $(VENV)/.linters
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(EXTENSION) $(EXTENSION_TESTS)

build: $(VENV)/.built

dist: $(VENV)/.built $(VENV)/.linters  ## sdist and wheel, against the environment's torch
	$(BIN)/python -m build --no-isolation

clean:
	rm -rf $(VENV) build dist *.egg-info kernels/cpu/*.so report.html

# torch comes first: the extension builds against the installed one, so there is no build isolation.
$(VENV)/.installed: constraints.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -c constraints.txt setuptools ninja torch
	$(BIN)/pip install --quiet -c constraints.txt numpy "triton; platform_system == 'Linux'" plotly tqdm
	touch $@

$(VENV)/.built: $(VENV)/.installed setup.py $(EXTENSION)
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/pip install --quiet --no-build-isolation --no-deps -e .
	touch $@

$(VENV)/.testers: $(VENV)/.installed
	$(BIN)/pip install --quiet -c constraints.txt pytest pytest-xdist pytest-benchmark matplotlib hypothesis selenium scikit-learn
	touch $@

$(VENV)/.benchers: $(VENV)/.testers
	$(BIN)/pip install --quiet -c constraints.txt jax scipy lineax
	touch $@

$(VENV)/.linters: $(VENV)/.testers
	$(BIN)/pip install --quiet -c constraints.txt ruff pyright clang-format build
	touch $@
