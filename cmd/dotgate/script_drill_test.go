package main

import (
	"fmt"
	"net"
	"os"
	"regexp"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
	"github.com/rogpeppe/go-internal/testscript"
)

// scriptExpand replaces variables in a file.
func scriptExpand(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: expand FILE")
	}
	text := os.Expand(ts.ReadFile(args[0]), ts.Getenv)
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(text), 0o600))
}

// scriptUntil runs a program until what it prints matches, or it is late.
func scriptUntil(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: until REGEXP PROGRAM ARG...")
	}
	want, err := regexp.Compile("(?m)" + args[0])
	ts.Check(err)
	again := time.NewTicker(200 * time.Millisecond)
	defer again.Stop()
	for deadline := time.Now().Add(storyPatience); ; <-again.C {
		err := ts.Exec(args[1], args[2:]...)
		if err == nil && want.MatchString(ts.ReadFile("stdout")) {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("%v: in vain: %v", args[1:], err)
		}
	}
}

// A load is a client that asks for a new name RATE times a second.
type load struct {
	asking      sync.WaitGroup
	stop        chan struct{}
	asked, lost atomic.Int64
}

func scriptLoad(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: load QUERIES-PER-SECOND")
	}
	rate, err := strconv.Atoi(args[0])
	ts.Check(err)
	l, addr := &load{stop: make(chan struct{})}, ts.Getenv("GATEWAY")
	storyOf(ts).load = l
	l.asking.Go(func() {
		next := time.NewTicker(time.Second / time.Duration(rate))
		defer next.Stop()
		for {
			select {
			case <-l.stop:
				return
			case <-next.C:
				n := l.asked.Add(1)
				l.asking.Go(func() { l.ask(addr, n) })
			}
		}
	})
	ts.Defer(l.end)
}

func (l *load) ask(addr string, n int64) {
	name := fmt.Sprintf("load%d.example.com.", n)
	client := dns.Client{Dialer: &net.Dialer{}, Timeout: 5 * time.Second}
	r, _, err := client.Exchange(new(dns.Msg).SetQuestion(name, dns.TypeA), addr)
	if err != nil || r.Rcode != dns.RcodeSuccess {
		l.lost.Add(1)
	}
}

// end may be called twice.
func (l *load) end() {
	select {
	case <-l.stop:
	default:
		close(l.stop)
	}
	l.asking.Wait()
}

func scriptUnload(ts *testscript.TestScript, neg bool, args []string) {
	l := storyOf(ts).load
	if neg || len(args) != 0 || l == nil {
		ts.Fatalf("usage: unload, after load")
	}
	l.end()
	fmt.Fprintf(ts.Stdout(), "asked %d, lost %d\n", l.asked.Load(), l.lost.Load())
}
