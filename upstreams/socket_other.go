//go:build !linux

package upstreams

import "net"

func newSocket(tcp *net.TCPConn) (net.Conn, error) { return tcp, nil }
