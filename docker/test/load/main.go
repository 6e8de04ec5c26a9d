// Load sends queries to a server at a constant rate, as its clients do: each has one second
// for an answer and one retry, as in the C library with "options timeout:1 attempts:2".
// Half of them are for a few hot names, half for a new name each. One in ten is sent over
// TCP.
//
//	load -server 192.0.2.53:53 -rate 500
//
// A line on standard input marks the time of a failure. The end of the input is the end of
// the load. It prints the results as one line of JSON, and on standard error the number of
// each kind of problem.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/miekg/dns"
)

const (
	patience = time.Second
	attempts = 2
	hotNames = 100
)

func main() {
	server := flag.String("server", "", "IP:port to ask")
	rate := flag.Int("rate", 500, "queries a second")
	flag.Parse()
	ctx, stop := context.WithCancel(context.Background())
	t := &results{}
	go func() {
		for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
			t.mark(time.Now())
		}
		stop()
	}()
	run(ctx, *server, *rate, t)
	report := t.report()
	for kind, n := range t.problems {
		fmt.Fprintf(os.Stderr, "%6d  %s\n", n, kind)
	}
	if err := json.NewEncoder(os.Stdout).Encode(report); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// run sends queries until ctx is done, and waits for those in progress.
func run(ctx context.Context, server string, rate int, t *results) {
	var asking sync.WaitGroup
	defer asking.Wait()
	id := time.Now().UnixNano() // so that new names are new in each run
	began := time.Now()
	for i := 0; ; i++ {
		// After a delay, the missed queries are not sent in a burst.
		due := began.Add(time.Duration(i) * time.Second / time.Duration(rate))
		if late := time.Since(due); late > 0 {
			began = began.Add(late)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(time.Until(due)):
		}
		q := &query{network: "udp", name: fmt.Sprintf("n%d-%d.example.com.", i, id)}
		if i%2 == 0 {
			q.hot, q.name = true, fmt.Sprintf("n%d.hot.example.com.", i/2%hotNames)
		}
		if i/2%10 == 0 {
			q.network = "tcp"
		}
		asking.Go(func() {
			q.ask(server)
			t.add(q)
		})
	}
}

// A query is one client's query and its results.
type query struct {
	network, name string
	hot           bool // one of a few names

	sent  time.Time
	tries []try
}

// A try is one attempt of a query.
type try struct {
	ended   time.Time
	node    string // that answered
	problem string // or ""
	replied bool   // with any response code
	stale   bool
}

// ask sends a query as the C library does. It repeats it with the same packet and socket
// after a second without a reply, or at once after SERVFAIL or a rejected packet.
func (q *query) ask(server string) {
	q.sent = time.Now()
	m := new(dns.Msg).SetQuestion(q.name, dns.TypeA).SetEdns0(1232, false)
	m.IsEdns0().Option = append(m.IsEdns0().Option, &dns.EDNS0_NSID{Code: dns.EDNS0NSID})
	if q.network == "tcp" {
		q.askTCP(server, m)
		return
	}
	conn, err := dns.DialTimeout("udp", server, patience)
	if err != nil {
		q.tries = append(q.tries, try{ended: time.Now(), problem: kindOf(err)})
		return
	}
	defer conn.Close()
	for range attempts {
		if q.try(conn, m, patience) {
			return
		}
	}
}

// askTCP uses a new connection for each attempt. The second one begins after a second, even
// if the first connection ended before. It may take longer, as the kernel repeats a SYN
// after a second, and the C library has no limit there.
func (q *query) askTCP(server string, m *dns.Msg) {
	for i, limit := range []time.Duration{patience, 3 * patience} {
		began := q.sent.Add(time.Duration(i) * patience)
		time.Sleep(time.Until(began))
		conn, err := dns.DialTimeout("tcp", server, limit)
		if err != nil {
			q.tries = append(q.tries, try{ended: time.Now(), problem: kindOf(err)})
			continue
		}
		answered := q.try(conn, m, limit-time.Since(began))
		conn.Close()
		if answered {
			return
		}
	}
}

// try sends m once and reports whether it was answered.
func (q *query) try(conn *dns.Conn, m *dns.Msg, limit time.Duration) bool {
	_ = conn.SetDeadline(time.Now().Add(limit))
	reply, err := exchange(conn, m)
	t := try{ended: time.Now()}
	if err != nil {
		t.problem = kindOf(err)
	} else {
		t.read(reply)
	}
	q.tries = append(q.tries, t)
	return t.problem == ""
}

func exchange(conn *dns.Conn, m *dns.Msg) (*dns.Msg, error) {
	if err := conn.WriteMsg(m); err != nil {
		return nil, err
	}
	for {
		reply, err := conn.ReadMsg()
		if err == nil && reply.Id != m.Id {
			continue
		}
		return reply, err
	}
}

// read reads a reply.
func (t *try) read(m *dns.Msg) {
	t.replied = true
	if opt := m.IsEdns0(); opt != nil {
		for _, o := range opt.Option {
			switch o := o.(type) {
			case *dns.EDNS0_NSID:
				t.node = o.Nsid
			case *dns.EDNS0_EDE:
				t.stale = t.stale || o.InfoCode == dns.ExtendedErrorCodeStaleAnswer
			}
		}
	}
	if m.Rcode != dns.RcodeSuccess {
		t.problem = dns.RcodeToString[m.Rcode]
		return
	}
	if len(m.Answer) == 1 {
		if a, ok := m.Answer[0].(*dns.A); ok && a.A.String() == "192.0.2.53" {
			return
		}
	}
	t.problem = "wrong answer"
}

// kindOf returns the kind of an error, without addresses and ports.
func kindOf(err error) string {
	var number syscall.Errno
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded):
		return "silence"
	case errors.As(err, &number):
		return number.Error()
	}
	return err.Error()
}
