package gateway

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
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

func (c constant) Ask(_ context.Context, _ wire.Query, done func(wire.Answer, error)) {
	done(c.answer, nil)
}

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

// BenchmarkHit measures a hit in the read loop, without the system calls
// and with them, with a batch of one packet and with a full one.
func BenchmarkHit(b *testing.B) {
	b.Run("without system calls", func(b *testing.B) {
		from, packet := hitClient(b)
		reply := make([]byte, 0, wire.MaxUDPSize)
		b.ReportAllocs()
		for b.Loop() {
			if _, p := from.Answer(reply, packet); p != nil {
				b.Fatal("a miss")
			}
		}
	})
	b.Run("without system calls, parallel", func(b *testing.B) {
		first, packet := hitClient(b)
		b.ReportAllocs()
		b.RunParallel(func(pb *testing.PB) {
			reply, from := make([]byte, 0, wire.MaxUDPSize), localClient(first.gateway, new(counters))
			for pb.Next() {
				from.Answer(reply, packet)
			}
		})
	})
	for _, size := range []int{1, 32} {
		b.Run(fmt.Sprintf("burst of %d", size), func(b *testing.B) {
			g, _ := start(b, fixed(b), Options{Cache: newCache(b, nil)})
			c := dial(b, "udp", g.Addrs()[0])
			c.SetDeadline(time.Time{})
			packet, reply := packed(query("example.com."), nil), make([]byte, 2048)
			b.ReportAllocs()
			for done := 0; done < b.N; done += size {
				for range size {
					c.Write(packet)
				}
				for range size {
					if _, err := c.Read(reply); err != nil {
						b.Fatal(err)
					}
				}
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
