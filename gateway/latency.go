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
	var l Latency
	for _, s := range g.udp {
		l.Include(&s.tally.waited.Histogram)
	}
	for _, t := range g.tcp {
		l.Include(&t.tally.waited.Histogram)
	}
	return l
}
