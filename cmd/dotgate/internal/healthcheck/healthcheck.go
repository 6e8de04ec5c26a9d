// Package healthcheck asks the running gateway whether it can answer, once or all the time.
//
// It asks through the control socket first: where the gateway listens now, whether it is
// ready, and for a token that makes queries of this machine health checks, which are under
// no client's limits and in no log or figure. Without the socket it asks as an ordinary
// client and says so. A question that could not be asked is never a verdict about the
// gateway.
package healthcheck

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"dotgate/cmd/dotgate/internal/admin"
	"dotgate/cmd/dotgate/internal/api"
	"dotgate/cmd/dotgate/internal/settings"
	"dotgate/configs"
	"dotgate/gateway/transport"
	"dotgate/gateway/wire"
)

const (
	// healthcheckLimit is below the second or two after which container engines and
	// keepalived lose patience.
	healthcheckLimit = 1500 * time.Millisecond
	// controlLimit is how long the control socket may take to answer. After that, a
	// health check goes on as an ordinary client.
	controlLimit = 200 * time.Millisecond
	// resendAfter is when a query over UDP is sent again: a busy socket drops packets.
	resendAfter = 300 * time.Millisecond
	// configAge is how old the configuration may be from which a health check takes
	// where the control socket is.
	configAge = 10 * time.Second
)

// Once asks the running gateway with the configuration of these sources, and writes what
// it found. The error says why the gateway can't answer, or can't be asked.
func Once(ctx context.Context, from configs.Sources, out io.Writer) error {
	return (&checker{from: from}).once(ctx, out)
}

// Watch asks until ctx is done, keeps the verdict in a file, and writes its changes. It
// blocks.
func Watch(ctx context.Context, from configs.Sources, file string, out io.Writer) error {
	return newWatch(&checker{from: from}, file, out).run(ctx)
}

// Itself asks a gateway that listens at these addresses for localhost, which needs no
// upstream.
func Itself(ctx context.Context, listening []netip.AddrPort, token []byte) error {
	return (&subject{listening: listening, token: token}).itself(ctx)
}

// A checker asks the running gateway whether it can answer.
type checker struct {
	from configs.Sources

	mu     sync.Mutex       // guards the rest; held while files are read
	config *settings.Config // the last one that is whole, if there is one; or nil
	broken error            // what is wrong with the latest, or nil
	whole  bool             // nothing is wrong with config
	read   time.Time
}

// load returns the configuration, and what is wrong with its file. If that breaks, the
// gateway still has the last one that was whole; before there is one, it is as much as
// can be read.
func (c *checker) load() (*settings.Config, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.config == nil || time.Since(c.read) > configAge {
		config, broken := settings.LoadPartly(c.from)
		if broken == nil || !c.whole {
			c.config, c.whole = config, broken == nil
		}
		c.broken, c.read = broken, time.Now()
	}
	return c.config, c.broken
}

// A subject is a gateway to be checked.
type subject struct {
	listening []netip.AddrPort
	name      wire.Query // what upstreams are probed with
	token     []byte     // nil: it is asked as by an ordinary client
	// readiness is what it says of itself; nil if it says nothing there.
	readiness *api.Readiness
	// unknown is why it could not be asked for that, or nil.
	unknown error
	// ordinary is why it is asked as by an ordinary client; empty if it is not.
	ordinary string
}

// A notAsked is the error of a question that could not be put to the gateway, or not
// by this client. It says nothing about the gateway.
type notAsked struct{ err error }

func (e *notAsked) Error() string { return "can't be asked: " + e.err.Error() }
func (e *notAsked) Unwrap() error { return e.err }

func isNotAsked(err error) bool { _, ok := errors.AsType[*notAsked](err); return ok }

// A notReady is the error of a gateway that answers, but says that clients should
// not come.
type notReady struct{ readiness api.Readiness }

func (e *notReady) Error() string { return fmt.Sprintf("the gateway says %v", e.readiness) }

// find returns the gateway as it is now.
func (c *checker) find(ctx context.Context) (*subject, error) {
	config, broken := c.load()
	s, err := c.askControl(ctx, config.Control, broken != nil)
	if err == nil {
		return s, nil
	}
	reason := err.Error()
	if broken != nil { // it may say something else than the gateway does
		reason += "; " + broken.Error()
	}
	if s, err = asClient(ctx, config); err != nil {
		return nil, err
	}
	s.ordinary = reason
	return s, nil
}

// askControl asks the gateway itself. If the configuration file is broken, it may say
// something else about control.socket than it did, and only a gateway that was started
// with this file will do: another one may be at the default path.
func (c *checker) askControl(ctx context.Context, o settings.Control, broken bool) (*subject, error) {
	client, err := api.Find(o.Socket, c.from.File)
	if err != nil {
		return nil, err
	}
	limited, cancel := context.WithTimeout(ctx, controlLimit)
	defer cancel()
	h, err := client.Health(limited)
	if limited.Err() != nil {
		return nil, fmt.Errorf("the control socket did not answer within %v", controlLimit)
	}
	if err != nil {
		return nil, err
	}
	if file, err := filepath.Abs(c.from.File); broken && c.from.File != "" && err == nil && file != h.File {
		return nil, fmt.Errorf("the gateway at the control socket was started with %s, not %s", cmp.Or(h.File, "no configuration file"), file)
	}
	name, err := wire.NewQuery(h.Name, h.Type)
	return &subject{listening: h.Listening, name: name, token: h.Token[:], readiness: &h.Readiness}, err
}

// asClient returns the gateway that the configuration tells of.
func asClient(ctx context.Context, config *settings.Config) (*subject, error) {
	name, err := wire.NewQuery(config.Health.ProbeName, config.Health.ProbeType)
	if err != nil {
		return nil, err
	}
	s := &subject{listening: config.Gateway.Listen, name: name}
	s.readiness, s.unknown = askReady(ctx, config)
	return s, nil
}

// askReady asks over HTTP whether the gateway is ready. It returns nil where it says
// nothing there: admin.listen is off, or not set and not open.
func askReady(ctx context.Context, config *settings.Config) (*api.Readiness, error) {
	if !config.Admin.Listen.IsValid() {
		return nil, nil
	}
	var failed, unasked error
	for _, addr := range reachable(config.Admin.Listen.AddrPort) {
		r, err := admin.AskReady(ctx, config.Admin, addr)
		switch {
		case err == nil:
			return &r, nil
		case isLocal(err):
			unasked = err
		default:
			failed = err
		}
	}
	problem := cmp.Or(failed, unasked)
	if errors.Is(problem, syscall.ECONNREFUSED) && config.IsDefault("admin.listen") {
		return nil, nil
	}
	return nil, &notAsked{fmt.Errorf("ask whether it is ready (setting admin.listen): %w", problem)}
}

// once is the command without --watch.
func (c *checker) once(ctx context.Context, out io.Writer) error {
	ctx, cancel := context.WithTimeout(ctx, healthcheckLimit)
	defer cancel()
	s, err := c.find(ctx)
	if err != nil {
		return err
	}
	asked, err := s.answers(ctx, s.name, false, "udp", "tcp")
	if err == nil && s.readiness != nil && !s.readiness.Ready {
		err = &notReady{*s.readiness}
	}
	if err != nil {
		if s.ordinary == "" {
			return err
		}
		if _, broken := c.load(); broken != nil && (len(asked) == 0 || isNotAsked(err)) {
			return fmt.Errorf("%w\ndotgate healthcheck: the running gateway was not found, and the file may not say where it is: set DOTGATE_CONTROL_SOCKET for both, in place of control.socket", broken)
		}
		return fmt.Errorf("%w; asked as an ordinary client: %s", err, s.ordinary)
	}
	text := fmt.Sprintf("ok: %s answered over UDP and TCP", strings.Join(asked, ", "))
	if len(asked) == 0 {
		text = fmt.Sprintf("ok: not asked, because no interface has %s", api.JoinAddrs(s.listening))
	}
	switch {
	case s.readiness != nil:
		text += "; " + s.readiness.String()
	case s.unknown != nil:
		text += "; its readiness is unknown: " + s.unknown.Error()
	}
	if s.ordinary != "" {
		text += "; asked as an ordinary client: " + s.ordinary
	}
	_, err = fmt.Fprintln(out, text)
	return err
}

// answers asks the gateway at all addresses where it listens, and returns those where
// it answered over these networks. With live, its cache may not answer. The error is a
// *notAsked if it could be asked nowhere.
//
// An address that no interface has is not asked: another machine may have it. If it is
// so with all addresses, a gateway that has told its token is all right.
func (s *subject) answers(ctx context.Context, q wire.Query, live bool, networks ...string) (asked []string, err error) {
	check := wire.HealthCheck{Token: s.token, Live: live}
	var not *notAsked
	absent := 0
	for _, addr := range s.listening {
		if transport.IsAbsent(addr.Addr()) {
			absent++
			continue
		}
		where, err := askSome(ctx, reachable(addr), q, check, networks)
		if errors.As(err, &not) {
			continue
		}
		if err != nil {
			return asked, err
		}
		asked = append(asked, where.String())
	}
	switch {
	case len(asked) > 0:
		return asked, nil
	case not != nil:
		return nil, not
	case absent > 0 && s.token != nil:
		return nil, nil
	case absent > 0:
		return nil, &notAsked{fmt.Errorf("no interface has %s (gateway.listen)", api.JoinAddrs(s.listening))}
	}
	return nil, &notAsked{errors.New("it listens nowhere")}
}

// reachable returns the addresses at which to ask a server that listens at addr: any of
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

// askSome returns the first of addrs that answers over all networks. The error is a
// *notAsked only if none of them could be asked: a host without IPv6 has no ::1, which says
// nothing about the gateway that refuses at 127.0.0.1.
func askSome(ctx context.Context, addrs []netip.AddrPort, q wire.Query, c wire.HealthCheck, networks []string) (netip.AddrPort, error) {
	var failed, unasked error
	for _, addr := range addrs {
		var problem error
		for _, network := range networks {
			if err := ask(ctx, network, addr, q, c); err != nil {
				problem = fmt.Errorf("ask %s over %s for %v: %w", addr, network, q, err)
				break
			}
		}
		switch {
		case problem == nil:
			return addr, nil
		case isNotAsked(problem):
			unasked = problem
		default:
			failed = problem
		}
	}
	return netip.AddrPort{}, cmp.Or(failed, unasked)
}

// An errorReply is a reply that is an error of the gateway's.
type errorReply wire.RCode

func (e errorReply) Error() string { return "reply is " + wire.RCode(e).String() }

// ask returns nil if the reply is an answer. One that is truncated is asked for over TCP.
func ask(ctx context.Context, network string, addr netip.AddrPort, q wire.Query, c wire.HealthCheck) error {
	id := uint16(rand.N(1 << 16))
	reply, err := exchange(ctx, network, addr, q.AppendHealthCheck(nil, id, c), id)
	if err != nil {
		if isLocal(err) {
			return &notAsked{err}
		}
		return err
	}
	if network == "udp" && wire.IsTruncated(reply) {
		return ask(ctx, "tcp", addr, q, c)
	}
	answer, err := wire.ParseAnswer(q, reply)
	if err != nil {
		return err
	}
	switch r := answer.RCode(); {
	case r == wire.NoError || r == wire.NXDomain:
		return nil
	case r == wire.Refused && c.Token == nil:
		return &notAsked{errors.New("reply is REFUSED; gateway.allow may not have this client, or control.socket be off")}
	default:
		return errorReply(r)
	}
}

// isLocal reports whether err is one of this machine, and says nothing about the
// gateway: no descriptors, no memory, no address or route.
func isLocal(err error) bool {
	number, _ := errors.AsType[syscall.Errno](err)
	switch number {
	case syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.EACCES, syscall.EPERM,
		syscall.EADDRNOTAVAIL, syscall.ENETUNREACH, syscall.EHOSTUNREACH, syscall.ENETDOWN, syscall.EAFNOSUPPORT:
		return true
	}
	return false
}

// exchange sends packet and returns the reply with its ID, at least a header long. Over
// UDP it sends again until ctx is done: packets get lost.
func exchange(ctx context.Context, network string, addr netip.AddrPort, packet []byte, id uint16) ([]byte, error) {
	conn, err := new(net.Dialer).DialContext(ctx, network, addr.String())
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	end, limited := ctx.Deadline()
	if network == "tcp" {
		if limited {
			_ = conn.SetDeadline(end)
		}
		return exchangeTCP(conn, packet, id)
	}
	reply := make([]byte, wire.MaxSize)
	for {
		if _, err := conn.Write(packet); err != nil {
			return nil, err
		}
		until := time.Now().Add(resendAfter)
		if limited && end.Before(until) {
			until = end
		}
		_ = conn.SetReadDeadline(until)
		for {
			n, err := conn.Read(reply)
			if errors.Is(err, os.ErrDeadlineExceeded) && until != end && ctx.Err() == nil {
				break
			}
			if err != nil {
				return nil, err
			}
			if n >= 12 && wire.ID(reply) == id {
				return reply[:n], nil
			}
		}
	}
}

func exchangeTCP(conn net.Conn, packet []byte, id uint16) ([]byte, error) {
	if _, err := conn.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(packet))), packet...)); err != nil {
		return nil, err
	}
	reply := make([]byte, wire.MaxSize)
	if _, err := io.ReadFull(conn, reply[:2]); err != nil {
		return nil, err
	}
	reply = reply[:binary.BigEndian.Uint16(reply)]
	if _, err := io.ReadFull(conn, reply); err != nil {
		return nil, err
	}
	if len(reply) < 12 || wire.ID(reply) != id {
		return nil, errors.New("reply to another query")
	}
	return reply, nil
}
