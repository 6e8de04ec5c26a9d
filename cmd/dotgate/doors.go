package main

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"sync"
	"syscall"
	"time"

	"dotgate/cmd/dotgate/admin"
	"dotgate/cmd/dotgate/control"
	"dotgate/configs"
)

const (
	// handover is how long a former gateway may take to be gone, in-flight queries
	// included, and knock how often it is looked for meanwhile.
	handover = 10 * time.Second
	knock    = 20 * time.Millisecond
	// settleLimit is longer than those may take to leave who are in when a door moves.
	settleLimit = time.Second
)

// A door is where operators get in: the control socket, or HTTP. It may move.
type door struct {
	serve func(ctx context.Context, l net.Listener) // until ctx is done; it closes l

	mu       sync.Mutex      // guards the rest
	listener net.Listener    // or nil
	ctx      context.Context // of those who serve; nil before
	over     bool            // nobody begins any more
	leave    context.CancelFunc
	left     chan struct{} // closed when nobody is in any more who came in here
	former   chan struct{} // the same of where the door was before, or nil
	serving  sync.WaitGroup
}

// move has operators get in at l from now on, or nowhere if it is nil. Who is in
// may end what they do.
func (d *door) move(l net.Listener) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.leave != nil {
		d.leave()
		d.former = d.left
	} else if d.listener != nil {
		d.listener.Close()
	}
	d.listener, d.leave = l, nil
	d.begin()
}

// begin serves at the listener, if it may. The caller holds mu.
func (d *door) begin() {
	if d.listener == nil || d.ctx == nil {
		return
	}
	if d.over {
		d.listener.Close()
		return
	}
	l, left := d.listener, make(chan struct{})
	var ctx context.Context
	ctx, d.leave = context.WithCancel(d.ctx)
	d.left = left
	d.serving.Go(func() {
		defer close(left)
		d.serve(ctx, l)
	})
}

// settle waits until the door is gone from where it was before, should it have just
// moved: it may move back.
func (d *door) settle() {
	d.mu.Lock()
	former := d.former
	d.mu.Unlock()
	if former == nil {
		return
	}
	timer := time.NewTimer(settleLimit)
	defer timer.Stop()
	select {
	case <-former:
	case <-timer.C: // to listen there fails then
	}
}

// run lets operators in until ctx is done. It blocks.
func (d *door) run(ctx context.Context) {
	d.mu.Lock()
	d.ctx = ctx
	d.begin()
	d.mu.Unlock()
	<-ctx.Done()
	d.mu.Lock()
	d.over = true
	d.mu.Unlock()
	d.serving.Wait()
}

// close closes a door that was not run.
func (d *door) close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.listener != nil {
		d.listener.Close()
	}
}

// at returns where the door is, or nil.
func (d *door) at() net.Listener {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.listener
}

// openDoors opens both, as far as they are not, and the sockets for other gateways. That there is no HTTP where nobody
// asked for it is no reason not to serve: clients come first.
func (p *process) openDoors() error {
	if p.control.at() == nil {
		l, err := listenControl(p.config.Control, p.patient, p.log)
		if err != nil {
			return err
		}
		if l != nil {
			p.control.move(l)
		}
	}
	if err := p.company.listen(); err != nil {
		return err
	}
	if !p.config.Admin.Listen.IsValid() || p.http.at() != nil {
		return nil
	}
	l, err := admin.Listen(p.config.Admin.Listen)
	if err == nil {
		p.http.move(l)
		return nil
	}
	if p.config.IsDefault("admin.listen") && !p.patient {
		p.log.Warn("serving without metrics, readiness and page; another admin.listen or off may help", "error", err)
		return nil
	}
	return err
}

// A removal moves a door.
type removal struct {
	door *door
	to   net.Listener // or nil
}

func (r *removal) Commit() { r.door.move(r.to) }

func (r *removal) Abandon() {
	if r.to != nil {
		r.to.Close()
	}
}

// prepareDoors opens the doors that another configuration has elsewhere.
func (p *process) prepareDoors(next *configs.Config) (changes, error) {
	var all changes
	if next.Control != p.config.Control && !p.hasControl(next.Control) {
		p.control.settle()
		l, err := listenControl(next.Control, false, p.log)
		if err != nil {
			return nil, err
		}
		move := &removal{door: &p.control}
		if l != nil { // or else it would be an interface that is not nil
			move.to = l
		}
		all = append(all, move)
	}
	if next.Admin.Listen != p.config.Admin.Listen {
		move := &removal{door: &p.http}
		if next.Admin.Listen.IsValid() {
			p.http.settle()
			l, err := admin.Listen(next.Admin.Listen)
			if err != nil {
				all.Abandon()
				return nil, err
			}
			move.to = l
		}
		all = append(all, move)
	}
	return all, nil
}

// hasControl reports whether the control socket is where c has it.
func (p *process) hasControl(c configs.Control) bool {
	l, ok := p.control.at().(*control.Listener)
	return ok && l.Path() == c.Socket
}

// adminText says where HTTP is served.
func (p *process) adminText() string {
	switch l := p.http.at(); {
	case l != nil:
		return l.Addr().(*net.TCPAddr).AddrPort().String()
	case p.config.Admin.Listen.IsValid() && p.patient:
		return "later" // the former gateway has it
	}
	return "off"
}

// former returns a client of the gateway to take over from, nil if there is none
// or nobody asked to.
func (s *sources) former(ctx context.Context, config *configs.Config, log *slog.Logger) (*control.Client, error) {
	if !s.takeover {
		return nil, nil
	}
	client, err := newClient(config.Control)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, statusLimit)
	defer cancel()
	status, err := client.Status(ctx)
	if err != nil {
		log.Info("there is no gateway to take over from", "error", err)
		return nil, nil
	}
	log.Info("taking over", "from", status.PID)
	return client, nil
}

// takeOver has the former gateway stop, now that we serve beside it, and opens the
// doors as it leaves them.
func (p *process) takeOver(ctx context.Context, former *control.Client) {
	if _, err := former.Yield(ctx); err != nil {
		p.log.Error("the gateway that was to be taken over goes on; both serve", "error", err)
	}
	tick := time.NewTicker(knock)
	defer tick.Stop()
	var err error
	for deadline := time.Now().Add(handover); time.Now().Before(deadline); {
		if err = p.openDoors(); err == nil {
			p.log.Info("took over", "admin", p.adminText())
			return
		}
		if !errors.Is(err, control.ErrInUse) && !errors.Is(err, syscall.EADDRINUSE) {
			break
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
	p.log.Error("serving without operators", "error", err)
}

// Yield makes room for another process, which serves already.
func (p *process) Yield() {
	p.log.Info("another gateway takes over")
	p.stop()
}
