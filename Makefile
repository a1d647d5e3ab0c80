# fewbit: `make run` quantizes a real model and serves it, `make test` checks everything.
# `make help` lists the targets. Needs Go, a C/C++ compiler, CMake and Python 3 with pip (only to fetch).
SHELL       := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS   += --no-print-directory

GO       ?= go
PYTHON   ?= python3
BENCH_PYTHON = $(or $(wildcard .deps/venv-peers/bin/python),$(PYTHON))
CMAKE    ?= $(shell command -v cmake)
VERSION  := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
LDFLAGS  := -X main.version=$(VERSION)
FETCH    := $(PYTHON) tools/fetch/fetch.py
CUDA_GO  := GO='$(GO)' FEWBIT_VERSION='$(VERSION)' tools/cuda/go.sh
# The emulation switches stacks in assembly, for this one architecture.
EMULATED := $(if $(filter x86_64 amd64,$(shell uname -m)),yes)
CUDA_PACKAGES := ./cuda/... ./internal/engine/cuda/...
FUZZTIME ?= 10m
DATA_DIR ?= fewbit-data
LISTEN   ?= 127.0.0.1:8080

STATICCHECK   := honnef.co/go/tools/cmd/staticcheck@v0.8.2
GOLANGCI_LINT := github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0

export FEWBIT_ORT_LIB
# Since 1.29 onnxruntime reports to its maker; fewbit switches that off itself, Python's does not.
export ORT_DISABLE_TELEMETRY := 1
# go-nvml marks old functions of NVIDIA's header as deprecated, a page of warnings in every first build.
export CGO_CFLAGS ?= -O2 -g -Wno-deprecated-declarations

.PHONY: help build kernels deps deps-bench run test test-cpu test-cpu-threads test-cpu-arm fuzz-cpu test-cuda test-cycles test-large check cuda check-cuda gpu-check test-clients test-tokenizers test-litert fuzz bench bench-full bench-micro example-text example-image example-drone clean distclean

help: ## list the targets
	@grep -hE '^[a-z][a-z-]*:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-16s %s\n", $$1, $$2}'

build: kernels ## bin/fewbit, bin/serve and bin/libfewbit_cpu.so
	@mkdir -p bin
	$(GO) build -ldflags '$(LDFLAGS)' -o bin/ ./cmd/...

# Without it everything runs, calibration takes longer and models of target cpu are slow.
kernels: ## bin/libfewbit_cpu.so, the kernels for the CPU (part of build)
	@mkdir -p bin build
ifneq ($(CMAKE),)
	@$(CMAKE) -S cpu -B build/cpu -DCMAKE_BUILD_TYPE=Release -DFEWBIT_CPU_OUTPUT='$(CURDIR)/bin' >build/cpu.log 2>&1 || { cat build/cpu.log; exit 1; }
	@$(CMAKE) --build build/cpu --parallel $(shell nproc)
else
	@echo "build: there is no cmake: bin/libfewbit_cpu.so is left out; install CMake 3.16 or newer and a C++17 compiler"
endif

deps: ## fetch ONNX Runtime, the sentence encoder and the news texts into .deps/
	@$(FETCH) run

deps-bench: deps ## fetch and prepare what the benchmarks compare with (about 1 GB)
	@$(FETCH) bench
	@tools/models/prepare.sh

run: build deps ## quantize the news classifier, show FP32 against INT8, and serve it
	@mkdir -p build && $(GO) build -o build/ ./tools/newsmodel ./tools/demo
	@build/newsmodel
	@exec build/demo -listen '$(LISTEN)' -data-dir '$(DATA_DIR)'

test: deps kernels ## vet and every test (at most 15 minutes on 2 cores)
	$(PYTHON) -B -m unittest discover -s tools/fetch
	for d in benchmarks benchmarks/loadgen; do $(BENCH_PYTHON) -B -m unittest discover -s $$d || exit 1; done # those that need the peers are skipped without them
	$(GO) run ./tools/newsmodel
	$(GO) vet ./...
	$(GO) test -json -timeout 14m ./... | $(GO) run ./tools/testreport
	@$(MAKE) test-cpu test-cpu-threads test-cuda

test-cpu: ## the CPU kernels under the address and undefined-behaviour sanitizers (part of test)
ifneq ($(CMAKE),)
	@mkdir -p build
	@$(CMAKE) -S cpu -B build/cpu-asan -DCMAKE_BUILD_TYPE=Release -DFEWBIT_SANITIZE=ON -DFEWBIT_EMULATE_AMX=ON >build/cpu-asan.log 2>&1 || { cat build/cpu-asan.log; exit 1; }
	@$(CMAKE) --build build/cpu-asan --parallel $(shell nproc) --target fewbit_cpu_test
# The kernel of level amx runs on emulated tiles; what is shipped has the instructions.
	@o=build/cpu-asan/CMakeFiles/fewbit_cpu_kernels.dir/int8_amx.cpp.o; if [ -f $$o ] && command -v objdump >/dev/null; then \
	  for i in ldtilecfg tileloadd tdpbusd tilestored tilerelease; do objdump -d $$o | grep -w $$i >/dev/null || { echo "test-cpu: int8_amx.cpp was compiled without $$i"; exit 1; }; done; fi
	build/cpu-asan/fewbit_cpu_test
# 4-bit weights and the encoder on each level that this processor has.
	@for l in $$(build/cpu-asan/fewbit_cpu_test --levels); do FEWBIT_CPU_LEVEL=$$l build/cpu-asan/fewbit_cpu_test int4 encoder_close encoder_not threads_encoder || exit 1; done
else
	@echo "test-cpu: needs cmake; left out"
endif

test-cpu-threads: ## the CPU operators' tasks and memory under the thread sanitizer (part of test)
ifneq ($(CMAKE),)
	@mkdir -p build
	@$(CMAKE) -S cpu -B build/cpu-tsan -DCMAKE_BUILD_TYPE=Release -DFEWBIT_THREAD_SANITIZE=ON -DFEWBIT_EMULATE_AMX=ON >build/cpu-tsan.log 2>&1 || { cat build/cpu-tsan.log; exit 1; }
	@$(CMAKE) --build build/cpu-tsan --parallel $(shell nproc) --target fewbit_cpu_test
# Of the plain level the sanitizer sees each access, of the others not those that are masked.
	FEWBIT_CPU_LEVEL=plain build/cpu-tsan/fewbit_cpu_test threads_
	build/cpu-tsan/fewbit_cpu_test threads_
else
	@echo "test-cpu-threads: needs cmake; left out"
endif

ARM_CXX := aarch64-linux-gnu-g++
test-cpu-arm: ## the CPU kernels for 64-bit Arm, in an emulator: matrix products, dot products and portable code
ifeq ($(and $(CMAKE),$(shell command -v $(ARM_CXX)),$(shell command -v qemu-aarch64)),)
	@echo "test-cpu-arm: skipped 3: the kernels with matrix products, with dot products, without; needs cmake, $(ARM_CXX) and qemu-aarch64 (Debian: g++-aarch64-linux-gnu, qemu-user)"
else
	@mkdir -p build
	@$(CMAKE) -S cpu -B build/cpu-arm -DCMAKE_BUILD_TYPE=Release -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 -DCMAKE_CXX_COMPILER=$(ARM_CXX) -DCMAKE_EXE_LINKER_FLAGS=-static >build/cpu-arm.log 2>&1 || { cat build/cpu-arm.log; exit 1; }
	@$(CMAKE) --build build/cpu-arm --parallel $(shell nproc) --target fewbit_cpu_test
	qemu-aarch64 -cpu max build/cpu-arm/fewbit_cpu_test
# Processors without matrix products, and without dot products.
	qemu-aarch64 -cpu neoverse-n1 build/cpu-arm/fewbit_cpu_test int encoder_close encoder_not
	qemu-aarch64 -cpu cortex-a72 build/cpu-arm/fewbit_cpu_test int encoder_close encoder_not
endif

test-cuda: deps ## the CUDA kernels and their executor, emulated (part of test)
ifdef EMULATED
	@$(FETCH) cuda-headers
	$(CUDA_GO) emulated vet $(CUDA_PACKAGES)
	$(CUDA_GO) emulated test -json -timeout 14m $(CUDA_PACKAGES) | $(GO) run ./tools/testreport
	$(CUDA_GO) emulated test -json -timeout 5m -run OnTheGPU ./internal/app | $(GO) run ./tools/testreport
else
	@echo "test-cuda: the emulation needs an x86-64 processor; left out"
endif

check: deps ## format, vet, staticcheck, golangci-lint, race detector
	@unformatted=$$(gofmt -l $$(ls -d benchmarks cmd cuda examples internal tests tools 2>/dev/null)); [ -z "$$unformatted" ] || { echo "gofmt -w these files:"; echo "$$unformatted"; exit 1; }
	$(GO) vet ./...
	$(GO) run $(STATICCHECK) ./...
	$(GO) run $(GOLANGCI_LINT) run
	$(GO) test -race -json -timeout 30m ./... | $(GO) run ./tools/testreport
ifdef EMULATED
	@$(FETCH) cuda-headers
	$(CUDA_GO) emulated exec $(GO) run $(STATICCHECK) -tags cuda,cudaemu $(CUDA_PACKAGES)
	$(CUDA_GO) emulated exec $(GO) run $(GOLANGCI_LINT) run --build-tags cuda,cudaemu $(CUDA_PACKAGES)
	$(CUDA_GO) emulated test -race -json -timeout 30m ./internal/engine/cuda/... | $(GO) run ./tools/testreport
	$(CUDA_GO) emulated test -race -short -json -timeout 30m ./cuda/... | $(GO) run ./tools/testreport
	$(CUDA_GO) emulated test -race -json -timeout 30m -run OnTheGPU ./internal/app | $(GO) run ./tools/testreport
endif

cuda: ## bin/fewbit and bin/serve with the CUDA kernels, for machines with and without a GPU
	@cmake -S . -B build/cuda $(if $(shell command -v ninja),-G Ninja) -DFEWBIT_CUDA=ON
	@cmake --build build/cuda --target fewbit_cuda --parallel $(shell nproc)
	@mkdir -p bin
	$(CUDA_GO) real build -o bin/ ./cmd/...
# What another compiler than the pinned one makes of the kernels is told here, and an error in check-cuda only.
	@[ build/cuda/checked -nt build/cuda/libfewbit_cuda.a ] || if $(GO) run ./tools/cudacheck; then touch build/cuda/checked; else ! grep -q "CUDA_PROGRAMS='.*cuda-toolkit" build/cuda/toolkit.env; fi

check-cuda: cuda ## look at the machine code of the kernels: no spills, the instructions they were written for
	$(GO) run ./tools/cudacheck

gpu-check: cuda ## build/gpu-check.tar.xz for a machine with a GPU; runs it when there is one here
	@GO='$(GO)' PYTHON='$(PYTHON)' tools/gpucheck/bundle.sh build/gpu-check.tar.xz
	@build/gpu-check/run.sh build/gpu-check.json

test-clients: build deps ## the server driven by tritonclient, kserve, openai, grpcurl and curl
	@PYTHON='$(PYTHON)' GO='$(GO)' tests/clients/run.sh

test-cycles: deps ## 1,000 times load and unload: resident memory must come back within 5 %
	FEWBIT_CYCLES=1000 $(GO) test -timeout 10m -count=1 -v -run 'TestLoadAndUnload$$' ./internal/app

test-large: deps ## a model of more than 2 GiB quantized within 2 GB of memory (minutes, 12 GB of disk)
	FEWBIT_LARGE=1 $(GO) test -timeout 30m -count=1 -v -run 'TestLargeUnderCeiling$$' ./internal/pipeline

test-tokenizers: deps ## WordPiece against Hugging Face tokenizers on 100,000 lines in 114 languages
	@PYTHON='$(PYTHON)' GO='$(GO)' tests/tokenizers/run.sh

test-litert: build deps ## what fewbit tflite writes, run in LiteRT beside ONNX Runtime
	@PYTHON='$(PYTHON)' tests/litert/run.sh

fuzz: deps ## every fuzz target for FUZZTIME (10m) each
	@GO='$(GO)' FUZZTIME='$(FUZZTIME)' tools/fuzz.sh

fuzz-cpu: deps ## the CPU operators in ONNX Runtime with hostile nodes, address and undefined-behaviour sanitizers, for FUZZTIME
	@mkdir -p build
	@$(CMAKE) -S cpu -B build/cpu-asan -DCMAKE_BUILD_TYPE=Release -DFEWBIT_SANITIZE=ON -DFEWBIT_EMULATE_AMX=ON >build/cpu-asan.log 2>&1 || { cat build/cpu-asan.log; exit 1; }
	@$(CMAKE) --build build/cpu-asan --parallel $(shell nproc) --target fewbit_cpu
# Inputs are short and each other byte is another model: a smaller input would show another fault, not the same one.
# ONNX Runtime throws: the C++ runtime has to be there before the sanitizer looks for it.
	FEWBIT_CPU_LIB='$(CURDIR)/build/cpu-asan/libfewbit_cpu.so' ASAN_OPTIONS=detect_leaks=0 \
	  $(GO) test -asan -exec 'env LD_PRELOAD=$(shell cc -print-file-name=libasan.so):$(shell cc -print-file-name=libstdc++.so.6)' -run '^$$' -fuzz '^FuzzOperators$$' -fuzzminimizetime 1x -fuzztime '$(FUZZTIME)' ./internal/engine/ort

bench: build deps-bench ## the table of the README against its peers, results kept in benchmarks/results
	@benchmarks/run.sh quick

bench-full: build deps-bench ## the same with the counts that the claims rest on
	@benchmarks/run.sh full

bench-micro: deps kernels ## the Go benchmarks against those of BASE (a commit; default origin/main), compared by benchstat; PACKAGES=./internal/calib for some
	@GO='$(GO)' benchmarks/micro.sh $(if $(BASE),$(BASE),$(if $(PACKAGES),HEAD~1)) $(PACKAGES)

example-text: ## BERT-base on a CPU under 50 ms, start to finish (examples/text-classification); FULL=1 keeps the result
	@GO='$(GO)' PYTHON='$(PYTHON)' examples/text-classification/run.sh $(ARGS)

example-image: ## image classifiers for a device with 2 GB, start to finish (examples/image-classification); FULL=1 keeps the result
	@GO='$(GO)' PYTHON='$(PYTHON)' examples/image-classification/run.sh $(ARGS)

example-drone: ## a CLIP model under limits of power and heat, start to finish (examples/vision-language); FULL=1 keeps the result
	@GO='$(GO)' PYTHON='$(PYTHON)' examples/vision-language/run.sh $(ARGS)

clean: ## remove what the build made
	rm -rf bin build

distclean: clean ## also remove everything fetched and the server's data
	rm -rf .deps '$(DATA_DIR)'
