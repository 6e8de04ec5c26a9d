package gateway

import (
	"bufio"
	"context"
	"encoding/binary"
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

func (c constant) Exchange(_ context.Context, _ wire.Query) (wire.Answer, error) {
	return c.answer, nil
}

// benchmarkUDP keeps 32 clients busy, each with one packet on its way.
func benchmarkUDP(b *testing.B, packet []byte) {
	g, _ := start(b, fixed(b), Options{})
	b.ReportAllocs()
	b.SetParallelism(16)
	var lost atomic.Int64
	b.RunParallel(func(pb *testing.PB) {
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

func BenchmarkUDPMiss(b *testing.B) { benchmarkUDP(b, packed(query("example.com."), nil)) }

// BenchmarkUDPRefused is the path that cache hits will take.
func BenchmarkUDPRefused(b *testing.B) { benchmarkUDP(b, unwanted["chaos"].packet) }

// BenchmarkTCPPipelined keeps 100 queries on their way over one connection.
func BenchmarkTCPPipelined(b *testing.B) {
	g, _ := start(b, fixed(b), Options{})
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
