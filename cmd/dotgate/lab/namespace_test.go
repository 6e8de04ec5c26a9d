//go:build linux && lab

package lab

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// namespacePrefix is the prefix of the names of the lab's network namespaces. The process
// ID follows, so that namespaces of a crashed run differ from those in use by another.
const namespacePrefix = "dotgate-lab-"

// A namespace is a network namespace.
type namespace string

// newNamespace makes a namespace that ends with the test.
func newNamespace(t *testing.T, name string) namespace {
	t.Helper()
	n := namespace(fmt.Sprintf("%s%d-%s", namespacePrefix, os.Getpid(), name))
	ip(t, "", "netns", "add", string(n))
	t.Cleanup(func() {
		if err := n.remove(); err != nil {
			t.Error(err)
		}
	})
	ip(t, "", "-n", string(n), "link", "set", "lo", "up")
	return n
}

func (n namespace) remove() error { return run("", "ip", "netns", "del", string(n)) }

// do runs f in n. Its sockets and processes stay in n.
func (n namespace) do(f func() error) error {
	runtime.LockOSThread()
	here, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return err
	}
	defer here.Close()
	there, err := os.Open(filepath.Join("/run/netns", string(n)))
	if err != nil {
		return err
	}
	defer there.Close()
	if err := unix.Setns(int(there.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter %s: %w", n, err)
	}
	defer func() {
		// Otherwise the thread stays locked to this goroutine. It must not end, as
		// processes that it started would end with it.
		if unix.Setns(int(here.Fd()), unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
	}()
	return f()
}

// nft applies rules of nftables in n.
func (n namespace) nft(rules string) error {
	return n.do(func() error { return run(rules, "nft", "-f", "-") })
}

func run(input, program string, args ...string) error {
	cmd := exec.Command(program, args...)
	cmd.Stdin = strings.NewReader(input)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s\n%s", program, strings.Join(args, " "), err, out, input)
	}
	return nil
}

// ip runs ip with these arguments, and input for -batch.
func ip(t *testing.T, input string, args ...string) {
	t.Helper()
	if err := run(input, "ip", args...); err != nil {
		t.Fatal(err)
	}
}

// networksPossible returns why network namespaces can't be used: missing programs, which
// can be installed, or missing permissions.
var networksPossible = sync.OnceValues(func() (missing, forbidden error) {
	var packages []string
	for program, debianPackage := range map[string]string{"ip": "iproute2", "nft": "nftables", "unbound": "unbound"} {
		if _, err := exec.LookPath(program); err != nil {
			packages = append(packages, debianPackage)
		}
	}
	switch {
	case len(packages) > 0:
		return fmt.Errorf("programs are missing: apt-get install %s", strings.Join(packages, " ")), nil
	case os.Geteuid() != 0:
		return fmt.Errorf("network namespaces need root (and the packages iproute2, nftables, unbound)"), nil
	}
	removeStale()
	probe := namespace(fmt.Sprintf("%s%d-probe", namespacePrefix, os.Getpid()))
	if err := run("", "ip", "netns", "add", string(probe)); err != nil {
		return nil, err
	}
	defer func() { _ = probe.remove() }() // the next run removes it
	if err := run("", "ip", "-n", string(probe), "link", "add", "x", "type", "veth", "peer", "name", "y"); err != nil {
		return nil, err
	}
	return nil, probe.nft("add table ip lab")
})

// removeStale removes namespaces of crashed runs.
func removeStale() {
	left, _ := filepath.Glob("/run/netns/" + namespacePrefix + "*")
	for _, path := range left {
		n := namespace(filepath.Base(path))
		id, _, _ := strings.Cut(strings.TrimPrefix(string(n), namespacePrefix), "-")
		pid, err := strconv.Atoi(id)
		if err != nil || pid == os.Getpid() || strings.Contains(programOf(pid), ".test") {
			continue
		}
		// All processes in it were started by the lab.
		inside, _ := exec.Command("ip", "netns", "pids", string(n)).Output()
		for word := range strings.FieldsSeq(string(inside)) {
			if pid, err := strconv.Atoi(word); err == nil {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
		}
		if err := n.remove(); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
	}
}

func programOf(pid int) string {
	path, _ := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	return filepath.Base(path)
}
