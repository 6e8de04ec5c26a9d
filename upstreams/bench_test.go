package upstreams

import (
	"context"
	"fmt"
	"testing"

	"dotgate/gateway/wire"
	"dotgate/upstreams/dottest"
)

// BenchmarkExchange asks a server on loopback, in the same process, which costs
// about as much as the upstream does.
func BenchmarkExchange(b *testing.B) {
	for _, underWay := range []int{1, 64} {
		b.Run(fmt.Sprintf("%d_under_way", underWay), func(b *testing.B) {
			u := open(b, trusting(b, dottest.NewServer(b, dottest.Options{})))
			q, err := wire.NewQuery("www.example.com", "A")
			if err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			b.SetParallelism(underWay)
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if _, err := u.Exchange(context.Background(), q); err != nil {
						b.Error(err)
						return
					}
				}
			})
		})
	}
}
