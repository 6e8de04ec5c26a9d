package gateway

import "dotgate/gateway/wire"

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
