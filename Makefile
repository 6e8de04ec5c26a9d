# make test is what a change must pass; the others need Debian packages, which
# they name when they are missing.

GO ?= go

.PHONY: reference build test e2e e2e-long soak vuln lab lab-short figures ha manifests fuzz bench bench-load

build:
	CGO_ENABLED=0 $(GO) build -trimpath -o dotgate ./cmd/dotgate

# Formatting, vet, and all tests with the race detector, the picture of the
# imports among them; what memory, allocations and full floods say, without it.
# Needs nothing but Go (and a C compiler, for the race detector).
test:
	@unformatted=$$(gofmt -l cmd configs docker gateway balancer health upstreams); \
	if [ -n "$$unformatted" ]; then echo "gofmt would change:"; echo "$$unformatted"; exit 1; fi
	$(GO) vet ./...
	$(GO) vet -tags e2e,figures,lab,load ./...
	$(GO) test -race ./...
	$(GO) test ./gateway/...

# The real program between real Unbound servers and real clients (packages
# unbound, bind9-dnsutils, bind9-utils, knot-dnsutils, python3-dnspython,
# dnsperf, stubby, chromium, prometheus, dnstap-ldns, fstrm-bin, redis-server,
# redis-sentinel).
e2e:
	$(GO) test -tags e2e -count=1 -parallel 4 -timeout 10m ./cmd/dotgate/e2e

# The same, with abuse that goes on for longer.
e2e-long:
	E2E_LONG=1 $(GO) test -tags e2e -count=1 -timeout 60m -v ./cmd/dotgate/e2e

# Half an hour at 2000 queries a second: nothing is lost, nothing grows.
soak:
	SOAK=$${SOAK:-30m} $(GO) test -tags e2e -count=1 -timeout 2h -v -run TestSoak ./cmd/dotgate/e2e

# Known vulnerabilities in what is linked. It needs https://vuln.go.dev, and fails
# where that can't be reached: to have found nothing is not to have looked.
vuln:
	@out=$$($(GO) run golang.org/x/vuln/cmd/govulncheck@v1.9.0 ./... 2>&1); status=$$?; echo "$$out"; \
	case "$$out" in *"fetching vulnerabilities"*) \
		echo "NOT CHECKED: the database of vulnerabilities, https://vuln.go.dev, can't be reached from here" >&2;; esac; \
	exit $$status

# Every fault that an upstream can have, with what clients see of it, as a table.
# Needs root, for network namespaces (packages iproute2, nftables, unbound).
lab:
	cd cmd/dotgate/lab && $(GO) test -tags lab -count=1 -parallel 4 -timeout 40m . -args -long

lab-short:
	cd cmd/dotgate/lab && $(GO) test -tags lab -count=1 -parallel 6 -timeout 15m .

# The figures of the README.
figures:
	$(GO) test -tags figures -count=1 -timeout 10m -run TestFigures -v ./cmd/dotgate/e2e

# Two gateways with one address, as containers, broken in every way while clients
# count (Docker Engine, packages docker-compose, jq, openssl).
ha:
	docker/test-ha.sh

# What docker/kubernetes says, against the types of Kubernetes. A module of its own.
manifests:
	cd docker/kubernetes && $(GO) vet ./... && $(GO) test -count=1 ./...

# What was found is made shorter for a second only: the minute is for finding.
FUZZ = $(GO) test -run '^$$' -fuzztime 60s -fuzzminimizetime 1s -fuzz

fuzz:
	for target in FuzzParseQuery FuzzParseAnswer FuzzAppendReply; do $(FUZZ) "^$$target$$" ./gateway/wire || exit 1; done
	$(FUZZ) '^FuzzStream$$' ./gateway
	$(FUZZ) '^FuzzLoad$$' ./configs
	$(FUZZ) '^FuzzLoad$$' ./gateway/cache

# What is made from the code: options, metrics, commands, exit codes.
reference:
	$(GO) run ./cmd/dotgate reference > cmd/dotgate/REFERENCE.new && mv cmd/dotgate/REFERENCE.new cmd/dotgate/REFERENCE.md

bench:
	$(GO) test -run '^$$' -bench . -benchmem ./...

# What a query costs, next to Unbound and dnsdist, as a table (two processors;
# packages unbound, dnsdist). One row, at once and without the peers:
#   go test -tags load -count=1 -v -run TestLoad/20 ./cmd/dotgate/e2e -quick -alone
bench-load:
	$(GO) test -tags load -count=1 -timeout 40m -v -run TestLoad ./cmd/dotgate/e2e
