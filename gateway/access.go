package gateway

import (
	"net/netip"
	"time"

	"go4.org/netipx"

	"dotgate/gateway/wire"
)

const (
	// maxReplyOptions is the most that the EDNS options of one reply take.
	maxReplyOptions = 4 + 8 + serverCookieLen + 4 + maxNSID + 4 + 2
	maxNSID         = 64
	// refusalRate is how many queries a second whoever is not allowed gets a
	// refusal for, and refusalBurst how many at once. That is for people who wonder
	// why it does not work, and must be of no use to flood anybody.
	refusalRate, refusalBurst = 5, 20
)

// An access tells who may ask, and how often.
type access struct {
	allow    *netipx.IPSet
	trusted  *netipx.IPSet // of these, who may know whom we ask
	refusals *limiter      // for those who may not
	limits   *limiter      // for those who may; nil: there are none
	exempt   *netipx.IPSet
	cookies  cookies
}

func newAccess(o Options) (a access, err error) {
	if a.allow, err = setOf(o.Allow); err != nil {
		return a, err
	}
	if a.trusted, err = setOf(o.Trusted); err != nil {
		return a, err
	}
	if a.exempt, err = setOf(o.RateExempt); err != nil {
		return a, err
	}
	if o.RateLimit > 0 {
		a.limits = newLimiter(o.RateLimit, o.RateBurst)
	}
	a.refusals = newLimiter(refusalRate, refusalBurst)
	a.cookies, err = newCookies(o.CookieSecret)
	return a, err
}

// inherit takes over what those of before know of clients: who had how many
// refusals and, if these rules are the same, answers; and what cookies they were
// given.
func (a *access) inherit(before *access, sameLimits, sameSecrets bool) {
	a.refusals = before.refusals
	if sameLimits {
		a.limits = before.limits
	}
	if sameSecrets {
		a.cookies = before.cookies
	}
}

func setOf(prefixes []netip.Prefix) (*netipx.IPSet, error) {
	var b netipx.IPSetBuilder
	for _, p := range prefixes {
		b.AddPrefix(p)
	}
	return b.IPSet()
}

// screen appends the reply to q where it depends on who asks, or on how. The next
// step is pass if it doesn't. With a refusal, q is good for an error only, and
// screen may prefer another.
func (g *Gateway) screen(dst []byte, q *wire.Query, from *client, refusal *wire.Refusal, t *tally) (reply []byte, next step) {
	now := g.now()
	a := &now.access
	if !a.allow.Contains(from.addr) {
		if !a.refusals.take(from.addr) {
			t.count(IgnoredClient)
			return dst, ignore
		}
		t.count(RefusedClient)
		return q.AppendError(dst, wire.Refused, wire.EDE{Code: wire.EDEProhibited}), send
	}
	cookie := now.addOptions(q, from)
	if a.limits != nil && from.via == wire.UDP && cookie != goodCookie && !a.exempt.Contains(from.addr) && !a.limits.take(from.addr) {
		return g.curb(dst, q, cookie, t)
	}
	switch {
	case cookie == badCookie && from.via == wire.UDP && g.slots.crowded():
		t.count(RefusedCookie)
		return q.AppendError(dst, wire.BadCookie, wire.EDE{}), send
	case refusal != nil && q.IsChaos():
		return g.aboutSelf(dst, *q, t)
	case refusal == nil && !now.setSubnet(q, from):
		t.count(RefusedMalformed)
		return q.AppendError(dst, wire.FormErr, wire.EDE{}), send
	case refusal == nil && q.Type() == wire.TypeANY && from.via == wire.UDP:
		return g.answerANY(dst, *q, t)
	}
	return dst, pass
}

// curb appends the reply to a query that is one too many and may be forged. It is
// no longer than the query. Every other one gets none, so that there are fewer
// replies than queries, too.
func (g *Gateway) curb(dst []byte, q *wire.Query, cookie cookieState, t *tally) ([]byte, step) {
	switch {
	case t.curbed.Add(1)%2 == 0:
		t.count(IgnoredRate)
		return dst, ignore
	case cookie == badCookie:
		t.count(RefusedCookie)
		return q.AppendError(dst, wire.BadCookie, wire.EDE{}), send
	}
	t.count(RefusedRate)
	return q.AppendTruncated(dst), send
}

// A cookieState is what the cookie of a query is worth.
type cookieState uint8

const (
	noCookie   cookieState = iota // none from a server, or too short for ours: a reply with one would be longer
	badCookie                     // not ours, or not that client's
	goodCookie                    // the client has had a reply of ours
)

// addOptions gives q the EDNS options for its reply that it asked for, and tells
// what its cookie is worth.
func (r *rules) addOptions(q *wire.Query, from *client) (state cookieState) {
	options := from.options[:0]
	from.extras = wire.Extras{}
	if client, server := q.Cookie(); client != nil {
		var room [serverCookieLen]byte
		cookie, ok := r.access.cookies.check(room[:0], client, server, from.addr, time.Now())
		options = wire.AppendCookie(options, client, cookie)
		switch {
		case ok:
			state = goodCookie
		case len(server) >= serverCookieLen:
			state = badCookie
		}
	}
	if q.WantsNSID() && r.NSID != "" {
		options = wire.AppendNSID(options, r.NSID)
	}
	if q.WantsKeepalive() {
		options = wire.AppendKeepalive(options, r.keepalive())
	}
	if len(options) > 0 {
		from.extras.Reply = options
		*q = q.With(&from.extras)
	}
	return state
}

// setSubnet gives q what upstreams get to know of the client's network. It reports
// false if that is malformed.
func (r *rules) setSubnet(q *wire.Query, from *client) (ok bool) {
	subnet, own := r.subnet, false
	if r.ECS == ecsForward {
		if subnet, ok = q.ClientSubnet(); !ok {
			return false
		}
		own = subnet != nil
	}
	if subnet != nil {
		from.extras.Subnet, from.extras.Scoped = subnet, own
		*q = q.With(&from.extras)
	}
	return true
}

// keepalive is the time-out of a connection in units of 100 ms (RFC 7828).
func (r *rules) keepalive() uint16 {
	return uint16(min(r.IdleTimeout/(100*time.Millisecond), 1<<16-1))
}
