package gateway

import (
	"errors"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"dotgate/gateway/wire"
)

const (
	// domainMax is how many queries below a silent suffix may be in progress once slots
	// were scarce. domainClientMax is how many of these a client may have before its
	// further ones are refused on behalf of others.
	domainMax, domainClientMax = 100, 10
	// domainSilence is how long domainMax queries may have had no answer before the suffix
	// is silent.
	domainSilence = 500 * time.Millisecond
	// A suffix is silent at once with domainFailures failures, of which each answer takes
	// back domainAnswerWeight. domainFailuresMax bounds them, so that a suffix recovers soon.
	domainFailures, domainFailuresMax, domainAnswerWeight = 100, 200, 4
	// domainRetention is how long failures are remembered, and how long a suffix is held
	// back after slots were scarce.
	domainRetention = 10 * time.Second
	// domainLevels is how many labels below a registrable domain are distinguished.
	domainLevels = 3
	// maxDomains bounds how many suffixes without queries in progress are remembered.
	maxDomains = 1 << 12
)

// errSilentDomain is the error of queries below a suffix that is held back.
var errSilentDomain = errors.New("too many queries in progress for a domain whose servers do not answer")

// domains bounds the slots that queries below one suffix can take. Otherwise a client that
// asks for thousands of new names a second below a suffix whose servers are silent, each of
// which takes seconds to fail, would fill all slots.
//
// A suffix is a registrable domain, or a name below it: one dead sub-zone says nothing about
// the others. Its states: unknown, known (it has queries in progress, or recent failures),
// silent (many queries and no answers, while other names are answered), held back (silent,
// and slots are scarce or were within domainRetention). A query counts for the longest silent
// suffix of its name, and for no shorter one.
type domains struct {
	log *slog.Logger
	// scarce reports whether slots are scarce.
	scarce func() bool

	mu         sync.Mutex // guards the rest
	known      map[string]*domain
	lastAnswer time.Time // for any of them
}

// A domain is a suffix with queries in progress, or with recent failures.
type domain struct {
	name       string                       // in wire format and lower case
	parent     *domain                      // the next shorter domain; nil for a registrable one
	children   int32                        // number of domains whose parent it is
	inProgress int32                        // queries below it
	excluded   int32                        // of these: below a longer, silent suffix
	failures   int16                        // minus answers, weighed
	silent     bool                         // see domains
	lastAnswer time.Time                    // or the time of reaching domainMax
	used       time.Time                    // when the last query ended
	held       *time.Time                   // the last time when slots were scarce, or it was over its bounds since; nil: never
	clients    map[netip.Addr]*domainClient // since it became silent
}

// A domainClient is a client with queries in progress below a silent domain.
type domainClient struct {
	domain  *domain
	addr    netip.Addr
	queries int
}

// A domainUse is the domains that a query in progress counts for.
type domainUse struct {
	lowest *domain       // it and all above it; nil: none
	client *domainClient // of the longest one that was silent; or nil
}

// begin counts q, which is about to be resolved for a client. The error is errSilentDomain if
// it must not be.
func (ds *domains) begin(q wire.Query, client netip.Addr, now time.Time) (c domainUse, err error) {
	var buf [wire.MaxKey]byte
	name := q.AppendName(buf[:0])
	ds.mu.Lock()
	defer ds.mu.Unlock()
	c.lowest = ds.domainOf(name)
	var silent *domain // the longest one
	for d := c.lowest; d != nil; d = d.parent {
		ds.updateSilent(d, now)
		if d.silent && silent == nil {
			silent = d
		}
	}
	if silent != nil && ds.refuses(silent, client, now) {
		ds.prune(c.lowest)
		return domainUse{}, errSilentDomain
	}
	below := false // a silent suffix
	for d := c.lowest; d != nil; d = d.parent {
		d.inProgress++
		if below {
			d.excluded++
		}
		below = below || d.silent
	}
	if silent != nil {
		c.client = silent.client(client)
		c.client.queries++
	}
	return c, nil
}

// client returns the client at addr of d, which is silent.
func (d *domain) client(addr netip.Addr) *domainClient {
	if d.clients == nil {
		d.clients = make(map[netip.Addr]*domainClient)
	}
	c := d.clients[addr]
	if c == nil {
		c = &domainClient{domain: d, addr: addr}
		d.clients[addr] = c
	}
	return c
}

// queriesOf returns how many queries of the client at addr are in progress below d, of those
// that began after d became silent.
func (d *domain) queriesOf(addr netip.Addr) int {
	if c := d.clients[addr]; c != nil {
		return c.queries
	}
	return 0
}

// updateSilent decides whether d is silent now. The caller holds mu.
func (ds *domains) updateSilent(d *domain, now time.Time) {
	if d.inProgress == 0 && now.Sub(d.used) > domainRetention {
		d.failures, d.held = 0, nil
		d.setSilent(false)
	}
	if d.silent || d.inProgress-d.excluded < domainMax {
		if !d.silent {
			d.lastAnswer = now
		}
		return
	}
	if stuck := d.failures >= domainFailures || now.Sub(d.lastAnswer) > domainSilence; stuck && now.Sub(ds.lastAnswer) < domainSilence {
		d.setSilent(true)
	}
}

// setSilent sets whether d is silent. While it is, queries below it do not count for the
// domains above it.
func (d *domain) setSilent(silent bool) {
	if d.silent == silent {
		return
	}
	d.silent = silent
	n := d.inProgress - d.excluded
	if !silent {
		n, d.clients = -n, nil
	}
	for p := d.parent; p != nil; p = p.parent {
		p.excluded += n
		if p.silent {
			return
		}
	}
}

// refuses reports whether d, which is silent, is held back for a client. The caller holds mu.
func (ds *domains) refuses(d *domain, client netip.Addr, now time.Time) bool {
	n := d.inProgress - d.excluded
	if n < domainMax || now.Sub(ds.lastAnswer) >= domainSilence {
		return false
	}
	if ds.scarce() {
		if d.held == nil {
			ds.log.Warn("held back queries for a domain whose servers do not answer", "domain", wire.NameText([]byte(d.name)), "in_progress", n)
		}
		d.hold(now)
	}
	if d.held == nil || now.Sub(*d.held) > domainRetention {
		return false
	}
	if d.queriesOf(client) < domainClientMax && n < 2*domainMax {
		return false
	}
	d.hold(now)
	return true
}

func (d *domain) hold(now time.Time) {
	if d.held == nil {
		d.held = new(time.Time)
	}
	*d.held = now
}

// end counts the end of a query.
func (ds *domains) end(c domainUse, answered bool, now time.Time) {
	ds.mu.Lock()
	defer ds.mu.Unlock()
	if client := c.client; client != nil {
		if client.queries--; client.queries == 0 && client.domain.clients[client.addr] == client {
			delete(client.domain.clients, client.addr)
		}
	}
	below := false
	for d := c.lowest; d != nil; d = d.parent {
		silent := d.silent
		d.inProgress--
		d.used = now
		if below {
			d.excluded--
		}
		switch {
		case answered:
			d.lastAnswer, ds.lastAnswer = now, now
			d.failures = max(0, d.failures-domainAnswerWeight)
			d.setSilent(false)
		case !below:
			d.failures = min(d.failures+1, domainFailuresMax)
		}
		below = below || silent // d may have changed since begin
	}
	ds.prune(c.lowest)
}

// prune forgets d, and then the domains above it, if they have nothing in progress and few
// failures: random names have random suffixes. The caller holds mu.
func (ds *domains) prune(d *domain) {
	for d != nil && d.inProgress == 0 && d.children == 0 && (d.failures == 0 || d.parent != nil && d.failures < domainClientMax) {
		parent := d.parent
		ds.remove(d)
		d = parent
	}
}

func (ds *domains) remove(d *domain) {
	d.setSilent(false)
	delete(ds.known, d.name)
	if d.parent != nil {
		d.parent.children--
	}
}

// domainOf returns the longest domain of a name, in wire format and lower case. The caller
// holds mu.
func (ds *domains) domainOf(name []byte) *domain {
	top := wire.RegistrableDomain(name)
	d := ds.at(top, nil)
	var starts [domainLevels]int // of the last labels before top, by number modulo domainLevels
	labels, below := 0, name[:len(name)-len(top)]
	for at := 0; at < len(below); at += 1 + int(below[at]) {
		starts[labels%domainLevels] = at
		labels++
	}
	for n := labels - 1; n > 0 && n >= labels-domainLevels; n-- { // label 0 begins the name itself, which is not a suffix
		d = ds.at(name[starts[n%domainLevels]:], d)
	}
	return d
}

// at returns the domain of a name, which is below parent.
func (ds *domains) at(name []byte, parent *domain) *domain {
	d := ds.known[string(name)]
	if d == nil {
		ds.evictOne(parent)
		d = &domain{name: string(name), parent: parent}
		if parent != nil {
			parent.children++
		}
		ds.known[d.name] = d
	}
	return d
}

// evictOne forgets one domain without queries in progress, whichever comes first, if there
// are many.
func (ds *domains) evictOne(parent *domain) {
	if len(ds.known) < maxDomains {
		return
	}
	tries := 0
	for _, d := range ds.known {
		if d.inProgress == 0 && d.children == 0 && d != parent {
			ds.remove(d)
			return
		}
		if tries++; tries == 100 { // most have queries in progress, whose number is bounded
			return
		}
	}
}
