package transport

import (
	"sync"

	"dotgate/gateway/wire"
)

// buffers are for replies. Most replies are small; the few large ones are left to the garbage
// collector.
var buffers = sync.Pool{New: func() any { b := make([]byte, 0, wire.MaxUDPSize); return &b }}

// NewBuffer returns an empty buffer for a reply.
func NewBuffer() *[]byte { return buffers.Get().(*[]byte) }

const maxPooled = 16 << 10

func putBuffer(b *[]byte) {
	if cap(*b) <= maxPooled {
		*b = (*b)[:0]
		buffers.Put(b)
	}
}
