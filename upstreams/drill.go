package upstreams

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// delayMax is the longest delay of a drill. No client waits longer for an answer, so a
// longer delay would be a blackhole.
const delayMax = 10 * time.Second

// ErrDrill means that a drill of the upstream is running already.
var ErrDrill = errors.New("a drill is running already")

// A Drill is a fault that is injected into an upstream, so that operators can see what
// happens. It acts where a real fault would: the code that detects and survives failures
// does not know of it.
type Drill struct {
	Fault  Fault
	Delay  time.Duration // of each answer; with Late
	Share  int           // of the answers, in percent; with ServFail
	Port   uint16        // with Block
	UDP    bool          // the port is that of QUIC; with Block
	Status int           // of HTTP; with HTTPStatus
}

// A Fault is what a drill does to an upstream.
type Fault uint8

const (
	// Blackhole: open connections accept queries, and nothing comes back, not even their
	// end. New connections time out.
	Blackhole Fault = iota
	// Late: every answer is delayed.
	Late
	// ServFail: some answers are replaced by SERVFAIL.
	ServFail
	// Hangup: all connections are closed, and new ones right after the handshake.
	Hangup
	// Block is Blackhole for connections to one port, over TCP or over QUIC.
	Block
	// HTTPStatus: over HTTPS, all answers are replaced by a status that is an error.
	HTTPStatus
)

var faultNames = [...]string{Blackhole: "blackhole", Late: "delay", ServFail: "servfail", Hangup: "close", Block: "block", HTTPStatus: "http"}

func (f Fault) String() string { return faultNames[f] }

// String returns the form that ParseDrill reads.
func (d Drill) String() string {
	switch d.Fault {
	case Late:
		return d.Fault.String() + "=" + d.Delay.String()
	case ServFail:
		return fmt.Sprintf("%v=%d%%", d.Fault, d.Share)
	case Block:
		if d.UDP {
			return fmt.Sprintf("%v=%d%s", d.Fault, d.Port, udpSuffix)
		}
		return fmt.Sprintf("%v=%d", d.Fault, d.Port)
	case HTTPStatus:
		return fmt.Sprintf("%v=%d", d.Fault, d.Status)
	}
	return d.Fault.String()
}

// udpSuffix follows a port of UDP.
const udpSuffix = "/udp"

// ParseDrill reads "blackhole", "delay=300ms", "servfail=20%", "close", "block=853",
// "block=443/udp" or "http=503".
func ParseDrill(text string) (d Drill, err error) {
	name, value, valued := strings.Cut(text, "=")
	i := slices.Index(faultNames[:], name)
	if i < 0 {
		return Drill{}, fmt.Errorf("%q is no fault; there are blackhole, delay=300ms, servfail=20%%, close, block=853, block=443/udp, http=503", text)
	}
	d.Fault = Fault(i)
	switch d.Fault {
	case Late:
		err = d.parseDelay(text, value)
	case ServFail:
		err = d.parseShare(text, value)
	case Block:
		port, udp := strings.CutSuffix(value, udpSuffix)
		n, failed := strconv.ParseUint(port, 10, 16)
		if d.Port, d.UDP = uint16(n), udp; n == 0 || failed != nil {
			err = fmt.Errorf("%q is no port; write one such as block=853, or block=443/udp for QUIC", text)
		}
	case HTTPStatus:
		if d.Status, _ = strconv.Atoi(value); d.Status < 300 || d.Status > 599 {
			err = fmt.Errorf("%q is no HTTP status from 300 to 599; write one such as http=503", text)
		}
	default:
		if valued {
			err = fmt.Errorf("%q: %v takes no value", text, d.Fault)
		}
	}
	if err != nil {
		return Drill{}, err
	}
	return d, nil
}

func (d *Drill) parseDelay(text, value string) (err error) {
	if d.Delay, err = time.ParseDuration(value); err != nil {
		return fmt.Errorf("%q is no delay; write one such as delay=300ms", text)
	}
	if d.Delay <= 0 || d.Delay > delayMax {
		return fmt.Errorf("%q must be above 0 and at most %v; an answer later than that is none, as with blackhole", text, delayMax)
	}
	return nil
}

func (d *Drill) parseShare(text, value string) (err error) {
	number, percent := strings.CutSuffix(value, "%")
	if d.Share, err = strconv.Atoi(number); err != nil || !percent {
		return fmt.Errorf("%q is no share of the answers; write one such as servfail=20%%", text)
	}
	if d.Share < 1 || d.Share > 100 {
		return fmt.Errorf("%q must be between 1%% and 100%%", text)
	}
	return nil
}

// concerns reports whether the fault can be seen at an endpoint.
func (d Drill) concerns(e *endpoint) bool {
	switch d.Fault {
	case Block:
		return d.swallows(e.addr, overUDP(e.transport()))
	case HTTPStatus:
		return overHTTP(e.transport())
	}
	return true
}

// swallows reports whether the fault is that nothing comes back from an address.
func (d Drill) swallows(addr netip.AddrPort, udp bool) bool {
	return d.Fault == Blackhole || d.Fault == Block && d.Port == addr.Port() && d.UDP == udp
}

// places lists the endpoints, for people.
func (d *dialer) places() string {
	var places []string
	for _, e := range d.ordered() {
		places = append(places, e.String())
	}
	return strings.Join(places, ", ")
}

// Drill injects the fault into u until ctx is done or u is closed. It blocks until then.
// If a drill is running already, or u has no endpoint that the fault is about, it returns an
// error at once.
//
// When a drill ends, answers that it has delayed are delivered at once. What a blackhole
// has swallowed stays lost.
func (u *Upstream) Drill(ctx context.Context, d Drill) error {
	if endpoints := u.dialer.ordered(); len(endpoints) > 0 && !slices.ContainsFunc(endpoints, d.concerns) {
		return named(u.o.Name, fmt.Errorf("no endpoint has the fault %v: %s", d, u.dialer.places()))
	}
	end, started := u.dialer.faults.start(d)
	if !started {
		return named(u.o.Name, ErrDrill)
	}
	defer end()
	select {
	case <-ctx.Done():
	case <-u.ctx.Done():
	}
	return nil
}
