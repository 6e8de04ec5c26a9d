package upstreams

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// An http2Peer is the server's end of an http2Conn, frame by frame.
type http2Peer struct {
	*http2.Framer
	t       *testing.T
	fields  *hpack.Decoder
	encoder *hpack.Encoder
	block   bytes.Buffer
}

// newHTTP2Pair returns both ends. The client's first frames have been read.
func newHTTP2Pair(t *testing.T) (*http2Conn, *http2Peer) {
	t.Helper()
	near, far := net.Pipe()
	t.Cleanup(func() { near.Close(); far.Close() })
	p := &http2Peer{Framer: http2.NewFramer(far, far), t: t}
	p.fields = hpack.NewDecoder(4096, nil)
	p.encoder = hpack.NewEncoder(&p.block)
	ready := make(chan *http2Conn)
	go func() {
		c, err := newHTTP2Conn(near, "dns.example", "/dns-query")
		if err != nil {
			t.Error(err)
		}
		ready <- c
	}()
	preface := make([]byte, len(http2.ClientPreface))
	if _, err := io.ReadFull(far, preface); err != nil || string(preface) != http2.ClientPreface {
		t.Fatalf("%q, %v", preface, err)
	}
	for range 2 { // SETTINGS, WINDOW_UPDATE
		p.frame()
	}
	return <-ready, p
}

func (p *http2Peer) frame() http2.Frame {
	p.t.Helper()
	f, err := p.ReadFrame()
	if err != nil {
		p.t.Fatal(err)
	}
	return f
}

// request reads a request, and returns its stream, its header and its body.
func (p *http2Peer) request() (number uint32, header string, body []byte) {
	p.t.Helper()
	h := p.frame().(*http2.HeadersFrame)
	fields, err := p.fields.DecodeFull(h.HeaderBlockFragment())
	if err != nil {
		p.t.Fatal(err)
	}
	var words []string
	for _, f := range fields {
		words = append(words, f.Name+"="+f.Value)
	}
	d := p.frame().(*http2.DataFrame)
	if d.StreamID != h.StreamID || !d.StreamEnded() {
		p.t.Errorf("body: %v", d)
	}
	return h.StreamID, strings.Join(words, " "), bytes.Clone(d.Data())
}

// respond sends a response in one frame each. It may be called by any goroutine.
func (p *http2Peer) respond(number uint32, body []byte) {
	p.t.Helper()
	p.block.Reset()
	err := errors.Join(
		p.encoder.WriteField(hpack.HeaderField{Name: ":status", Value: "200"}),
		p.encoder.WriteField(hpack.HeaderField{Name: "content-type", Value: dnsMessage}),
		p.WriteHeaders(http2.HeadersFrameParam{StreamID: number, BlockFragment: p.block.Bytes(), EndHeaders: true}),
		p.WriteData(number, true, body))
	if err != nil {
		p.t.Error(err)
	}
}

// frames puts messages behind their lengths.
func frames(messages ...string) (all []byte) {
	for _, m := range messages {
		all = append(binary.BigEndian.AppendUint16(all, uint16(len(m))), m...)
	}
	return all
}

// The header of each request can be decoded, also when the server wants a smaller table, or
// none. The ID is left out, and comes back with the response.
func TestRequestsThatAServerCanRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, p := newHTTP2Pair(t)
		read := make(chan string, 100)
		go func() {
			buf := make([]byte, 1<<10)
			for {
				n, err := c.Read(buf)
				if err != nil {
					close(read)
					return
				}
				read <- string(buf[:n])
			}
		}()
		want := ":method=POST :scheme=https :authority=dns.example :path=/dns-query accept=application/dns-message content-type=application/dns-message content-length="
		for i := range 12 {
			message := fmt.Sprintf("%c%cmessage %s", 'a'+i, 'A'+i, strings.Repeat("x", i*20))
			go func() { _, _ = c.Write(frames(message)) }()
			number, header, body := p.request()
			if number != uint32(2*i+1) || header != want+fmt.Sprint(len(message)) || string(body) != "\x00\x00"+message[2:] {
				t.Errorf("%d: request %d %s %q", i, number, header, body)
			}
			p.respond(number, body)
			synctest.Wait()
			if got := <-read; got != "\x00"+string(rune(len(message))) && !strings.HasSuffix(got, message) {
				t.Errorf("%d: got %q", i, got)
			}
			if size, ok := map[int]uint32{3: 0, 6: 100, 9: 4096}[i]; ok {
				if err := p.WriteSettings(http2.Setting{ID: http2.SettingHeaderTableSize, Val: size}); err != nil {
					t.Fatal(err)
				}
				if f, ok := p.frame().(*http2.SettingsFrame); !ok || !f.IsAck() {
					t.Fatalf("no acknowledgement: %v", f)
				}
				p.fields.SetAllowedMaxDynamicTableSize(size)
			}
		}
		c.Conn.Close()
	})
}

// A query waits while the server accepts no more requests, or no more octets.
func TestARequestWaitsForRoom(t *testing.T) {
	f := func(what string, close, open func(p *http2Peer) error) {
		t.Helper()
		synctest.Test(t, func(t *testing.T) {
			c, p := newHTTP2Pair(t)
			go func() { _, _ = io.Copy(io.Discard, c) }()
			if err := close(p); err != nil {
				t.Fatal(err)
			}
			p.frame() // of SETTINGS: its acknowledgement
			written := false
			go func() {
				_, err := c.Write(frames("idfirst", "idsecond"))
				written = err == nil
			}()
			first, _, _ := p.request()
			synctest.Wait()
			if written {
				t.Errorf("%s: both are sent", what)
			}
			p.respond(first, []byte("idanswer"))
			if err := open(p); err != nil {
				t.Fatal(err)
			}
			if _, _, body := p.request(); string(body) != "\x00\x00second" {
				t.Errorf("%s: got %q", what, body)
			}
			synctest.Wait()
			if !written {
				t.Errorf("%s: still waiting", what)
			}
			c.Conn.Close()
		})
	}
	nothing := func(*http2Peer) error { return nil }
	f("one request at once", func(p *http2Peer) error {
		return p.WriteSettings(http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: 1})
	}, nothing)
}

// No more requests are sent at first than any server allows.
func TestTheFirstRequestsAreFew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, p := newHTTP2Pair(t)
		go func() { _, _ = io.Copy(io.Discard, c) }()
		messages := make([]string, 3*http2FirstRoom)
		for i := range messages {
			messages[i] = "idquery"
		}
		sent := 0
		go func() { _, _ = c.Write(frames(messages...)) }()
		go func() {
			for {
				f, err := p.ReadFrame()
				if err != nil {
					return
				}
				if f.Header().Type == http2.FrameHeaders {
					sent++
				}
			}
		}()
		synctest.Wait()
		if sent != http2FirstRoom {
			t.Errorf("%d before the settings", sent)
		}
		if err := p.WriteSettings(); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if sent != len(messages) {
			t.Errorf("%d without a limit", sent)
		}
		c.Conn.Close()
	})
}

// A request that the server has not processed is sent again, and its connection goes on.
func TestARefusedRequestIsReported(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, p := newHTTP2Pair(t)
		go func() { _, _ = c.Write(frames("idquery")) }()
		number, _, _ := p.request()
		go func() { _ = p.WriteRSTStream(number, http2.ErrCodeRefusedStream) }()
		_, err := c.Read(make([]byte, 100))
		var refused *requestError
		if !errors.As(err, &refused) || refused.id != 'i'<<8+'d' || !errors.Is(err, errNotProcessed) {
			t.Errorf("got %v", err)
		}
		synctest.Wait() // for the first Write
		go func() { _, _ = c.Write(frames("idagain")) }()
		number, _, body := p.request()
		go p.respond(number, body)
		message, err := nextFrame(bufio.NewReader(c))
		if err != nil || string(message) != "idagain" {
			t.Errorf("got %q, %v", message, err)
		}
		c.Conn.Close()
	})
}

// What a server may not do ends the connection. None of it makes memory grow.
func TestAServerThatBreaksHTTP2(t *testing.T) {
	f := func(what string, misbehave func(p *http2Peer)) {
		t.Helper()
		synctest.Test(t, func(t *testing.T) {
			c, p := newHTTP2Pair(t)
			ended := make(chan error, 1)
			go func() {
				_, err := io.Copy(io.Discard, c)
				ended <- err
				c.Conn.Close()
			}()
			go func() { _, _ = c.Write(frames("idquery")) }()
			p.request()
			misbehave(p)
			if err := <-ended; err == nil {
				t.Errorf("%s: no error", what)
			}
		})
	}
	f("a header without an end", func(p *http2Peer) {
		_ = p.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte{0x88}})
		for i := 0; i < 1000 && p.WriteContinuation(1, false, bytes.Repeat([]byte{0x88}, 1<<10)) == nil; i++ {
		}
	})
	f("a header that is no HPACK", func(p *http2Peer) {
		_ = p.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte{0xff, 0xff, 0xff, 0xff, 0xff}, EndHeaders: true})
	})
	f("a body without an end", func(p *http2Peer) {
		_ = p.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte{0x88, 0x0f, 0x10, 0x17, 'a', 'p', 'p', 'l', 'i', 'c', 'a', 't', 'i', 'o', 'n', '/', 'd', 'n', 's', '-', 'm', 'e', 's', 's', 'a', 'g', 'e'}, EndHeaders: true})
		for i := 0; i < 100 && p.WriteData(1, false, make([]byte, 1<<13)) == nil; i++ {
		}
	})
	f("a push", func(p *http2Peer) {
		_ = p.WritePushPromise(http2.PushPromiseParam{StreamID: 1, PromiseID: 2, BlockFragment: []byte{0x82}, EndHeaders: true})
	})
	f("a window that is too wide", func(p *http2Peer) {
		_ = p.WriteWindowUpdate(0, 1<<31-1)
	})
}
