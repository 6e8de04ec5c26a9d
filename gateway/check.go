package gateway

import "dotgate/gateway/wire"

const (
	// checkSlots is how many health checks may wait for the Resolver beyond
	// Options.MaxQueries: an overloaded gateway must not look dead.
	checkSlots = 16
)

// CheckToken returns the secret that makes a query from this machine a health check: one
// that is answered like any query, but is exempt from client limits and is in no count, log
// or trace. It is new with each Gateway.
func (g *Gateway) CheckToken() [wire.TokenLen]byte { return g.checkToken }
