# Each change must pass make test and make lint. Other targets need Debian packages, which
# they name when they are missing.

GO ?= go

# The build tags of the tests that make test does not run.
TEST_TAGS = e2e,figures,lab,load

.PHONY: reference build test lint platforms e2e e2e-long soak vuln lab lab-short figures ha manifests fuzz bench bench-load

build:
	CGO_ENABLED=0 $(GO) build -trimpath -o dotgate ./cmd/dotgate

# Formatting, vet, and all tests with the race detector. Tests of memory, allocations and
# full floods run again without it. Needs Go, and a C compiler for the race detector. The
# tests of a package take up to a minute, and several on a busy machine.
test:
	@unformatted=$$(gofmt -l cmd configs docker gateway balancer health upstreams); \
	if [ -n "$$unformatted" ]; then echo "gofmt would change:"; echo "$$unformatted"; exit 1; fi
	$(GO) vet ./...
	$(GO) vet -tags $(TEST_TAGS) ./...
	$(GO) test -race -timeout 15m ./...
	$(GO) test -timeout 15m ./gateway/...

# Bugs and unused code (staticcheck), functions that are never called (deadcode),
# parameters that are never used (unparam). Each finding is FILE:LINE: PROBLEM. The tools
# are a module of their own, with pinned versions.
TOOL = $(GO) tool -modfile=.ci/tools/go.mod

lint:
	$(TOOL) staticcheck -tags $(TEST_TAGS) ./...
	@found=$$($(TOOL) deadcode -test -tags $(TEST_TAGS) ./...) || exit 1; \
	if [ -n "$$found" ]; then echo "$$found"; exit 1; fi
	GOFLAGS="$$GOFLAGS -tags=$(TEST_TAGS)" $(TOOL) unparam -tests ./...

# Compiles each further platform that the README names, without optimisation, which takes
# half the time. The tests run on linux/amd64, and darwin/amd64 has the files of
# darwin/arm64.
PLATFORMS = linux/arm64 linux/arm linux/386 linux/riscv64 darwin/arm64 freebsd/amd64

platforms:
	@for platform in $(PLATFORMS); do \
		echo "go build for $$platform"; \
		CGO_ENABLED=0 GOOS=$${platform%/*} GOARCH=$${platform#*/} \
			$(GO) build -gcflags=all='-N -l -dwarf=false' -ldflags='-s -w' -o /dev/null ./... || exit 1; \
	done

# The program between Unbound servers and common clients (packages
# unbound, dnsdist, bind9-dnsutils, bind9-utils, knot-dnsutils, python3-dnspython,
# dnsperf, stubby, chromium, prometheus, dnstap-ldns, fstrm-bin, redis-server,
# redis-sentinel).
e2e:
	$(GO) test -tags e2e -count=1 -parallel 4 -timeout 10m ./cmd/dotgate/e2e

# The same, with longer abuse tests.
e2e-long:
	E2E_LONG=1 $(GO) test -tags e2e -count=1 -timeout 60m -v ./cmd/dotgate/e2e

# Half an hour at 2000 queries a second: no query is lost, and memory does not grow.
soak:
	SOAK=$${SOAK:-30m} $(GO) test -tags e2e -count=1 -timeout 2h -v -run TestSoak ./cmd/dotgate/e2e

# Known vulnerabilities in the program and its modules. It fails if https://vuln.go.dev
# can't be reached.
vuln:
	@out=$$($(GO) run golang.org/x/vuln/cmd/govulncheck@v1.9.0 ./... 2>&1); status=$$?; echo "$$out"; \
	case "$$out" in *"fetching vulnerabilities"*) \
		echo "NOT CHECKED: the database of vulnerabilities, https://vuln.go.dev, can't be reached from here" >&2;; esac; \
	exit $$status

# Each fault that an upstream can have, and its effect on clients, as a table. Needs root,
# for network namespaces (packages iproute2, nftables, unbound). Without a package after it,
# go test prints what a test has printed, also if it passes: the table.
lab:
	cd cmd/dotgate/lab && $(GO) test -tags lab -count=1 -parallel 4 -timeout 40m -args -long

lab-short:
	cd cmd/dotgate/lab && $(GO) test -tags lab -count=1 -parallel 6 -timeout 15m

# The figures of the README.
figures:
	$(GO) test -tags figures -count=1 -timeout 10m -run TestFigures -v ./cmd/dotgate/e2e

# Two gateways with one shared address, as containers, and the failures that they must
# survive (Docker Engine, packages docker-compose, jq, openssl).
ha:
	docker/test-ha.sh

# The manifests in docker/kubernetes, against the types of Kubernetes. A module of its own.
manifests:
	cd docker/kubernetes && $(GO) vet ./... && $(GO) test -count=1 ./...

# A finding is minimised for a second only, so that the minute is for finding.
FUZZ = $(GO) test -run '^$$' -fuzztime 60s -fuzzminimizetime 1s -fuzz

fuzz:
	for target in FuzzParseQuery FuzzParseAnswer FuzzAppendReply; do $(FUZZ) "^$$target$$" ./gateway/wire || exit 1; done
	$(FUZZ) '^FuzzStream$$' ./gateway
	$(FUZZ) '^FuzzLoad$$' ./cmd/dotgate/internal/settings
	$(FUZZ) '^FuzzStamp$$' ./cmd/dotgate/internal/settings
	$(FUZZ) '^FuzzLoad$$' ./gateway/cache

# What is made from the code: configs/dotgate.yaml, from the comments of the options'
# fields and their defaults; and options, metrics, commands and exit codes.
reference:
	$(GO) test ./cmd/dotgate/internal/settings -run TestTheDocumentIsMadeFromTheCode -count=1 -update
	$(GO) run ./cmd/dotgate reference > cmd/dotgate/REFERENCE.new && mv cmd/dotgate/REFERENCE.new cmd/dotgate/REFERENCE.md

bench:
	$(GO) test -run '^$$' -bench . -benchmem ./...

# The cost of a query, beside Unbound and dnsdist, as a table (two processors; packages
# unbound, dnsdist). One row, in a short run without the others:
#   go test -tags load -count=1 -v -run TestLoad/20 ./cmd/dotgate/e2e -quick -alone
bench-load:
	$(GO) test -tags load -count=1 -timeout 40m -v -run TestLoad ./cmd/dotgate/e2e
