//go:build linux && (e2e || figures || load)

// Package e2e runs dotgate as a process of its own on loopback, between real
// clients and real resolvers.
//
//	go test -tags e2e -v ./cmd/dotgate/e2e                      tests with Unbound, dig and kdig
//	go test -tags figures -run TestFigures -v ./cmd/dotgate/e2e the figures of the README
//	go test -tags load -run TestLoad -v ./cmd/dotgate/e2e       the cost of a query, beside Unbound and dnsdist
//
// A missing program is a failure. With E2E_RACE=1, dotgate is built with the race
// detector. DOTGATE_BIN is the path of a dotgate to test instead of building one.
package e2e

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"dotgate/upstreams/dottest"
)

// Set by TestMain, for all tests.
var (
	dotgate string      // path of the program under test
	ca      *dottest.CA // the only authority that dotgate trusts
	caFile  string
	noCerts string // an empty directory, in place of the system's authorities
)

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(run(m))
}

func run(m *testing.M) int {
	if os.Getenv(upstreamEnv) != "" {
		return m.Run() // a process that a test has started
	}
	dir, err := os.MkdirTemp("", "dotgate-e2e-")
	if err == nil {
		defer os.RemoveAll(dir)
		err = prepare(dir)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		return 1
	}
	return m.Run()
}

func prepare(dir string) (err error) {
	dotgate, noCerts = filepath.Join(dir, "dotgate"), filepath.Join(dir, "no-certs")
	if err := os.Mkdir(noCerts, 0o755); err != nil {
		return err
	}
	ca = dottest.NewCA()
	if caFile, err = ca.WriteFile(dir); err != nil {
		return err
	}
	if bin := os.Getenv("DOTGATE_BIN"); bin != "" {
		dotgate, err = filepath.Abs(bin)
		return err
	}
	build := exec.Command("go", "build", "-o", dotgate)
	if raceDetector() {
		build.Args = append(build.Args, "-race")
	}
	build.Args = append(build.Args, "dotgate/cmd/dotgate")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build dotgate: %w\n%s", err, out)
	}
	return nil
}

// upstreamEnv is the variable that makes a process the bench's upstream: address, delay,
// files of certificate and key.
const upstreamEnv = "E2E_BENCH_UPSTREAM"

// raceDetector reports whether dotgate is built with the race detector.
func raceDetector() bool { return os.Getenv("E2E_RACE") != "" }
