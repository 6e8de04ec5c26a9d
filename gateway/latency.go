package gateway

import (
	"time"

	"dotgate/gateway/latency"
	"dotgate/gateway/wire"
)

// A histogram counts latencies.
type histogram struct{ latency.Histogram }

// since counts the time since began.
func (h *histogram) since(began time.Time) { h.Add(time.Since(began)) }

// A Latency has how long clients waited, from when a query was read until its reply was ready,
// for all queries that waited for the Resolver, whatever their outcome. Replies that were ready
// at once are in Counts only.
type Latency = latency.Snapshot

// Latency returns the latencies so far.
func (g *Gateway) Latency() Latency {
	var l Latency
	g.counts.each(func(_ wire.Transport, n *counters) { l.Include(&n.waited.Histogram) })
	return l
}
