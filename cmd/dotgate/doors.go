package main

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"syscall"
	"time"

	"dotgate/cmd/dotgate/admin"
	"dotgate/cmd/dotgate/control"
	"dotgate/configs"
	"dotgate/gateway"
	"dotgate/gateway/querylog"
)

const (
	// handover is how long a former gateway may take to be gone, in-flight queries
	// included, and knock how often it is looked for meanwhile.
	handover = 10 * time.Second
	knock    = 20 * time.Millisecond
)

// Doors are how operators get in: the control socket and HTTP.

// makeWeb makes the server for operators, unless there is to be none.
func (p *process) makeWeb(server *gateway.Gateway, members func() []control.Member, queries *querylog.Log) (err error) {
	config := p.config
	if !config.Admin.Listen.IsValid() {
		return nil
	}
	p.web, err = admin.New(config.Admin, admin.Parts{
		Control: p.operator, Members: members, Gateway: server, Balancer: p.balancer, Cache: p.answers,
		Recent: 2*config.Health.Interval + config.Health.ProbeTimeout, Version: versionText(), Log: p.log,
		Reloads: p.Reloads, QueryLog: queries.Counts,
	})
	return err
}

// openDoors opens both. That there is no HTTP where nobody asked for it is no
// reason not to serve: clients come first.
func (p *process) openDoors() (err error) {
	if p.socket == nil {
		if p.socket, err = listenControl(p.config.Control, p.config.Gateway.Share, p.log); err != nil {
			return err
		}
	}
	if p.web == nil {
		return nil
	}
	err = p.web.Listen()
	if err != nil && p.config.IsDefault("admin.listen") && !p.config.Gateway.Share {
		p.log.Warn("serving without metrics, readiness and page; another admin.listen or off may help", "error", err)
		p.web = nil
		return nil
	}
	return err
}

func (p *process) closeDoors() {
	if p.socket != nil {
		p.socket.Close()
	}
	if p.web != nil {
		p.web.Close()
	}
}

// serveDoors lets operators in by the socket until serving is done, and over HTTP
// until operating is. It blocks.
func (p *process) serveDoors(serving, operating context.Context) {
	var open sync.WaitGroup
	if p.socket != nil {
		open.Go(func() { p.operator.Serve(serving, p.socket) })
	}
	if p.web != nil && p.web.Addr().IsValid() {
		open.Go(func() { p.web.Serve(operating) })
		open.Go(func() { p.web.Run(serving) })
	}
	open.Wait()
}

func (p *process) adminText() string {
	switch {
	case p.web == nil:
		return "off"
	case p.web.Addr().IsValid():
		return p.web.Addr().String()
	}
	return "later" // the former gateway has it
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
