package dottest

import (
	"encoding/binary"
	"errors"
	"net"
	"sync/atomic"
)

// A rawConn is the TCP connection below TLS, with faults.
type rawConn struct {
	*net.TCPConn
	state  state
	mtu    int  // how long the first flight of the client may be, or 0
	pieces bool // each write is sent in two segments
}

// state is the state of a rawConn. It only grows.
type state struct{ n atomic.Int32 }

const (
	whole    = iota
	stalling // half of the next flight leaves, then it is frozen
	cutting  // half of the next record leaves, then writing fails
	frozen   // what is sent and received is lost
	finished // a FIN has been sent; what is received gets a RST, as from a closed socket
)

var (
	errCut      = errors.New("cut short as requested")
	errFinished = errors.New("data after the end of the connection")
)

func (s *state) load() int32 { return s.n.Load() }

func (s *state) raise(to int32) {
	for old := s.n.Load(); old < to; old = s.n.Load() {
		if s.n.CompareAndSwap(old, to) {
			return
		}
	}
}

func (r *rawConn) Read(p []byte) (int, error) {
	for {
		n, err := r.TCPConn.Read(p)
		switch {
		case err != nil:
			return 0, err
		case r.state.load() == finished:
			r.reset()
			return 0, errFinished
		case r.mtu > 0 && n >= 5 && 5+int(binary.BigEndian.Uint16(p[3:])) > r.mtu: // by its record
			r.freeze() // the client retransmits it in vain
		case r.state.load() != frozen:
			r.mtu = 0
			return n, nil
		}
	}
}

// Write is called once for each record, and once for each flight of a handshake.
func (r *rawConn) Write(p []byte) (int, error) {
	switch r.state.load() {
	case frozen:
		return len(p), nil
	case stalling:
		r.state.raise(frozen)
		_, err := r.TCPConn.Write(p[:len(p)/2])
		return len(p), err
	case cutting:
		r.TCPConn.Write(p[:len(p)/2])
		return 0, errCut
	}
	if r.pieces && len(p) > 1 {
		if _, err := r.TCPConn.Write(p[:1]); err != nil {
			return 0, err
		}
		n, err := r.TCPConn.Write(p[1:])
		return 1 + n, err
	}
	return r.TCPConn.Write(p)
}

func (r *rawConn) freeze() { r.state.raise(frozen) }

// finish sends a FIN, even if r is frozen. Closing instead would send a RST if
// received octets have not been read.
func (r *rawConn) finish() {
	r.CloseWrite()
	r.state.raise(finished)
}

// reset sends a RST.
func (r *rawConn) reset() {
	r.SetLinger(0)
	r.Close()
}

// drain reads until the client closes the connection.
func (r *rawConn) drain() {
	var octets [1 << 10]byte
	for {
		if _, err := r.Read(octets[:]); err != nil {
			return
		}
	}
}
