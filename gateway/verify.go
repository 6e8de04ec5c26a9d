package gateway

import "dotgate/gateway/wire"

// verify reads packet as a query. If it is none to be answered, ok is false and
// outcome tells why; with a refusal, the client is told.
func verify(packet []byte, via wire.Transport) (q wire.Query, refusal *wire.Refusal, outcome Outcome, ok bool) {
	q, err := wire.ParseQuery(packet, via)
	if err == nil {
		return q, nil, 0, true
	}
	refusal, ok = err.(*wire.Refusal) // the contract of ParseQuery: that or ErrNotQuery
	switch {
	case !ok && len(packet) < minMessage:
		return q, nil, IgnoredShort, false
	case !ok:
		return q, nil, IgnoredResponse, false
	}
	switch refusal.RCode {
	case wire.NotImp:
		return q, refusal, RefusedOpcode, false
	case wire.BadVers:
		return q, refusal, RefusedVersion, false
	case wire.Refused:
		return q, refusal, RefusedPolicy, false
	}
	return q, refusal, RefusedMalformed, false
}

// minMessage is the length of a header (RFC 1035 section 4.1.1). Less is noise.
const minMessage = 12

// explanation is what a client is told about a refusal.
func explanation(r *wire.Refusal) wire.EDE {
	if r.EDE == wire.EDEOther {
		return wire.EDE{}
	}
	return wire.EDE{Code: r.EDE, Text: r.Reason}
}
