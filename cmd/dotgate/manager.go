package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/coreos/go-systemd/v22/activation"
	"github.com/coreos/go-systemd/v22/daemon"

	"dotgate/gateway"
)

// A service manager, such as systemd, may hand over sockets and want to be told how
// we are. Without one, none of this does anything.

// listen opens the gateway's sockets, or takes those that a service manager has
// opened (LISTEN_FDS, see sd_listen_fds(3)), and reports whether it did.
func listen(server *gateway.Gateway) (handed bool, err error) {
	files := activation.Files(true)
	if len(files) == 0 {
		return false, server.Listen()
	}
	return true, adopt(server, files)
}

func adopt(server *gateway.Gateway, files []*os.File) error {
	var listeners []*net.TCPListener
	var conns []*net.UDPConn
	for _, file := range files {
		ln, tcp := net.FileListener(file)
		conn, udp := net.FilePacketConn(file)
		file.Close() // each has a copy
		switch l, c := ln, conn; {
		case tcp == nil && isTCP(l):
			listeners = append(listeners, l.(*net.TCPListener))
		case udp == nil && isUDP(c):
			conns = append(conns, c.(*net.UDPConn))
		default:
			return fmt.Errorf("the service manager handed over %s, which is neither a TCP nor a UDP socket: %w", file.Name(), errors.Join(tcp, udp))
		}
	}
	return server.Adopt(listeners, conns)
}

func isTCP(ln net.Listener) bool { _, ok := ln.(*net.TCPListener); return ok }

func isUDP(c net.PacketConn) bool { _, ok := c.(*net.UDPConn); return ok }

// reportToManager tells the service manager that we are ready, until ctx is done
// that we answer (WatchdogSec=), and then that we are stopping. What it tells is
// true: a client of ours asks.
func reportToManager(ctx context.Context, addrs func() []netip.AddrPort, log *slog.Logger) error {
	tell := func(state string) {
		if _, err := daemon.SdNotify(false, state); err != nil {
			log.Warn("the service manager can't be told", "what", state, "error", err)
		}
	}
	tell(daemon.SdNotifyReady)
	defer tell(daemon.SdNotifyStopping)
	interval, err := daemon.SdWatchdogEnabled(false)
	if err != nil || interval <= 0 {
		<-ctx.Done()
		return nil
	}
	tick := time.NewTicker(interval / 3)
	defer tick.Stop()
	for {
		if err := answersItself(ctx, addrs()[0], interval/3); err == nil {
			tell(daemon.SdNotifyWatchdog)
		} else if ctx.Err() == nil {
			log.Error("no answer from ourselves; the service manager will start us again if that lasts", "error", err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// answersItself asks for localhost, which needs no upstream. Whatever comes back is
// a sign of life.
func answersItself(ctx context.Context, addr netip.AddrPort, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	if addr.Addr().IsUnspecified() {
		loopback := netip.AddrFrom4([4]byte{127, 0, 0, 1})
		if addr.Addr().Is6() {
			loopback = netip.IPv6Loopback()
		}
		addr = netip.AddrPortFrom(loopback, addr.Port())
	}
	var d net.Dialer
	c, err := d.DialContext(ctx, "udp", addr.String())
	if err != nil {
		return err
	}
	defer c.Close()
	deadline, _ := ctx.Deadline()
	c.SetDeadline(deadline)
	if _, err := c.Write([]byte("\x00\x01\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x09localhost\x00\x00\x01\x00\x01")); err != nil {
		return err
	}
	_, err = c.Read(make([]byte, 512))
	return err
}
