package api

import (
	"encoding/hex"
	"fmt"
	"net/http"
	"net/netip"

	"dotgate/gateway/wire"
)

// A Readiness reports whether clients should use this gateway, and what is degraded.
type Readiness struct {
	Ready bool `json:"ready"`
	// Why is the reason, in one line.
	Why      string   `json:"why"`
	Degraded []string `json:"degraded"` // a line for each problem of an upstream, a route, a certificate or the network
	// Redundancy is the number of upstreams of the main list that are up.
	Redundancy int `json:"redundancy"`
	// Answering is the number of those that have not been silent for twice their patience.
	Answering int `json:"answering"`
	// Routes has the redundancy of each route, if there are any.
	Routes map[string]int `json:"routes,omitempty"`
	// Stopping: the gateway is about to stop.
	Stopping bool `json:"stopping"`
}

// String returns it as one line.
func (r Readiness) String() string {
	if r.Ready {
		return "ready: " + r.Why
	}
	return "not ready: " + r.Why
}

// A Health has the facts about the running gateway that a health check needs.
type Health struct {
	Listening []netip.AddrPort `json:"listening"`      // now
	File      string           `json:"file,omitempty"` // its configuration file, absolute
	Readiness Readiness        `json:"readiness"`
	// Name and Type are those of probes, which all upstreams can answer.
	Name string `json:"name"`
	Type string `json:"type"`
	// Token makes a query of this machine a health check.
	Token Token `json:"token"`
}

// A Token is in hexadecimal digits in JSON.
type Token [wire.TokenLen]byte

// MarshalText returns the digits.
func (t Token) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, t[:]), nil }

// UnmarshalText reads what MarshalText returns.
func (t *Token) UnmarshalText(text []byte) error {
	if len(text) != hex.EncodedLen(len(t)) {
		return fmt.Errorf("a token has %d digits, not %d", hex.EncodedLen(len(t)), len(text))
	}
	_, err := hex.Decode(t[:], text)
	return err
}

// serveHealth is not part of Handler: the token is for this machine only.
func (s *Server) serveHealth(w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, s.o.Process.Health())
}
