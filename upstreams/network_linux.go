package upstreams

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"
)

// settleTime is how long the network must not change for a change to be complete: when a
// link comes up, its addresses follow, and then their routes.
const settleTime = 30 * time.Millisecond

// WatchNetwork calls up when a link, an address or a route of this machine has come up,
// and changed when a link, an address or a default route has come, gone or changed, until
// ctx is done. It blocks; up and changed must not. A burst of changes is one call.
func WatchNetwork(ctx context.Context, up, changed func()) error {
	socket, err := openNetlink()
	if err != nil {
		return fmt.Errorf("watch the network (netlink): %w", err)
	}
	defer socket.Close()
	// The deadline ends a read.
	stop := context.AfterFunc(ctx, func() { _ = socket.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	buf := make([]byte, os.Getpagesize())
	carriers := make(map[int32]bool) // of links, by index
	var seen changes
	for ctx.Err() == nil {
		n, err := socket.Read(buf)
		switch {
		case err == nil:
			seen = seen.with(changesIn(buf[:n], carriers))
		case errors.Is(err, os.ErrDeadlineExceeded):
			now := seen
			seen = changes{}
			if now.any && ctx.Err() == nil {
				changed()
			}
			if now.up && ctx.Err() == nil {
				up()
			}
		case errors.Is(err, syscall.ENOBUFS): // messages were lost
			seen = changes{up: true, any: true}
		default:
			return fmt.Errorf("watch the network (netlink): %w", err)
		}
		deadline := time.Time{}
		if seen != (changes{}) {
			deadline = time.Now().Add(settleTime)
		}
		if ctx.Err() == nil {
			_ = socket.SetReadDeadline(deadline)
		}
	}
	return nil
}

func openNetlink() (*os.File, error) {
	fd, err := syscall.Socket(syscall.AF_NETLINK, syscall.SOCK_RAW|syscall.SOCK_CLOEXEC|syscall.SOCK_NONBLOCK, syscall.NETLINK_ROUTE)
	if err != nil {
		return nil, err
	}
	groups := uint32(0)
	for _, group := range []int{
		syscall.RTNLGRP_LINK, syscall.RTNLGRP_IPV4_IFADDR, syscall.RTNLGRP_IPV6_IFADDR,
		syscall.RTNLGRP_IPV4_ROUTE, syscall.RTNLGRP_IPV6_ROUTE,
	} {
		groups |= 1 << (group - 1)
	}
	if err := syscall.Bind(fd, &syscall.SockaddrNetlink{Family: syscall.AF_NETLINK, Groups: groups}); err != nil {
		syscall.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), "netlink"), nil
}

// changes are what messages of the kernel report.
type changes struct {
	up  bool // something that may make an upstream reachable
	any bool // a link, an address or a default route has changed
}

func (c changes) with(other changes) changes {
	return changes{up: c.up || other.up, any: c.any || other.any}
}

// changesIn reads messages of the kernel. It remembers which links have a carrier.
func changesIn(messages []byte, carriers map[int32]bool) (c changes) {
	parsed, err := syscall.ParseNetlinkMessage(messages)
	if err != nil {
		return changes{}
	}
	for _, m := range parsed {
		switch m.Header.Type {
		case syscall.RTM_NEWLINK, syscall.RTM_DELLINK:
			c = c.with(linkChange(m, carriers))
		case syscall.RTM_NEWADDR:
			// Addresses that are valid on the link only make nothing reachable.
			global := len(m.Data) >= syscall.SizeofIfAddrmsg && m.Data[3] < syscall.RT_SCOPE_LINK
			c = c.with(changes{any: true, up: global})
		case syscall.RTM_DELADDR:
			c.any = true
		case syscall.RTM_NEWROUTE, syscall.RTM_DELROUTE:
			c = c.with(routeChange(m))
		}
	}
	return c
}

func linkChange(m syscall.NetlinkMessage, carriers map[int32]bool) changes {
	if len(m.Data) < syscall.SizeofIfInfomsg {
		return changes{}
	}
	index := int32(binary.NativeEndian.Uint32(m.Data[4:]))
	if m.Header.Type == syscall.RTM_DELLINK {
		delete(carriers, index)
		return changes{any: true}
	}
	carrier, before := binary.NativeEndian.Uint32(m.Data[8:])&syscall.IFF_RUNNING != 0, carriers[index]
	carriers[index] = carrier
	return changes{any: carrier != before, up: carrier && !before}
}

// routeChange reads a message about a route. A new one to hosts may make an upstream
// reachable, and so may the end of one that rejected or dropped packets.
func routeChange(m syscall.NetlinkMessage) changes {
	if len(m.Data) < syscall.SizeofRtMsg {
		return changes{}
	}
	table, kind := m.Data[4], m.Data[7]
	c := changes{any: m.Data[1] <= 1} // for all addresses, or for half of them
	if m.Header.Type == syscall.RTM_NEWROUTE {
		c.up = table == syscall.RT_TABLE_MAIN && kind == syscall.RTN_UNICAST
	} else {
		c.up = kind >= syscall.RTN_BLACKHOLE && kind <= syscall.RTN_PROHIBIT
	}
	return c
}
