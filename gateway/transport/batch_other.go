//go:build !linux

package transport

import (
	"net"
	"net/netip"
)

// A peer is the source or destination of a packet.
type peer struct{ name netip.AddrPort }

// hasPort reports whether a packet can be sent to p.
func (p *peer) hasPort() bool { return p.name.Port() != 0 }

// addr returns the IP address of p.
func (p *peer) addr() netip.Addr { return p.name.Addr().Unmap().WithZone("") }

// addrPort returns the address and port of p.
func (p *peer) addrPort() netip.AddrPort { return p.name }

// A batchConn reads and writes one packet at a time: other systems have no calls for many.
type batchConn struct{ conn *net.UDPConn }

func newBatchConn(conn *net.UDPConn) (*batchConn, error) { return &batchConn{conn}, nil }

func (b *batchConn) coalesceAbove(int) {}

func (b *batchConn) read(in []datagram, handle func([]datagram) (more bool)) error {
	for more := true; more; {
		d := &in[0]
		n, nn, _, from, err := b.conn.ReadMsgUDPAddrPort(d.buf, d.controlBuf)
		if err != nil {
			return err
		}
		d.packet, d.control, d.peer.name = d.buf[:n], d.controlBuf[:nn], from
		more = handle(in[:1])
	}
	return nil
}

// drain does nothing: after a deadline, only Linux can still read.
func (b *batchConn) drain([]datagram, func([]datagram) (more bool)) {}

func (b *batchConn) write(out []datagram) (undelivered int) {
	for i := range out {
		if _, _, err := b.conn.WriteMsgUDPAddrPort(out[i].packet, out[i].control, out[i].peer.name); err != nil {
			undelivered++
		}
	}
	return undelivered
}
