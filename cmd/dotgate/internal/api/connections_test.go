package api

import (
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// crowd enters places, as "a waiting, b stream, a vital": a second passes between them.
// It returns the connections by their number.
func crowd(p *Connections, text string) (all []*place) {
	clients := map[string]netip.Prefix{"a": netip.MustParsePrefix("192.0.2.1/32"), "b": netip.MustParsePrefix("192.0.2.2/32"), "c": netip.MustParsePrefix("2001:db8::/64")}
	kinds := map[string]Kind{"waiting": Waiting, "stream": Stream, "request": Asking, "vital": Vital, "trusted": Trusted}
	for one := range strings.SplitSeq(text, ", ") {
		words := strings.Fields(one)
		here, there := net.Pipe()
		there.Close()
		c := &place{Conn: here, places: p, client: clients[words[0]], kind: kinds[words[1]], since: time.Now()}
		if p.enter(c) {
			all = append(all, c)
		}
		time.Sleep(time.Second) // fake time
	}
	return all
}

func TestWhichConnectionMakesRoom(t *testing.T) {
	f := func(text, want string) {
		t.Helper()
		synctest.Test(t, func(t *testing.T) {
			n := strings.Count(text, ",") // the last one is one too many
			p := NewConnections(n, n, n)
			all := crowd(p, text)
			var left []string
			for i, c := range all {
				if _, open := p.open[c]; open {
					left = append(left, fmt.Sprint(i))
				}
			}
			if got := strings.Join(left, " "); got != want {
				t.Errorf("%s: left are %s, want %s", text, got, want)
			}
		})
	}
	f("a waiting, b waiting, c waiting", "1 2")              // the oldest
	f("b waiting, a waiting, a waiting, c waiting", "0 2 3") // of the client with most
	f("a stream, a waiting, c waiting", "0 2")               // the least kind
	f("a vital, a vital, b stream, c waiting", "0 1 3")
	f("a vital, a vital, b vital, c waiting", "1 2 3") // even those
	f("a trusted, a trusted, c waiting", "0 1")        // but not those
	f("a trusted, b vital, a trusted, c waiting", "0 2 3")
	f("a request, b vital, a request, a request, c waiting", "1 2 3 4")
}

func TestStreamsAreBoundedByClient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := NewConnections(10, 4, 3)
		all := crowd(p, "a stream, a stream, a stream, a waiting, b waiting, b waiting, c waiting")
		begin := func(c *place) bool {
			r, err := http.NewRequestWithContext(connContext(t.Context(), c), http.MethodGet, "/events", nil)
			if err != nil {
				t.Fatal(err)
			}
			_, ok := p.Begin(r, Stream)
			return ok
		}
		if begin(all[3]) {
			t.Error("a client has more streams than it may")
		}
		if !begin(all[4]) || !begin(all[5]) || !begin(all[6]) {
			t.Error("another client may have none")
		}
		_, first := p.open[all[0]]
		_, second := p.open[all[1]]
		_, third := p.open[all[2]]
		if first || second || !third {
			t.Errorf("of the first client's streams are left %t %t %t", first, second, third)
		}
	})
}

// Connections come, begin, end and go at once.
func TestConnectionsComeAndGoAtOnce(t *testing.T) {
	p := NewConnections(8, 4, 2)
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			for n := range 200 {
				here, there := net.Pipe()
				c := &place{Conn: here, places: p, client: netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}), 32), since: time.Now()}
				if !p.enter(c) {
					t.Error("no place")
				}
				r, err := http.NewRequestWithContext(connContext(t.Context(), c), http.MethodGet, "/", nil)
				if err != nil {
					t.Error(err)
				}
				if end, ok := p.Begin(r, Kind(n%4)); ok {
					end()
				}
				c.Close()
				there.Close()
			}
		})
	}
	all.Wait()
	if len(p.open) != 0 {
		t.Errorf("%d are left", len(p.open))
	}
}
