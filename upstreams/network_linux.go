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

// calm is how long nothing must change for a change to be complete: a link that
// comes up is followed by its addresses, and they by their routes.
const calm = 30 * time.Millisecond

// WatchNetwork calls up when a link, an address or a route of this machine has
// come up, until ctx is done. What goes away says nothing that connections don't.
func WatchNetwork(ctx context.Context, up func()) error {
	socket, err := openNetlink()
	if err != nil {
		return fmt.Errorf("watch the network (netlink): %w", err)
	}
	defer socket.Close()
	// Its deadline is what ends a read.
	stop := context.AfterFunc(ctx, func() { _ = socket.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	buf := make([]byte, os.Getpagesize())
	carriers := make(map[int32]bool) // of links, by index
	news := false
	for ctx.Err() == nil {
		n, err := socket.Read(buf)
		switch {
		case err == nil:
			news = comesUp(buf[:n], carriers) || news
		case errors.Is(err, os.ErrDeadlineExceeded):
			if news && ctx.Err() == nil {
				news = false
				up()
			}
		case errors.Is(err, syscall.ENOBUFS): // more happened than it could tell
			news = true
		default:
			return fmt.Errorf("watch the network (netlink): %w", err)
		}
		deadline := time.Time{}
		if news {
			deadline = time.Now().Add(calm)
		}
		if ctx.Err() == nil {
			_ = socket.SetReadDeadline(deadline)
		}
	}
	return nil
}

// openNetlink returns a socket that tells about links, addresses and routes.
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

// comesUp reports whether messages of the kernel tell of something that may make
// an upstream reachable. It remembers which links have a carrier.
func comesUp(messages []byte, carriers map[int32]bool) (news bool) {
	parsed, err := syscall.ParseNetlinkMessage(messages)
	if err != nil {
		return false
	}
	for _, m := range parsed {
		switch m.Header.Type {
		case syscall.RTM_NEWLINK:
			if len(m.Data) < syscall.SizeofIfInfomsg {
				continue
			}
			index := int32(binary.NativeEndian.Uint32(m.Data[4:]))
			carrier := binary.NativeEndian.Uint32(m.Data[8:])&syscall.IFF_RUNNING != 0
			news = news || carrier && !carriers[index]
			carriers[index] = carrier
		case syscall.RTM_NEWADDR:
			// Not those that reach no further than the link.
			news = news || len(m.Data) >= syscall.SizeofIfAddrmsg && m.Data[3] < syscall.RT_SCOPE_LINK
		case syscall.RTM_NEWROUTE:
			news = news || len(m.Data) >= syscall.SizeofRtMsg && m.Data[4] == syscall.RT_TABLE_MAIN && m.Data[7] == syscall.RTN_UNICAST
		case syscall.RTM_DELROUTE: // one that led nowhere
			news = news || len(m.Data) >= syscall.SizeofRtMsg && m.Data[7] >= syscall.RTN_BLACKHOLE && m.Data[7] <= syscall.RTN_PROHIBIT
		}
	}
	return news
}
