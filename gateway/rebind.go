package gateway

import "dotgate/gateway/wire"

// A guard keeps private addresses out of public names: a web page whose name has
// one could reach into the network of whoever looks at it (DNS rebinding). A nil
// guard keeps out nothing.
type guard struct{ exempt wire.Names[struct{}] }

func newGuard(exempt []string) (*guard, error) {
	g := &guard{make(wire.Names[struct{}])}
	for _, name := range exempt {
		packed, err := wire.PackName(name)
		if err != nil {
			return nil, err
		}
		g.exempt[string(packed)] = struct{}{}
	}
	return g, nil
}

// blocks reports whether a, the answer to q, has an address that it should not.
func (g *guard) blocks(q wire.Query, a wire.Answer) bool {
	if g == nil || !a.HasPrivate() {
		return false
	}
	var room [wire.MaxKey]byte
	_, _, exempt := g.exempt.Find(q.AppendName(room[:0]))
	return !exempt
}

// Admits reports whether clients may get a, an answer to q that has come otherwise
// than from the Resolver.
func (g *Gateway) Admits(q wire.Query, a wire.Answer) bool { return !g.now().guard.blocks(q, a) }

// nothing returns the answer that there is nothing of this type: an error would make
// clients ask elsewhere. It may be for others too, who speak EDNS if this client does
// not.
func nothing(q wire.Query) (wire.Answer, error) {
	ours, err := wire.KeyQuery(q.AppendKey(nil))
	if err != nil {
		return wire.Answer{}, err
	}
	return wire.ParseAnswer(q, ours.AppendError(nil, wire.NoError, wire.EDE{
		Code: wire.EDEBlocked, Text: "private address in a public name",
	}))
}
