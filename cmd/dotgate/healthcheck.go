package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"time"

	"dotgate/configs"
	"dotgate/gateway/wire"
)

// healthcheckLimit is below the second or two after which container engines and
// keepalived lose patience.
const healthcheckLimit = 1500 * time.Millisecond

// healthcheck asks the gateway, where the configuration says that it listens,
// what its own probes ask upstreams. It takes a real answer to be well.
func healthcheck(ctx context.Context, config *configs.Config, out io.Writer) error {
	ctx, cancel := context.WithTimeout(ctx, healthcheckLimit)
	defer cancel()
	query, err := wire.NewQuery(config.Health.ProbeName, config.Health.ProbeType)
	if err != nil {
		return err
	}
	for _, addr := range config.Gateway.Listen {
		addr = reachable(addr)
		for _, network := range []string{"udp", "tcp"} {
			if err := ask(ctx, network, addr, query); err != nil {
				return fmt.Errorf("ask %s over %s for %v: %w", addr, network, query, err)
			}
		}
	}
	fmt.Fprintf(out, "ok: %s answered over UDP and TCP\n", joined(config.Gateway.Listen, func(a netip.AddrPort) string { return reachable(a).String() }))
	return nil
}

// reachable turns a wildcard address into one that can be asked.
func reachable(addr netip.AddrPort) netip.AddrPort {
	switch {
	case !addr.Addr().IsUnspecified():
		return addr
	case addr.Addr().Is4():
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), addr.Port())
	}
	return netip.AddrPortFrom(netip.IPv6Loopback(), addr.Port())
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
