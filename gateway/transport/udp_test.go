package transport

import (
	"slices"
	"testing"

	"dotgate/gateway/wire"
)

// readBatch waits for one batch.
func readBatch(b *batchConn, in []datagram) (n int, err error) {
	err = b.read(in, func(batch []datagram) bool { n = len(batch); return false })
	return n, err
}

func TestQueryFromPortZeroIsIgnored(t *testing.T) {
	s := &udpSocket{server: newServer(t, handler{}, Options{}), batch: new(batchConn), out: newDatagrams(wire.MaxUDPSize)}
	s.begin()
	d := datagram{packet: packed(query("example.com."))}
	s.handle([]datagram{d, d})
	if n := s.counters.NoPort.Load(); n != 2 {
		t.Errorf("ignored %d", n)
	}
}

func TestReplySourceKeepsTheAddressOnly(t *testing.T) {
	if got := replySource(nil); got != nil {
		t.Errorf("of nothing: %v", got)
	}
	if got := replySource(slices.Repeat([]byte{0xff}, controlSize)); got != nil {
		t.Errorf("of garbage: %v", got)
	}
}
