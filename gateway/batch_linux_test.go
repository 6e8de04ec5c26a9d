package gateway

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// packetSocket returns a socket on loopback and a batchConn over it.
func packetSocket(t *testing.T, addr string) (*net.UDPConn, *batchConn) {
	t.Helper()
	conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.MustParseAddrPort(addr)))
	if err != nil {
		t.Skip(err) // no IPv6
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(patience))
	b, err := newBatchConn(conn)
	if err != nil {
		t.Fatal(err)
	}
	return conn, b
}

// readBatch waits for one batch.
func readBatch(b *batchConn, in []datagram) (n int, err error) {
	err = b.read(in, func(batch []datagram) bool { n = len(batch); return false })
	return n, err
}

// Packets of all lengths, those of none too, come as they were sent, and what is
// sent to whom they are from comes back.
func TestBatchesCarryPacketsBothWays(t *testing.T) {
	for _, addr := range []string{"127.0.0.1:0", "[::1]:0"} {
		serverConn, server := packetSocket(t, addr)
		clientConn, client := packetSocket(t, addr)
		if _, err := clientConn.WriteToUDPAddrPort([]byte("hello"), serverConn.LocalAddr().(*net.UDPAddr).AddrPort()); err != nil {
			t.Fatal(err)
		}
		in := newDatagrams(packetSize)
		if n, err := readBatch(server, in); n != 1 || err != nil || string(in[0].packet) != "hello" || !in[0].peer.hasPort() {
			t.Fatalf("%s: read %d, %v: %q", addr, n, err, in[0].packet)
		}
		// More than a batch, some of them longer than what is read whole.
		var out []datagram
		for i := range batchSize + 8 {
			out = append(out, datagram{packet: make([]byte, i*60), peer: in[0].peer})
		}
		for left := out; len(left) > 0; {
			n, err := server.write(left)
			if err != nil || n == 0 || n > batchSize {
				t.Fatalf("%s: wrote %d, %v", addr, n, err)
			}
			left = left[n:]
		}
		back := newDatagrams(packetSize)
		for i := 0; i < len(out); {
			n, err := readBatch(client, back)
			if err != nil {
				t.Fatal(err)
			}
			for _, d := range back[:n] {
				if len(d.packet) != min(len(out[i].packet), packetSize) {
					t.Errorf("%s: packet %d has %d octets", addr, i, len(d.packet))
				}
				i++
			}
		}
	}
}

// A packet that can't be sent keeps back neither those before it nor those behind.
func TestABatchStopsAtWhatCannotBeSent(t *testing.T) {
	conn, b := packetSocket(t, "127.0.0.1:0")
	self := conn.LocalAddr().(*net.UDPAddr).AddrPort()
	if _, err := conn.WriteToUDPAddrPort([]byte("hello"), self); err != nil {
		t.Fatal(err)
	}
	in := newDatagrams(packetSize)
	if _, err := readBatch(b, in); err != nil {
		t.Fatal(err)
	}
	good := datagram{packet: []byte("x"), peer: in[0].peer}
	bad := good
	bad.packet = make([]byte, 1<<16) // more than UDP has room for
	if n, err := b.write([]datagram{good, good, bad, good}); n != 2 || err != nil {
		t.Errorf("wrote %d, %v", n, err)
	}
	n, err := b.write([]datagram{bad, good})
	if n != 0 || !errors.Is(err, unix.EMSGSIZE) {
		t.Errorf("wrote %d, %v", n, err)
	}
	s := &udpSocket{}
	s.flush(b, []datagram{good, bad, good, bad, bad, good})
	if undelivered := s.tally.undelivered.Load(); undelivered != 3 {
		t.Errorf("%d undelivered", undelivered)
	}
	for left := 5; left > 0; left -= n {
		if n, err = readBatch(b, in); err != nil {
			t.Fatal(err)
		}
	}
}

func TestABatchEndsWithItsSocket(t *testing.T) {
	conn, b := packetSocket(t, "127.0.0.1:0")
	in := newDatagrams(packetSize)
	conn.SetReadDeadline(time.Now())
	if n, err := readBatch(b, in); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("past the deadline: read %d, %v", n, err)
	}
	conn.SetReadDeadline(time.Time{})
	ended := make(chan error)
	go func() {
		_, err := readBatch(b, in)
		ended <- err
	}()
	conn.Close()
	if err := <-ended; !errors.Is(err, net.ErrClosed) {
		t.Errorf("closed: %v", err)
	}
	if n, err := b.write([]datagram{{packet: []byte("x")}}); n != 0 || !errors.Is(err, net.ErrClosed) {
		t.Errorf("closed: wrote %d, %v", n, err)
	}
}
