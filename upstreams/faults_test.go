package upstreams

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"
)

// framed returns a response to a query for name, behind its length.
func framed(t *testing.T, name string, rcode int) []byte {
	t.Helper()
	m := new(dns.Msg).SetRcode(new(dns.Msg).SetQuestion(name, dns.TypeA), rcode)
	m.Id = uint16(len(name))
	if rcode == dns.RcodeSuccess {
		rr, err := dns.NewRR(name + " 60 IN A 192.0.2.1")
		if err != nil {
			t.Fatal(err)
		}
		m.Answer = append(m.Answer, rr)
	}
	packed, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return append(binary.BigEndian.AppendUint16(nil, uint16(len(packed))), packed...)
}

// faultyPipe returns a connection with faults, and its peer.
func faultyPipe(t *testing.T, f *faults) (c link, peer net.Conn) {
	t.Helper()
	near, peer := net.Pipe()
	c = f.wrap(newLink(near, near, false), new(endpoint))
	t.Cleanup(func() { c.abort(); peer.Close(); f.reading.Wait() })
	return c, peer
}

// A fault may begin at any octet. What has begun to be read stays as it is.
func TestAFaultBeginsBetweenMessages(t *testing.T) {
	first, second, third := framed(t, "a.example.", 0), framed(t, "bb.example.", 0), framed(t, "ccc.example.", 0)
	failure := func(name string) []byte { return framed(t, name, dns.RcodeServerFailure) }
	stream := slices.Concat(first, second, third)
	for cut := range len(first) + len(second) + 1 {
		want := slices.Concat(first, second, failure("ccc.example."))
		switch {
		case cut == 0:
			want = slices.Concat(failure("a.example."), failure("bb.example."), failure("ccc.example."))
		case cut <= len(first):
			want = slices.Concat(first, failure("bb.example."), failure("ccc.example."))
		}
		var f faults
		c, peer := faultyPipe(t, &f)
		go func() {
			for _, part := range [][]byte{stream[:cut], stream[cut:]} {
				for chunk := range slices.Chunk(part, 7) {
					_, _ = peer.Write(chunk)
				}
			}
			peer.Close()
		}()
		got := make([]byte, cut)
		if _, err := io.ReadFull(c, got); err != nil {
			t.Fatal(err)
		}
		end, started := f.start(Drill{Fault: ServFail, Share: 100})
		if !started {
			t.Fatal("a drill is running already")
		}
		rest, err := io.ReadAll(c)
		end()
		if got = append(got, rest...); err != nil || !bytes.Equal(got, want) {
			t.Errorf("fault after %d octets: got %q, %v\nwant %q", cut, got, err, want)
		}
	}
}

func TestFaultsOfAConnection(t *testing.T) {
	message := framed(t, "www.example.", 0)
	// f starts a fault, has the peer send a message after 10 ms and end the connection after
	// 20 ms, ends the fault after 10 s, and wants these events.
	f := func(drill Drill, want string) {
		t.Helper()
		synctest.Test(t, func(t *testing.T) {
			var f faults
			c, peer := faultyPipe(t, &f)
			began := time.Now()
			end, _ := f.start(drill)
			time.AfterFunc(10*time.Second, end)
			time.AfterFunc(10*time.Millisecond, func() { _, _ = peer.Write(message) })
			time.AfterFunc(20*time.Millisecond, func() { peer.Close() })
			got := ""
			buf := make([]byte, 512)
			for {
				n, err := c.Read(buf)
				if err != nil {
					got += fmt.Sprintf("%v@%v", err, time.Since(began))
					break
				}
				got += fmt.Sprintf("rcode %d@%v ", buf[2+3]&0xf, time.Since(began))
				if n == 0 {
					t.Fatal("read nothing")
				}
			}
			if got != want {
				t.Errorf("%v: got %s, want %s", drill, got, want)
			}
			time.Sleep(time.Minute)
		})
	}
	f(Drill{Fault: Blackhole}, "EOF@10s")
	f(Drill{Fault: Late, Delay: time.Second}, "rcode 0@1.01s EOF@1.01s")
	f(Drill{Fault: Late, Delay: 10 * time.Second}, "rcode 0@10s EOF@10s")
	f(Drill{Fault: ServFail, Share: 100}, "rcode 2@10ms EOF@20ms")
	f(Drill{Fault: Hangup}, "EOF@0s")
}

// A connection that is closed on this side does not wait for the end of a fault.
func TestTheEndOfAConnectionEndsItsFaults(t *testing.T) {
	for _, drill := range []Drill{{Fault: Blackhole}, {Fault: Late, Delay: time.Hour}} {
		synctest.Test(t, func(t *testing.T) {
			var f faults
			c, peer := faultyPipe(t, &f)
			end, _ := f.start(drill)
			defer end()
			go func() {
				_, _ = peer.Write(framed(t, "www.example.", 0))
				peer.Close()
			}()
			time.AfterFunc(time.Second, c.abort)
			began := time.Now()
			if n, err := c.Read(make([]byte, 512)); n > 0 || err == nil || time.Since(began) != time.Second {
				t.Errorf("%v: read %d octets, %v after %v", drill, n, err, time.Since(began))
			}
			synctest.Wait()
			f.mu.Lock()
			defer f.mu.Unlock()
			if len(f.conns) > 0 {
				t.Error("the connection is still listed")
			}
		})
	}
}

// Wherever a drill begins in a stream of messages, those that follow are found, and the one
// that has been read in part is not taken for a whole one.
func TestTheSplitterFindsTheNextMessage(t *testing.T) {
	stream := []byte("\x00\x01a\x00\x03bcd\x00\x00\x00\x02ef")
	starts := []int{0, 3, 8, 10, len(stream)}
	for first := range len(stream) + 1 {
		for second := first; second <= len(stream); second++ {
			var s frameSplitter
			s.pass(slices.Clone(stream[:first]))
			s.pass(slices.Clone(stream[first:second]))
			s.buf = append(s.buf, stream[second:]...)
			at := second
			for frame, whole := s.next(); frame != nil; frame, whole = s.next() {
				if starting := slices.Contains(starts, at); whole != starting {
					t.Errorf("read up to %d and %d: whole is %v at %d", first, second, whole, at)
				}
				if !bytes.Equal(frame, stream[at:at+len(frame)]) {
					t.Errorf("read up to %d and %d: %q at %d", first, second, frame, at)
				}
				at += len(frame)
			}
			if at != len(stream) {
				t.Errorf("read up to %d and %d: messages up to %d were found", first, second, at)
			}
		}
	}
}
