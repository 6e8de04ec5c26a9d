package access

import (
	"dotgate/gateway/wire"
)

// A RebindFilter removes private addresses from answers for public names: with DNS rebinding, a
// web page whose name has a private address can reach into its reader's network. A nil
// RebindFilter removes nothing.
type RebindFilter struct {
	exempt wire.Patterns[struct{}]
	routes *wire.Routes // names with a route are exempt, too
}

// NewRebindFilter returns a filter that exempts the names of the patterns in exempt, and those
// with a route.
func NewRebindFilter(exempt []string, routes *wire.Routes) (*RebindFilter, error) {
	f := &RebindFilter{routes: routes}
	for _, name := range exempt {
		pattern, err := wire.CleanPattern(name)
		if err != nil {
			return nil, err
		}
		if _, err := f.exempt.Add(pattern, struct{}{}); err != nil {
			return nil, err
		}
	}
	return f, nil
}

// Filter returns a, the answer to q, without the private addresses that the filter removes. If
// the name of q leads to one, the result is a negative answer: an error would make clients ask
// elsewhere. The name of q decides, not the one at the end of its aliases, since browsers go by
// it. Additional addresses are judged by their own names.
func (f *RebindFilter) Filter(q wire.Query, a wire.Answer) wire.Answer {
	if f == nil {
		return a
	}
	public, ok := a.WithoutPrivate(f.Exempts)
	if ok && public.Same(a) { // as usual
		return a
	}
	var buf [wire.MaxKey]byte
	if f.Exempts(q.AppendName(buf[:0])) {
		return a
	}
	if ok {
		return public
	}
	return q.OwnAnswer(wire.NoError, wire.EDE{Code: wire.EDEBlocked, Text: "private address in a public name"})
}

// Allows reports whether the filter would remove nothing from a, an answer for a name.
func (f *RebindFilter) Allows(name []byte, a wire.Answer) bool {
	if f.Exempts(name) {
		return true
	}
	public, ok := a.WithoutPrivate(f.Exempts)
	return ok && public.Same(a)
}

// Exempts reports whether a name may have private addresses.
func (f *RebindFilter) Exempts(name []byte) bool {
	if f == nil {
		return true
	}
	_, _, exempt := f.exempt.Find(name)
	return exempt || f.routes.Source(name) != ""
}
