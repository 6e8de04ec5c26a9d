package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"time"

	"dotgate/cmd/dotgate/admin"
	"dotgate/configs"
	"dotgate/gateway/wire"
)

// healthcheckLimit is below the second or two after which container engines and
// keepalived lose patience.
const healthcheckLimit = 1500 * time.Millisecond

// healthcheck asks the gateway, where the configuration says that it listens,
// for a name below the one that its own probes ask for: a new one each second,
// which only an upstream can tell about, even if it is that there is none.
func healthcheck(ctx context.Context, config *configs.Config, out io.Writer) error {
	ctx, cancel := context.WithTimeout(ctx, healthcheckLimit)
	defer cancel()
	name := fmt.Sprintf("healthcheck-%d.%s", time.Now().Unix(), strings.TrimPrefix(config.Health.ProbeName, "."))
	query, err := wire.NewQuery(name, config.Health.ProbeType)
	if err != nil {
		return err
	}
	var asked []string
	for _, addr := range config.Gateway.Listen {
		where, err := askSome(ctx, reachable(addr), query)
		if err != nil {
			return err
		}
		asked = append(asked, where.String())
	}
	ready, err := askReady(ctx, config)
	if err != nil {
		return err
	}
	told := ""
	if ready.Ready {
		told = "; " + ready.String()
	}
	fmt.Fprintf(out, "ok: %s answered over UDP and TCP%s\n", strings.Join(asked, ", "), told)
	return nil
}

// A notReady is the error of a gateway that answers, but says that clients should
// not come.
type notReady struct {
	at        netip.AddrPort
	readiness admin.Readiness
}

func (e *notReady) Error() string { return fmt.Sprintf("%s says %v", e.at, e.readiness) }

// askReady returns a *notReady if the gateway says that it is not ready, as it does
// first when it is about to stop. That nobody says anything is an error too, unless
// nobody asked for anybody there: then it returns the zero Readiness.
func askReady(ctx context.Context, config *configs.Config) (r admin.Readiness, err error) {
	if !config.Admin.Listen.IsValid() {
		return r, nil
	}
	for _, addr := range reachable(config.Admin.Listen.AddrPort) {
		if r, err = admin.AskReady(ctx, config.Admin, addr); err != nil {
			continue
		}
		if !r.Ready {
			return r, &notReady{addr, r}
		}
		return r, nil
	}
	if errors.Is(err, syscall.ECONNREFUSED) && config.IsDefault("admin.listen") {
		return r, nil
	}
	return r, fmt.Errorf("ask whether it is ready (setting admin.listen): %w", err)
}

// reachable returns the addresses at which to ask who listens at addr: any of
// them will do. A wildcard of IPv6 is one of IPv4 too, and may be only that.
func reachable(addr netip.AddrPort) []netip.AddrPort {
	loopback4 := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), addr.Port())
	switch {
	case !addr.Addr().IsUnspecified():
		return []netip.AddrPort{addr}
	case addr.Addr().Is4():
		return []netip.AddrPort{loopback4}
	}
	return []netip.AddrPort{loopback4, netip.AddrPortFrom(netip.IPv6Loopback(), addr.Port())}
}

// askSome returns the first of addrs that answers over both UDP and TCP.
func askSome(ctx context.Context, addrs []netip.AddrPort, query wire.Query) (netip.AddrPort, error) {
	var problem error
	for _, addr := range addrs {
		problem = nil
		for _, network := range []string{"udp", "tcp"} {
			if err := ask(ctx, network, addr, query); err != nil {
				problem = fmt.Errorf("ask %s over %s for %v: %w", addr, network, query, err)
				break
			}
		}
		if problem == nil {
			return addr, nil
		}
	}
	return netip.AddrPort{}, problem
}

func ask(ctx context.Context, network string, addr netip.AddrPort, query wire.Query) error {
	conn, err := new(net.Dialer).DialContext(ctx, network, addr.String())
	if err != nil {
		return err
	}
	defer conn.Close()
	if deadline, ok := ctx.Deadline(); ok {
		_ = conn.SetDeadline(deadline)
	}
	reply, err := exchange(conn, network == "tcp", query.Packet())
	if err != nil {
		return err
	}
	if wire.ID(reply) != wire.ID(query.Packet()) {
		return fmt.Errorf("reply to another query")
	}
	answer, err := wire.ParseAnswer(query, reply)
	if err != nil {
		return err
	}
	if r := answer.RCode(); r != wire.NoError && r != wire.NXDomain {
		return fmt.Errorf("reply is %v", r)
	}
	return nil
}

// exchange sends packet and returns the next message, at least a header long.
func exchange(conn net.Conn, framed bool, packet []byte) ([]byte, error) {
	if framed {
		packet = append(binary.BigEndian.AppendUint16(nil, uint16(len(packet))), packet...)
	}
	if _, err := conn.Write(packet); err != nil {
		return nil, err
	}
	reply := make([]byte, wire.MaxSize)
	if framed {
		if _, err := io.ReadFull(conn, reply[:2]); err != nil {
			return nil, err
		}
		reply = reply[:binary.BigEndian.Uint16(reply)]
		if _, err := io.ReadFull(conn, reply); err != nil {
			return nil, err
		}
	} else {
		n, err := conn.Read(reply)
		if err != nil {
			return nil, err
		}
		reply = reply[:n]
	}
	if len(reply) < 12 {
		return nil, fmt.Errorf("reply of %d octets", len(reply))
	}
	return reply, nil
}
