package server

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"dotgate/cmd/dotgate/internal/admin"
	"dotgate/cmd/dotgate/internal/api"
	"dotgate/cmd/dotgate/internal/settings"
)

// moveLimit bounds the wait for the end of a previous listener. It is longer than the
// connections of one may stay.
const moveLimit = time.Second

// listeners are the two ways in for operators: the control socket and the admin address.
type listeners struct {
	log        *slog.Logger
	control    adminListener
	http       adminListener
	takingOver bool        // a predecessor may still have their addresses
	absent     atomic.Bool // no interface has the address of admin.listen yet
}

func newListeners(serveControl, serveAdmin serveFunc, takingOver bool, log *slog.Logger) *listeners {
	return &listeners{log: log, control: adminListener{serve: serveControl}, http: adminListener{serve: serveAdmin}, takingOver: takingOver}
}

// close closes listeners that were not run.
func (ls *listeners) close() {
	ls.control.close()
	ls.http.close()
}

// openControl opens the control socket unless it is open. Only a path that is set, and
// can't be used, is an error.
func (ls *listeners) openControl(config *settings.Config) error {
	if ls.control.current() != nil {
		return nil
	}
	l, err := listenControl(config.Control, ls.takingOver, ls.log)
	if l != nil {
		ls.control.moveTo(l)
	}
	return err
}

// openAdmin opens the admin address unless it is open. Only an address that is set, and
// taken by another program, is an error.
func (ls *listeners) openAdmin(config *settings.Config) error {
	if !config.Admin.Listen.IsValid() || ls.http.current() != nil {
		return nil
	}
	l, err := admin.Listen(config.Admin.Listen)
	switch {
	case err == nil:
		ls.http.moveTo(l)
	case isAbsent(err):
		ls.awaitAddress(err)
	case config.IsDefault("admin.listen") && !ls.takingOver:
		ls.log.Warn("serving without metrics, readiness and page: set admin.listen to another address, or to off", "error", err)
	default:
		return err
	}
	return nil
}

// isAbsent reports whether err means that no interface of this machine has an address.
func isAbsent(err error) bool {
	return errors.Is(err, syscall.EADDRNOTAVAIL) || errors.Is(err, syscall.EAFNOSUPPORT)
}

// awaitAddress makes runAbsent open admin.listen later. err says that no interface has its
// address.
func (ls *listeners) awaitAddress(err error) {
	ls.log.Warn("serving without metrics, readiness and page until an interface has the address of admin.listen", "error", err)
	ls.absent.Store(true)
}

// runAbsent calls open every second while the address of admin.listen is absent. It blocks
// until ctx is done.
func (ls *listeners) runAbsent(ctx context.Context, open func()) {
	for tick := time.Tick(relisten); ; {
		select {
		case <-ctx.Done():
			return
		case <-tick:
		}
		if ls.absent.Load() {
			open()
		}
	}
}

// openAbsent opens the admin address, unless it is still absent.
func (ls *listeners) openAbsent(config *settings.Config) {
	if !config.Admin.Listen.IsValid() || ls.http.current() != nil {
		ls.absent.Store(false)
		return
	}
	l, err := admin.Listen(config.Admin.Listen)
	if err != nil {
		return
	}
	ls.absent.Store(false)
	ls.http.moveTo(l)
	ls.log.Info("an interface has the address of admin.listen now: it is served", "address", ls.adminText(config))
}

// adminText returns the admin address for the log.
func (ls *listeners) adminText(config *settings.Config) string {
	switch l := ls.http.current(); {
	case l != nil:
		return l.Addr().(*net.TCPAddr).AddrPort().String()
	case config.Admin.Listen.IsValid() && ls.takingOver:
		return "later" // the predecessor has it
	}
	return "off"
}

// prepare opens the listeners that have other addresses in the next configuration.
func (ls *listeners) prepare(now, next *settings.Config) (all changes, err error) {
	if next.Control != now.Control && !ls.hasControl(next.Control) {
		ls.control.awaitMove()
		l, err := listenControl(next.Control, false, ls.log)
		if err != nil {
			return nil, err
		}
		all = append(all, &listenerMove{listener: &ls.control, to: l})
	}
	if next.Admin.Listen != now.Admin.Listen {
		move := &listenerMove{listener: &ls.http}
		if next.Admin.Listen.IsValid() {
			ls.http.awaitMove()
			switch l, err := admin.Listen(next.Admin.Listen); {
			case err == nil:
				move.to = l
			case isAbsent(err):
				all = append(all, commit(func() { ls.awaitAddress(err) }))
			default:
				all.Abandon()
				return nil, err
			}
		}
		all = append(all, move)
	}
	return all, nil
}

// hasControl reports whether the control socket has the path of c already.
func (ls *listeners) hasControl(c settings.Control) bool {
	l, ok := ls.control.current().(*api.Listener)
	return ok && l.Path() == c.Socket
}

// listenControl opens the control socket. It returns nil if control.socket is off, and
// if it is auto and no place can be used. With takingOver, auto returns the error of a socket
// in use, as another attempt may succeed.
func listenControl(c settings.Control, takingOver bool, log *slog.Logger) (net.Listener, error) {
	switch c.Socket {
	case settings.SocketOff:
		return nil, nil
	case settings.SocketAuto:
		l, err := api.ListenSomewhere(api.Places())
		if err != nil && takingOver && errors.Is(err, api.ErrInUse) {
			return nil, err
		}
		if err != nil {
			log.Warn("serving without status, drill and cache: set control.socket to another path, or to off", "error", err)
			return nil, nil
		}
		return l, nil
	}
	l, err := api.Listen(c.Socket)
	if err != nil {
		return nil, err // not a nil pointer in an interface that is not nil
	}
	return l, nil
}

// A serveFunc serves l until ctx is done, and closes it.
type serveFunc func(ctx context.Context, l net.Listener)

// An adminListener is one of the listeners for operators. It can move to another address.
type adminListener struct {
	serve serveFunc

	mu       sync.Mutex         // guards the rest
	listener net.Listener       // or nil
	ctx      context.Context    // of run; nil before
	ended    bool               // run is about to return: nothing is served any more
	stop     context.CancelFunc // ends serving listener; nil if it is not served
	stopped  chan struct{}      // closed when the last connection of listener is closed
	previous chan struct{}      // the same of the listener before; nil without one
	serving  sync.WaitGroup
}

// moveTo serves l instead of the current listener, or nothing if l is nil. Requests to the
// current listener are completed.
func (a *adminListener) moveTo(l net.Listener) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.stop != nil {
		a.stop()
		a.previous = a.stopped
	} else if a.listener != nil {
		a.listener.Close()
	}
	a.listener, a.stop = l, nil
	a.begin()
}

// begin serves the listener, if there is one and run was called. The caller holds mu.
func (a *adminListener) begin() {
	if a.listener == nil || a.ctx == nil {
		return
	}
	if a.ended {
		a.listener.Close()
		return
	}
	l, stopped := a.listener, make(chan struct{})
	var ctx context.Context
	ctx, a.stop = context.WithCancel(a.ctx)
	a.stopped = stopped
	a.serving.Go(func() {
		defer close(stopped)
		a.serve(ctx, l)
	})
}

// awaitMove waits for the end of the previous listener after a move, as the next one may
// need its address.
func (a *adminListener) awaitMove() {
	a.mu.Lock()
	previous := a.previous
	a.mu.Unlock()
	if previous == nil {
		return
	}
	select {
	case <-previous:
	case <-time.After(moveLimit): // then listening there fails
	}
}

// run serves until ctx is done. It blocks.
func (a *adminListener) run(ctx context.Context) {
	a.mu.Lock()
	a.ctx = ctx
	a.begin()
	a.mu.Unlock()
	<-ctx.Done()
	a.mu.Lock()
	a.ended = true
	a.mu.Unlock()
	a.serving.Wait()
}

// close closes a listener that was not run.
func (a *adminListener) close() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.listener != nil {
		a.listener.Close()
	}
}

// current returns the listener, or nil.
func (a *adminListener) current() net.Listener {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.listener
}

// A listenerMove is the change of a listener's address.
type listenerMove struct {
	listener *adminListener
	to       net.Listener // or nil
}

func (m *listenerMove) Commit() { m.listener.moveTo(m.to) }

func (m *listenerMove) Abandon() {
	if m.to != nil {
		m.to.Close()
	}
}
