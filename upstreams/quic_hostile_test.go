package upstreams

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"

	"dotgate/upstreams/dottest"
)

// hostile returns the options of an upstream at a QUIC server whose connections are served so.
func hostile(t *testing.T, transport string, config *quic.Config, serve func(conn *quic.Conn)) Options {
	t.Helper()
	ca := dottest.NewCA()
	file, err := ca.WriteFile(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	socket, err := net.ListenPacket("udp", netip.AddrPortFrom(dottest.Loopback(), 0).String())
	if err != nil {
		t.Fatal(err)
	}
	below := &quic.Transport{Conn: socket}
	protocol := map[string]string{DoQ: "doq", DoH3: "h3"}[transport]
	listener, err := below.Listen(&tls.Config{Certificates: []tls.Certificate{ca.Issue(dottest.CertOptions{Names: []string{dottest.ServerName}})}, NextProtos: []string{protocol}}, config)
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			conn, err := listener.Accept(context.Background())
			if err != nil {
				return
			}
			serving.Go(func() { serve(conn) })
		}
	})
	t.Cleanup(func() {
		below.Close()
		socket.Close()
		serving.Wait()
	})
	addr := []netip.AddrPort{socket.LocalAddr().(*net.UDPAddr).AddrPort()}
	o := Options{Name: "test", ServerName: dottest.ServerName, CAFile: file, Log: slog.New(slog.DiscardHandler), Transports: []string{transport}}
	if transport == DoQ {
		o.Addresses = addr
	} else {
		o.DoHAddresses = addr
	}
	return o
}

// responding returns what serves a connection: each stream gets the response, and an end
// unless it is to stay open.
func responding(response []byte, open bool) func(conn *quic.Conn) {
	return func(conn *quic.Conn) {
		for {
			s, err := conn.AcceptStream(context.Background())
			if err != nil {
				return
			}
			go func() {
				io.Copy(io.Discard, s)
				s.Write(response)
				if !open {
					s.Close()
				}
			}()
		}
	}
}

// A response without a DNS message costs its query, at once, and neither the connection nor
// another dial.
func TestResponsesOverQUICWithoutMessages(t *testing.T) {
	t.Parallel()
	f := func(transport string, response []byte, stays bool, want Outcome) {
		t.Helper()
		var connections atomic.Int64
		respond := responding(response, stays)
		u := open(t, hostile(t, transport, nil, func(conn *quic.Conn) {
			connections.Add(1)
			respond(conn)
		}))
		for i := range 3 {
			err := askWithin(u, fmt.Sprintf("n%d.example.com", i), 3*time.Second)
			if err == nil || OutcomeOf(err) != want {
				t.Errorf("%s, response %x: got %v (%v), want %v", transport, response, err, OutcomeOf(err), want)
			}
		}
		if n := connections.Load(); n > fewDials {
			t.Errorf("%s, response %x: %d connections", transport, response, n)
		}
	}
	f(DoQ, nil, false, ShortFrame)
	f(DoQ, []byte{0, 0}, true, Unparsable)
	f(DoQ, []byte{0, 1, 0}, true, Unparsable)
	f(DoQ, []byte{0, 3, 0, 0, 0}, true, Unparsable)
	f(DoH3, nil, false, ShortFrame)
	f(DoH3, []byte{1, 4, 0, 0, 0xd9, 0xec, 0, 0}, false, Unparsable)      // 200, a DNS message, no octet of it
	f(DoH3, []byte{1, 4, 0, 0, 0xd9, 0xec, 0, 1, 0}, false, Unparsable)   // one octet
	f(DoH3, []byte{1, 0x80, 0xff, 0xff, 0xff, 1, 2}, true, Unparsable)    // 16 MB of header
	f(DoH3, []byte{1, 2, 0, 0}, false, Unparsable)                        // no status
	f(DoH3, []byte{1, 4, 0, 0, 0xd9, 0xd9}, false, Unparsable)            // two
	f(DoH3, []byte{0x21, 2, 0, 0}, false, ShortFrame)                     // a frame of an unknown type
	f(DoH3, bytes.Repeat([]byte{1, 3, 0, 0, 0xd8}, 9), false, Unparsable) // 103, without end
}

// A message whose octets do not come takes no memory for them.
func TestAnnouncedMessagesTakeNoMemory(t *testing.T) {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range 100 {
		if _, err := readMessage(strings.NewReader("\xff\xff\x00")); err != io.ErrUnexpectedEOF {
			t.Fatal(err)
		}
	}
	runtime.ReadMemStats(&after)
	if grown := after.TotalAlloc - before.TotalAlloc; grown > 1<<20 {
		t.Errorf("100 lengths took %d octets", grown)
	}
}

// A request that the server has rejected was not processed, and is sent again.
func TestRequestsThatAreRejected(t *testing.T) {
	t.Parallel()
	u := open(t, hostile(t, DoH3, nil, func(conn *quic.Conn) {
		for {
			s, err := conn.AcceptStream(context.Background())
			if err != nil {
				return
			}
			s.CancelRead(quic.StreamErrorCode(http3.ErrCodeRequestRejected))
			s.CancelWrite(quic.StreamErrorCode(http3.ErrCodeRequestRejected))
		}
	}))
	if err := ask(u, "www.example.com"); !errors.Is(err, errNotProcessed) {
		t.Errorf("got %v", err)
	}
}

// The path of a URL is requested as it is written.
func TestPathsOverHTTP3(t *testing.T) {
	t.Parallel()
	s, o := overHTTPS(t, dottest.HTTPSOptions{HTTP3: true})
	for _, path := range []string{"/dns-query?key=a%2Fb", "/a%2Fb", "//two"} {
		for _, transport := range []string{DoH, DoH3} {
			o.DoHPath, o.Transports = path, []string{transport}
			if err := ask(open(t, o), "www.example.com"); err != nil {
				t.Error(err)
			}
			if want := fmt.Sprintf("%s:%d%s", dottest.ServerName, s.Addr().Port(), path); s.Last() != want {
				t.Errorf("%s: the request was for %s, want %s", transport, s.Last(), want)
			}
		}
	}
}

// The end of a connection costs none of the queries on it.
func TestConnectionsOverQUICEndUnderQueries(t *testing.T) {
	t.Parallel()
	s, o := overQUIC(t, dottest.QUICOptions{})
	u := open(t, o)
	for round := range 10 {
		if err := ask(u, fmt.Sprintf("first%d.example.com", round)); err != nil {
			t.Error(err)
		}
		s.Set(dottest.QUICFault{Close: 31, Delay: 20 * time.Millisecond})
		if err := many(u, 30, fmt.Sprintf("r%d-%%d.example.com", round)); err != nil {
			t.Error(err)
		}
	}
}
