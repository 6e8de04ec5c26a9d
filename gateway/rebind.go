package gateway

import (
	"context"

	"dotgate/gateway/wire"
)

// A guard keeps private addresses out of public names: a web page whose name has
// one could reach into the network of whoever looks at it (DNS rebinding).
type guard struct {
	Resolver
	exempt wire.Names[struct{}]
}

func newGuard(r Resolver, exempt []string) (*guard, error) {
	g := &guard{r, make(wire.Names[struct{}])}
	for _, name := range exempt {
		packed, err := wire.PackName(name)
		if err != nil {
			return nil, err
		}
		g.exempt[string(packed)] = struct{}{}
	}
	return g, nil
}

// Exchange returns the Resolver's answer, or one that there is nothing of this type
// if it has a private address. An error would make clients ask elsewhere.
func (g *guard) Exchange(ctx context.Context, q wire.Query) (wire.Answer, error) {
	a, err := g.Resolver.Exchange(ctx, q)
	if err != nil || a.IsZero() || !a.HasPrivate() {
		return a, err
	}
	var room [wire.MaxKey]byte
	if _, _, ok := g.exempt.Find(q.AppendName(room[:0])); ok {
		return a, nil
	}
	// The answer may be for others too, who speak EDNS if this client does not.
	ours, err := wire.KeyQuery(q.AppendKey(nil))
	if err != nil {
		return wire.Answer{}, err
	}
	return wire.ParseAnswer(q, ours.AppendError(nil, wire.NoError, wire.EDE{
		Code: wire.EDEBlocked, Text: "private address in a public name",
	}))
}
