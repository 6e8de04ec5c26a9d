// Package transport takes the queries of clients from the network and brings them their
// replies: over UDP and TCP (RFC 1035 section 4.2, RFC 7766). A Handler answers them.
//
// A read loop takes a packet or a message and calls Responder.Answer. It sends a reply that is
// ready at once by itself, in a batch, without an allocation. Otherwise it calls Resolve of
// the PendingQuery, whose reply comes later, from any goroutine, by ReplyTo.
//
// What it never does: it knows neither what a query asks for nor how it is answered, it never
// blocks on a pending query, and it never lets a client that does not read hold up another.
//
// A Server's states: NewServer, Listen or Adopt, Serve; draining when Serve's context ends;
// stopped. While it serves, Prepare and Commit exchange its listen addresses.
//
// Its limits are connections (MaxConnections, MaxPerClient: idle ones make way), queries in
// progress of one connection (MaxPipelined: further ones stay unread), and unsent replies of
// all connections together (unsentMax: the slowest reader is disconnected).
//
// Another transport is a file beside udp.go and tcp.go: it has a Responder for each of its
// sockets or connections, and is the Sender of the replies to its queries.
package transport

import (
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"dotgate/gateway/wire"
)

// A Handler answers the queries of clients. It is called concurrently.
type Handler interface {
	// NewResponder returns the Responder of a UDP socket or of a connection, with c as the source
	// of its packets.
	NewResponder(c *Client) Responder
	// IsOwn reports whether addr is one of this machine's, which may send health checks.
	IsOwn(addr netip.Addr) bool
}

// A Responder answers the packets of one socket, or the messages of one connection, one at a
// time.
type Responder interface {
	// Answer appends the reply to packet, which its Client has sent, if it is ready at once.
	// Otherwise it returns the query, whose Resolve the caller calls after it has sent the
	// replies that it has. If it does neither, the packet gets no reply.
	//
	// It does not block, nor keep packet.
	Answer(dst, packet []byte) (reply []byte, p PendingQuery)
	// Counters returns where the transport counts, before and after Close.
	Counters() *Counters
	// Close ends the Responder. All of its pending queries have their replies.
	Close()
}

// A PendingQuery is a query whose reply is not ready at once.
type PendingQuery interface {
	// Resolve does not block. The reply follows by the ReplyTo that the Client had, exactly
	// once.
	Resolve()
}

// A Client is the source of the packet that a Responder answers.
type Client struct {
	Addr netip.Addr // never an IPv4 address in IPv6 form; invalid if it is unknown
	Via  wire.Transport
	// ChecksOnly is whether its connection was admitted beyond the limits, for health checks.
	// A connection with a message that gets no reply is closed.
	ChecksOnly bool
	ReplyTo    ReplyTo // of the current packet
}

// A ReplyTo is where the reply to a query goes.
type ReplyTo struct {
	Sender Sender
	// For UDP clients.
	source []byte // the reply's source address as a control message; may be empty
	addr   peer
}

// A Sender is the socket or the connection that a query came from.
type Sender interface {
	// Peer returns the address and port that the query came from.
	Peer(r *ReplyTo) netip.AddrPort
	// Send sends message as the reply. It does not block. The Sender owns message, which is
	// from NewBuffer, from then on.
	Send(r *ReplyTo, message *[]byte)
}

// Peer returns the address and port that the query came from.
func (r *ReplyTo) Peer() netip.AddrPort { return r.Sender.Peer(r) }

// Clone returns r as it is needed for a reply after Answer has returned.
func (r ReplyTo) Clone() ReplyTo {
	r.source = slices.Clone(r.source)
	return r
}

// Counters are what a Responder's transport counts.
type Counters struct {
	Received    atomic.Uint64 // packets and messages
	NoPort      atomic.Uint64 // of these: from port 0, which cannot receive a reply; the Responder does not get them
	Undelivered atomic.Uint64 // replies that could not be sent
}

// ConnectionCounts are about the connections of a Server. All but the two that say "now" only
// grow.
type ConnectionCounts struct {
	Open     int    // now
	Unsent   int64  // octets of replies that wait to be written now
	Accepted uint64 // all, rejected ones included
	Evicted  uint64 // closed while idle, in favour of a new one
	Rejected uint64 // closed at the limit, while none was idle
	Idle     uint64 // closed after Options.IdleTimeout
	Stalled  uint64 // closed by either side within a message
	Slow     uint64 // closed because the client did not read replies
}

// Options of a Server. They may change while it serves.
type Options struct {
	MaxConnections int           // of all clients together
	MaxPerClient   int           // connections of one IPv4 address, or IPv6 /56
	MaxPipelined   int           // queries of one connection that are worked on at once; further ones stay unread
	IdleTimeout    time.Duration // how long a connection may stay without a query
	GatherAbove    int           // UDP queries per second and socket above which reads are delayed
}

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
