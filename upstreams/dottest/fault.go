package dottest

import (
	"cmp"
	"crypto/x509"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"dotgate/gateway/wire"
)

// A Fault is a misbehaviour of a server. Its fields combine, and so do several faults
// that are passed to Set: delays add up, and if two faults exclude each other, the later
// one wins. The zero Fault does nothing.
type Fault struct {
	// Share is the share of queries that the fields about answers apply to, and
	// of new connections that Greeting applies to, drawn one by one from the
	// server's seed. Zero means all. All other fields ignore it.
	Share float64
	// Only is the record type of the queries that the fields about answers apply to.
	// Zero means all.
	Only wire.Type
	// PerSecond is how many queries in any second are answered before the fields
	// about answers apply. Zero means none.
	PerSecond int

	// New connections.

	// Handshake is how much later than usual the server begins its handshake.
	Handshake time.Duration

	// Greeting is what a new connection gets instead of a handshake.
	Greeting Greeting
	// MaxConnections is how many connections may be open at once; a further
	// one is closed as soon as it is accepted. Zero means any number.
	MaxConnections int
	// MinVersion and MaxVersion bound the TLS version, as in tls.Config. Below
	// TLS 1.2 nothing but MaxVersion is needed. Zero means TLS 1.2 and TLS 1.3.
	MinVersion, MaxVersion uint16
	// Tickets is how session tickets are treated.
	Tickets Tickets
	// Protocols is the server's ALPN list: a client that offers others only gets an
	// alert. With commas between; default: "dot".
	Protocols string
	// Nagle has the server write in pieces, and its system hold back the second while
	// the first is not acknowledged (RFC 9293 section 3.7.4).
	Nagle bool
	// MTU, if not 0, is how long a ClientHello may be to arrive: a longer one, and all
	// behind it, gets lost.
	MTU int
	// ClientCAs, if not nil, makes the server ask for a client certificate
	// that one of them issued, and end the handshake without one.
	ClientCAs *x509.CertPool

	// Established connections.

	// CloseAfter closes a connection after its answer number CloseAfter. Its other
	// queries are lost.
	CloseAfter int
	// CloseIdle closes a connection that has been idle for so long.
	CloseIdle time.Duration
	// Closing is how CloseAfter, CloseIdle and CutRecord close. Within a record
	// there can be no close_notify: CutRecord then sends a FIN alone.
	Closing Closing
	// ForgetIdle acts like a middlebox that drops a flow which has been idle for so long:
	// from then on, nothing arrives in either direction.
	ForgetIdle time.Duration
	// InOrder makes each answer wait for the one before it, so that one slow
	// name delays all others, and an answer that is never sent blocks all.
	InOrder bool
	// Reverse collects answers for so long and then sends the last one first.
	Reverse time.Duration

	// Answers.

	// Never leaves a query without an answer.
	Never bool
	// Delay is how much later than usual an answer is.
	Delay time.Duration
	// DelayTo and Over make the delay grow: from Delay, when the fault is set,
	// linearly to DelayTo after Over.
	DelayTo, Over time.Duration
	// RCode, unless NOERROR, is the answer, without any record.
	RCode wire.RCode
	// Mangle is how the answer itself is wrong.
	Mangle Mangle
	// Drip is the pause before each octet of an answer. Nothing overtakes an
	// answer that drips. It ends with the next Set.
	Drip time.Duration
}

// Greeting is what a new connection gets instead of a handshake.
type Greeting uint8

const (
	Handshake       Greeting = iota // none of it
	Silence                         // accepted, and then silent
	HandshakeStalls                 // half of the server's first messages, and then silent
	HandshakeAlert                  // a TLS alert for the ClientHello
	HandshakeClosed                 // a FIN for the ClientHello
	HandshakeReset                  // a RST for the ClientHello
	PlainText                       // an HTTP error for the ClientHello
	ClosedWhenNew                   // closed as soon as it is accepted
	greetingsEnd    = iota
)

var greetingNames = [greetingsEnd]string{"handshake", "silence", "handshake-stalls", "handshake-alert",
	"handshake-closed", "handshake-reset", "plain-text", "closed-when-new"}

func (g Greeting) String() string { return nameOf(greetingNames[:], int(g), "Greeting") }

// Closing is how a connection ends.
type Closing uint8

const (
	CloseNotify Closing = iota // as in RFC 8446: close_notify, then FIN
	FIN                        // without close_notify
	RST
	closingsEnd = iota
)

var closingNames = [closingsEnd]string{"close-notify", "fin", "rst"}

func (c Closing) String() string { return nameOf(closingNames[:], int(c), "Closing") }

// Tickets is what happens to TLS session tickets.
type Tickets uint8

const (
	TicketsAccepted  Tickets = iota
	TicketsNotIssued         // none are sent, none are accepted
	TicketsRefused           // sent, but each handshake is a full one
	TicketsFatal             // sent, but a TLS 1.3 handshake with one fails
	ticketsEnd       = iota
)

var ticketNames = [ticketsEnd]string{"accepted", "not-issued", "refused", "fatal"}

func (t Tickets) String() string { return nameOf(ticketNames[:], int(t), "Tickets") }

// Mangle is a set of ways in which an answer is wrong.
type Mangle uint16

const (
	WrongID       Mangle = 1 << iota // the ID is another
	WrongQuestion                    // the answer to another name
	Garbage                          // random octets follow the flags
	Echo                             // the query itself
	Truncated                        // TC, and no record
	Huge                             // as long as a message can be, for queries of type A, AAAA and TXT
	LengthLong                       // the length prefix counts ten octets too many
	LengthShort                      // the length prefix counts ten octets too few
	LengthZero                       // a length prefix of zero, and nothing else
	Duplicate                        // sent twice
	CutRecord                        // the connection ends within the TLS record that holds the answer
	Foreign                          // the answer section has a record of another name only
	Stray                            // the additional section has one, too
	manglesEnd    = iota
)

var mangleNames = [manglesEnd]string{"wrong-id", "wrong-question", "garbage", "echo", "truncated", "huge",
	"length-long", "length-short", "length-zero", "duplicate", "cut-record", "foreign", "stray"}

func (m Mangle) String() string {
	var names []string
	for bit := range 16 {
		if m&(1<<bit) != 0 {
			names = append(names, nameOf(mangleNames[:], bit, "Mangle"))
		}
	}
	return strings.Join(names, ",")
}

func nameOf(names []string, i int, kind string) string {
	if i < len(names) {
		return names[i]
	}
	return fmt.Sprintf("%s(%d)", kind, i)
}

// Scripts use these names.

func (g *Greeting) UnmarshalText(text []byte) error { return parse(g, greetingNames[:], text) }
func (c *Closing) UnmarshalText(text []byte) error  { return parse(c, closingNames[:], text) }
func (t *Tickets) UnmarshalText(text []byte) error  { return parse(t, ticketNames[:], text) }

// UnmarshalText takes names separated by commas.
func (m *Mangle) UnmarshalText(text []byte) error {
	var set Mangle
	for name := range strings.SplitSeq(string(text), ",") {
		var bit uint8
		if err := parse(&bit, mangleNames[:], []byte(name)); err != nil {
			return err
		}
		set |= 1 << bit
	}
	*m = set
	return nil
}

func parse[T ~uint8](dst *T, names []string, text []byte) error {
	for i, name := range names {
		if name == string(text) {
			*dst = T(i)
			return nil
		}
	}
	return fmt.Errorf("%q is none of %s", text, strings.Join(names, ", "))
}

// and returns what f and g do together. It leaves delays alone.
func (f Fault) and(g Fault) Fault {
	f.Handshake = cmp.Or(g.Handshake, f.Handshake)
	f.Greeting = cmp.Or(g.Greeting, f.Greeting)
	f.MaxConnections = cmp.Or(g.MaxConnections, f.MaxConnections)
	f.MinVersion = cmp.Or(g.MinVersion, f.MinVersion)
	f.MaxVersion = cmp.Or(g.MaxVersion, f.MaxVersion)
	f.Tickets = cmp.Or(g.Tickets, f.Tickets)
	f.Protocols = cmp.Or(g.Protocols, f.Protocols)
	f.Nagle = f.Nagle || g.Nagle
	f.MTU = cmp.Or(g.MTU, f.MTU)
	f.ClientCAs = cmp.Or(g.ClientCAs, f.ClientCAs)
	f.CloseAfter = cmp.Or(g.CloseAfter, f.CloseAfter)
	f.CloseIdle = cmp.Or(g.CloseIdle, f.CloseIdle)
	f.Closing = cmp.Or(g.Closing, f.Closing)
	f.ForgetIdle = cmp.Or(g.ForgetIdle, f.ForgetIdle)
	f.InOrder = f.InOrder || g.InOrder
	f.Reverse = cmp.Or(g.Reverse, f.Reverse)
	f.Never = f.Never || g.Never
	f.RCode = cmp.Or(g.RCode, f.RCode)
	f.Mangle |= g.Mangle
	f.Drip = cmp.Or(g.Drip, f.Drip)
	return f
}

// delay returns how late f makes an answer at a time after it was set.
func (f Fault) delay(since time.Duration) time.Duration {
	switch {
	case f.Over <= 0:
		return f.Delay
	case since >= f.Over:
		return f.DelayTo
	}
	return f.Delay + time.Duration(float64(f.DelayTo-f.Delay)*float64(since)/float64(f.Over))
}

// calm reports whether f changes no answers.
func (f Fault) calm() bool {
	return !f.Never && f.Delay == 0 && f.Over == 0 && f.RCode == 0 && f.Mangle == 0 && f.Drip == 0
}

// A plan has the faults of a server from one Set to the next. Except for its count of
// queries, it never changes.
type plan struct {
	faults []Fault
	set    time.Duration // when, on the server's clock
	calm   bool          // no fault is about answers
	conn   Fault         // all together, for the fields that ignore Share

	mu      sync.Mutex // guards the fields below
	second  int64      // since set
	queries int        // in it
}

// count returns how many queries there were in this second, with this one.
func (p *plan) count(now time.Duration) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if second := int64((now - p.set) / time.Second); second != p.second {
		p.second, p.queries = second, 0
	}
	p.queries++
	return p.queries
}

func newPlan(faults []Fault, now time.Duration) *plan {
	p := &plan{faults: append([]Fault(nil), faults...), set: now, calm: true}
	for _, f := range faults {
		if f.Share < 0 || f.Share > 1 {
			panic(fmt.Sprintf("dottest: a share of %v is not between 0 and 1", f.Share))
		}
		p.calm = p.calm && f.calm()
		p.conn = p.conn.and(f)
	}
	return p
}

// draw draws the faults that apply to a query, or to a new connection if there is no
// query, and combines them, with their delays.
func (p *plan) draw(now time.Duration, d *dice, query []byte) Fault {
	var struck Fault
	for _, f := range p.faults {
		if query != nil && f.Only != 0 {
			if q, _ := parseQuestion(query); q.qtype != uint16(f.Only) {
				continue
			}
		}
		if query != nil && f.PerSecond > 0 && p.count(now) <= f.PerSecond {
			continue
		}
		if f.Share == 0 || f.Share == 1 || d.float() < f.Share {
			delay := struck.Delay + f.delay(now-p.set)
			struck = struck.and(f)
			struck.Delay = delay
		}
	}
	return struck
}

// dice are reproducible random numbers for many goroutines.
type dice struct {
	mu  sync.Mutex // guards rng
	rng *rand.Rand
}

func newDice(seed uint64) *dice { return &dice{rng: rand.New(rand.NewPCG(seed, 853))} }

func (d *dice) float() float64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.rng.Float64()
}

func (d *dice) fill(octets []byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for i := range octets {
		octets[i] = byte(d.rng.Uint32())
	}
}
