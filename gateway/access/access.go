// Package access decides which clients are served, how often, and with what.
//
// It has the allow list (prefixes, and on_link: the networks of this machine's
// interfaces), the rate limits, DNS cookies (RFC 9018), the token of health checks, the
// filter against DNS rebinding, and the counts of clients that were refused.
//
// What it never does: it sends nothing, reads no packet, and starts no goroutine. It
// returns decisions; the gateway builds the replies and counts the outcomes.
//
// Its states are those of tables that do not grow: limiters know a fixed number of client
// prefixes, and the refused clients of one report are at most refusedPrefixes.
package access

import (
	"net/netip"
	"slices"

	"go4.org/netipx"

	"dotgate/configs/secret"
)

const (
	// RefusalRate is how many queries a second of a client that is not allowed are
	// refused, and RefusalBurst how many at once; others are ignored. Refusals help operators
	// find the reason; more of them would flood a forged address.
	RefusalRate, RefusalBurst = 5, 20
	// publicRate is the limit of clients with public addresses if Options.RateLimit is not
	// set. Addresses can be forged over UDP, and replies are longer than queries; a network
	// behind one public address can use TCP, or cookies.
	publicRate = 100
)

// Options of an Access. All fields have to be set.
type Options struct {
	Allow        []Range
	Trusted      []netip.Prefix // clients that may know which upstream failed and how
	RateLimit    int            // queries a second and client over UDP; 0: only for public addresses
	RateBurst    int
	RateExempt   []netip.Prefix
	CookieSecret []secret.Text // nil: a random one
}

// An Access decides which clients are served, and how many queries a second.
type Access struct {
	// private has the private addresses of Options.Allow, public all others.
	private, public *netipx.IPSet
	onLink          bool // the prefixes on the link are allowed as well
	trusted         *netipx.IPSet
	refusals        *limiter // of clients that are not allowed
	limits          *limiter // of allowed clients; nil: none
	publicLimits    *limiter // of allowed clients with public addresses, if limits is nil
	exempt          *netipx.IPSet
	cookies
}

// A Permission is whether a client is served.
type Permission uint8

const (
	NotAllowed Permission = iota
	AllowedPrivate
	AllowedPublic
)

// New returns an Access. What clients have used up of their limits under the one before,
// which may be nil, still counts, and its random cookie secret stays, if the options for
// them are the same.
func New(o Options, before *Access, old Options) (a *Access, err error) {
	a = new(Access)
	if a.private, a.public, err = splitPublic(Prefixes(o.Allow), nil); err != nil {
		return nil, err
	}
	a.onLink = slices.Contains(o.Allow, Range{OnLink: true})
	if a.trusted, err = setOf(o.Trusted); err != nil {
		return nil, err
	}
	if a.exempt, err = setOf(o.RateExempt); err != nil {
		return nil, err
	}
	if o.RateLimit > 0 {
		a.limits = newLimiter(o.RateLimit, o.RateBurst)
	} else {
		a.publicLimits = newLimiter(publicRate, o.RateBurst)
	}
	a.refusals = newLimiter(RefusalRate, RefusalBurst)
	if a.cookies, err = newCookies(o.CookieSecret); err != nil {
		return nil, err
	}
	if before == nil {
		return a, nil
	}
	a.refusals = before.refusals
	if o.RateLimit == old.RateLimit && o.RateBurst == old.RateBurst {
		a.limits, a.publicLimits = before.limits, before.publicLimits
	}
	if slices.Equal(o.CookieSecret, old.CookieSecret) {
		a.cookies = before.cookies
	}
	return a, nil
}

// Prefixes returns the prefixes among the ranges.
func Prefixes(ranges []Range) (prefixes []netip.Prefix) {
	for _, r := range ranges {
		if !r.OnLink {
			prefixes = append(prefixes, r.Prefix)
		}
	}
	return prefixes
}

// Permission returns whether the client at addr is served.
func (a *Access) Permission(addr netip.Addr, n *Network) Permission {
	switch {
	case a.private.Contains(addr) || a.onLink && n.private.Contains(addr):
		return AllowedPrivate
	case a.public.Contains(addr) || a.onLink && n.public.Contains(addr):
		return AllowedPublic
	}
	return NotAllowed
}

// OnLink reports whether the prefixes on the link are allowed.
func (a *Access) OnLink() bool { return a.onLink }

// Trusts reports whether the client at addr may know which upstream failed and how.
func (a *Access) Trusts(addr netip.Addr) bool { return a.trusted.Contains(addr) }

// TakeRefusal takes one of the refusals for the client at addr. It reports false if it had
// too many: the query is to be ignored.
func (a *Access) TakeRefusal(addr netip.Addr) bool { return a.refusals.take(addr) }

// OverRate counts a query over UDP, without a good cookie, of the client at addr, whose
// Permission is p. It reports whether it exceeds the client's rate.
func (a *Access) OverRate(addr netip.Addr, p Permission) bool {
	limits := a.limits
	if limits == nil && p == AllowedPublic {
		limits = a.publicLimits
	}
	return limits != nil && !a.exempt.Contains(addr) && !limits.take(addr)
}

func setOf(prefixes []netip.Prefix) (*netipx.IPSet, error) {
	var b netipx.IPSetBuilder
	for _, p := range prefixes {
		b.AddPrefix(p)
	}
	return b.IPSet()
}

// LoopbackPrefixes returns the addresses that only this host can use.
func LoopbackPrefixes() []netip.Prefix { return slices.Clone(loopbackPrefixes) }

var loopbackPrefixes = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")}

// PrivatePrefixes returns the addresses of this host and those that are not reachable from
// the Internet: RFC 1918, RFC 4193 and link-local ones.
func PrivatePrefixes() []netip.Prefix { return slices.Clone(privatePrefixes) }

var privatePrefixes = []netip.Prefix{
	netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128"),
	netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("172.16.0.0/12"), netip.MustParsePrefix("192.168.0.0/16"),
	netip.MustParsePrefix("169.254.0.0/16"), netip.MustParsePrefix("fe80::/10"), netip.MustParsePrefix("fc00::/7"),
}
