package gateway

import (
	"time"

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

// Ask asks the Resolver. If its answer has a private address, it becomes one that
// there is nothing of this type: an error would make clients ask elsewhere.
func (g *guard) Ask(q wire.Query, deadline time.Time, done func(wire.Answer, error)) {
	g.Resolver.Ask(q, deadline, func(a wire.Answer, err error) {
		if err == nil && !a.IsZero() && a.HasPrivate() && !g.exempts(q) {
			a, err = nothing(q)
		}
		done(a, err)
	})
}

// exempts reports whether the name of q may have a private address.
func (g *guard) exempts(q wire.Query) bool {
	var room [wire.MaxKey]byte
	_, _, ok := g.exempt.Find(q.AppendName(room[:0]))
	return ok
}

// nothing returns the answer that there is nothing. It may be for others too, who
// speak EDNS if this client does not.
func nothing(q wire.Query) (wire.Answer, error) {
	ours, err := wire.KeyQuery(q.AppendKey(nil))
	if err != nil {
		return wire.Answer{}, err
	}
	return wire.ParseAnswer(q, ours.AppendError(nil, wire.NoError, wire.EDE{
		Code: wire.EDEBlocked, Text: "private address in a public name",
	}))
}
