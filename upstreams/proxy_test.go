package upstreams

import (
	"bufio"
	"encoding/base64"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"dotgate/configs/secret"
	"dotgate/upstreams/dottest"
)

// proxyServer is a proxy that does with each connection what serve does, and returns where
// it goes on to, or "".
func proxyServer(t *testing.T, serve func(conn net.Conn, r *bufio.Reader) string) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	all.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			all.Go(func() {
				defer conn.Close()
				r := bufio.NewReader(conn)
				to := serve(conn, r)
				if to == "" {
					return
				}
				server, err := net.Dial("tcp", to)
				if err != nil {
					return
				}
				defer server.Close()
				all.Go(func() { _, _ = io.Copy(server, r); server.Close() })
				_, _ = io.Copy(conn, server)
			})
		}
	})
	t.Cleanup(func() { listener.Close(); all.Wait() })
	return listener.Addr().String()
}

// connectProxy answers CONNECT, if the user is right.
func connectProxy(conn net.Conn, r *bufio.Reader) string {
	request, err := http.ReadRequest(r)
	if err != nil || request.Method != http.MethodConnect || request.Host != request.URL.Host {
		return ""
	}
	if request.Header.Get("Proxy-Authorization") != "Basic "+base64.StdEncoding.EncodeToString([]byte("me:secret")) {
		_, _ = io.WriteString(conn, "HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
		return ""
	}
	_, _ = io.WriteString(conn, "HTTP/1.1 200 Connection established\r\nVia: test\r\n\r\n")
	return request.Host
}

// socksProxy answers a CONNECT to an IPv4 address (RFC 1928), if the user is right.
func socksProxy(conn net.Conn, r *bufio.Reader) string {
	methods := make([]byte, 2)
	if _, err := io.ReadFull(r, methods); err != nil {
		return ""
	}
	_, _ = io.CopyN(io.Discard, r, int64(methods[1]))
	_, _ = conn.Write([]byte{5, 2})
	login := make([]byte, len("\x01\x02me\x06secret"))
	if _, err := io.ReadFull(r, login); err != nil || string(login) != "\x01\x02me\x06secret" {
		_, _ = conn.Write([]byte{1, 1})
		return ""
	}
	_, _ = conn.Write([]byte{1, 0})
	request := make([]byte, 10)
	if _, err := io.ReadFull(r, request); err != nil || string(request[:4]) != "\x05\x01\x00\x01" {
		return ""
	}
	_, _ = conn.Write([]byte{5, 0, 0, 1, 0, 0, 0, 0, 0, 0})
	port := int(request[8])<<8 | int(request[9])
	return (&net.TCPAddr{IP: request[4:8], Port: port}).String()
}

func TestConnectionsThroughAProxy(t *testing.T) {
	t.Parallel()
	dot := dottest.NewServer(t, dottest.Options{})
	https, overDoH := overHTTPS(t, dottest.HTTPSOptions{})
	overHTTP, overSOCKS := proxyServer(t, connectProxy), proxyServer(t, socksProxy)
	for _, url := range []string{"http://me:secret@" + overHTTP, "socks5://me:secret@" + overSOCKS} {
		for _, o := range []Options{trusting(t, dot), overDoH} {
			o.Proxy = secret.URL(url)
			u := open(t, o)
			if err := many(u, 20, "n%d.example.com"); err != nil {
				t.Errorf("through %v: %v", o.Proxy, err)
			}
		}
	}
	if dot.Stats().Queries < 40 || https.Requests() < 40 {
		t.Errorf("%d queries, %d requests", dot.Stats().Queries, https.Requests())
	}
}

// Errors name the proxy and the setting, and have no password.
func TestErrorsOfProxies(t *testing.T) {
	t.Parallel()
	dot := dottest.NewServer(t, dottest.Options{})
	says := func(text string) string {
		return proxyServer(t, func(conn net.Conn, r *bufio.Reader) string {
			_, _ = io.WriteString(conn, text)
			_, _ = io.Copy(io.Discard, r)
			return ""
		})
	}
	f := func(scheme, proxy, want string) {
		t.Helper()
		o := trusting(t, dot)
		o.Proxy, o.ConnectTimeout = secret.URL(scheme+"://other:hidden@"+proxy), 300*time.Millisecond
		began, u := time.Now(), open(t, o)
		err := ask(u, "www.example.com")
		if err == nil || !strings.Contains(err.Error(), "through "+scheme+"://"+proxy+" (setting proxy): "+want) || strings.Contains(err.Error(), "hidden") {
			t.Errorf("%s: got %v, want %s", scheme, err, want)
		}
		if took := time.Since(began); took > 3*time.Second {
			t.Errorf("took %v", took)
		}
	}
	f("http", "127.0.0.1:1", "connect: connection refused")
	f("socks5", "127.0.0.1:1", "connect: connection refused")
	f("http", proxyServer(t, connectProxy), `its response to CONNECT is "407 Proxy Authentication Required"`)
	f("socks5", proxyServer(t, socksProxy), "username/password authentication failed")
	f("http", says(""), "no connection within 300ms (setting connect_timeout)")
	f("socks5", says(""), "no connection within 300ms (setting connect_timeout)")
	f("http", says("HTTP/1.1 200 OK\r\n"+strings.Repeat("x", 2*proxyHeaderMax)), "the header of its response has more than 8192 octets")
	f("http", says("SSH-2.0-test\r\n\r\n"), `its response to CONNECT is ""`)
	f("http", proxyServer(t, func(net.Conn, *bufio.Reader) string { return "" }), "no response to CONNECT: ")
	if n := dot.Stats().Accepted; n > 0 {
		t.Errorf("%d connections past the proxy", n)
	}
}
