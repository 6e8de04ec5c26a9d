package upstreams

import (
	"cmp"
	"context"
	"net/netip"
	"slices"

	"dotgate/gateway/wire"
)

// designated has the transports by their names in SVCB records (RFC 9461 section 7).
var designated = map[string]string{"dot": DoT, "h2": DoH, "h3": DoH3, "doq": DoQ}

// Discover asks the upstream that o describes which encrypted transports it has (RFC 9462). It
// returns options for each: the same upstream with this transport alone, which is verified
// for the same name, so that nothing that is designated needs to be trusted. None are
// returned if it designates none. Discover blocks until ctx is done at the latest.
func Discover(ctx context.Context, o Options) ([]Options, error) {
	u, err := New(o)
	if err != nil {
		return nil, err
	}
	defer u.Close()
	q, err := wire.NewQuery(wire.DDRName, "SVCB")
	if err != nil {
		return nil, err
	}
	answer, err := u.Exchange(ctx, q)
	if err != nil {
		return nil, err
	}
	var hosts []netip.Addr
	for _, a := range u.Addresses() {
		if !slices.Contains(hosts, a.Addr()) {
			hosts = append(hosts, a.Addr())
		}
	}
	var all []Options
	for _, d := range answer.Designations(q) {
		if len(d.Addresses) == 0 {
			d.Addresses = hosts
		}
		for _, alpn := range d.ALPN {
			transport := designated[alpn]
			if transport == "" || overHTTP(transport) && d.Path == "" {
				continue
			}
			all = append(all, u.o.at(transport, d))
		}
	}
	return all, nil
}

// at returns o with one transport, at designated addresses.
func (o Options) at(transport string, d wire.Designation) Options {
	o.Transports, o.Addresses, o.Host, o.Bootstrap, o.Port, o.DoQPort = []string{transport}, nil, "", nil, 0, 0
	o.DoHAddresses, o.DoHPort, o.DoHPath = nil, 0, ""
	place, usual := &o.Addresses, uint16(dotPort)
	if overHTTP(transport) {
		place, usual = &o.DoHAddresses, dohPort
		o.DoHPath = d.Path
	} else {
		o.DoHName = ""
	}
	for _, a := range d.Addresses {
		*place = append(*place, netip.AddrPortFrom(a, cmp.Or(d.Port, usual)))
	}
	return o
}
