package gateway

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"dotgate/gateway/wire"
)

// fixed answers the same to everyone, so that benchmarks measure the gateway.
func fixed(b *testing.B) Resolver {
	q, err := wire.ParseQuery(packed(query("example.com."), nil), wire.UDP)
	if err != nil {
		b.Fatal(err)
	}
	a, err := answer(q, record("example.com. 60 IN A 192.0.2.1"))
	if err != nil {
		b.Fatal(err)
	}
	return constant{a}
}

type constant struct{ answer wire.Answer }

func (c constant) Ask(_ wire.Query, _ time.Time, done func(wire.Answer, error)) { done(c.answer, nil) }

// benchmarkUDP keeps 32 clients busy, each with one packet on its way. A zero
// in the packet becomes another letter for each of them.
func benchmarkUDP(b *testing.B, packet []byte, o Options) {
	g, _ := start(b, fixed(b), o)
	b.ReportAllocs()
	b.SetParallelism(16)
	var lost, clients atomic.Int64
	b.RunParallel(func(pb *testing.PB) {
		packet := bytes.ReplaceAll(packet, []byte{'0'}, []byte{byte('a' + clients.Add(1)%26)})
		c := dial(b, "udp", g.Addrs()[0])
		c.SetDeadline(time.Time{})
		reply := make([]byte, 2048)
		for pb.Next() {
			c.Write(packet)
			if _, err := c.Read(reply); err != nil {
				lost.Add(1)
				return
			}
		}
	})
	b.StopTimer()
	if lost.Load() > 0 {
		b.Errorf("%d replies lost", lost.Load())
	}
}

func BenchmarkUDPMiss(b *testing.B) {
	benchmarkUDP(b, packed(query("0xample.com."), nil), Options{})
}

func BenchmarkUDPHit(b *testing.B) {
	benchmarkUDP(b, packed(query("example.com."), nil), Options{Cache: newCache(b, nil)})
}

func BenchmarkUDPRefused(b *testing.B) { benchmarkUDP(b, unwanted["chaos"].packet, Options{}) }

// BenchmarkHit is what a hit costs in the read loop, without the system calls
// and with them, with a batch of one packet and with a full one.
func BenchmarkHit(b *testing.B) {
	b.Run("without system calls", func(b *testing.B) {
		s, packet := hitSocket(b, "127.0.0.1:0")
		reply, from := make([]byte, 0, wire.MaxUDPSize), localClient()
		b.ReportAllocs()
		for b.Loop() {
			if _, _, next := s.gateway.answerNow(reply, packet, from, &s.tally); next != send {
				b.Fatal(next)
			}
		}
	})
	b.Run("without system calls, parallel", func(b *testing.B) {
		s, packet := hitSocket(b, "127.0.0.1:0")
		b.ReportAllocs()
		b.RunParallel(func(pb *testing.PB) {
			reply, from, count := make([]byte, 0, wire.MaxUDPSize), localClient(), new(tally)
			for pb.Next() {
				s.gateway.answerNow(reply, packet, from, count)
			}
		})
	})
	for _, size := range []int{1, batchSize} {
		b.Run(fmt.Sprintf("batch of %d", size), func(b *testing.B) {
			s, packet := hitSocket(b, "127.0.0.1:0")
			client, err := net.DialUDP("udp4", nil, s.conn.LocalAddr().(*net.UDPAddr))
			if err != nil {
				b.Fatal(err)
			}
			defer client.Close()
			packets, err := newBatchConn(client)
			if err != nil {
				b.Fatal(err)
			}
			burst, replies := make([]datagram, size), newDatagrams(packetSize)
			for i := range burst {
				burst[i].packet = packet
			}
			b.ReportAllocs()
			for done := 0; done < b.N; {
				packets.write(burst)
				for left := size; left > 0; {
					n, err := readBatch(s.batch, s.in)
					if err != nil {
						b.Fatal(err)
					}
					s.handle(s.in[:n])
					left -= n
				}
				for left := size; left > 0; {
					n, err := readBatch(packets, replies)
					if err != nil {
						b.Fatal(err)
					}
					left -= n
				}
				done += size
			}
		})
	}
}

// BenchmarkTCPPipelined keeps 100 queries on their way over one connection.
func BenchmarkTCPPipelined(b *testing.B) {
	b.Run("miss", func(b *testing.B) { benchmarkTCP(b, Options{}) })
	b.Run("hit", func(b *testing.B) { benchmarkTCP(b, Options{Cache: newCache(b, nil)}) })
}

func benchmarkTCP(b *testing.B, o Options) {
	g, _ := start(b, fixed(b), o)
	c := dial(b, "tcp", g.Addrs()[0])
	c.SetDeadline(time.Time{})
	message := framed(packed(query("example.com."), nil))
	const window = 100
	var burst []byte
	for range window {
		burst = append(burst, message...)
	}
	b.ReportAllocs()
	b.ResetTimer()
	in := bufio.NewReader(c)
	prefix, reply := make([]byte, 2), make([]byte, 2048)
	for done := 0; done < b.N; done += window {
		if _, err := c.Write(burst); err != nil {
			b.Fatal(err)
		}
		for range window {
			if _, err := io.ReadFull(in, prefix); err != nil {
				b.Fatal(err)
			}
			if _, err := io.ReadFull(in, reply[:binary.BigEndian.Uint16(prefix)]); err != nil {
				b.Fatal(err)
			}
		}
	}
}
