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

// A Fault is something that a server does wrong. Its fields combine, and so do
// several faults given to Set: delays add up, and where two faults can't both
// have their way, the later one does. The zero Fault does nothing.
type Fault struct {
	// Share is the share of queries that the fields about answers strike, and
	// of new connections that Greeting strikes, drawn one by one from the
	// server's seed. Zero means all. All other fields disregard it.
	Share float64

	// New connections.

	// Greeting is what a new connection meets instead of a handshake.
	Greeting Greeting
	// MaxConnections is how many connections may be open at once; a further
	// one is closed as soon as it is accepted. Zero means any number.
	MaxConnections int
	// MinVersion and MaxVersion bound the TLS version, as in tls.Config. Below
	// TLS 1.2 nothing but MaxVersion is needed. Zero means TLS 1.2 and TLS 1.3.
	MinVersion, MaxVersion uint16
	// Tickets is what happens to session tickets.
	Tickets Tickets
	// ClientCAs, if not nil, makes the server ask for a client certificate
	// that one of them issued, and end the handshake without one.
	ClientCAs *x509.CertPool

	// Established connections.

	// CloseAfter closes a connection after its answer number CloseAfter. What
	// else it was asked is lost.
	CloseAfter int
	// CloseIdle closes a connection that has had nothing to do for so long.
	CloseIdle time.Duration
	// Closing is how CloseAfter, CloseIdle and CutRecord close. Within a record
	// there can be no close_notify: CutRecord then sends a FIN alone.
	Closing Closing
	// ForgetIdle is what a middlebox does to a flow on which no octet has moved
	// for so long: it forgets it, and from then on nothing arrives or leaves.
	ForgetIdle time.Duration
	// InOrder makes each answer wait for the one before it, so that one slow
	// name holds up all others, and an answer that never comes holds up all.
	InOrder bool
	// Reverse collects answers for so long and then sends the last one first.
	Reverse time.Duration

	// Answers.

	// Never leaves a query without an answer.
	Never bool
	// Delay is how much later than usual an answer is.
	Delay time.Duration
	// DelayTo and Over make the delay creep: from Delay, when the fault is set,
	// linearly to DelayTo after Over.
	DelayTo, Over time.Duration
	// RCode, unless NOERROR, is the answer, without any record.
	RCode wire.RCode
	// Mangle is what is wrong with the answer itself.
	Mangle Mangle
	// Drip is the pause before each octet of an answer. Nothing overtakes an
	// answer that drips. It ends with the next Set.
	Drip time.Duration
}

// Greeting is what a new connection meets instead of a handshake.
type Greeting uint8

const (
	Handshake       Greeting = iota // none of it
	Silence                         // accepted, and never a word
	HandshakeStalls                 // half of the server's first flight, and never another word
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
	CloseNotify Closing = iota // as TLS wants it: close_notify, then FIN
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
	TicketsRefused           // sent, but the handshake is a full one nevertheless
	TicketsFatal             // sent, but a TLS 1.3 handshake with one fails
	ticketsEnd       = iota
)

var ticketNames = [ticketsEnd]string{"accepted", "not-issued", "refused", "fatal"}

func (t Tickets) String() string { return nameOf(ticketNames[:], int(t), "Tickets") }

// Mangle is a set of things that can be wrong with an answer.
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
	Foreign                          // the answer section has a record of another name, too
	Stray                            // the additional section has
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

// The names are also how a script spells the values.

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

// and returns what f and g do together. Delays are not its business.
func (f Fault) and(g Fault) Fault {
	f.Greeting = cmp.Or(g.Greeting, f.Greeting)
	f.MaxConnections = cmp.Or(g.MaxConnections, f.MaxConnections)
	f.MinVersion = cmp.Or(g.MinVersion, f.MinVersion)
	f.MaxVersion = cmp.Or(g.MaxVersion, f.MaxVersion)
	f.Tickets = cmp.Or(g.Tickets, f.Tickets)
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

// delay is how late f makes an answer, so long after it was set.
func (f Fault) delay(since time.Duration) time.Duration {
	switch {
	case f.Over <= 0:
		return f.Delay
	case since >= f.Over:
		return f.DelayTo
	}
	return f.Delay + time.Duration(float64(f.DelayTo-f.Delay)*float64(since)/float64(f.Over))
}

// calm reports whether f leaves answers alone.
func (f Fault) calm() bool {
	return !f.Never && f.Delay == 0 && f.Over == 0 && f.RCode == 0 && f.Mangle == 0 && f.Drip == 0
}

// A plan is what a server does wrong from one Set to the next. It never
// changes.
type plan struct {
	faults []Fault
	set    time.Duration // when, on the server's clock
	calm   bool          // no fault is about answers
	conn   Fault         // all together, for the fields that know no share
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

// strike draws the faults that a query or a new connection meets, in one with
// their delays.
func (p *plan) strike(now time.Duration, d *dice) Fault {
	var struck Fault
	for _, f := range p.faults {
		if f.Share == 0 || f.Share == 1 || d.float() < f.Share {
			delay := struck.Delay + f.delay(now-p.set)
			struck = struck.and(f)
			struck.Delay = delay
		}
	}
	return struck
}

// dice are random numbers that a seed repeats, for many goroutines.
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
