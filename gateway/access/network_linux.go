package access

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"
)

// Interfaces returns the interfaces of this machine that are up, with all of their addresses. It
// takes three requests to the kernel; package net takes one more for each interface.
func Interfaces() ([]Interface, error) {
	links, err := net.Interfaces()
	if err != nil {
		return nil, fmt.Errorf("list the network interfaces: %w", err)
	}
	all := make([]Interface, 0, len(links))
	at := make(map[uint32]int, len(links)) // by interface index
	for _, l := range links {
		if l.Flags&net.FlagUp != 0 {
			at[uint32(l.Index)] = len(all)
			all = append(all, Interface{Name: l.Name, Loopback: l.Flags&net.FlagLoopback != 0})
		}
	}
	overlay := make(map[uint32]bool)
	err = dump(unix.RTM_GETADDR, func(m []byte) {
		index, prefix, ok := parseAddress(m)
		if i, known := at[index]; ok && known {
			all[i].Addresses = append(all[i].Addresses, prefix)
			overlay[index] = overlay[index] || sharedRange.Contains(prefix.Addr())
		}
	})
	if err != nil {
		return nil, fmt.Errorf("list the addresses of the network interfaces: %w", err)
	}
	if !slices.ContainsFunc(all, func(i Interface) bool {
		return slices.ContainsFunc(i.Addresses, func(p netip.Prefix) bool { return sharedRange.Contains(p.Addr()) })
	}) {
		return all, nil
	}
	// A routing table may have a million routes: they are read one by one, and not kept.
	err = dump(unix.RTM_GETROUTE, func(m []byte) {
		for _, index := range defaultRoute(m) {
			for link, i := range at {
				if index == link || index == anyInterface {
					all[i].DefaultRoute = true
				}
			}
		}
	})
	if err != nil { // then none is taken for an overlay network's
		for index := range overlay {
			all[at[index]].DefaultRoute = true
		}
	}
	return all, nil
}

const (
	// dumpSize is the largest part of a dump that the kernel sends at once.
	dumpSize = 64 << 10
	// dumpTimeout bounds one read of a dump, in seconds.
	dumpTimeout = 2
)

// dump asks the kernel for all objects of a kind, and calls do with the payload of
// each message, which do must not keep.
func dump(kind uint16, do func(payload []byte)) error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: dumpTimeout}); err != nil {
		return err
	}
	request := make([]byte, unix.NLMSG_HDRLEN+unix.SizeofRtMsg) // the family is AF_UNSPEC: all
	binary.NativeEndian.PutUint32(request, uint32(len(request)))
	binary.NativeEndian.PutUint16(request[4:], kind)
	binary.NativeEndian.PutUint16(request[6:], unix.NLM_F_REQUEST|unix.NLM_F_DUMP)
	binary.NativeEndian.PutUint32(request[8:], 1)
	if err := unix.Sendto(fd, request, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	buf := make([]byte, dumpSize)
	for {
		n, _, err := unix.Recvfrom(fd, buf, 0)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		messages, err := syscall.ParseNetlinkMessage(buf[:n])
		if err != nil || len(messages) == 0 {
			return fmt.Errorf("malformed reply of the kernel: %w", unix.EBADMSG)
		}
		for _, m := range messages {
			switch m.Header.Type {
			case unix.NLMSG_DONE:
				return nil
			case unix.NLMSG_ERROR:
				return errNoInterfaces
			}
			do(m.Data)
		}
	}
}

// attributes returns the attributes in a message of this kind.
func attributes(kind uint16, m []byte) []syscall.NetlinkRouteAttr {
	all, err := syscall.ParseNetlinkRouteAttr(&syscall.NetlinkMessage{Header: syscall.NlMsghdr{Type: kind}, Data: m})
	if err != nil { // the kernel sends none that is malformed
		return nil
	}
	return all
}

// parseAddress reads an ifaddrmsg. On point-to-point links it returns the local address.
func parseAddress(m []byte) (index uint32, prefix netip.Prefix, ok bool) {
	if len(m) < unix.SizeofIfAddrmsg {
		return 0, prefix, false
	}
	bits := int(m[1])
	index = binary.NativeEndian.Uint32(m[4:])
	var local, address netip.Addr
	for _, a := range attributes(unix.RTM_NEWADDR, m) {
		switch a.Attr.Type {
		case unix.IFA_LOCAL:
			local, _ = netip.AddrFromSlice(a.Value)
		case unix.IFA_ADDRESS:
			address, _ = netip.AddrFromSlice(a.Value)
		}
	}
	switch {
	case local.IsValid() && address.IsValid() && local != address: // address is the peer's
		bits = local.BitLen()
	case !local.IsValid(): // IPv6 has address only
		local = address
	}
	prefix = netip.PrefixFrom(local, bits)
	return index, prefix, prefix.IsValid()
}

// anyInterface stands for the interfaces of a route that the kernel names by the number of a next
// hop (net.ipv4.nexthop_compat_mode=0): any may be among them.
const anyInterface = 0

// defaultRoute returns the interfaces, by index, of an rtmsg for all addresses, or half of them.
func defaultRoute(m []byte) (through []uint32) {
	if len(m) < unix.SizeofRtMsg || m[1] > 1 || m[7] != unix.RTN_UNICAST {
		return nil
	}
	for _, a := range attributes(unix.RTM_NEWROUTE, m) {
		switch value := a.Value; {
		case a.Attr.Type == unix.RTA_OIF && len(value) >= 4:
			through = append(through, binary.NativeEndian.Uint32(value))
		case a.Attr.Type == unix.RTA_MULTIPATH:
			for len(value) >= unix.SizeofRtNexthop {
				size := int(binary.NativeEndian.Uint16(value))
				through = append(through, binary.NativeEndian.Uint32(value[4:]))
				if size < unix.SizeofRtNexthop {
					break
				}
				value = value[min((size+unix.NLMSG_ALIGNTO-1)&^(unix.NLMSG_ALIGNTO-1), len(value)):]
			}
		}
	}
	if through == nil {
		return []uint32{anyInterface}
	}
	return through
}
