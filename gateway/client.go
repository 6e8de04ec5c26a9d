package gateway

import (
	"net/netip"

	"dotgate/gateway/access"
	"dotgate/gateway/cache"
	"dotgate/gateway/transport"
	"dotgate/gateway/wire"
)

// A client answers the packets of one socket or connection. It is the source of the current
// packet, as far as the reply depends on it, and the state of that packet.
type client struct {
	*transport.Client
	gateway  *Gateway
	counters *counters // of the socket, or of all connections

	check   access.Check
	outcome Outcome      // not set while the query is pending
	found   cache.Result // what the cache had for the reply
	unknown bool         // the cache had nothing when it was at changes
	changes uint32
	extras  wire.ExtraOptions
	options [maxReplyOptions]byte // the bytes of extras
}

// A handler is what a Gateway is for its transports.
type handler struct{ *Gateway }

func (h handler) NewResponder(c *transport.Client) transport.Responder {
	return &client{Client: c, gateway: h.Gateway, counters: h.counts.take(c.Via)}
}

func (h handler) IsOwn(addr netip.Addr) bool { return h.network.Load().IsOwn(addr) }

func (c *client) Counters() *transport.Counters { return &c.counters.Counters }

func (c *client) Close() { c.gateway.counts.release(c.counters) }

// Answer appends the reply to packet if it is ready at once, or returns the query, which
// holds a slot. In the first case, nothing is allocated.
func (c *client) Answer(dst, packet []byte) (reply []byte, p transport.PendingQuery) {
	g := c.gateway
	reply, q, next := g.tryAnswer(dst, packet, c)
	switch next {
	case ask:
		return reply, g.newPendingQuery(q, c)
	case send:
		if g.config().observed() {
			g.observeNow(c, packet, &q, reply[len(dst):])
		}
		if c.found == cache.FreshRenew && c.check == access.NoCheck {
			g.renew(q.Clone(), c.counters)
		}
	}
	return reply, nil
}
