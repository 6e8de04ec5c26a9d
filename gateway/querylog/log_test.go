package querylog

import (
	"bufio"
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"dotgate/gateway/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var client = netip.MustParseAddrPort("192.0.2.77:4711")

// note logs a query for name and a reply with this code.
func note(t testing.TB, l *Log, from netip.AddrPort, name string, rcode wire.RCode, took time.Duration) {
	t.Helper()
	q, err := wire.NewQuery(name, "A")
	if err != nil {
		t.Fatal(err)
	}
	l.Note(from, wire.UDP, q.Packet(), q.AppendError(nil, rcode, wire.EDE{}), took)
}

// written runs a log with these options while use adds entries, and returns the lines of
// its file.
func written(t *testing.T, o Options, use func(*Log)) []map[string]any {
	t.Helper()
	o.Output = filepath.Join(t.TempDir(), "queries.log")
	o.Log = slog.New(slog.DiscardHandler)
	l, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	use(l)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := l.Run(ctx); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(o.Output)
	if err != nil {
		t.Fatal(err)
	}
	var all []map[string]any
	for line := range strings.Lines(string(text)) {
		var one map[string]any
		if err := json.Unmarshal([]byte(line), &one); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		all = append(all, one)
	}
	return all
}

func TestALineHasTheQueryAndTheReply(t *testing.T) {
	t.Parallel()
	lines := written(t, Defaults(), func(l *Log) {
		note(t, l, client, "www.example.com", wire.NXDomain, 12500*time.Microsecond)
		note(t, l, client, "cached.example.com", wire.NoError, 0)
	})
	if len(lines) != 2 {
		t.Fatalf("%d lines", len(lines))
	}
	for key, want := range map[string]any{
		"client": "192.0.2.0", "transport": "udp", "query": "www.example.com. A", "rcode": "NXDOMAIN", "cached": false, "took_ms": 12.5,
	} {
		if got := lines[0][key]; got != want {
			t.Errorf("%s: got %v, want %v", key, got, want)
		}
	}
	if lines[1]["cached"] != true {
		t.Errorf("%v", lines[1])
	}
}

func TestClientsAreAnonymous(t *testing.T) {
	t.Parallel()
	key := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(key, []byte("0123456789abcdeffedcba9876543210\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	f := func(how, from string, want any) {
		t.Helper()
		o := Defaults()
		o.Clients, o.KeyFile = how, key
		lines := written(t, o, func(l *Log) { note(t, l, netip.AddrPortFrom(netip.MustParseAddr(from), 53), ".", wire.NoError, 0) })
		if got := lines[0]["client"]; got != want {
			t.Errorf("%s of %s: got %v, want %v", how, from, got, want)
		}
	}
	f("prefix", "192.0.2.77", "192.0.2.0")
	f("prefix", "2001:db8:1:2:3:4:5:6", "2001:db8:1::")
	f("prefix", "::ffff:192.0.2.77", "192.0.2.0")
	f("full", "192.0.2.77", "192.0.2.77")
	f("none", "192.0.2.77", nil)
	// A test vector of draft-denis-ipcrypt.
	f("ipcrypt", "0.0.0.0", "bde9:6789:d353:824c:d7c6:f58a:6bd2:26eb")
}

func TestASampleHasAllFailures(t *testing.T) {
	t.Parallel()
	o := Defaults()
	o.Sample = 10
	lines := written(t, o, func(l *Log) {
		for i := range 100 {
			note(t, l, client, fmt.Sprintf("n%d.example.com", i), wire.NoError, 0)
			if i%20 == 7 {
				note(t, l, client, "broken.example.com", wire.ServFail, time.Second)
			}
		}
	})
	failed := 0
	for _, line := range lines {
		if line["rcode"] == "SERVFAIL" {
			failed++
		}
	}
	if failed != 5 || len(lines) < 14 || len(lines) > 16 {
		t.Errorf("%d lines, of which %d failed", len(lines), failed)
	}
}

func TestNoteNeverBlocks(t *testing.T) {
	t.Parallel()
	o := Defaults()
	o.Output = filepath.Join(t.TempDir(), "queries.log")
	l, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	for range maxPending + 50 { // Run is not called
		note(t, l, client, "www.example.com", wire.NoError, 0)
	}
	if c := l.Counts(); c.Dropped != 50 {
		t.Errorf("%+v", c)
	}
	var none *Log
	note(t, none, client, "www.example.com", wire.NoError, 0)
	if c := none.Counts(); c != (Counts{}) || none.Run(t.Context()) != nil {
		t.Errorf("%+v", c)
	}
}

func TestNoteReusesEntries(t *testing.T) {
	o := Defaults()
	o.Output = filepath.Join(t.TempDir(), "queries.log")
	l, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	q, _ := wire.NewQuery("www.example.com", "A")
	reply := q.AppendError(nil, wire.NoError, wire.EDE{})
	if n := testing.AllocsPerRun(100, func() {
		l.Note(client, wire.UDP, q.Packet(), reply, 0)
		l.release(<-l.entries)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestFilesAreRenamedAtTheirMaximumSize(t *testing.T) {
	t.Parallel()
	for _, format := range []string{"json", "dnstap"} {
		o := Defaults()
		o.Output, o.Format, o.MaxSize, o.Keep = filepath.Join(t.TempDir(), "queries.log"), format, 3000, 2
		out, err := (&config{Options: o}).open(new(counts))
		if err != nil {
			t.Fatal(err)
		}
		q, _ := wire.NewQuery("www.example.com", "A")
		for range 100 {
			if err := out.put(&entry{at: time.Now(), client: client, packet: q.Packet(), reply: q.AppendError(nil, wire.NoError, wire.EDE{})}); err != nil {
				t.Fatal(err)
			}
		}
		out.close()
		names, _ := filepath.Glob(o.Output + "*")
		if len(names) != 3 {
			t.Errorf("%s: %v", format, names)
		}
		for _, name := range names {
			info, err := os.Stat(name)
			if err != nil || info.Size() > o.MaxSize+64 || info.Size() == 0 {
				t.Errorf("%s: %v, %v", name, info, err)
			}
		}
	}
}

func TestADnstapReaderGetsAllFrames(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "tap.sock")
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	frames := make(chan string, 10)
	go func() {
		defer close(frames)
		conn, err := ln.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		r := bufio.NewReader(conn)
		kind, _ := readControl(r)
		frames <- fmt.Sprint("control ", kind)
		_, _ = conn.Write(controlFrame(controlAccept))
		for {
			head, err := r.Peek(4)
			if err != nil {
				return
			}
			if n := int(head[2])<<8 | int(head[3]); n > 0 {
				data := make([]byte, 4+n)
				if _, err := r.Read(data); err != nil {
					return
				}
				frames <- "data " + hex.EncodeToString(data[4:6])
				continue
			}
			kind, err := readControl(r)
			if err != nil {
				return
			}
			frames <- fmt.Sprint("control ", kind)
			if kind == controlStop {
				_, _ = conn.Write(controlFrame(controlFinish))
				return
			}
		}
	}()
	o := Defaults()
	o.Output, o.Format, o.Log = "unix:"+path, "dnstap", slog.New(slog.DiscardHandler)
	l, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	note(t, l, client, "www.example.com", wire.NoError, time.Millisecond)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_ = l.Run(ctx)
	var got []string
	for f := range frames {
		got = append(got, f)
	}
	if text := strings.Join(got, ", "); !strings.HasPrefix(text, "control 4, control 2, data 72") || !strings.HasSuffix(text, "control 3") {
		t.Errorf("got %s", text)
	}
	if c := l.Counts(); c.Written != 1 {
		t.Errorf("%+v", c)
	}
}

func TestInvalidOptionsAreReported(t *testing.T) {
	t.Parallel()
	f := func(change func(*Options), want string) {
		t.Helper()
		o := Defaults()
		change(&o)
		got := ""
		o.Check(func(option, problem string, beside ...string) { got += option + " " + problem })
		if !strings.HasPrefix(got, want) || want == "" && got != "" {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	f(func(*Options) {}, "")
	f(func(o *Options) { o.Output = "queries.log" }, `output "queries.log" is no path`)
	f(func(o *Options) { o.Output = "unix:/run/tap.sock" }, "output is a socket")
	f(func(o *Options) { o.Format = "xml" }, `format "xml" does not exist`)
	f(func(o *Options) { o.Sample = 0 }, "sample must be between 1 and")
	f(func(o *Options) { o.Clients = "some" }, `clients "some" does not exist`)
	f(func(o *Options) { o.Clients = "ipcrypt" }, "key_file is needed with clients: ipcrypt")
	f(func(o *Options) { o.MaxSize = 10 }, "max_size must be between 1000000 and")
}

func TestOtherOptionsApplyToPendingEntries(t *testing.T) {
	t.Parallel()
	o := Defaults()
	o.Log = slog.New(slog.DiscardHandler)
	l, err := New(o) // without an output
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- l.Run(ctx) }()
	note(t, l, client, "nowhere.example.com", wire.NoError, 0)
	follow := func(output, clients string) {
		t.Helper()
		next := Defaults()
		next.Output, next.Clients = output, clients
		commit, err := l.Prepare(next)
		if err != nil {
			t.Fatal(err)
		}
		commit()
	}
	dir := t.TempDir()
	first, second := filepath.Join(dir, "first.log"), filepath.Join(dir, "second.log")
	follow(first, "full")
	note(t, l, client, "one.example.com", wire.NoError, 0)
	for l.Counts().Written < 1 && t.Context().Err() == nil {
		time.Sleep(time.Millisecond)
	}
	follow(second, "none")
	note(t, l, client, "two.example.com", wire.NoError, 0)
	for l.Counts().Written < 2 && t.Context().Err() == nil {
		time.Sleep(time.Millisecond)
	}
	follow("", "none")
	note(t, l, client, "nowhere.example.com", wire.NoError, 0)
	bad := Defaults()
	bad.Output, bad.Clients = first, "ipcrypt" // without a key
	if _, err := l.Prepare(bad); err == nil || !strings.Contains(err.Error(), "query_log.key_file") {
		t.Errorf("got %v", err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	for file, want := range map[string]string{first: "one.example.com", second: "two.example.com"} {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if lines := strings.Count(string(text), "\n"); lines != 1 || !strings.Contains(string(text), want) || strings.Contains(string(text), client.Addr().String()) != (file == first) {
			t.Errorf("%s: %s", file, text)
		}
	}
}
