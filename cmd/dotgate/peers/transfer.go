package peers

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"golang.org/x/time/rate"

	"dotgate/gateway/cache"
)

const (
	// warmTime is how long after its start a node wants the answers of others: by
	// then it has its own.
	warmTime = time.Minute
	// maxTries is how often one that fails is asked for them.
	maxTries = 3
	// maxGiving is how many are given ours at once.
	maxGiving = 2
	// takeRate and giveRate are in octets a second. An answer takes some 130 of them
	// and 4 µs of a processor to verify and keep: a quarter of one, for some seconds.
	takeRate, giveRate = 8 << 20, 32 << 20
	// chunk is what is read or written in one go.
	chunk = 64 << 10
	// stall is how long the other end may do nothing, and transferLimit how long all
	// may take.
	stall, transferLimit = 5 * time.Second, time.Minute
)

// How a request for answers is met, in one octet.
const (
	given byte = iota
	busy
	differs // in what answers depend on
)

var (
	errVersion = errors.New("it is of another version")
	errMany    = errors.New("there are too many nodes")
	errFormer  = errors.New("it is this node before its last start")
	errBusy    = errors.New("it has no time now")
	errDiffers = errors.New("it has other upstreams or routes, so its answers are not ours")
)

// warmUp takes in the answers of another node, from the first that has any and gives
// all of them, until the first minute is over.
func (n *Node) warmUp(ctx context.Context) {
	if n.p.Cache.Usage().Size == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, warmTime)
	defer cancel()
	again := time.NewTicker(seek)
	defer again.Stop()
	tries := make(map[string]int)
	for {
		select {
		case <-ctx.Done():
			return
		case <-n.joined:
		case <-again.C:
		}
		for _, m := range n.up() {
			if tries[m.name] == maxTries {
				continue
			}
			tries[m.name]++
			if n.warmUpFrom(ctx, m) {
				return
			}
		}
	}
}

// up returns the other nodes that are there.
func (n *Node) up() (all []member) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, m := range n.members {
		if m.up {
			all = append(all, *m)
		}
	}
	return all
}

func (n *Node) warmUpFrom(ctx context.Context, m member) (done bool) {
	begin := time.Now()
	got, err := n.take(ctx, m)
	n.counts.taken.Add(uint64(got.Received))
	n.counts.used.Add(uint64(got.Used))
	n.counts.rejected[malformed].Add(uint64(got.Invalid))
	log := n.p.Log.With("peer", m.host(), "answers", got.Received, "used", got.Used, "took", time.Since(begin).Round(time.Millisecond))
	switch {
	case ctx.Err() != nil:
		return true
	case errors.Is(err, errDiffers):
		n.counts.reject(otherConfiguration)
		log.Warn("no answers from another gateway", "error", err)
		return true
	case err != nil:
		log.Info("answers from another gateway, not all of them", "error", err)
		return false
	case got.Received == 0: // it has just started, too
		log.Debug("another gateway has no answers")
		return false
	}
	log.Info("answers from another gateway")
	return true
}

// take asks m for its answers.
func (n *Node) take(ctx context.Context, m member) (got cache.Shared, err error) {
	ctx, cancel := context.WithTimeout(ctx, transferLimit)
	defer cancel()
	conn, err := n.transport.dial(ctx, m.addr.String(), cacheProtocol)
	if err != nil {
		return got, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	asked := time.Now()
	digest := n.p.Digest()
	in := &paced{ctx: ctx, conn: conn, limiter: rate.NewLimiter(takeRate, chunk)}
	if _, err := in.Write(digest[:]); err != nil {
		return got, err
	}
	var reply [1]byte
	if _, err := io.ReadFull(in, reply[:]); err != nil {
		return got, err
	}
	switch reply[0] {
	case given:
	case busy:
		return got, errBusy
	case differs:
		return got, errDiffers
	default:
		n.counts.reject(malformed)
		return got, fmt.Errorf("it replies with %d, which means nothing", reply[0])
	}
	// Twice the size of our cache is more than can be of use.
	return n.p.Cache.ReadHot(io.LimitReader(in, 2*int64(n.p.Cache.Usage().Size)), asked, n.p.Admit)
}

// give gives our answers to whoever is at the other end of conn, and closes it.
func (n *Node) give(conn net.Conn) {
	defer conn.Close()
	ctx, cancel := context.WithTimeout(context.Background(), transferLimit)
	defer cancel()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	out := &paced{ctx: ctx, conn: conn, limiter: rate.NewLimiter(giveRate, chunk)}
	var digest [32]byte
	if _, err := io.ReadFull(out, digest[:]); err != nil {
		return
	}
	reply := given
	if digest != n.p.Digest() {
		reply = differs
	}
	select {
	case n.giving <- struct{}{}:
		defer func() { <-n.giving }()
	default:
		reply = busy
	}
	if _, err := out.Write([]byte{reply}); err != nil || reply != given {
		return
	}
	buffered := bufio.NewWriterSize(out, chunk)
	answers, err := n.p.Cache.WriteHot(buffered)
	if err == nil {
		err = buffered.Flush()
	}
	n.counts.given.Add(uint64(answers))
	n.p.Log.Debug("gave answers to another gateway", "to", conn.RemoteAddr(), "answers", answers, "error", err)
}

// A paced connection is read and written no faster than its limiter says, and
// fails if the other end stalls.
type paced struct {
	ctx     context.Context
	conn    net.Conn
	limiter *rate.Limiter
}

func (p *paced) Read(b []byte) (int, error) {
	if err := p.conn.SetReadDeadline(time.Now().Add(stall)); err != nil {
		return 0, err
	}
	n, err := p.conn.Read(b[:min(len(b), chunk)])
	if err == nil {
		err = p.limiter.WaitN(p.ctx, n)
	}
	return n, err
}

func (p *paced) Write(b []byte) (written int, err error) {
	for len(b) > 0 && err == nil {
		part := b[:min(len(b), chunk)]
		if err = p.limiter.WaitN(p.ctx, len(part)); err != nil {
			break
		}
		if err = p.conn.SetWriteDeadline(time.Now().Add(stall)); err != nil {
			break
		}
		var n int
		n, err = p.conn.Write(part)
		written, b = written+n, b[n:]
	}
	return written, err
}
