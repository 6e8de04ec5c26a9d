package upstreams

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"
)

const (
	// resolveEvery is how long addresses of a name are used before they are
	// looked up again. Those of public resolvers outlive their TTLs by years.
	resolveEvery = 5 * time.Minute
	// resolveTimeout bounds a look-up by all bootstrap resolvers together.
	resolveTimeout = 3 * time.Second
)

// A bootstrap is a resolver that is asked for the address of an upstream.
type bootstrap struct {
	addr       netip.AddrPort
	tls        bool
	serverName string // empty: the certificate must be valid for the address
}

// parseBootstrap reads "192.0.2.1", "192.0.2.1:53" or
// "tls://192.0.2.1:853#dns.example".
func parseBootstrap(text string) (bootstrap, error) {
	rest, secure := strings.CutPrefix(text, "tls://")
	address, name, _ := strings.Cut(rest, "#")
	port := uint16(53)
	if secure {
		port = 853
	}
	b := bootstrap{tls: secure, serverName: name}
	var err error
	if b.addr, err = netip.ParseAddrPort(address); err != nil {
		var ip netip.Addr
		if ip, err = netip.ParseAddr(strings.Trim(address, "[]")); err == nil {
			b.addr = netip.AddrPortFrom(ip, port)
		}
	}
	if err != nil || b.addr.Port() == 0 || !secure && name != "" {
		return bootstrap{}, fmt.Errorf("%q is neither ADDRESS[:PORT] nor tls://ADDRESS[:PORT][#NAME]", text)
	}
	return b, nil
}

// resolve looks up the addresses of Host, if there is one and the last look-up is old
// enough. While some endpoints are known, a look-up that takes longer than attemptDelay is
// continued in the background. They stay in use when no resolver answers.
func (d *dialer) resolve(ctx context.Context) error {
	d.mu.Lock()
	known := len(d.endpoints) > 0 && d.background != nil
	due := d.o.Host != "" && !d.resolving && (len(d.endpoints) == 0 || time.Since(d.resolved) > resolveEvery)
	d.resolving = d.resolving || due && known
	d.mu.Unlock()
	switch {
	case !due:
		return nil
	case !known:
		return d.setHosts(ctx)
	}
	looked := make(chan struct{})
	d.background(func(ctx context.Context) {
		defer close(looked)
		d.resolveAgain(ctx)
	})
	select {
	case <-looked:
	case <-time.After(attemptDelay):
	case <-ctx.Done():
	}
	return nil
}

// resolveAgain looks up the addresses of Host while other addresses are known.
func (d *dialer) resolveAgain(ctx context.Context) {
	err := d.setHosts(ctx)
	d.mu.Lock()
	repeated := d.unresolved
	d.resolving, d.unresolved = false, err != nil
	d.mu.Unlock()
	if err != nil && !repeated && ctx.Err() == nil {
		d.log.Warn("host was not resolved, known addresses are used", "host", d.o.Host, "error", err)
	}
}

// setHosts looks up the addresses of Host, and makes them endpoints.
func (d *dialer) setHosts(ctx context.Context) error {
	hosts, err := d.lookUp(ctx)
	if err != nil {
		return err
	}
	d.setPlaces(d.o.placesOf(hosts))
	d.mu.Lock()
	d.resolved = time.Now()
	d.mu.Unlock()
	return nil
}

func (d *dialer) lookUp(ctx context.Context) (hosts []netip.Addr, err error) {
	ctx, cancel := context.WithTimeout(ctx, resolveTimeout)
	defer cancel()
	var last error
	for _, text := range d.o.Bootstrap {
		b, err := parseBootstrap(text)
		if err != nil {
			return nil, err
		}
		resolver := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return d.dialBootstrap(ctx, network, b)
		}}
		// The dot at the end excludes search domains.
		ips, err := resolver.LookupNetIP(ctx, "ip", strings.TrimSuffix(d.o.Host, ".")+".")
		if err != nil {
			last = err
			continue
		}
		for _, ip := range ips {
			hosts = append(hosts, ip.Unmap())
		}
		return hosts, nil
	}
	return nil, &failure{Bootstrapping, fmt.Errorf("resolve %s through %s (setting bootstrap): %w", d.o.Host, strings.Join(d.o.Bootstrap, ", "), last)}
}

// dialBootstrap connects to b, until ctx is done: net.Resolver would leave a read behind. It uses
// the TCP format on any connection that is not a net.PacketConn. Over TLS, that is
// DNS-over-TLS.
func (d *dialer) dialBootstrap(ctx context.Context, network string, b bootstrap) (conn net.Conn, err error) {
	defer func() {
		if err == nil {
			context.AfterFunc(ctx, func() { conn.Close() })
		}
	}()
	if !b.tls {
		return new(net.Dialer).DialContext(ctx, network, b.addr.String())
	}
	name := b.serverName
	if name == "" {
		name = b.addr.Addr().String()
	}
	roots, err := d.o.roots()
	if err != nil {
		return nil, err
	}
	secure := tls.Dialer{Config: &tls.Config{MinVersion: tls.VersionTLS12, ServerName: name, RootCAs: roots}}
	return secure.DialContext(ctx, "tcp", b.addr.String())
}
