package gateway

import (
	"time"

	"dotgate/gateway/access"
	"dotgate/gateway/records"
	"dotgate/gateway/wire"
)

const (
	// maxReplyOptions is the longest that the EDNS options of one reply can be.
	maxReplyOptions = 4 + 8 + access.CookieLen + 4 + maxNSID + 4 + 2
	maxNSID         = 64
)

// verify reads packet as a query into q. It reports false if packet is not a query and gets
// no reply. A refusal is the reply to a query that is malformed or not supported. In both
// cases from.outcome is set.
func verify(packet []byte, q *wire.Query, from *client) (refusal *wire.Refusal, ok bool) {
	var err error
	if *q, err = wire.ParseQuery(packet, from.Via); err == nil {
		return nil, true
	}
	refusal, ok = err.(*wire.Refusal) // the contract of ParseQuery: that or ErrNotQuery
	if !ok {
		from.outcome = IgnoredResponse
		if len(packet) < minMessage {
			from.outcome = IgnoredShort
		}
		return nil, false
	}
	switch refusal.RCode {
	case wire.NotImp:
		from.outcome = RefusedOpcode
	case wire.BadVers:
		from.outcome = RefusedVersion
	case wire.Refused:
		from.outcome = RefusedPolicy
	default:
		from.outcome = RefusedMalformed
	}
	return refusal, true
}

// minMessage is the length of a header (RFC 1035 section 4.1.1).
const minMessage = 12

// explanation is the extended error of a refusal.
func explanation(r *wire.Refusal) wire.EDE {
	if r.EDE == wire.EDEOther {
		return wire.EDE{}
	}
	return wire.EDE{Code: r.EDE, Text: r.Reason}
}

// admit decides whether the client is served, and appends the reply if it is not, or if the
// reply depends on the client or the transport. Otherwise the next step is pass. A query
// with a refusal is malformed or unsupported: admit may have another reply that takes
// precedence over the refusal.
func (g *Gateway) admit(dst []byte, q *wire.Query, from *client, refusal *wire.Refusal) (reply []byte, next step) {
	cfg, network := g.config(), g.network.Load()
	if refusal == nil && q.HasHealthCheck() {
		if from.check = g.checkToken.Check(q, from.Addr, network); from.check != access.NoCheck {
			return dst, pass
		}
	}
	if from.ChecksOnly {
		from.outcome = Overload
		return dst, ignore
	}
	permission := cfg.access.Permission(from.Addr, network)
	if permission == access.NotAllowed {
		return g.refuseClient(dst, q, from, network)
	}
	cookie := cfg.addOptions(q, from)
	if from.Via == wire.UDP && cookie != goodCookie {
		if cfg.access.OverRate(from.Addr, permission) {
			return g.rateLimit(dst, q, from, cookie)
		}
		if cookie == badCookie && g.slots.crowded() {
			from.outcome = RefusedCookie
			return q.AppendError(dst, wire.BadCookie, wire.EDE{}), send
		}
	}
	if refusal != nil {
		return cfg.answerChaos(dst, q, from)
	}
	switch {
	case !cfg.setSubnet(q, from):
		from.outcome = RefusedMalformed
		return q.AppendError(dst, wire.FormErr, wire.EDE{}), send
	case q.Type() == wire.TypeANY && from.Via == wire.UDP:
		from.outcome = AnsweredLocally
		return records.AppendANY(dst, *q), send
	}
	return dst, pass
}

// refuseClient refuses a client that is not allowed, or ignores it if it had too many
// refusals.
func (g *Gateway) refuseClient(dst []byte, q *wire.Query, from *client, network *access.Network) ([]byte, step) {
	g.refused.Note(from.Addr, network.Class(from.Addr))
	if !g.config().access.TakeRefusal(from.Addr) {
		from.outcome = IgnoredClient
		return dst, ignore
	}
	from.outcome = RefusedClient
	return q.AppendError(dst, wire.Refused, wire.EDE{Code: wire.EDEProhibited}), send
}

// answerChaos appends the reply to a query that is otherwise refused, if it is of the class
// CHAOS and about this server.
func (c *config) answerChaos(dst []byte, q *wire.Query, from *client) (reply []byte, next step) {
	if q.IsChaos() {
		if reply, ok := c.records.AppendChaos(dst, *q); ok {
			from.outcome = AnsweredLocally
			return reply, send
		}
	}
	return dst, pass
}

// rateLimit appends the reply to a query over the client's rate, whose source may be forged.
// The reply is not longer than the query, and every other query gets none, so that replies
// are fewer than queries, too.
func (g *Gateway) rateLimit(dst []byte, q *wire.Query, from *client, cookie cookieState) ([]byte, step) {
	switch {
	case from.counters.overRate.Add(1)%2 == 0:
		from.outcome = IgnoredRate
		return dst, ignore
	case cookie == badCookie:
		from.outcome = RefusedCookie
		return q.AppendError(dst, wire.BadCookie, wire.EDE{}), send
	}
	from.outcome = RefusedRate
	return q.AppendTruncated(dst), send
}

// A cookieState says how good the cookie of a query is.
type cookieState uint8

const (
	noCookie   cookieState = iota // no server cookie, or one shorter than ours: with ours, the reply would be longer
	badCookie                     // not made here, or for another client
	goodCookie                    // made here: the client has received a reply at its address
)

// addOptions gives q the EDNS options of its reply, and returns how good its cookie is.
func (c *config) addOptions(q *wire.Query, from *client) (state cookieState) {
	options := from.options[:0]
	from.extras = wire.ExtraOptions{}
	if client, server := q.Cookie(); client != nil {
		var buf [access.CookieLen]byte
		cookie, ok := c.access.CheckCookie(buf[:0], client, server, from.Addr, time.Now())
		options = wire.AppendCookie(options, client, cookie)
		switch {
		case ok:
			state = goodCookie
		case len(server) >= access.CookieLen:
			state = badCookie
		}
	}
	if q.WantsNSID() && c.NSID != "" {
		options = wire.AppendNSID(options, c.NSID)
	}
	if q.WantsKeepalive() {
		options = wire.AppendKeepalive(options, c.keepalive())
	}
	if len(options) > 0 {
		from.extras.Reply = options
		*q = q.WithOptions(&from.extras)
	}
	return state
}

// setSubnet gives q the client subnet for upstreams. It reports false if the client's is
// malformed.
func (c *config) setSubnet(q *wire.Query, from *client) (ok bool) {
	subnet, own := c.subnet, false
	if c.ECS == ecsForward {
		if subnet, ok = q.ClientSubnet(); !ok {
			return false
		}
		own = subnet != nil
	}
	if subnet != nil {
		from.extras.Subnet, from.extras.Scoped = subnet, own
		*q = q.WithOptions(&from.extras)
	}
	return true
}

// keepalive returns the idle time-out of connections in units of 100 ms (RFC 7828).
func (c *config) keepalive() uint16 {
	return uint16(min(c.IdleTimeout/(100*time.Millisecond), 1<<16-1))
}
