// Load plays the clients of one server: so many queries a second, each on its
// own and none waiting for the one before, with one second for an answer and one
// retry, as the C library does it with "options timeout:1 attempts:2". Half of
// them are for a few names, half for a new name each; one in ten goes over TCP.
//
//	load -server 192.0.2.53:53 -rate 500
//
// A line on its standard input marks the moment at which something is broken; the
// end of its input is the end of the load. It prints one line of JSON about what
// its clients saw, and on standard error each kind of failure.
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
	t := &tally{}
	go func() {
		for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
			t.mark(time.Now())
		}
		stop()
	}()
	play(ctx, *server, *rate, t)
	report := t.report()
	for kind, n := range t.problems {
		fmt.Fprintf(os.Stderr, "%6d  %s\n", n, kind)
	}
	if err := json.NewEncoder(os.Stdout).Encode(report); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// play asks until ctx is done, and waits for what is under way.
func play(ctx context.Context, server string, rate int, t *tally) {
	var asking sync.WaitGroup
	defer asking.Wait()
	run := time.Now().UnixNano() // makes new names new
	began := time.Now()
	for i := 0; ; i++ {
		// Late is late: what was missed is not made up for in a burst.
		due := began.Add(time.Duration(i) * time.Second / time.Duration(rate))
		if late := time.Since(due); late > 0 {
			began = began.Add(late)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(time.Until(due)):
		}
		q := &query{network: "udp", name: fmt.Sprintf("n%d-%d.example.com.", i, run)}
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

// A query is one client's question and what came of it.
type query struct {
	network, name string
	hot           bool // many clients ask for it

	sent  time.Time
	tries []try
}

// A try is one packet of it.
type try struct {
	ended   time.Time
	node    string // which answered
	problem string // or ""
	replied bool   // whatever it said
	stale   bool
}

// ask asks as the C library does: with the same packet and socket again if nothing
// came, at once if it is told that nobody is there or that it failed.
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

// askTCP asks over a new connection each time, and again when the second is over,
// even if the connection ended before. The C library sets no limit there, so that
// the retry may take the second after which the kernel repeats a SYN.
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

// read judges a reply.
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

// kindOf names what went wrong, without addresses and ports.
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
