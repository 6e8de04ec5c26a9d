package dottest

import (
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	patience = 30 * time.Second       // for what must come, also on a busy machine
	silence  = 100 * time.Millisecond // without a word, for what must not
)

// A client is one connection to a server under test.
type client struct {
	*tls.Conn
	wire *wireMeter
	tb   testing.TB
}

// A wireMeter knows what of TLS has arrived.
type wireMeter struct {
	net.Conn
	octets int
	header []byte // of a record, as far as it has arrived
	last   int    // length of the record that began last
	rest   int    // what of it has not arrived
}

func (m *wireMeter) Read(p []byte) (int, error) {
	n, err := m.Conn.Read(p)
	m.octets += n
	for p = p[:n]; len(p) > 0; {
		if m.rest > 0 {
			part := min(m.rest, len(p))
			m.rest, p = m.rest-part, p[part:]
			continue
		}
		m.header, p = append(m.header, p[0]), p[1:]
		if len(m.header) == 5 {
			m.last = int(binary.BigEndian.Uint16(m.header[3:]))
			m.rest, m.header = m.last, m.header[:0]
		}
	}
	return n, err
}

// closeNotify reports whether the last record was an alert of TLS 1.3: two
// octets, one for the type, and sixteen of a tag. All else is longer.
func (m *wireMeter) closeNotify() bool { return !m.inRecord() && m.last == 2+1+16 }

func (m *wireMeter) inRecord() bool { return m.rest > 0 || len(m.header) > 0 }

func clientConfig(s *Server) *tls.Config {
	return &tls.Config{RootCAs: s.CA().Pool(), ServerName: ServerName, NextProtos: []string{"dot"}}
}

func tryDial(tb testing.TB, s *Server, config *tls.Config) (client, error) {
	d := net.Dialer{Timeout: patience}
	raw, err := d.Dial("tcp", s.Addr().String())
	if err != nil {
		return client{}, err
	}
	raw.SetDeadline(time.Now().Add(patience))
	meter := &wireMeter{Conn: raw}
	c := client{tls.Client(meter, config), meter, tb}
	tb.Cleanup(func() { raw.Close() })
	return c, c.Handshake()
}

func dial(tb testing.TB, s *Server) client {
	tb.Helper()
	c, err := tryDial(tb, s, clientConfig(s))
	if err != nil {
		tb.Fatalf("dial: %v", err)
	}
	return c
}

func newQuery(id uint16, name string, qtype uint16) []byte {
	m := new(dns.Msg).SetQuestion(dns.Fqdn(name), qtype)
	m.Id = id
	m.SetEdns0(1232, false)
	packed, err := m.Pack()
	if err != nil {
		panic(err)
	}
	return packed
}

func framed(message []byte) []byte {
	return append(binary.BigEndian.AppendUint16(nil, uint16(len(message))), message...)
}

// send sends queries of type A for names, with IDs from 1.
func (c client) send(names ...string) {
	c.tb.Helper()
	var frames []byte
	for i, name := range names {
		frames = append(frames, framed(newQuery(uint16(i+1), name, dns.TypeA))...)
	}
	if _, err := c.Write(frames); err != nil {
		c.tb.Fatalf("send: %v", err)
	}
}

func (c client) receiveFrame() ([]byte, error) {
	var prefix [2]byte
	if _, err := io.ReadFull(c, prefix[:]); err != nil {
		return nil, err
	}
	message := make([]byte, binary.BigEndian.Uint16(prefix[:]))
	_, err := io.ReadFull(c, message)
	return message, err
}

func (c client) receive() *dns.Msg {
	c.tb.Helper()
	message, err := c.receiveFrame()
	if err != nil {
		c.tb.Fatalf("receive: %v", err)
	}
	m := new(dns.Msg)
	if err := m.Unpack(message); err != nil {
		c.tb.Fatalf("unpack %x: %v", message, err)
	}
	return m
}

// ask sends one query and fails unless the right answer comes back.
func (c client) ask(name string) {
	c.tb.Helper()
	c.send(name)
	checkAnswer(c.tb, c.receive(), 1, name)
}

func checkAnswer(tb testing.TB, m *dns.Msg, id uint16, name string) {
	tb.Helper()
	if m.Id != id || !m.Response || len(m.Question) != 1 || m.Question[0].Name != dns.Fqdn(name) || len(m.Answer) != 1 {
		tb.Fatalf("not the answer number %d to %s: %v", id, name, m)
	}
	if got, want := m.Answer[0].(*dns.A).A.String(), Address(name).String(); got != want {
		tb.Fatalf("%s has address %s, want %s", name, got, want)
	}
}

// expectSilence fails if anything comes back or the connection ends. The
// connection is still good after it: TLS survives a read that times out.
func (c client) expectSilence() {
	c.tb.Helper()
	c.SetReadDeadline(time.Now().Add(silence))
	if n, err := c.Read(make([]byte, 1)); !isTimeout(err) {
		c.tb.Fatalf("read %d octets and %v, want silence", n, err)
	}
	c.SetReadDeadline(time.Now().Add(patience))
}

// expectEnd fails unless the connection ends as it must after how. That
// crypto/tls takes a FIN for a close_notify between records is not enough.
func (c client) expectEnd(how Closing) {
	c.tb.Helper()
	_, err := io.Copy(io.Discard, c.Conn)
	var ok bool
	switch how {
	case CloseNotify:
		ok = err == nil && c.wire.closeNotify()
	case FIN:
		ok = err == nil && !c.wire.closeNotify()
	case RST:
		ok = errors.Is(err, syscall.ECONNRESET)
	}
	if !ok {
		c.tb.Fatalf("the connection ended with %v, want %s", err, how)
	}
}

func isTimeout(err error) bool {
	var timeout net.Error
	return errors.As(err, &timeout) && timeout.Timeout()
}

// eventually waits for what the server does on its own time.
func eventually(tb testing.TB, what string, ok func() bool) {
	tb.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			tb.Fatalf("it never came to pass that %s", what)
		}
	}
}
