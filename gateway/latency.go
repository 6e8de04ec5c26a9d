package gateway

import (
	"time"

	"dotgate/gateway/latency"
)

// A histogram counts latencies from when something began.
type histogram struct{ latency.Histogram }

// since counts how long it has been since began.
func (h *histogram) since(began time.Time) { h.Add(time.Since(began)) }

// A Latency tells how long clients waited for replies, from when a query was
// read until its reply was ready to be sent. It knows of all that had to wait for
// the Resolver, whatever their outcome; replies that could be had at once, such
// as refusals, are in Counts alone.
type Latency = latency.Snapshot

// Latency returns the latencies of all replies so far.
func (g *Gateway) Latency() Latency {
	g.mu.Lock()
	defer g.mu.Unlock()
	l := g.pastLatency
	g.eachStation(func(s *station) { s.include(&l) })
	return l
}
