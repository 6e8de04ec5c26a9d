package upstreams

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"dotgate/gateway/wire"
)

const (
	http2Protocol = "h2" // RFC 9113 section 3.2
	dnsMessage    = "application/dns-message"

	// A stream's window is larger than the longest answer with padding, so that no
	// WINDOW_UPDATE of a stream is ever needed. That of the connection is renewed when half
	// of it has been used.
	http2StreamWindow = 1 << 17
	http2ConnWindow   = 1 << 24
	http2WindowMax    = 1<<31 - 1 // RFC 9113 section 6.9.1
	// Defaults of RFC 9113: of a window, of the longest frame, and of a table of header fields.
	http2FirstWindow = 1<<16 - 1
	http2FrameMax    = 1 << 14
	http2TableSize   = 1 << 12
	// http2HeadersMax is how long the header block of a response may be. Those of resolvers
	// have some hundred octets.
	http2HeadersMax = 1 << 16
	// http2FirstRoom is how many requests are sent before the server has said how many it
	// allows at once: it should allow that many (RFC 9113 section 6.5.2).
	http2FirstRoom = 100
	// http2StreamsMax is the number of the last stream. A connection does not get that far.
	http2StreamsMax = 1<<31 - 1
)

var (
	errGoAway       = errors.New("server takes no more requests on this connection (GOAWAY)")
	errTooLong      = &failure{HTTPNotDNS, errors.New("response to a DNS query over HTTPS is longer than a DNS message")}
	errTooShort     = &failure{Unparsable, errors.New("the response is shorter than the ID of a DNS message")}
	errNotProcessed = fmt.Errorf("a request was not processed: %w", errGoAway)
)

// An http2Conn carries DNS messages in HTTP/2 requests (RFC 8484). To a stream it looks
// like a connection of DNS-over-TLS: messages behind their lengths are written to it and
// read from it. Each is the body of a POST request, or of the response to one.
//
// Instead of a response that is an error, or something else than a DNS message, Read returns
// a requestError, and can be called again. GOAWAY ends the connection: the stream then sends
// its queries again elsewhere. A request that the server resets (RST_STREAM) gets no answer.
//
// One goroutine may write while another one reads.
type http2Conn struct {
	net.Conn // below: its writes are atomic, as those of a tls.Conn are

	// For the goroutine that writes.
	out []byte // frames of one write

	// For the goroutine that reads.
	in       *http2.Framer
	fields   *hpack.Decoder
	block    responseHeader // of the header block that is being decoded
	consumed int            // octets since the window of the connection was renewed
	message  bytes.Buffer   // of which the rest is still to be read

	mu       sync.Mutex // guards the fields below
	changed  sync.Cond  // of what a request waits for
	encoder  requestEncoder
	requests map[uint32]*httpRequest // without a whole response, by the number of their stream
	next     uint32                  // the number of the next stream
	room     int                     // how many requests may be open at once
	settled  bool                    // the server has sent its settings
	window   int                     // how many octets may be sent on the connection
	first    int                     // how many may be sent on a new stream
	err      error                   // why no request can be sent any more, or nil
}

// A requestError is why one request got no DNS message. The connection goes on.
type requestError struct {
	id  uint16 // of the query
	err error
}

func (e *requestError) Error() string { return e.err.Error() }
func (e *requestError) Unwrap() error { return e.err }

// An httpRequest is a request without a whole response.
type httpRequest struct {
	id       uint16 // of the DNS message
	sent     time.Time
	response responseHeader // its status is 0 before it has come
	body     []byte         // of the response, if it comes in several frames
}

// A responseHeader is what counts of a header.
type responseHeader struct {
	size   int
	status int
	isDNS  bool          // the body is a DNS message
	age    uint32        // of the response in a cache of HTTP, in seconds
	after  time.Duration // of Retry-After
}

// newHTTP2Conn begins HTTP/2 on conn, with requests for a resource.
func newHTTP2Conn(conn net.Conn, host, path string) (*http2Conn, error) {
	c := &http2Conn{
		Conn: conn, in: http2.NewFramer(io.Discard, bufio.NewReaderSize(conn, 1<<15)),
		encoder:  newRequestEncoder(host, path),
		requests: make(map[uint32]*httpRequest), next: 1,
		room: http2FirstRoom, window: http2FirstWindow, first: http2FirstWindow,
	}
	c.changed.L = &c.mu
	c.in.SetReuseFrames()
	c.in.SetMaxReadFrameSize(http2FrameMax)
	c.fields = hpack.NewDecoder(http2TableSize, c.block.add)
	c.fields.SetMaxStringLength(http2HeadersMax)
	return c, c.control(http2.ClientPreface, func(f *http2.Framer) error {
		return errors.Join(
			f.WriteSettings(http2.Setting{ID: http2.SettingEnablePush}, http2.Setting{ID: http2.SettingInitialWindowSize, Val: http2StreamWindow}),
			f.WriteWindowUpdate(0, http2ConnWindow-http2FirstWindow))
	})
}

// control writes frames other than requests, behind a text.
func (c *http2Conn) control(first string, write func(f *http2.Framer) error) error {
	frames := bytes.NewBufferString(first)
	if err := write(http2.NewFramer(frames, nil)); err != nil {
		return err
	}
	_, err := c.Conn.Write(frames.Bytes())
	return err
}

// Write sends a request for each message in p, in one write to the connection below. It
// blocks while the server accepts no more requests.
func (c *http2Conn) Write(p []byte) (int, error) {
	for rest := p; len(rest) > 0; {
		size := int(binary.BigEndian.Uint16(rest))
		message := rest[2 : 2+size]
		rest = rest[2+size:]
		sent, err := c.append(message, false)
		if err == nil && !sent { // the server may wait for what is in out
			if err = c.flush(); err == nil {
				_, err = c.append(message, true)
			}
		}
		if err != nil {
			return 0, err
		}
	}
	if err := c.flush(); err != nil {
		return 0, err
	}
	return len(p), nil
}

func (c *http2Conn) flush() error {
	if len(c.out) == 0 {
		return nil
	}
	_, err := c.Conn.Write(c.out)
	c.out = c.out[:0]
	return err
}

// append appends the request for a message to out. If there is no room for it, it waits for
// some, or returns false.
func (c *http2Conn) append(message []byte, wait bool) (done bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.err == nil && (len(c.requests) >= c.room || len(message) > min(c.window, c.first)) {
		if !wait {
			return false, nil
		}
		if !c.cancelOldLocked() {
			c.changed.Wait()
		}
	}
	if c.err != nil {
		return false, c.err
	}
	number := c.next
	if c.next += 2; c.next > http2StreamsMax {
		c.err = errGoAway
	}
	c.window -= len(message)
	c.requests[number] = &httpRequest{id: wire.ID(message), sent: time.Now()}
	c.out = c.encoder.append(c.out, number, message)
	return true, nil
}

// cancelOldLocked gives up requests that have waited for so long that their queries have
// been given up. It reports whether there are any.
func (c *http2Conn) cancelOldLocked() (cancelled bool) {
	for number, r := range c.requests {
		if time.Since(r.sent) > answerLimit {
			cancelled = true
			delete(c.requests, number)
			c.out = appendFrame(c.out, 4, http2.FrameRSTStream, 0, number)
			c.out = binary.BigEndian.AppendUint32(c.out, uint32(http2.ErrCodeCancel))
		}
	}
	return cancelled
}

// capacity returns how many requests may be open at once.
func (c *http2Conn) capacity() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.room
}

// abort returns a function that ends the connection at once, and a Write that waits for the
// server. raw is the connection below TLS.
func (c *http2Conn) abort(raw net.Conn) func() {
	return func() {
		c.fail(net.ErrClosed)
		raw.Close()
	}
}

// Close says goodbye (RFC 9113 section 9.1), and closes the connection.
func (c *http2Conn) Close() error {
	c.fail(net.ErrClosed)
	_ = c.control("", func(f *http2.Framer) error { return f.WriteGoAway(0, http2.ErrCodeNo, nil) }) // it is a courtesy
	return c.Conn.Close()
}

// fail ends writing with err, unless it has ended.
func (c *http2Conn) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.err = cmp.Or(c.err, err)
	c.changed.Broadcast()
}

// Read returns messages behind their lengths.
func (c *http2Conn) Read(p []byte) (int, error) {
	for c.message.Len() == 0 {
		err := io.EOF
		if !c.over() {
			err = c.readFrame()
		}
		if _, ofOne := err.(*requestError); ofOne {
			return 0, err
		}
		if err != nil {
			c.fail(err)
			return 0, err
		}
	}
	return c.message.Read(p)
}

// over reports whether there will be no further response.
func (c *http2Conn) over() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err != nil && len(c.requests) == 0
}

// readFrame reads a frame and acts on it.
func (c *http2Conn) readFrame() error {
	frame, err := c.in.ReadFrame()
	if ofStream, ok := errors.AsType[http2.StreamError](err); ok {
		c.reset(ofStream.StreamID)
		return nil
	}
	if err != nil {
		return err
	}
	switch frame := frame.(type) {
	case *http2.DataFrame:
		return c.readData(frame)
	case *http2.HeadersFrame:
		return c.readHeaders(frame)
	case *http2.RSTStreamFrame:
		r := c.reset(frame.StreamID)
		if r != nil && frame.ErrCode == http2.ErrCodeRefusedStream {
			return &requestError{r.id, errNotProcessed}
		}
	case *http2.SettingsFrame:
		return c.readSettings(frame)
	case *http2.PingFrame:
		if !frame.IsAck() {
			return c.control("", func(f *http2.Framer) error { return f.WritePing(true, frame.Data) })
		}
	case *http2.GoAwayFrame:
		return c.readGoAway(frame)
	case *http2.WindowUpdateFrame:
		if frame.StreamID == 0 {
			return c.widen(int(frame.Increment))
		}
	case *http2.PushPromiseFrame:
		return http2.ConnectionError(http2.ErrCodeProtocol)
	}
	return nil
}

// reset forgets a request that has got its response, or will get none. It returns nil if
// there is none.
func (c *http2Conn) reset(number uint32) *httpRequest {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.requests[number]
	delete(c.requests, number)
	c.changed.Broadcast()
	return r
}

// widen adds to the window of the connection (RFC 9113 section 6.9.1).
func (c *http2Conn) widen(octets int) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.window += octets; c.window > http2WindowMax {
		return http2.ConnectionError(http2.ErrCodeFlowControl)
	}
	c.changed.Broadcast()
	return nil
}

func (c *http2Conn) readSettings(frame *http2.SettingsFrame) error {
	if frame.IsAck() {
		return nil
	}
	c.mu.Lock()
	if !c.settled {
		c.settled, c.room = true, inFlightMax
	}
	err := frame.ForeachSetting(func(s http2.Setting) error {
		switch s.ID {
		case http2.SettingMaxConcurrentStreams:
			c.room = int(min(s.Val, inFlightMax))
		case http2.SettingInitialWindowSize:
			c.first = int(s.Val)
		case http2.SettingHeaderTableSize:
			c.encoder.limitTable(s.Val)
		}
		return s.Valid()
	})
	c.changed.Broadcast()
	c.mu.Unlock()
	if err != nil {
		return err
	}
	return c.control("", (*http2.Framer).WriteSettingsAck)
}

// readGoAway has no more requests sent. If the server won't process one that was, the
// connection ends, and the stream sends its queries again.
func (c *http2Conn) readGoAway(frame *http2.GoAwayFrame) error {
	c.fail(errGoAway)
	c.mu.Lock()
	defer c.mu.Unlock()
	for number := range c.requests {
		if number > frame.LastStreamID {
			return errNotProcessed
		}
	}
	return nil
}

// readHeaders reads a header block and the frames that continue it.
func (c *http2Conn) readHeaders(frame *http2.HeadersFrame) error {
	number, ended, whole := frame.StreamID, frame.StreamEnded(), frame.HeadersEnded()
	c.block = responseHeader{}
	for block := frame.HeaderBlockFragment(); ; {
		if c.block.size += len(block); c.block.size > http2HeadersMax {
			return http2.ConnectionError(http2.ErrCodeEnhanceYourCalm)
		}
		if _, err := c.fields.Write(block); err != nil {
			return http2.ConnectionError(http2.ErrCodeCompression)
		}
		if whole {
			break
		}
		next, err := c.in.ReadFrame() // one of this stream, as the Framer checks
		if err != nil {
			return err
		}
		more, ok := next.(*http2.ContinuationFrame)
		if !ok {
			return http2.ConnectionError(http2.ErrCodeProtocol)
		}
		block, whole = more.HeaderBlockFragment(), more.HeadersEnded()
	}
	if err := c.fields.Close(); err != nil {
		return http2.ConnectionError(http2.ErrCodeCompression)
	}
	c.mu.Lock()
	r := c.requests[number]
	c.mu.Unlock()
	if r == nil || c.block.status >= 100 && c.block.status < 200 {
		return nil
	}
	if r.response.status == 0 { // else these are trailers
		r.response = c.block
	}
	if !ended && r.response.check() == nil {
		return nil
	}
	return c.answered(number, r, r.body)
}

// add takes note of a field of a header.
func (h *responseHeader) add(f hpack.HeaderField) {
	switch h.size += len(f.Name) + len(f.Value); f.Name {
	case ":status":
		h.status, _ = strconv.Atoi(f.Value)
	case "content-type":
		h.setContentType(f.Value)
	case "age":
		h.setAge(f.Value)
	case "retry-after":
		h.after = parseRetryAfter(f.Value)
	}
}

// setAge sets the age, as far as it is a number (RFC 9111 section 1.2.2).
func (h *responseHeader) setAge(value string) {
	age, err := strconv.ParseUint(value, 10, 32)
	if err == nil || errors.Is(err, strconv.ErrRange) {
		h.age = uint32(age)
	}
}

func (h *responseHeader) setContentType(value string) {
	kind, _, _ := strings.Cut(value, ";")
	h.isDNS = strings.EqualFold(strings.TrimSpace(kind), dnsMessage)
}

// check returns an error if the response has no DNS message.
func (h *responseHeader) check() error {
	switch {
	case h.status == 429: // RFC 6585 section 4
		return &failure{HTTPLimited, &rateError{h.after}}
	case h.status != 200:
		return &failure{HTTPFailed, fmt.Errorf("server responds with HTTP status %d", h.status)}
	case !h.isDNS:
		return &failure{HTTPNotDNS, errors.New("response to a DNS query over HTTPS is no DNS message (Content-Type)")}
	}
	return nil
}

func (c *http2Conn) readData(frame *http2.DataFrame) error {
	if c.consumed += int(frame.Length); c.consumed > http2ConnWindow/2 {
		octets := uint32(c.consumed)
		c.consumed = 0
		if err := c.control("", func(f *http2.Framer) error { return f.WriteWindowUpdate(0, octets) }); err != nil {
			return err
		}
	}
	c.mu.Lock()
	r := c.requests[frame.StreamID]
	c.mu.Unlock()
	if r == nil {
		return nil
	}
	body := frame.Data()
	if len(r.body)+len(body) > wire.MaxSize {
		c.reset(frame.StreamID)
		return &requestError{r.id, errTooLong}
	}
	if len(r.body) > 0 || !frame.StreamEnded() {
		r.body = append(r.body, body...)
		body = r.body
	}
	if !frame.StreamEnded() {
		return nil
	}
	return c.answered(frame.StreamID, r, body)
}

// answered hands over the whole response to a request, with the ID of the query. Of one that
// is an error, the rest need not have come.
func (c *http2Conn) answered(number uint32, r *httpRequest, body []byte) error {
	c.reset(number)
	if err := r.response.check(); err != nil {
		return &requestError{r.id, err}
	}
	if len(body) < 2 {
		return &requestError{r.id, errTooShort}
	}
	wire.SubtractAge(body, r.response.age)
	c.message.Reset()
	c.message.Write(binary.BigEndian.AppendUint16(c.message.AvailableBuffer(), uint16(len(body))))
	c.message.Write(binary.BigEndian.AppendUint16(c.message.AvailableBuffer(), r.id))
	c.message.Write(body[2:])
	return nil
}

// A requestEncoder makes the frames of requests for one resource. The server's table of
// header fields has all but the length after the first request, so that all later ones have
// the same few octets, which are kept.
type requestEncoder struct {
	host, path string
	encoder    *hpack.Encoder
	encoded    *bytes.Buffer // by encoder
	last       []byte        // what the encoder made for the last request
	same       bool          // it made the same for the one before
}

func newRequestEncoder(host, path string) requestEncoder {
	encoded := new(bytes.Buffer)
	return requestEncoder{host: host, path: path, encoder: hpack.NewEncoder(encoded), encoded: encoded}
}

// limitTable heeds the size that the server wants its table to have.
func (e *requestEncoder) limitTable(size uint32) {
	e.encoder.SetMaxDynamicTableSizeLimit(size)
	e.last, e.same = nil, false
}

// append appends the frames of a request, whose message is at least as long as an ID.
func (e *requestEncoder) append(dst []byte, number uint32, message []byte) []byte {
	if !e.same {
		e.encode()
	}
	var room [8]byte
	digits := strconv.AppendInt(room[:0], int64(len(message)), 10)
	dst = appendFrame(dst, len(e.last)+3+len(digits), http2.FrameHeaders, http2.FlagHeadersEndHeaders, number)
	dst = append(dst, e.last...)
	// content-length, which is never indexed (RFC 7541 section 6.2.3): its name is number 28
	// of the static table.
	dst = append(dst, 0x1f, 28-0x0f, byte(len(digits)))
	dst = append(dst, digits...)
	dst = appendFrame(dst, len(message), http2.FrameData, http2.FlagDataEndStream, number)
	dst = append(dst, 0, 0) // the ID (RFC 8484 section 4.1)
	return append(dst, message[2:]...)
}

// encode encodes all header fields but the length.
func (e *requestEncoder) encode() {
	e.encoded.Reset()
	for _, f := range []hpack.HeaderField{
		{Name: ":method", Value: "POST"}, {Name: ":scheme", Value: "https"}, {Name: ":authority", Value: e.host}, {Name: ":path", Value: e.path},
		{Name: "accept", Value: dnsMessage}, {Name: "content-type", Value: dnsMessage},
	} {
		if err := e.encoder.WriteField(f); err != nil {
			panic("BUG: a header can't be written to memory: " + err.Error())
		}
	}
	e.same = bytes.Equal(e.last, e.encoded.Bytes())
	e.last = bytes.Clone(e.encoded.Bytes())
}

// appendFrame appends the header of a frame (RFC 9113 section 4.1).
func appendFrame(dst []byte, size int, kind http2.FrameType, flags http2.Flags, number uint32) []byte {
	dst = append(dst, byte(size>>16), byte(size>>8), byte(size), byte(kind), byte(flags))
	return binary.BigEndian.AppendUint32(dst, number)
}
