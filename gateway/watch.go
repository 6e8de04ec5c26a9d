package gateway

import (
	"context"
	"slices"
	"time"

	"dotgate/gateway/access"
	"dotgate/gateway/transport"
)

// networkInterval is how often the interfaces are read even if no change of them was
// reported: some systems report none.
const networkInterval = time.Minute

// OnLink returns the current prefixes of this machine's interfaces, or nil if Options.Allow does
// not have on_link.
func (g *Gateway) OnLink() []access.Link {
	if !g.config().access.OnLink() {
		return nil
	}
	return g.network.Load().Links()
}

// NetworkChanged makes WatchClients read the interfaces again. It does not block.
func (g *Gateway) NetworkChanged() {
	select {
	case g.networkChanged <- struct{}{}:
	default: // the interfaces are about to be read
	}
}

// WatchClients keeps on_link and the machine's own addresses up to date, opens addresses of
// Options.Listen that get an interface, and logs which clients were refused, until ctx is done;
// then it returns nil. It blocks.
func (g *Gateway) WatchClients(ctx context.Context) error {
	tick := time.NewTicker(networkInterval)
	defer tick.Stop()
	refusals := time.NewTimer(access.RefusedInterval)
	refusals.Stop()
	defer refusals.Stop()
	retry := time.NewTimer(0)
	defer retry.Stop()
	wake := g.refused.Wake()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-g.networkChanged:
			g.readNetwork()
			retry.Reset(0)
		case <-retry.C:
			if g.server.RetryUnbound() {
				retry.Reset(transport.UnboundInterval)
			}
		case <-tick.C:
			g.readNetwork()
		case <-wake:
			wake = nil // until the next report may be logged
			refusals.Reset(access.RefusedDelay)
		case <-refusals.C:
			if g.refused.Report(g.log, g.network.Load()) {
				refusals.Reset(access.RefusedInterval)
			} else {
				wake = g.refused.Wake()
			}
		}
	}
}

// readNetwork reads the interfaces. If that fails, the last result stays.
func (g *Gateway) readNetwork() {
	before := g.network.Load()
	interfaces, err := g.config().Interfaces()
	if err == nil {
		var next *access.Network
		if next, err = access.NewNetwork(interfaces); err == nil {
			g.network.Store(next)
			if before != nil && g.config().access.OnLink() && !slices.Equal(before.Links(), next.Links()) {
				g.log.Info("the on_link networks of gateway.allow have changed", access.OnLinkWord, access.LinksText(next.Links()))
			}
			return
		}
	}
	if before == nil {
		g.network.Store(access.NoInterfaces)
	}
	g.log.Warn("reading the network interfaces of this machine failed; gateway.allow keeps the last on_link networks", "error", err)
}
