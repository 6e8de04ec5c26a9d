package gateway

import (
	"log/slog"
	"net/netip"
	"time"

	"dotgate/gateway/cache"
)

// Options of a Gateway. A zero field means its default.
type Options struct {
	// Listen is where clients are served, over UDP and TCP both. Port 0 is any
	// port that is free for both. [::] serves IPv4 too, unless an IPv4 address
	// with the same port is listed. Default: 127.0.0.1:5300 and [::1]:5300.
	Listen []netip.AddrPort `config:"listen"`
	// Timeout bounds one client's query, whatever happens behind it: past it
	// the client gets SERVFAIL. Default: 4 s, below the 5 s of most clients.
	Timeout time.Duration `config:"timeout"`
	// MaxQueries is how many queries may wait for upstreams at once. Past it
	// the newest get SERVFAIL at once. Default: 12000.
	MaxQueries int `config:"max_queries"`
	// MaxConnections is how many TCP connections clients may have open, all
	// together. Default: 1024.
	MaxConnections int `config:"max_connections"`
	// MaxPipelined is how many queries of one TCP connection are worked on at
	// once; further ones wait unread. Default: 100.
	MaxPipelined int `config:"max_pipelined"`
	// IdleTimeout is how long a TCP connection may stay without a query before
	// it is closed (RFC 7766 section 6.2.3). Default: 10 s.
	IdleTimeout time.Duration `config:"idle_timeout"`

	// Cache has the answers that need not be asked for. Nil: there is none.
	Cache *cache.Cache `config:"-"`
	// Log takes what an operator should see. Default: slog.Default.
	Log *slog.Logger `config:"-"`
}

// Defaults returns the options that zero fields stand for.
func Defaults() Options { return Options{}.withDefaults() }

func (o Options) withDefaults() Options {
	if o.Listen == nil {
		o.Listen = []netip.AddrPort{
			netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), 5300),
			netip.AddrPortFrom(netip.IPv6Loopback(), 5300),
		}
	}
	orDefault(&o.Timeout, 4*time.Second)
	orDefault(&o.MaxQueries, 12000)
	orDefault(&o.MaxConnections, 1024)
	orDefault(&o.MaxPipelined, 100)
	orDefault(&o.IdleTimeout, 10*time.Second)
	orDefault(&o.Log, slog.Default())
	return o
}

func orDefault[T comparable](field *T, value T) {
	if *field == *new(T) {
		*field = value
	}
}

// Check reports every option that can't be used, by its name. A zero number or
// duration can't: whoever writes 0 does not ask for a default.
func (o Options) Check(report func(option, problem string)) {
	if len(o.Listen) == 0 {
		report("listen", "is empty: nobody could ask")
	}
	seen := make(map[netip.AddrPort]bool)
	for _, addr := range o.Listen {
		if !addr.IsValid() || addr.Addr().IsMulticast() {
			report("listen", addr.String()+" is no address to listen on")
		}
		if seen[addr] && addr.Port() != 0 {
			report("listen", addr.String()+" is named twice")
		}
		seen[addr] = true
		for _, other := range o.Listen {
			if covers(addr, other) {
				report("listen", addr.String()+" includes "+other.String())
			}
		}
	}
	for _, d := range []struct {
		option string
		value  time.Duration
	}{{"timeout", o.Timeout}, {"idle_timeout", o.IdleTimeout}} {
		if d.value <= 0 {
			report(d.option, "must be above 0")
		}
	}
	for _, n := range []struct {
		option string
		value  int
	}{{"max_queries", o.MaxQueries}, {"max_connections", o.MaxConnections}, {"max_pipelined", o.MaxPipelined}} {
		if n.value <= 0 {
			report(n.option, "must be above 0")
		}
	}
}

// covers reports whether a wildcard takes all that comes to another address, so
// that there can't be both.
func covers(wildcard, other netip.AddrPort) bool {
	w, o := wildcard.Addr().Unmap(), other.Addr().Unmap()
	return w.IsUnspecified() && !o.IsUnspecified() && w.Is4() == o.Is4() &&
		wildcard.Port() == other.Port() && wildcard.Port() != 0
}
