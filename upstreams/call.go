package upstreams

import (
	"errors"
	"sync/atomic"

	"dotgate/gateway/wire"
)

// A call is a query in progress. It moves from stream to stream, and is in the table of
// at most one.
type call struct {
	query    wire.Query
	done     func(wire.Answer, error)
	upstream *Upstream  // counts the outcome before done is called; or nil
	began    int64      // instant of Ask
	endpoint *endpoint  // where it was sent last, or nil
	trace    *callTrace // or nil
	id       uint16
	noEDNS   bool        // it is sent without EDNS, in clear text
	retried  bool        // it got an improper answer, and was sent again on a fresh connection
	complete atomic.Bool // done was called
	sent     int64       // instant
	resends  int         // how often its connection has ended

	// A call of a stream that has gone silent may have a duplicate on another stream. The
	// first answer to either counts. A duplicate has no duplicate.
	duplicated bool  // it has one; guarded by mu of its stream
	original   *call // whose duplicate it is, or nil
}

// finish calls done, unless the duplicate has.
func (c *call) finish(a wire.Answer, err error) { c.finishAt(0, a, err) }

// finishAt is finish at an instant that is known already, or 0.
func (c *call) finishAt(now int64, a wire.Answer, err error) {
	if c.original != nil {
		c = c.original
	}
	if !c.complete.CompareAndSwap(false, true) {
		return
	}
	if c.upstream != nil {
		c.upstream.recordCall(c, now, a, err)
	}
	c.done(a, err)
}

// A connError is why a connection ended. It is reused if it had brought answers: then its
// end says little about the upstream.
type connError struct {
	err    error
	reused bool
	at     int64 // instant
}

func (e *connError) Error() string { return e.err.Error() }
func (e *connError) Unwrap() error { return e.err }

var (
	errReadEnded = errors.New("read")
	errSilent    = errors.New("connection went silent")
	errIdle      = errors.New("connection idle")
	errImproper  = errors.New("connection brings no proper answers")
)
