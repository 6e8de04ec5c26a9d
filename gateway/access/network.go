package access

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"go4.org/netipx"
)

// A Range is one element of an allow list: a prefix of client addresses or, with OnLink, the
// prefixes of this machine's interfaces, as OnLink returns them.
type Range struct {
	Prefix netip.Prefix
	OnLink bool
}

// OnLinkWord is how a Range with OnLink is written.
const OnLinkWord = "on_link"

// String returns the prefix, or OnLinkWord.
func (r Range) String() string {
	if r.OnLink {
		return OnLinkWord
	}
	return r.Prefix.String()
}

// MarshalText writes what String returns.
func (r Range) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// UnmarshalText reads a prefix as ParsePrefix does, or OnLinkWord.
func (r *Range) UnmarshalText(text []byte) (err error) {
	if r.OnLink = string(text) == OnLinkWord; r.OnLink {
		return nil
	}
	if r.Prefix, err = ParsePrefix(string(text)); err != nil {
		return fmt.Errorf("%w, or %s for the networks of this machine's interfaces", err, OnLinkWord)
	}
	return nil
}

// ParsePrefix reads a prefix, or an address as the prefix of that address alone.
func ParsePrefix(text string) (netip.Prefix, error) {
	if p, err := netip.ParsePrefix(text); err == nil {
		if p != p.Masked() {
			return p, fmt.Errorf("%q has bits behind its length; %s is meant, or another length", text, p.Masked())
		}
		return p, nil
	}
	a, err := netip.ParseAddr(text)
	if err != nil || a.Zone() != "" {
		return netip.Prefix{}, fmt.Errorf("%q is neither a prefix nor an address; write 192.0.2.0/24, 2001:db8::/32 or 192.0.2.1", text)
	}
	return netip.PrefixFrom(a, a.BitLen()), nil
}

// An Interface is a network interface of this machine that is up.
type Interface struct {
	Name     string
	Loopback bool
	// DefaultRoute is whether a default route, or a route of half of all addresses, uses this
	// interface, in any routing table. It is set for interfaces with an address in 100.64.0.0/10
	// (RFC 6598), for which it matters. Where routes are unknown it is true.
	DefaultRoute bool
	Addresses    []netip.Prefix // with the length of the prefix on the link
}

// A Link is a prefix of an interface of this machine.
type Link struct {
	Interface string       `json:"interface"`
	Prefix    netip.Prefix `json:"prefix"`
	// Excluded is why clients in the prefix are not on_link; empty if they are.
	Excluded string `json:"excluded,omitempty"`
}

const (
	// publicBits4 and publicBits6 are the shortest public prefixes that are on_link. Longer ones
	// belong to one site. Shorter ones belong to a provider, whose other customers would be served.
	publicBits4, publicBits6 = 24, 64
)

// OnLink returns the prefixes of the interfaces, sorted, each once. Those that are not served
// have a reason. Loopback interfaces and single addresses have no prefix; an address in
// 100.64.0.0/10 stands for that whole range, because overlay networks such as Tailscale give
// each machine a prefix of one address.
func OnLink(interfaces []Interface) (links []Link) {
	for _, i := range interfaces {
		if i.Loopback {
			continue
		}
		for _, address := range i.Addresses {
			prefix := address.Masked()
			shared := sharedRange.Contains(address.Addr())
			if shared && prefix.IsSingleIP() {
				prefix = sharedRange
			}
			if !prefix.IsValid() || prefix.IsSingleIP() {
				continue
			}
			links = append(links, Link{Interface: i.Name, Prefix: prefix, Excluded: excluded(prefix, i.DefaultRoute)})
		}
	}
	slices.SortFunc(links, func(a, b Link) int {
		return cmp.Or(a.Prefix.Addr().Compare(b.Prefix.Addr()), a.Prefix.Bits()-b.Prefix.Bits(),
			strings.Compare(a.Excluded+a.Interface, b.Excluded+b.Interface))
	})
	return slices.CompactFunc(links, func(a, b Link) bool { return a.Prefix == b.Prefix && a.Excluded == b.Excluded })
}

// excluded returns why clients in a prefix on the link are not served; "" if they are.
func excluded(prefix netip.Prefix, defaultRoute bool) string {
	bits := publicBits6
	if prefix.Addr().Is4() {
		bits = publicBits4
	}
	switch {
	case within(prefix, sharedRange):
		if defaultRoute {
			return "its interface has a default route: this is a provider's NAT (RFC 6598)"
		}
	case slices.ContainsFunc(privatePrefixes, func(private netip.Prefix) bool { return within(prefix, private) }):
	case prefix.Bits() < bits:
		return fmt.Sprintf("public and shorter than /%d", bits)
	}
	return ""
}

func within(inner, outer netip.Prefix) bool {
	return inner.Bits() >= outer.Bits() && outer.Contains(inner.Addr())
}

// sharedRange is the shared address space of RFC 6598, used by providers' NATs and by overlay
// networks.
var sharedRange = netip.MustParsePrefix("100.64.0.0/10")

// A Network is what the interfaces say about clients. It does not change.
type Network struct {
	links []Link
	own   *netipx.IPSet // the addresses of this machine
	// private and public are on_link. private has the private prefixes, 100.64.0.0/10 of overlay
	// networks, and this machine's own addresses.
	private, public *netipx.IPSet
}

// NewNetwork returns the Network of these interfaces.
func NewNetwork(interfaces []Interface) (*Network, error) {
	own := slices.Clone(loopbackPrefixes)
	for _, i := range interfaces {
		for _, a := range i.Addresses {
			own = append(own, netip.PrefixFrom(a.Addr(), a.Addr().BitLen()))
		}
	}
	n := &Network{links: OnLink(interfaces)}
	var err error
	if n.own, err = setOf(own); err != nil {
		return nil, err
	}
	served := own
	for _, l := range n.links {
		if l.Excluded == "" {
			served = append(served, l.Prefix)
		}
	}
	n.private, n.public, err = splitPublic(served, own)
	return n, err
}

// IsOwn reports whether addr is an address of this machine.
func (n *Network) IsOwn(addr netip.Addr) bool { return n.own.Contains(addr) }

// Links returns the prefixes of the interfaces, as OnLink does.
func (n *Network) Links() []Link { return n.links }

// splitPublic returns two sets of the prefixes: one with the addresses that are private or in
// extra, and one with all others.
func splitPublic(prefixes, extra []netip.Prefix) (private, public *netipx.IPSet, err error) {
	inside, err := setOf(slices.Concat(privatePrefixes, extra, []netip.Prefix{sharedRange}))
	if err != nil {
		return nil, nil, err
	}
	var in, out netipx.IPSetBuilder
	for _, p := range prefixes {
		in.AddPrefix(p)
		out.AddPrefix(p)
	}
	in.Intersect(inside)
	out.RemoveSet(inside)
	if private, err = in.IPSet(); err != nil {
		return nil, nil, err
	}
	public, err = out.IPSet()
	return private, public, err
}

// NoInterfaces is the Network of a machine whose interfaces cannot be read.
var NoInterfaces = func() *Network {
	n, err := NewNetwork(nil)
	if err != nil {
		panic("BUG: " + err.Error())
	}
	return n
}()

// LinksText returns the on_link prefixes of the links as text.
func LinksText(links []Link) string {
	var served []string
	for _, l := range links {
		if l.Excluded == "" {
			served = append(served, l.Prefix.String())
		}
	}
	if len(served) == 0 {
		return "none"
	}
	return strings.Join(slices.Compact(served), ", ")
}

var errNoInterfaces = errors.New("network interfaces can't be listed")
