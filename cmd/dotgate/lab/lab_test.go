//go:build lab

// Package lab rehearses everything that can go wrong with upstreams, against the
// real program, and measures what clients see of it.
package lab

import (
	"cmp"
	"crypto/tls"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"dotgate/upstreams/dottest"
)

var (
	long     = flag.Bool("long", false, "5 s before the fault, 10 s of it, and 15 s after, instead of 2, 3 and 2")
	keepLogs = flag.Bool("logs", false, "print what the gateway logged")
)

// phases are how long a scenario lasts.
type phases struct{ before, during, after time.Duration }

func duration() phases {
	if *long {
		return phases{5 * time.Second, 10 * time.Second, 15 * time.Second}
	}
	return phases{2 * time.Second, 3 * time.Second, 2 * time.Second}
}

const (
	clientLimit = time.Second           // a client that is less patient than most
	p99Limit    = 80 * time.Millisecond // how much the fault may add
)

// roundTrips are how far away a, b and c are.
var roundTrips = []time.Duration{10 * time.Millisecond, 20 * time.Millisecond, 30 * time.Millisecond}

var binary string

func TestMain(m *testing.M) {
	flag.Parse()
	dir, err := os.MkdirTemp("", "dotgate-lab")
	if err != nil {
		panic(err)
	}
	binary = filepath.Join(dir, "dotgate")
	build := exec.Command("go", "build", "-o", binary, "dotgate/cmd/dotgate")
	build.Stdout, build.Stderr = os.Stdout, os.Stderr
	if err := build.Run(); err != nil {
		fmt.Fprintln(os.Stderr, "build the gateway:", err)
		os.Exit(1)
	}
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

func TestNoClientNoticesAFailingUpstream(t *testing.T) {
	var mu sync.Mutex
	var reports []report
	t.Run("scenarios", func(t *testing.T) {
		for _, s := range readScenarios(t) {
			t.Run(s.group+"/"+s.name, func(t *testing.T) {
				t.Parallel()
				r := play(t, s)
				mu.Lock()
				reports = append(reports, r)
				mu.Unlock()
				for _, problem := range r.problems {
					t.Error(problem)
				}
			})
		}
	})
	slices.SortStableFunc(reports, func(a, b report) int { return cmp.Compare(a.order(), b.order()) })
	fmt.Print(table(reports))
}

// A world is three servers and the gateway before them.
type world struct {
	t       *testing.T
	ca      *dottest.CA
	servers []*dottest.Server
	gateway *exec.Cmd
	address netip.AddrPort
	log     *strings.Builder
}

func newWorld(t *testing.T, s scenario) *world {
	t.Helper()
	w := &world{t: t, ca: dottest.NewCA(), log: new(strings.Builder)}
	var list []string
	for i, rtt := range roundTrips {
		server := dottest.NewServer(t, dottest.Options{CA: w.ca, RTT: rtt, Certificate: w.certificate("good"), Seed: uint64(i + 1)})
		w.servers = append(w.servers, server)
		list = append(list, fmt.Sprintf("tls://%s#%s", server.Addr(), dottest.ServerName))
	}
	for _, i := range s.on {
		w.strike(i, s.start)
	}
	w.address = freePort(t)
	file, err := w.ca.WriteFile(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	w.gateway = exec.Command(binary, "--listen", w.address.String())
	w.gateway.Env = []string{
		"SSL_CERT_FILE=" + file, "SSL_CERT_DIR=/nonexistent",
		"DOTGATE_UPSTREAMS=" + strings.Join(list, ","),
		"DOTGATE_HEALTH_PROBE_NAME=probe.example.com", "DOTGATE_HEALTH_PROBE_TYPE=A",
	}
	w.gateway.Stderr = w.log
	if err := w.gateway.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = w.gateway.Process.Signal(syscall.SIGTERM)
		if err := w.gateway.Wait(); err != nil {
			t.Errorf("the gateway ended with %v; it logged:\n%s", err, w.log)
		} else if *keepLogs {
			t.Logf("the gateway logged:\n%s", w.log)
		}
	})
	return w
}

func (w *world) certificate(which string) tls.Certificate {
	name := []string{dottest.ServerName}
	day := 24 * time.Hour
	switch which {
	case "expired":
		return w.ca.Issue(dottest.CertOptions{Names: name, NotAfter: time.Now().Add(-day)})
	case "future":
		return w.ca.Issue(dottest.CertOptions{Names: name, NotBefore: time.Now().Add(day)})
	case "self":
		return w.ca.Issue(dottest.CertOptions{Names: name, SelfSigned: true})
	case "stranger":
		return dottest.NewCA().Issue(dottest.CertOptions{Names: name})
	case "name":
		return w.ca.Issue(dottest.CertOptions{Names: []string{"another.example.com"}})
	}
	return w.ca.Issue(dottest.CertOptions{Names: name})
}

// strike makes server i go wrong.
func (w *world) strike(i int, f fault) {
	s := w.servers[i]
	if f.certificate != "" {
		s.SetCertificate(w.certificate(f.certificate))
	}
	if f.behaves {
		s.Set(f.behaviour)
	}
	for _, word := range f.words {
		switch word {
		case "stop":
			w.must(s.Stop())
		case "blackhole":
			w.must(s.Blackhole())
		case "freeze":
			s.FreezeConnections()
		case "reset":
			s.CloseConnections(dottest.RST)
		case "restart":
			w.must(s.Stop())
			s.CloseConnections(dottest.RST)
			time.AfterFunc(300*time.Millisecond, func() { w.must(s.Restart()) })
		case "blip":
			s.Set(dottest.Fault{Delay: 300 * time.Millisecond})
			time.AfterFunc(300*time.Millisecond, func() { s.Set() })
		}
	}
}

// lift makes server i behave again.
func (w *world) lift(i int, f fault) {
	s := w.servers[i]
	s.Set()
	if f.certificate != "" {
		s.SetCertificate(w.certificate("good"))
	}
	if f.has("stop") || f.has("blackhole") {
		w.must(s.Restart())
	}
}

func (w *world) must(err error) {
	if err != nil {
		w.t.Error(err)
	}
}

// rehearse runs the fault part of a scenario.
func (w *world) rehearse(s scenario, p phases) {
	end := time.Now().Add(p.during)
	switch {
	case len(s.on) == 0 || s.fault.empty():
	case s.rolling:
		for _, i := range s.on {
			w.strike(i, s.fault)
			time.Sleep(p.during / time.Duration(len(s.on)))
			w.lift(i, s.fault)
		}
	case s.flapping:
		for on := true; time.Now().Before(end); on = !on {
			for _, i := range s.on {
				if on {
					w.strike(i, s.fault)
				} else {
					w.lift(i, s.fault)
				}
			}
			time.Sleep(min(time.Second, time.Until(end)))
		}
	default:
		for _, i := range s.on {
			w.strike(i, s.fault)
		}
	}
	time.Sleep(time.Until(end))
	if s.rolling || s.flapping && !s.fault.has("stop") && !s.fault.has("blackhole") {
		for _, i := range s.on {
			w.servers[i].Set()
		}
		return
	}
	for _, i := range s.on {
		w.lift(i, s.fault)
	}
}

func (f fault) empty() bool { return !f.behaves && f.certificate == "" && len(f.words) == 0 }
