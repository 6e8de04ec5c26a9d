package gateway

import (
	"fmt"
	"log/slog"
	"net/netip"
	"time"

	"dotgate/configs/bounds"
	"dotgate/configs/secret"
	"dotgate/gateway/access"
	"dotgate/gateway/cache"
	"dotgate/gateway/wire"
)

// Options of a Gateway. A zero field means its default.
type Options struct {
	// Listen is where clients are served, over UDP and TCP: IP:port, or :53 for all
	// addresses of the machine, IPv4 and IPv6. An address that no interface has yet is
	// served as soon as one has it.
	//
	// Port 0 is any port that is free for both protocols. [::] serves IPv4 too, unless an
	// IPv4 address with the same port is listed.
	Listen []netip.AddrPort `config:"listen"`
	// Timeout is the longest that a client waits for an answer; then it gets SERVFAIL. Keep
	// it below the client's own limit, which is 5s in most clients.
	Timeout time.Duration `config:"timeout" bounds:"10ms 1m"`
	// MaxQueries is how many queries may wait for upstreams at once; further ones get
	// SERVFAIL at once. Raise it if that happens in normal operation.
	MaxQueries int `config:"max_queries" bounds:"1 1000000"`
	// MaxConnections is how many TCP connections all clients together may have open; each
	// takes a little memory.
	MaxConnections int `config:"max_connections" bounds:"1 1000000"`
	// MaxPerClient is how many TCP connections one IPv4 address, or IPv6 /56, may have open.
	MaxPerClient int `config:"max_connections_per_client" bounds:"1 1000000"`
	// MaxPipelined is how many queries of one TCP connection are worked on at once; further
	// ones stay unread.
	MaxPipelined int `config:"max_pipelined" bounds:"1 65535"`
	// IdleTimeout is how long a TCP connection may stay without a query before it is closed.
	//
	// RFC 7766 section 6.2.3.
	IdleTimeout time.Duration `config:"idle_timeout" bounds:"10ms 1h"`
	// GatherAbove is the number of UDP queries per second and CPU above which reads are
	// delayed by up to 0.15 ms, so that queries are handled in batches (about one third less
	// CPU). A very high value disables it.
	//
	// Linux only: there is one UDP socket per CPU.
	GatherAbove int `config:"gather_above" bounds:"1 1000000000"`
	// Lameduck is how long queries are still answered after SIGTERM, while /readyz says that
	// the gateway is about to stop; a second signal ends it at once.
	Lameduck time.Duration `config:"lameduck" bounds:"0s 5m"`

	// Allow are the clients that are served: prefixes, addresses, or on_link for the networks
	// of this machine's interfaces as they are now (dotgate check prints them; no public
	// ones larger than /24 or, for IPv6, /64). Other clients get REFUSED, and no reply at
	// all above a few queries per second. 0.0.0.0/0 and ::/0 are all clients: set rate_limit
	// then.
	//
	// The default is this host, private addresses (RFC 1918, RFC 4193), link-local ones and
	// on_link.
	Allow []access.Range `config:"allow"`
	// Trusted are the clients that are told, with SERVFAIL, which upstream failed and why.
	// The default is this host; [] is no client.
	Trusted []netip.Prefix `config:"trusted"`
	// RateLimit is how many UDP queries per second are answered for one IPv4 address, or
	// IPv6 /56; above it, clients are told to use TCP. 0 is no limit, except for clients
	// with public addresses, whose limit is then 100.
	//
	// Above the limit every other query is answered with TC, as TCP proves the address, and
	// the rest is dropped. A client with one of our DNS cookies has no limit.
	RateLimit int `config:"rate_limit" bounds:"0 1000000"`
	// RateBurst is how many queries may come at once on top of rate_limit.
	RateBurst int `config:"rate_burst" bounds:"1 1000000"`
	// RateExempt are the clients without any rate limit, such as other resolvers. The default
	// is this host, whose addresses can't be forged from elsewhere; [] is no client.
	RateExempt []netip.Prefix `config:"rate_exempt"`
	// CookieSecret are the secrets of DNS cookies (RFC 9018), 32 hexadecimal digits each, the
	// same on both nodes of a pair. The first one makes cookies, all are accepted. Without
	// one, a random secret is made at each start.
	CookieSecret []secret.Text `config:"cookie_secret"`
	// NSID is the answer to clients that ask which server they reached (RFC 5001); empty for
	// none.
	NSID string `config:"nsid"`
	// Version is the answer to version.bind in class CHAOS (RFC 4892); empty to refuse it.
	Version string `config:"version_bind"`
	// ID is the answer to id.server; empty to refuse it.
	ID string `config:"id_server"`
	// Hostname is the answer to hostname.bind; empty to refuse it.
	Hostname string `config:"hostname_bind"`
	// ForwardLocal are the names that are asked upstream although the gateway would answer
	// them itself: localhost, test, local, internal, alt, home.arpa, 10.in-addr.arpa and the
	// like, each with all names below it ("*.local" is only those below).
	//
	// They are patterns as wire.CleanPattern reads them (RFC 6761, RFC 6303).
	ForwardLocal []string `config:"forward_local"`
	// ECS is what upstreams are told about the client's network (EDNS Client Subnet): strip
	// tells nothing, forward passes on what the client sends and does not cache the answer,
	// and a prefix is sent for all clients.
	//
	// RFC 7871.
	ECS string `config:"ecs"`
	// BlockPrivate is whether names that have a private address, NAT64 forms included, are
	// answered as if they had no address (protection from DNS rebinding). Private addresses
	// beside other records are removed.
	BlockPrivate bool `config:"block_private"`
	// AllowPrivate are the names that may have private addresses in spite of block_private,
	// each with all names below it ("*.corp.example" is only those below). Names with routes
	// may have them anyway.
	AllowPrivate []string `config:"allow_private"`
	// BlockSingleLabel is whether names of one label, such as "printer", are answered as if
	// they had no address rather than asked upstream. Names with routes, or in
	// forward_local, are asked.
	BlockSingleLabel bool `config:"block_single_label"`
	// NoApplicationDNS is whether browsers are told, by use-application-dns.net, to use this
	// resolver instead of their own.
	NoApplicationDNS bool `config:"no_application_dns"`

	// Share is whether the gateway serves at the same addresses as another process of the same
	// user, which is about to stop. Otherwise that is an error.
	Share bool `config:"-"`
	// Interfaces lists the interfaces of this machine. Default: access.Interfaces.
	Interfaces func() ([]access.Interface, error) `config:"-"`
	// QueryLog records queries and replies. Nil: none.
	QueryLog QueryLog `config:"-"`
	// Tracer follows queries to their replies. Nil: none.
	Tracer Tracer `config:"-"`
	// Routes are the names that the Resolver asks elsewhere than all others: they are never
	// answered here, and may have private addresses. Nil: none.
	Routes *wire.Routes `config:"-"`
	// Cache has the answers of the Resolver. Nil: none is kept.
	Cache *cache.Cache `config:"-"`
	// Log is for the operator. Default: slog.Default.
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
	if o.Allow == nil {
		for _, p := range access.PrivatePrefixes() {
			o.Allow = append(o.Allow, access.Range{Prefix: p})
		}
		o.Allow = append(o.Allow, access.Range{OnLink: true})
	}
	if o.Trusted == nil {
		o.Trusted = access.LoopbackPrefixes()
	}
	if o.RateExempt == nil {
		o.RateExempt = access.LoopbackPrefixes()
	}
	orDefault(&o.RateBurst, 500)
	orDefault(&o.ECS, ecsStrip)
	orDefault(&o.Timeout, 4*time.Second)
	orDefault(&o.MaxQueries, 12000)
	orDefault(&o.MaxConnections, 1024)
	orDefault(&o.MaxPerClient, 256)
	orDefault(&o.MaxPipelined, 100)
	orDefault(&o.IdleTimeout, 10*time.Second)
	orDefault(&o.GatherAbove, 15_000)
	orDefault(&o.Log, slog.Default())
	return o
}

func orDefault[T comparable](field *T, value T) {
	if *field == *new(T) {
		*field = value
	}
}

// Check reports every option that has an unusable value, by its name. Zero numbers and durations
// are reported, too: in a configuration, 0 does not stand for the default.
func (o Options) Check(report func(option, problem string, beside ...string)) {
	if len(o.Listen) == 0 {
		report("listen", "is empty: clients could ask nowhere")
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
	o.checkClients(report)
	bounds.Check(o, report)
}

// checkClients reports the options about which clients are served, and what they are told.
func (o Options) checkClients(report func(option, problem string, beside ...string)) {
	if len(o.Allow) == 0 {
		report("allow", "is empty: no client would be served; 0.0.0.0/0 and ::/0 are all clients")
	}
	for option, prefixes := range map[string][]netip.Prefix{"allow": access.Prefixes(o.Allow), "trusted": o.Trusted, "rate_exempt": o.RateExempt} {
		for _, p := range prefixes {
			if !p.IsValid() || p.Addr().Is4In6() {
				report(option, p.String()+" is no prefix; write 192.0.2.0/24, 2001:db8::/32 or an address")
			}
		}
	}
	for _, text := range o.CookieSecret {
		if err := access.CheckCookieSecret(text); err != nil {
			report("cookie_secret", err.Error())
		}
	}
	for _, text := range []struct {
		option, value string
		most          int
	}{{"nsid", o.NSID, maxNSID}, {"version_bind", o.Version, maxChaos}, {"id_server", o.ID, maxChaos}, {"hostname_bind", o.Hostname, maxChaos}} {
		if len(text.value) > text.most {
			report(text.option, fmt.Sprintf("has %d octets; it must have %d at most", len(text.value), text.most))
		}
	}
	if _, err := parseECS(o.ECS); err != nil {
		report("ecs", err.Error())
	}
	for option, names := range map[string][]string{"forward_local": o.ForwardLocal, "allow_private": o.AllowPrivate} {
		for _, name := range names {
			if _, err := wire.CleanPattern(name); err != nil {
				report(option, err.Error())
			}
		}
	}
}

// Values of Options.ECS besides a prefix.
const (
	ecsStrip   = "strip"
	ecsForward = "forward"
)

// parseECS returns the EDNS option for the prefix in text, or nil for one of the other
// values.
func parseECS(text string) ([]byte, error) {
	if text == ecsStrip || text == ecsForward {
		return nil, nil
	}
	p, err := netip.ParsePrefix(text)
	if err != nil || p.Addr().Is4In6() || p != p.Masked() {
		return nil, fmt.Errorf("%q is neither strip, forward nor a prefix such as 192.0.2.0/24", text)
	}
	return wire.AppendSubnet(nil, p), nil
}

const maxChaos = 200

// covers reports whether a wildcard receives all that is sent to other, so that both cannot be
// bound.
func covers(wildcard, other netip.AddrPort) bool {
	w, o := wildcard.Addr().Unmap(), other.Addr().Unmap()
	return w.IsUnspecified() && !o.IsUnspecified() && w.Is4() == o.Is4() &&
		wildcard.Port() == other.Port() && wildcard.Port() != 0
}
