package gateway

import (
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"time"

	"dotgate/gateway/cache"
	"dotgate/gateway/wire"
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
	// MaxPerClient is how many of them one IPv4 address, or IPv6 /56, may have.
	// Default: 256.
	MaxPerClient int `config:"max_connections_per_client"`
	// MaxPipelined is how many queries of one TCP connection are worked on at
	// once; further ones wait unread. Default: 100.
	MaxPipelined int `config:"max_pipelined"`
	// IdleTimeout is how long a TCP connection may stay without a query before
	// it is closed (RFC 7766 section 6.2.3). Default: 10 s.
	IdleTimeout time.Duration `config:"idle_timeout"`
	// GatherAbove is how many queries a second one UDP socket, of which there is
	// one for each processor, must get for them to wait for each other, 0.15 ms at
	// the most: those that share a wake-up cost less. Linux only. Default: 15000.
	GatherAbove int `config:"gather_above"`
	// Lameduck is for how long whoever runs the Gateway should let it go on after
	// it was asked to stop, and tell everybody that it will: those who follow its
	// readiness then have the time to ask elsewhere. Default: 0.
	Lameduck time.Duration `config:"lameduck"`

	// Allow are the clients that are served; all others are refused, and past a
	// few queries a second ignored. Default: this host, private addresses
	// (RFC 1918, RFC 4193) and link-local ones.
	Allow []netip.Prefix `config:"allow"`
	// Trusted are the clients that are told, when they get SERVFAIL, which upstream
	// failed and how: what we ask is nobody else's business. Default: this host.
	Trusted []netip.Prefix `config:"trusted"`
	// RateLimit is how many queries a second an IPv4 address, or an IPv6 /56,
	// gets answered over UDP. Past it, every other query is told to come by TCP,
	// where addresses can't be forged, and the rest is ignored; a client with a
	// DNS cookie of ours goes on. Default: 0, no limit.
	RateLimit int `config:"rate_limit"`
	// RateBurst is how many queries may come at once on top of RateLimit.
	// Default: 500.
	RateBurst int `config:"rate_burst"`
	// RateExempt are clients that RateLimit is not for. Default: none.
	RateExempt []netip.Prefix `config:"rate_exempt"`
	// CookieSecret are the secrets of DNS cookies (RFC 9018), each of 32
	// hexadecimal digits: the first one makes them, all of them are accepted, so
	// that it can be changed. Servers behind one address share them. Default: a
	// random one, new with each process.
	CookieSecret []string `config:"cookie_secret"`
	// NSID is what clients are told that ask which server they have reached
	// (RFC 5001). Default: nothing.
	NSID string `config:"nsid"`
	// Version, ID and Hostname are what is told about this server in the class
	// CHAOS, as version.bind, id.server and hostname.bind (RFC 4892). Default:
	// nothing, such queries are refused.
	Version  string `config:"version_bind"`
	ID       string `config:"id_server"`
	Hostname string `config:"hostname_bind"`
	// ForwardLocal are names that upstreams are asked for, although they and all
	// below them would be answered here: special names (RFC 6761) and those of
	// private addresses (RFC 6303). Default: none.
	ForwardLocal []string `config:"forward_local"`
	// ECS is what upstreams get to know of a client's network (RFC 7871): strip,
	// nothing; forward, what the client itself says, whose answers are then neither
	// kept nor shared; or a prefix to name for all clients. Default: strip.
	ECS string `config:"ecs"`
	// BlockPrivate answers that a name has no address when it has a private one:
	// a web page could reach into one's network by such a name. Default: false.
	BlockPrivate bool `config:"block_private"`
	// AllowPrivate are names that may have private addresses all the same, with all
	// names below them. Default: none.
	AllowPrivate []string `config:"allow_private"`
	// NoApplicationDNS tells browsers, by use-application-dns.net not being there,
	// not to use resolvers of their own. Default: false.
	NoApplicationDNS bool `config:"no_application_dns"`

	// Share has the gateway serve beside another process at the same addresses,
	// of the same user, which is about to stop. Without, that is an error.
	Share bool `config:"-"`
	// QueryLog takes note of what clients ask and get. Nil: nobody does.
	QueryLog QueryLog `config:"-"`
	// Tracer follows queries on their way. Nil: nobody does.
	Tracer Tracer `config:"-"`
	// Cache has the answers that need not be asked for. Nil: there is none.
	Cache *cache.Cache `config:"-"`
	// Log takes what an operator should see. Default: slog.Default.
	Log *slog.Logger `config:"-"`
}

// A QueryLog takes note of queries.
type QueryLog interface {
	// Note is told of a reply to a packet, and how long it took; 0 if it could be
	// had at once. It must not wait, nor keep packet and reply.
	Note(client netip.AddrPort, via wire.Transport, packet, reply []byte, took time.Duration)
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
		o.Allow = slices.Clone(nearby)
	}
	if o.Trusted == nil {
		o.Trusted = slices.Clone(thisHost)
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

// thisHost is what only this host can be reached by.
var thisHost = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")}

// nearby is this host and what can't be reached from elsewhere.
var nearby = []netip.Prefix{
	netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128"),
	netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("172.16.0.0/12"), netip.MustParsePrefix("192.168.0.0/16"),
	netip.MustParsePrefix("169.254.0.0/16"), netip.MustParsePrefix("fe80::/10"), netip.MustParsePrefix("fc00::/7"),
}

// lameduckMax is more than anybody should need who follows readiness.
const lameduckMax = 5 * time.Minute

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
	o.checkClients(report)
	for _, d := range []struct {
		option string
		value  time.Duration
	}{{"timeout", o.Timeout}, {"idle_timeout", o.IdleTimeout}} {
		if d.value <= 0 {
			report(d.option, "must be above 0")
		}
	}
	if o.Lameduck < 0 || o.Lameduck > lameduckMax {
		report("lameduck", "must be between 0s and "+lameduckMax.String())
	}
	for _, n := range []struct {
		option string
		value  int
	}{{"max_queries", o.MaxQueries}, {"max_connections", o.MaxConnections}, {"max_connections_per_client", o.MaxPerClient}, {"max_pipelined", o.MaxPipelined}, {"gather_above", o.GatherAbove}} {
		if n.value <= 0 {
			report(n.option, "must be above 0")
		}
	}
}

// checkClients reports the options about who may ask, and what they are told.
func (o Options) checkClients(report func(option, problem string)) {
	if len(o.Allow) == 0 {
		report("allow", "is empty: nobody could ask; 0.0.0.0/0 and ::/0 are everybody")
	}
	for option, prefixes := range map[string][]netip.Prefix{"allow": o.Allow, "trusted": o.Trusted, "rate_exempt": o.RateExempt} {
		for _, p := range prefixes {
			if !p.IsValid() || p.Addr().Is4In6() {
				report(option, p.String()+" is no prefix; write 192.0.2.0/24, 2001:db8::/32 or an address")
			}
		}
	}
	if o.RateLimit < 0 || o.RateLimit > maxRate {
		report("rate_limit", fmt.Sprintf("must be between 0, for no limit, and %d", maxRate))
	}
	if o.RateBurst <= 0 || o.RateBurst > maxRate {
		report("rate_burst", fmt.Sprintf("must be between 1 and %d", maxRate))
	}
	for _, secret := range o.CookieSecret {
		if _, err := parseCookieSecret(secret); err != nil {
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
			if _, err := wire.PackName(name); err != nil {
				report(option, err.Error())
			}
		}
	}
}

// What Options.ECS may be besides a prefix.
const (
	ecsStrip   = "strip"
	ecsForward = "forward"
)

// parseECS returns the option for the prefix in text, or nil if it has another
// meaning.
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

const (
	maxRate  = 1_000_000
	maxChaos = 200
)

// covers reports whether a wildcard takes all that comes to another address, so
// that there can't be both.
func covers(wildcard, other netip.AddrPort) bool {
	w, o := wildcard.Addr().Unmap(), other.Addr().Unmap()
	return w.IsUnspecified() && !o.IsUnspecified() && w.Is4() == o.Is4() &&
		wildcard.Port() == other.Port() && wildcard.Port() != 0
}
