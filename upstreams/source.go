package upstreams

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"syscall"
)

// A source is where packets to an upstream leave from: an address of this machine, or one of
// its interfaces. The zero source leaves that to the system.
type source struct {
	addr   netip.Addr
	device string
}

// deviceMax is how long the name of an interface may be (IFNAMSIZ of Linux).
const deviceMax = 15

func parseSource(text string) (source, error) {
	a, err := netip.ParseAddr(text)
	a = a.Unmap()
	switch {
	case text == "":
		return source{}, nil
	case err == nil && (a.IsUnspecified() || a.IsMulticast()):
		return source{}, fmt.Errorf("%s is no address that packets can leave from", text)
	case err == nil:
		return source{addr: a}, nil
	case len(text) > deviceMax || strings.ContainsAny(text, "/: \t%") || strings.Trim(text, "0123456789.") == "":
		return source{}, fmt.Errorf("%q is neither an address nor the name of an interface", text)
	case !canBind:
		return source{}, errors.New("an interface can be used on Linux only; write an address")
	}
	return source{device: text}, nil
}

func (s source) String() string {
	if s.device != "" {
		return s.device
	}
	return s.addr.String()
}

// connect connects to an address over "tcp" or "udp", with the settings of d. An address of
// the other family than the source's is out of reach.
func (s source) connect(ctx context.Context, d net.Dialer, network string, to netip.AddrPort) (net.Conn, error) {
	if s == (source{}) {
		return d.DialContext(ctx, network, to.String())
	}
	if local := netip.AddrPortFrom(s.addr, 0); s.device != "" {
		control := d.Control
		d.Control = func(network, address string, raw syscall.RawConn) error {
			if control != nil {
				_ = control(network, address, raw) // which never fails
			}
			return bindTo(raw, s.device)
		}
	} else if s.addr.Is4() != to.Addr().Unmap().Is4() {
		return nil, s.refused(syscall.ENETUNREACH)
	} else if network == "udp" {
		d.LocalAddr = net.UDPAddrFromAddrPort(local)
	} else {
		d.LocalAddr = net.TCPAddrFromAddrPort(local)
	}
	conn, err := d.DialContext(ctx, network, to.String())
	for _, refusal := range []error{syscall.EADDRNOTAVAIL, syscall.ENODEV, syscall.EPERM, syscall.EINVAL} {
		if errors.Is(err, refusal) {
			return nil, s.refused(unwrapNet(err))
		}
	}
	return conn, err
}

func (s source) refused(err error) error { return fmt.Errorf("from %v (setting source): %w", s, err) }

// connectUDP returns a socket that sends to one address, and receives from there only.
func (s source) connectUDP(ctx context.Context, to netip.AddrPort) (*net.UDPConn, error) {
	if s == (source{}) {
		return net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to))
	}
	conn, err := s.connect(ctx, net.Dialer{}, "udp", to)
	if err != nil {
		return nil, err
	}
	return conn.(*net.UDPConn), nil
}
