package admin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"dotgate/upstreams/dottest"
)

// TestACrowdKeepsNoHealthCheckOut has more connections than there are places, of one
// client and of many: they ask for events, for metrics that they do not read, or for
// nothing. What keeps the service alive is answered all the same.
func TestACrowdKeepsNoHealthCheckOut(t *testing.T) {
	t.Parallel()
	o := Defaults()
	o.Token = testToken
	w := newWorld(t, o, "one", "two")
	l, err := Listen(Address{netip.AddrPortFrom(dottest.Loopback(), 8053)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var serving sync.WaitGroup
	serving.Go(func() { w.Serve(ctx, l) })
	defer serving.Wait()
	defer cancel()
	url := "http://" + l.Addr().String()
	ask := func(path, token string) {
		t.Helper()
		client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 30 * time.Second}
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		if token != "" {
			r.Header.Set("Authorization", "Bearer "+token)
		}
		response, err := client.Do(r)
		if err != nil {
			t.Errorf("%s: %v", path, err)
			return
		}
		defer response.Body.Close()
		if _, err := io.Copy(io.Discard, response.Body); err != nil || response.StatusCode != http.StatusOK {
			t.Errorf("%s: %d, %v", path, response.StatusCode, err)
		}
	}
	for i, request := range []string{"", "GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n", "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n", "GET /li"} {
		for _, clients := range []int{1, 100} {
			var crowd []net.Conn
			for n := range connectionsMax + 40 {
				from := net.TCPAddr{IP: net.IPv4(127, 3, byte(i), byte(1+n%clients))}
				c, err := (&net.Dialer{LocalAddr: &from}).Dial("tcp", l.Addr().String())
				if err != nil {
					t.Fatal(err)
				}
				if _, err := io.WriteString(c, request); err != nil && !errors.Is(err, syscall.EPIPE) && !errors.Is(err, syscall.ECONNRESET) {
					t.Fatal(err)
				}
				crowd = append(crowd, c)
			}
			for _, path := range []string{"/livez", "/readyz", "/metrics", "/healthz"} {
				ask(path, "")
			}
			ask("/api/status", testToken)
			for _, c := range crowd {
				c.Close()
			}
		}
	}
}

// A client has a bounded number of pages, and others have theirs.
func TestPagesAreLimitedByClient(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Options{}, "one")
	l, err := Listen(Address{netip.AddrPortFrom(dottest.Loopback(), 8053)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var serving sync.WaitGroup
	serving.Go(func() { w.Serve(ctx, l) })
	defer serving.Wait()
	defer cancel()
	open := func(from string) string {
		t.Helper()
		c, err := (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}).Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		c.SetDeadline(time.Now().Add(30 * time.Second))
		fmt.Fprint(c, "GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
		head := make([]byte, len("HTTP/1.1 200"))
		if _, err := io.ReadFull(c, head); err != nil {
			t.Fatal(err)
		}
		return strings.TrimPrefix(string(head), "HTTP/1.1 ")
	}
	for range streamsPerClient {
		if got := open("127.3.9.1"); got != "200" {
			t.Errorf("a page: %s", got)
		}
	}
	if got := open("127.3.9.1"); got != "503" {
		t.Errorf("one page too many: %s", got)
	}
	if got := open("127.3.9.2"); got != "200" {
		t.Errorf("another client's page: %s", got)
	}
}

// TestAnAddressThatIsTaken: the error names the address once.
func TestAnAddressThatIsTaken(t *testing.T) {
	t.Parallel()
	l, err := Listen(Address{netip.AddrPortFrom(dottest.Loopback(), 8053)})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	at := l.Addr().String()
	_, err = Listen(Address{netip.MustParseAddrPort(at)})
	if want := "listen tcp " + at + " (admin.listen): bind: address already in use"; err == nil || err.Error() != want {
		t.Errorf("got %v\nwant %s", err, want)
	}
	if !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("%v is no system error any more", err)
	}
}
