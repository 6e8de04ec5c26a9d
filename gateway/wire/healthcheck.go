package wire

// TokenLen is the length of the token in a health check.
const TokenLen = 16

// healthCheckLen is the length of the data of a health check's option: the token, and
// one octet for Live.
const healthCheckLen = TokenLen + 1

// A HealthCheck is the content of the EDNS option that marks a query as a health check.
// Token has TokenLen octets, or none if the query is an ordinary one. The gateway
// verifies the token.
type HealthCheck struct {
	Token []byte
	// Live asks for an answer of an upstream, not of the cache.
	Live bool
}

// HasHealthCheck reports whether q has the option of a health check, well-formed or not.
func (q Query) HasHealthCheck() bool { return q.has&hasHealthCheck != 0 }

// HealthCheck returns the health check's option of q, the zero HealthCheck if it has
// none or a malformed one. It borrows from q.
func (q Query) HealthCheck() HealthCheck {
	if !q.HasHealthCheck() {
		return HealthCheck{}
	}
	data := q.option(ednsOptionHealthCheck)[4:]
	if len(data) != healthCheckLen {
		return HealthCheck{}
	}
	return HealthCheck{Token: data[:TokenLen], Live: data[TokenLen] == 1}
}

// AppendHealthCheck appends a new query with the question of q and this ID. It is a
// health check if c has a token, an ordinary query if not.
func (q Query) AppendHealthCheck(dst []byte, id uint16, c HealthCheck) []byte {
	dst = appendHeader(dst, id, flagRD, [4]uint16{1, 0, 0, 1})
	dst = append(dst, q.question()...)
	if len(c.Token) != TokenLen {
		return appendOPT(dst, NoError, false, 0)
	}
	dst = appendOPT(dst, NoError, false, 4+healthCheckLen)
	dst = append(dst, ednsOptionHealthCheck>>8, ednsOptionHealthCheck&0xff, 0, healthCheckLen)
	dst = append(dst, c.Token...)
	live := byte(0)
	if c.Live {
		live = 1
	}
	return append(dst, live)
}

// IsTruncated reports whether packet, which must have a whole header, has TC set.
func IsTruncated(packet []byte) bool { return flagsOf(packet)&flagTC != 0 }
