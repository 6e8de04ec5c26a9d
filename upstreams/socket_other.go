//go:build !linux

package upstreams

import (
	"errors"
	"net"
	"syscall"
)

func newSocket(tcp *net.TCPConn) (net.Conn, error) { return tcp, nil }

func acknowledgeAtOnce(net.Conn) {}

func smallSegments(string, string, syscall.RawConn) error { return nil }

func receiveBuffer(net.Conn) int { return 0 }

const canBind = false

func bindTo(syscall.RawConn, string) error { return errors.ErrUnsupported }
