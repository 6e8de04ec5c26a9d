package dottest

import (
	"bytes"
	"cmp"
	"crypto/tls"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/quic-go/quic-go/http3"
)

// An HTTPSServer is a DNS-over-HTTPS server for tests (RFC 8484) that misbehaves on request.
// Its HTTP/2 is that of net/http, its HTTP/3 that of quic-go.
type HTTPSServer struct {
	addr    netip.AddrPort
	handler Handler
	fault   atomic.Pointer[HTTPSFault] // never nil
	done    chan struct{}              // closed by Close
	rtt     time.Duration
	dice    *dice

	second atomic.Int64 // of PerSecond, and how many requests it had
	count  atomic.Int64

	requests, overQUIC, connections atomic.Int64
	mu                              sync.Mutex
	last                            string // host, path and query of the last request
}

// HTTPSOptions are the options of an HTTPSServer. A zero field means its default.
type HTTPSOptions struct {
	// Addr is where to listen. Default: any port of a Loopback address.
	Addr string
	// Certificate is required.
	Certificate tls.Certificate
	// Handler answers. Default: Answer.
	Handler Handler
	// RTT is the round-trip time, as in Options.
	RTT time.Duration
	// Streams is how many requests a connection may have at once. Default: 250.
	Streams int
	// Protocols are those of ALPN. Default: h2, http/1.1.
	Protocols []string
	// HTTP3 has the server listen on the UDP port with the same number, too.
	HTTP3 bool
}

// An HTTPSFault is a misbehaviour of an HTTPSServer. The zero HTTPSFault does nothing.
type HTTPSFault struct {
	Share       float64       // of the requests that Status, Never and Reset apply to; 0 means all
	PerSecond   int           // requests in any second that are answered before Status applies
	Status      int           // instead of 200, with a page of HTML
	RetryAfter  string        // goes with Status
	For         string        // Status is for queries that have this in their names only
	ContentType string        // instead of that of a DNS message
	Delay       time.Duration // of responses
	Never       bool          // no response
	Reset       bool          // RST_STREAM instead of a response
	GoAway      int64         // behind each response whose number is a multiple of it
	Pieces      bool          // the body comes in two frames
	Age         string        // of responses, in a cache
	DropUDP     bool          // no packet of HTTP/3 passes, in either direction
}

// NewHTTPSServer starts a server that ends with the test.
func NewHTTPSServer(tb testing.TB, o HTTPSOptions) *HTTPSServer {
	tb.Helper()
	if o.Addr == "" {
		o.Addr = netip.AddrPortFrom(Loopback(), 0).String()
	}
	listener, err := net.Listen("tcp", o.Addr)
	if err != nil {
		tb.Fatal(err)
	}
	s := &HTTPSServer{
		addr: listener.Addr().(*net.TCPAddr).AddrPort(), handler: o.Handler, done: make(chan struct{}), rtt: o.RTT, dice: newDice(443),
	}
	if s.handler == nil {
		s.handler = Answer
	}
	if o.Protocols == nil {
		o.Protocols = []string{"h2", "http/1.1"}
	}
	s.Set(HTTPSFault{})
	far := func(*tls.ClientHelloInfo) (*tls.Config, error) { // one round trip for TCP, and one for TLS
		time.Sleep(2 * s.rtt)
		return nil, nil
	}
	server := &http.Server{
		Handler: s, ErrorLog: log.New(io.Discard, "", 0), ReadHeaderTimeout: time.Minute,
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{o.Certificate}, NextProtos: o.Protocols, GetConfigForClient: far},
		HTTP2:     &http.HTTP2Config{MaxConcurrentStreams: o.Streams},
		ConnState: func(_ net.Conn, state http.ConnState) {
			if state == http.StateNew {
				s.connections.Add(1)
			}
		},
	}
	if len(o.Protocols) == 1 && o.Protocols[0] == "http/1.1" {
		server.Protocols = new(http.Protocols)
		server.Protocols.SetHTTP1(true)
	}
	var serving sync.WaitGroup
	serving.Go(func() { server.ServeTLS(listener, "", "") })
	end := server.Close
	if o.HTTP3 {
		socket, err := net.ListenPacket("udp", s.addr.String())
		if err != nil {
			tb.Fatal(err)
		}
		over := &http3.Server{Handler: s, TLSConfig: http3.ConfigureTLSConfig(&tls.Config{Certificates: []tls.Certificate{o.Certificate}})}
		lossy := newPath(socket, 0, func() bool { return s.fault.Load().DropUDP })
		serving.Go(func() { over.Serve(lossy) })
		end = func() error { return errors.Join(server.Close(), over.Close(), lossy.Close()) }
	}
	tb.Cleanup(func() {
		close(s.done)
		end()
		serving.Wait()
	})
	return s
}

// Addr returns where the server listens.
func (s *HTTPSServer) Addr() netip.AddrPort { return s.addr }

// Set replaces the fault.
func (s *HTTPSServer) Set(f HTTPSFault) { s.fault.Store(&f) }

// Requests returns how many requests there were, RequestsOverQUIC how many of these over
// HTTP/3, and Connections how many connections over TCP.
func (s *HTTPSServer) Requests() int         { return int(s.requests.Load()) }
func (s *HTTPSServer) RequestsOverQUIC() int { return int(s.overQUIC.Load()) }
func (s *HTTPSServer) Connections() int      { return int(s.connections.Load()) }

// Last returns host, path and query of the last request.
func (s *HTTPSServer) Last() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.last
}

const dnsMessage = "application/dns-message"

// queryOf returns the query in a request, if that is all right.
func queryOf(r *http.Request) (query []byte, ok bool) {
	query, err := io.ReadAll(io.LimitReader(r.Body, 1<<16))
	ok = err == nil && r.ProtoMajor >= 2 && r.Method == http.MethodPost && r.Header.Get("Content-Type") == dnsMessage
	return query, ok && int64(len(query)) == r.ContentLength && len(query) >= headerLen
}

// wait waits until the response is due.
func (s *HTTPSServer) wait(r *http.Request, f *HTTPSFault, after time.Duration) {
	if f.Never {
		after = 1 << 62
	}
	timer := time.NewTimer(after + f.Delay + s.rtt)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-r.Context().Done():
	case <-s.done:
	}
}

// faultOf returns the fault as it applies to a query.
func (s *HTTPSServer) faultOf(query []byte) HTTPSFault {
	f := *s.fault.Load()
	if f.Share > 0 && s.dice.float() >= f.Share {
		f.Never, f.Reset, f.Status = false, false, 0
	}
	if f.PerSecond > 0 {
		if now := time.Now().Unix(); s.second.Swap(now) != now {
			s.count.Store(0)
		}
		if s.count.Add(1) <= int64(f.PerSecond) {
			f.Status = 0
		}
	}
	if !bytes.Contains(query, []byte(f.For)) {
		f.Status = 0
	}
	return f
}

func (s *HTTPSServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	n := s.requests.Add(1)
	if r.ProtoMajor == 3 {
		s.overQUIC.Add(1)
	}
	s.mu.Lock()
	s.last = r.Host + r.RequestURI
	s.mu.Unlock()
	query, ok := queryOf(r)
	if !ok {
		http.Error(w, "not a query", http.StatusBadRequest)
		return
	}
	f := s.faultOf(query)
	reply, after := s.handler(nil, query)
	s.wait(r, &f, after)
	if f.Reset {
		panic(http.ErrAbortHandler)
	}
	if f.GoAway > 0 && n%f.GoAway == 0 {
		w.Header().Set("Connection", "close")
	}
	if f.Status != 0 {
		w.Header().Set("Content-Type", "text/html")
		if f.RetryAfter != "" {
			w.Header().Set("Retry-After", f.RetryAfter)
		}
		w.WriteHeader(f.Status)
		io.WriteString(w, "<html><body>"+http.StatusText(f.Status)+"</body></html>")
		return
	}
	w.Header().Set("Content-Type", cmp.Or(f.ContentType, dnsMessage))
	if f.Age != "" {
		w.Header().Set("Age", f.Age)
	}
	if f.Pieces {
		w.Write(reply[:len(reply)/2])
		w.(http.Flusher).Flush()
		reply = reply[len(reply)/2:]
	}
	w.Write(reply)
}
