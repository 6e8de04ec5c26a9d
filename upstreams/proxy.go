package upstreams

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"strings"
	"time"

	netproxy "golang.org/x/net/proxy"

	"dotgate/configs/secret"
)

// A proxy is where connections to an upstream are made through. The zero proxy is none.
type proxy struct {
	scheme string // http or socks5
	addr   netip.AddrPort
	user   *url.Userinfo // or nil
}

// The schemes of proxies.
const (
	httpProxy   = "http"
	socks5Proxy = "socks5"
)

// proxyHeaderMax is how long the header of a proxy's response may be.
const proxyHeaderMax = 8 << 10

var errProxyURL = errors.New("is not the URL of a proxy; write http://ADDRESS:PORT or socks5://ADDRESS:PORT, if necessary with USER:PASSWORD@ before the address")

// parseProxy reads the URL of a proxy. Its host must be an address: the name of a proxy would
// have to be asked for outside of it. No error has a part of the URL in it.
func parseProxy(text secret.URL) (proxy, error) {
	if text == "" {
		return proxy{}, nil
	}
	u, err := url.Parse(string(text))
	if err != nil || u.Scheme != httpProxy && u.Scheme != socks5Proxy || strings.Trim(u.Path, "/")+u.RawQuery+u.Fragment != "" {
		return proxy{}, errProxyURL
	}
	p := proxy{scheme: u.Scheme, user: u.User}
	if p.addr, err = netip.ParseAddrPort(u.Host); err != nil || p.addr.Port() == 0 || p.addr.Addr().IsUnspecified() {
		return proxy{}, errProxyURL
	}
	return p, nil
}

func (p proxy) String() string { return p.scheme + "://" + p.addr.String() }

// wrap returns dial through the proxy. All of it, the proxy's part too, takes until the limit
// at most.
func (p proxy) wrap(dial networkDial) networkDial {
	if p == (proxy{}) {
		return dial
	}
	return func(ctx context.Context, addr netip.AddrPort, limit time.Duration, small bool) (net.Conn, error) {
		ctx, cancel := context.WithTimeoutCause(ctx, limit, noConnection(limit))
		defer cancel()
		conn, err := dial(ctx, p.addr, limit, small)
		if err != nil {
			return nil, p.failed(ctx, err, limit)
		}
		stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
		if p.scheme == httpProxy {
			err = p.connect(conn, addr)
		} else {
			err = p.socks5(ctx, conn, addr)
		}
		if !stop() && err == nil {
			err = context.Cause(ctx)
		}
		if err != nil {
			conn.Close()
			return nil, p.failed(ctx, err, limit)
		}
		return conn, conn.SetDeadline(time.Time{})
	}
}

// failed names the proxy in an error.
func (p proxy) failed(ctx context.Context, err error, limit time.Duration) error {
	if timeout, ok := errors.AsType[net.Error](err); ok && timeout.Timeout() {
		err = noConnection(limit)
	}
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	return fmt.Errorf("through %v (setting proxy): %w", p, err)
}

// connect asks an HTTP proxy for a connection (RFC 9110 section 9.3.6).
func (p proxy) connect(conn net.Conn, to netip.AddrPort) error {
	request := fmt.Sprintf("CONNECT %v HTTP/1.1\r\nHost: %[1]v\r\n", to)
	if p.user != nil {
		password, _ := p.user.Password()
		request += "Proxy-Authorization: Basic " + base64.StdEncoding.EncodeToString([]byte(p.user.Username()+":"+password)) + "\r\n"
	}
	if _, err := conn.Write([]byte(request + "\r\n")); err != nil {
		return unwrapNet(err)
	}
	var header []byte
	for one := make([]byte, 1); !bytes.HasSuffix(header, []byte("\r\n\r\n")); { // what follows is the server's
		if len(header) == proxyHeaderMax {
			return fmt.Errorf("the header of its response has more than %d octets", proxyHeaderMax)
		}
		n, err := conn.Read(one)
		if err != nil {
			return fmt.Errorf("no response to CONNECT: %w", unwrapNet(err))
		}
		header = append(header, one[:n]...)
	}
	version, rest, _ := strings.Cut(string(header), " ")
	status, _, _ := strings.Cut(rest, "\r\n")
	if !strings.HasPrefix(version, "HTTP/1.") || !strings.HasPrefix(status, "2") {
		return fmt.Errorf("its response to CONNECT is %.80q", status)
	}
	return nil
}

// socks5 asks a SOCKS proxy for a connection (RFC 1928, RFC 1929).
func (p proxy) socks5(ctx context.Context, conn net.Conn, to netip.AddrPort) error {
	var auth *netproxy.Auth
	if p.user != nil {
		password, _ := p.user.Password()
		auth = &netproxy.Auth{User: p.user.Username(), Password: password}
	}
	dialer, err := netproxy.SOCKS5("tcp", p.addr.String(), auth, connected{conn})
	if err != nil {
		return err
	}
	_, err = dialer.(netproxy.ContextDialer).DialContext(ctx, "tcp", to.String())
	return unwrapNet(err)
}

// connected is a dialer that has a connection already.
type connected struct{ net.Conn }

func (c connected) Dial(string, string) (net.Conn, error) { return c.Conn, nil }

// DialContext is for package netproxy.
func (c connected) DialContext(context.Context, string, string) (net.Conn, error) { return c.Conn, nil }
