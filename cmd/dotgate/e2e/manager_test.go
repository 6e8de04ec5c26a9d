//go:build linux && e2e

package e2e

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// TestUnderAServiceManager passes sockets as systemd does, and reads the notifications
// of dotgate.
func TestUnderAServiceManager(t *testing.T) {
	_, urls := startUpstreams(t, time.Millisecond)
	addr := ownAddr()
	udp, tcp := socketsAt(t, addr)
	socket := filepath.Join(t.TempDir(), "notify.sock")
	manager, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer manager.Close()

	// LISTEN_PID must be the PID of the program.
	cmd := exec.Command("/bin/sh", "-c", `LISTEN_PID=$$ WATCHDOG_PID=$$ exec "$0" serve`, dotgate)
	cmd.Env = environment(ownAddr(), urls, "LISTEN_FDS=2", "NOTIFY_SOCKET="+socket, "WATCHDOG_USEC=300000")
	cmd.ExtraFiles = []*os.File{udp, tcp}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var said output
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Process.Kill()
	var told []string
	await := func(state string, times int) {
		t.Helper()
		buffer := make([]byte, 512)
		_ = manager.SetReadDeadline(time.Now().Add(startLimit))
		for count := 0; count < times; {
			n, err := manager.Read(buffer)
			if err != nil {
				t.Fatalf("the manager was told %q, and not %s: %v\n%s", told, state, err, said.tail(20))
			}
			told = append(told, string(buffer[:n]))
			if string(buffer[:n]) == state {
				count++
			}
		}
	}
	await("READY=1", 1)
	for _, network := range []string{"+notcp", "+tcp"} {
		if p := dig.ask(t, addr, "www.example.com", network); p.status != "NOERROR" || len(p.answers) != 1 {
			t.Errorf("dig %s: %s", network, p.text)
		}
	}
	await("WATCHDOG=1", 3)
	// A frozen gateway sends no notification, and the manager would restart it.
	_ = cmd.Process.Signal(syscall.SIGSTOP)
	time.Sleep(50 * time.Millisecond)
	read := func(limit time.Duration) (n int) {
		_ = manager.SetReadDeadline(time.Now().Add(limit))
		for buffer := make([]byte, 512); ; n++ {
			if _, err := manager.Read(buffer); err != nil {
				return n
			}
		}
	}
	read(50 * time.Millisecond) // earlier notifications
	if silent := read(400 * time.Millisecond); silent > 0 {
		t.Errorf("a stopped gateway tells %d times that it is well", silent)
	}
	_ = cmd.Process.Signal(syscall.SIGCONT)
	_ = cmd.Process.Signal(syscall.SIGTERM)
	await("STOPPING=1", 1)
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}

// TestSocketsOfAServiceManagerOutliveAGateway passes the same sockets, as systemd
// does, to several gateways: one that takes over, and one that is started after the end of
// the former.
func TestSocketsOfAServiceManagerOutliveAGateway(t *testing.T) {
	t.Parallel()
	_, urls := startUpstreams(t, time.Millisecond)
	addr := ownAddr()
	udp, tcp := socketsAt(t, addr)
	socket := filepath.Join(t.TempDir(), "control.sock")
	next := func(args string) *process {
		t.Helper()
		// LISTEN_PID must be the PID of the program.
		p := unstarted("/bin/sh", "-c", `LISTEN_PID=$$ exec "$0" serve `+args, dotgate)
		p.cmd.Env = environment(ownAddr(), urls, "LISTEN_FDS=2", "DOTGATE_CONTROL_SOCKET="+socket)
		p.cmd.ExtraFiles = []*os.File{udp, tcp}
		p.begin(t)
		p.await(t, "dotgate is serving")
		return p
	}
	asked := 0
	ask := func(when string) {
		t.Helper()
		for _, network := range []string{"udp", "tcp"} {
			asked++
			client := dns.Client{Net: network, Timeout: 3 * time.Second}
			r, _, err := client.Exchange(new(dns.Msg).SetQuestion(fmt.Sprintf("n%d.example.com.", asked), dns.TypeA), addr.String())
			if err != nil || r.Rcode != dns.RcodeSuccess || len(r.Answer) != 1 {
				t.Errorf("%s, over %s: %v, %v", when, network, r, err)
			}
		}
	}
	serving := next("")
	ask("at first")
	l := dottestLoad(addr, "handed", 3000, 500)
	done := make(chan outcome)
	go func() { done <- l.run(t) }()
	for range 3 {
		successor := next("--takeover")
		if code := serving.exitCode(t, stopLimit); code != 0 {
			t.Errorf("the former gateway exits with %d", code)
		}
		successor.await(t, "took over")
		ask("after a takeover")
		serving = successor
	}
	(<-done).mustBeWhole(t)
	for range 2 {
		serving.signal(syscall.SIGTERM)
		if code := serving.exitCode(t, stopLimit); code != 0 {
			t.Errorf("it exits with %d", code)
		}
		serving = next("")
		ask("after a restart")
	}
	serving.signal(syscall.SIGUSR1)
	serving.await(t, "msg=status")
	if !serving.output.contains(`status="{\"version\":`) {
		t.Errorf("SIGUSR1: %s", serving.output.tail(3))
	}
	serving.signal(syscall.SIGTERM)
	serving.exitCode(t, stopLimit)
}

// socketsAt opens the sockets that a service manager would pass.
func socketsAt(t *testing.T, addr netip.AddrPort) (udp, tcp *os.File) {
	t.Helper()
	ln, err := net.Listen("tcp", addr.String())
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	pc, err := net.ListenPacket("udp", addr.String())
	if err != nil {
		t.Fatal(err)
	}
	defer pc.Close()
	if tcp, err = ln.(*net.TCPListener).File(); err != nil {
		t.Fatal(err)
	}
	if udp, err = pc.(*net.UDPConn).File(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { udp.Close(); tcp.Close() })
	return udp, tcp
}

// TestTheSystemdUnitIsValid runs systemd-analyze verify, where it is installed.
func TestTheSystemdUnitIsValid(t *testing.T) {
	text, err := os.ReadFile("../../../docker/dotgate.service")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"Type=notify", "WatchdogSec=", "CapabilityBoundingSet=CAP_NET_BIND_SERVICE\n", "NoNewPrivileges=yes", "ProtectSystem=strict", "DynamicUser=yes",
		"RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX AF_NETLINK\n"} {
		if !strings.Contains(string(text), want) {
			t.Errorf("%s is missing", want)
		}
	}
	path, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Log("NOT RUN: systemd-analyze verify, because there is no systemd here")
		return
	}
	out, err := exec.Command(path, "verify", "--man=no", "../../../docker/dotgate.service").CombinedOutput()
	lines := slices.DeleteFunc(strings.Split(strings.TrimSpace(string(out)), "\n"), func(line string) bool {
		return line == "" || strings.Contains(line, "/usr/local/bin/dotgate is not executable")
	})
	if len(lines) > 0 {
		t.Errorf("systemd-analyze: %v\n%s", err, fmt.Sprint(lines))
	}
}
