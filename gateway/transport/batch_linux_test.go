package transport

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
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

// Packets of all lengths, empty ones too, arrive unchanged, and so do packets that are
// sent to their source.
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
		if n := server.write(out); n != 0 {
			t.Fatalf("%s: %d could not be sent", addr, n)
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

// A packet that cannot be sent holds up none of the others.
func TestABatchSendsTheOtherPacketsWhenOneFails(t *testing.T) {
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
	bad.packet = make([]byte, 1<<16) // more than UDP can carry
	if n := b.write([]datagram{good, bad, good, bad, bad, good}); n != 3 {
		t.Errorf("%d could not be sent", n)
	}
	for left := 3; left > 0; {
		n, err := readBatch(b, in)
		if err != nil {
			t.Fatal(err)
		}
		left -= n
	}
}

// Packets that share a message arrive unchanged. Without GSO, each packet is sent by
// itself.
func TestRepliesToOneClientShareAMessage(t *testing.T) {
	serverConn, server := packetSocket(t, "127.0.0.1:0")
	one, first := packetSocket(t, "127.0.0.1:0")
	two, second := packetSocket(t, "127.0.0.1:0")
	in := newDatagrams(packetSize)
	var peers []peer
	for _, client := range []*net.UDPConn{one, two} {
		if _, err := client.WriteToUDPAddrPort([]byte("hello"), serverConn.LocalAddr().(*net.UDPAddr).AddrPort()); err != nil {
			t.Fatal(err)
		}
		if _, err := readBatch(server, in); err != nil {
			t.Fatal(err)
		}
		peers = append(peers, in[0].peer)
	}
	f := func(length, count, wantMessages int) {
		t.Helper()
		var out []datagram
		for i := range count {
			out = append(out, datagram{packet: slices.Repeat([]byte{byte(i)}, length+i%3/2), peer: peers[i%2]})
		}
		var order [batchSize]uint8
		if n := server.buildGSO(out, &order); n != wantMessages {
			t.Errorf("%d packets of %d octets: %d messages, want %d", count, length, n, wantMessages)
		}
		if n := server.write(out); n != 0 {
			t.Fatalf("%d could not be sent", n)
		}
		for i, client := range []*batchConn{first, second} {
			seen := make(map[byte]bool)
			for len(seen) < (count+1-i)/2 {
				n, err := readBatch(client, in)
				if err != nil {
					t.Fatal(err)
				}
				for _, d := range in[:n] {
					k := d.packet[0]
					if len(d.packet) != length+int(k)%3/2 || int(k)%2 != i || d.packet[len(d.packet)-1] != k || seen[k] {
						t.Fatalf("client %d got %d octets of packet %d", i, len(d.packet), k)
					}
					seen[k] = true
				}
			}
		}
	}
	f(50, 1, 1)
	f(50, 2, 2)
	f(50, batchSize, 4) // two clients, two lengths
	f(1232, 6, 4)
	server.gso = false
	f(50, batchSize, batchSize)
}

// On a route without GSO, all packets are sent, one by one.
func TestAGSOBatchThatCannotBeSentIsSplit(t *testing.T) {
	conn, b := packetSocket(t, "127.0.0.1:0")
	if _, err := conn.WriteToUDPAddrPort([]byte("hello"), conn.LocalAddr().(*net.UDPAddr).AddrPort()); err != nil {
		t.Fatal(err)
	}
	in := newDatagrams(packetSize)
	if _, err := readBatch(b, in); err != nil {
		t.Fatal(err)
	}
	// The system refuses GSO for a socket without checksums.
	if err := b.raw.Control(func(fd uintptr) { unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_NO_CHECK, 1) }); err != nil {
		t.Fatal(err)
	}
	out := slices.Repeat([]datagram{{packet: []byte("x"), peer: in[0].peer}}, 10)
	if n := b.write(out); n != 0 || b.gso {
		t.Errorf("%d could not be sent, and GSO is on: %v", n, b.gso)
	}
	for left := 10; left > 0; {
		n, err := readBatch(b, in)
		if err != nil {
			t.Fatal(err)
		}
		left -= n
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
	if n := b.write([]datagram{{packet: []byte("x")}, {packet: []byte("y")}}); n != 2 {
		t.Errorf("closed: %d of 2 could not be sent", n)
	}
}

// On a busy machine, a socket may be read for the last time long after its deadline.
func TestPacketsAreReadAfterTheDeadline(t *testing.T) {
	serverConn, server := packetSocket(t, "127.0.0.1:0")
	clientConn, _ := packetSocket(t, "127.0.0.1:0")
	const sent = 2*batchSize + 5
	for range sent {
		if _, err := clientConn.WriteToUDPAddrPort([]byte("hello"), serverConn.LocalAddr().(*net.UDPAddr).AddrPort()); err != nil {
			t.Fatal(err)
		}
	}
	serverConn.SetReadDeadline(time.Now().Add(-time.Second))
	in := newDatagrams(packetSize)
	if n, err := readBatch(server, in); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("a read after the deadline: %d packets, %v", n, err)
	}
	read := 0
	server.drain(in, func(in []datagram) bool {
		read += len(in)
		return true
	})
	if read != sent {
		t.Errorf("%d of %d packets are read", read, sent)
	}
	serverConn.Close()
	server.drain(in, func([]datagram) bool { t.Error("from a closed socket"); return true })
}
