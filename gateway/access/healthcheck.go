package access

import (
	"crypto/rand"
	"crypto/subtle"
	"net/netip"

	"dotgate/gateway/wire"
)

// A Check is which kind of health check a query is. The zero Check is none.
type Check uint8

const (
	NoCheck     Check = iota
	CachedCheck       // the cache may answer
	LiveCheck         // an upstream has to answer
)

// A Token is the secret that makes a query from this machine a health check.
type Token [wire.TokenLen]byte

// NewToken returns a random Token.
func NewToken() (t Token) {
	rand.Read(t[:]) // never fails
	return t
}

// Check returns which kind of health check q, from a client at addr, is.
func (t *Token) Check(q *wire.Query, addr netip.Addr, n *Network) Check {
	c := q.HealthCheck()
	switch {
	case c.Token == nil || subtle.ConstantTimeCompare(c.Token, t[:]) != 1 || !n.IsOwn(addr):
		return NoCheck
	case c.Live:
		return LiveCheck
	}
	return CachedCheck
}
