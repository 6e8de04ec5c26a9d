//go:build !linux

package gateway

import (
	"net"
	"syscall"

	"golang.org/x/net/ipv4"
)

// socketsPerAddress: elsewhere, sharing a port doesn't spread its clients.
func socketsPerAddress(int) int { return 1 }

func sharePort(_, _ string, _ syscall.RawConn) error { return nil }

// setReceiveBuffer tries ever less: elsewhere, too much is an error.
func setReceiveBuffer(conn *net.UDPConn, size int) {
	for conn.SetReadBuffer(size) != nil && size > 64<<10 {
		size /= 2
	}
}

// A oneByOne is a batchConn where the system has no such calls.
type oneByOne struct{ conn *net.UDPConn }

func newBatchConn(conn *net.UDPConn, _ bool) batchConn { return oneByOne{conn} }

func (o oneByOne) ReadBatch(ms []ipv4.Message, _ int) (int, error) {
	m := &ms[0]
	n, nn, flags, from, err := o.conn.ReadMsgUDPAddrPort(m.Buffers[0], m.OOB)
	if err != nil {
		return 0, err
	}
	m.N, m.NN, m.Flags, m.Addr = n, nn, flags, net.UDPAddrFromAddrPort(from)
	return 1, nil
}

func (o oneByOne) WriteBatch(ms []ipv4.Message, _ int) (int, error) {
	m := &ms[0]
	_, _, err := o.conn.WriteMsgUDPAddrPort(m.Buffers[0], m.OOB, m.Addr.(*net.UDPAddr).AddrPort())
	return 1, err
}
