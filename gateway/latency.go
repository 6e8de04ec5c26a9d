package gateway

import (
	"dotgate/gateway/latency"
	"dotgate/gateway/wire"
)

// A Latency has how long clients waited, from when a query was read until its reply was ready,
// for all queries that waited for the Resolver, whatever their outcome. Replies that were ready
// at once are in Counts only.
type Latency = latency.Snapshot

// Latency returns the latencies so far.
func (g *Gateway) Latency() Latency {
	var l Latency
	g.counts.each(func(_ wire.Transport, n *counters) { l.Include(&n.waited) })
	return l
}
