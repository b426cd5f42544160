# `make help` lists the targets; the text after ## is what it prints.
#
# Nothing here needs more than Go, make and git. Every tool is pinned in a go.mod under tools/ and built from source.

PKG       ?= ./...
RUN       ?= .
BENCH     ?= .
COUNT     ?= 3
BENCHCOUNT ?= 6
FUZZTIME  ?= 2m
FUZZ      ?= .
ARGS      ?=

# A go.work in a parent directory would replace the versions that are pinned here.
export GOWORK := off

# Every module of the repository but the pins under tools/. The root comes last, so that its results stand at the end.
MODULES := $(shell find . \( -name .git -o -name testdata -o -path ./tools \) -prune -o -name go.mod -print \
	| sed 's|/go\.mod$$||' | sort -r)

# PKG names packages of the root module, unless it is all of them.
TESTED := $(if $(filter ./...,$(PKG)),$(MODULES),.)

# The race detector needs a C compiler; Go switches cgo off where there is none. CI sets CGO_ENABLED=1 and so fails.
RACE := $(if $(filter 1,$(shell go env CGO_ENABLED)),-race)

# The race detector has sync.Pool drop things at random, so what must not allocate, and what has to find again what it put
# there, is tested without it as well.
ALLOCS := ./balancer ./bench

# The servers that tests run against.
SERVERS := tools/bin/consul tools/bin/jaeger

MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

comma := ,

# each runs $(2) in every module of $(1), goes on after a failure, and fails in the end if one did.
each = @status=0; for m in $(1); do (cd $$m && $(2)) || status=1; done; exit $$status

.PHONY: help
help: ## this list (at once)
	@echo 'make TARGET [VARIABLE=value]; times are for 2 cores with a warm build cache'
	@echo
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  %-11s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo
	@echo '  PKG=./balancer/... and RUN=regexp narrow test and race; BENCH=regexp and BENCHCOUNT=1 narrow bench;'
	@echo '  FUZZ=regexp and FUZZTIME=30s narrow fuzz; COUNT=10 lengthens race; ARGS="..." goes to quickstart'

.PHONY: test
test: $(SERVERS) norace ## run every package of every module under -race (10 min at most; a first build of Consul and Jaeger adds 15 min)
	$(if $(filter ./...,$(PKG)),$(if $(RACE),go test -run 'Alloc|CalmDown' $(ALLOCS)))
	$(call each,$(TESTED),go test $(RACE) -timeout 9m -run '$(RUN)' $(PKG))

.PHONY: race
race: $(SERVERS) ## hunt for races: as test, but COUNT (3) times, shuffled, on 1 and on 4 processors (6 times as long as test)
	$(call each,$(TESTED),CGO_ENABLED=1 go test -race -count=$(COUNT) -shuffle=on -cpu=1$(comma)4 -timeout 60m -run '$(RUN)' $(PKG))

.PHONY: lint
lint: staticcheck ## gofmt, go vet, staticcheck and the import rules (20 s; the first time 2 min)
	@out=$$(find . \( -name .git -o -name testdata \) -prune -o -name '*.go' -print | xargs gofmt -l -s) && \
		test -z "$$out" || { echo "gofmt -s -w would change: $$out"; exit 1; }
	$(call each,$(MODULES),go vet ./...)
	$(call each,$(MODULES),'$(CURDIR)'/tools/bin/staticcheck ./...)
	@go test -count=1 -run '^TestRules' .

# The raw output is kept, and the report turns it into bench/README.md and a chart. With its own tag go-zero does
# without Kubernetes' client. A failed run must not be taken for one that has few rows, so no pipe hides its status.
.PHONY: bench
bench: ## measure beside grpc-go's policies and other libraries, write bench/README.md (15 min; alone on the machine, please)
	go test -run '^$$' -bench '$(BENCH)' -count $(BENCHCOUNT) -timeout 60m ./bench >bench/results/latest.txt || { tail bench/results/latest.txt; exit 1; }
	cd bench/peers && go test -tags no_k8s -run '^$$' -bench '$(BENCH)' -count $(BENCHCOUNT) -timeout 60m . >../results/peers.txt || { tail ../results/peers.txt; exit 1; }
	go run ./bench/report

.PHONY: microbench
microbench: ## every benchmark that the packages have beside their code (5 min)
	$(call each,$(MODULES),go test -run '^$$' -bench '$(BENCH)' -benchmem -timeout 60m $$(go list ./... | grep -v /bench))

# Go fuzzes one target at a time. A target is found by its name, and its directory says which module it is in.
.PHONY: fuzz
fuzz: ## fuzz each target for FUZZTIME (2 min each); what it finds stays under testdata/fuzz as a seed: commit it
	@targets=$$(find . \( -name .git -o -name testdata \) -prune -o -name '*_test.go' -print \
		| xargs grep -EHo '^func Fuzz[A-Za-z0-9_]+' | sed 's|/[^/]*:func | |' | grep -E '$(FUZZ)' | sort); \
	test -n "$$targets" || { echo "no fuzz target matches FUZZ=$(FUZZ)"; exit 1; }; \
	echo "$$targets" | { status=0; while read -r dir name; do \
		echo "== $$dir $$name"; \
		(cd "$$dir" && go test -run "^$$name\$$" -fuzz "^$$name\$$" -fuzztime $(FUZZTIME) .) </dev/null || status=1; \
	done; exit $$status; }

.PHONY: quickstart
quickstart: ## show it working: five servers, a canary, an ejection and a rolling update (30 s)
	@go run ./examples/quickstart $(ARGS)

.PHONY: tools
tools: $(SERVERS) staticcheck ## build the pinned test servers and the linter into tools/bin (15 min the first time)

.PHONY: clean
clean: ## delete what the other targets built: tools/bin, test binaries, profiles (at once)
	rm -rf tools/bin
	find . -name .git -prune -o -type f \( -name '*.test' -o -name '*.prof' -o -name '*.out' \) -exec rm -f {} +

.PHONY: norace
norace:
	$(if $(RACE),,@echo 'No C compiler here, and the race detector needs one: the tests run without it.')

# go build knows what is stale, a new Go included, and does nothing when nothing is.
.PHONY: staticcheck
staticcheck:
	@cd tools/lint && GOFLAGS= go build -trimpath -o ../bin/staticcheck honnef.co/go/tools/cmd/staticcheck

tools/bin/consul: tools/consul/go.mod tools/consul/go.sum
	@echo 'Building the pinned Consul from source; this takes some minutes, once.'
	@rm -f $@ # go build refuses to replace a file that is half written
	@cd tools/consul && GOFLAGS= go build -trimpath -o ../bin/consul github.com/hashicorp/consul
	@touch $@

tools/bin/jaeger: tools/jaeger/go.mod tools/jaeger/go.sum
	@echo 'Building the pinned Jaeger from source; this takes some minutes, once.'
	@rm -f $@
	@cd tools/jaeger && GOFLAGS= go build -trimpath -o ../bin/jaeger github.com/jaegertracing/jaeger/cmd/all-in-one
	@touch $@
