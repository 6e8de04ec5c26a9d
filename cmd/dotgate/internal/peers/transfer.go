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
	"dotgate/gateway/wire"
)

const (
	// warmTime is how long after its start a node tries to download answers: after that
	// it has its own.
	warmTime = time.Minute
	// maxTries is the number of attempts for each node.
	maxTries = 3
	// maxUploads bounds concurrent uploads.
	maxUploads = 2
	// downloadRate and uploadRate are in octets a second. An answer has some 130 octets
	// and takes 4 µs of CPU to verify and store: a quarter of a core for some seconds.
	downloadRate, uploadRate = 8 << 20, 32 << 20
	// chunk is the largest single read or write, in octets.
	chunk = 64 << 10
	// stallTimeout bounds one read or write, and transferLimit a whole transfer.
	stallTimeout, transferLimit = 5 * time.Second, time.Minute
)

// The first octet of the reply to a download.
const (
	replyAnswers byte = iota // the answers follow
	replyBusy
	replyDiffers // the digests differ
)

var (
	errVersion     = errors.New("the peer has an incompatible version")
	errMany        = errors.New("there are too many nodes")
	errPredecessor = errors.New("the peer is the previous process of this node")
	errBusy        = errors.New("the peer serves other downloads")
	errDiffers     = errors.New("the peer has other upstreams or routes, so that its answers cannot be used")
)

// warmUp downloads the answers of one other node: it tries each until a download
// completes or warmTime has passed.
func (n *Node) warmUp(ctx context.Context) {
	if n.p.Cache.Usage().Size == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, warmTime)
	defer cancel()
	again := time.Tick(searchInterval)
	tries := make(map[string]int)
	for {
		select {
		case <-ctx.Done():
			return
		case <-n.joined:
		case <-again:
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

// up returns the other nodes that are up.
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
	got, err := n.download(ctx, m)
	n.counts.downloaded.Add(uint64(got.Received))
	n.counts.used.Add(uint64(got.Used))
	n.counts.rejected[malformed].Add(uint64(got.Invalid))
	log := n.p.Log.With("peer", m.host(), "answers", got.Received, "used", got.Used, "duration", time.Since(begin).Round(time.Millisecond))
	switch {
	case ctx.Err() != nil:
		return true
	case errors.Is(err, errDiffers):
		n.counts.reject(otherConfiguration)
		log.Warn("downloaded no answers from a peer", "error", err)
		return true
	case err != nil:
		log.Info("downloaded a part of the answers of a peer", "error", err)
		return false
	case got.Received == 0: // it has just started as well
		log.Debug("a peer has no answers")
		return false
	}
	log.Info("downloaded the answers of a peer")
	return true
}

// download asks m for its answers and stores them.
func (n *Node) download(ctx context.Context, m member) (got cache.TransferCount, err error) {
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
	in := &pacedConn{ctx: ctx, conn: conn, limiter: rate.NewLimiter(downloadRate, chunk)}
	if _, err := in.Write(digest[:]); err != nil {
		return got, err
	}
	var reply [1]byte
	if _, err := io.ReadFull(in, reply[:]); err != nil {
		return got, err
	}
	switch reply[0] {
	case replyAnswers:
	case replyBusy:
		return got, errBusy
	case replyDiffers:
		return got, errDiffers
	default:
		n.counts.reject(malformed)
		return got, fmt.Errorf("the peer sent the unknown reply code %d", reply[0])
	}
	// More than twice the size of our cache cannot be used.
	return n.p.Cache.ReadHot(io.LimitReader(in, 2*int64(n.p.Cache.Usage().Size)), asked, func(q wire.Query, a wire.Answer) bool {
		return digest == n.p.Digest() && n.p.Admit(q, a) // a reload may come meanwhile
	})
}

// upload sends our answers to the node at the other end of conn, and closes conn.
func (n *Node) upload(conn net.Conn) {
	defer conn.Close()
	ctx, cancel := context.WithTimeout(context.Background(), transferLimit)
	defer cancel()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	out := &pacedConn{ctx: ctx, conn: conn, limiter: rate.NewLimiter(uploadRate, chunk)}
	var digest [32]byte
	if _, err := io.ReadFull(out, digest[:]); err != nil {
		return
	}
	reply := replyAnswers
	if digest != n.p.Digest() {
		reply = replyDiffers
	}
	select {
	case n.uploads <- struct{}{}:
		defer func() { <-n.uploads }()
	default:
		reply = replyBusy
	}
	if _, err := out.Write([]byte{reply}); err != nil || reply != replyAnswers {
		return
	}
	buffered := bufio.NewWriterSize(guardedWriter{out, func() bool { return digest == n.p.Digest() }}, chunk)
	answers, err := n.p.Cache.WriteHot(buffered)
	if err == nil {
		err = buffered.Flush()
	}
	n.counts.uploaded.Add(uint64(answers))
	n.p.Log.Debug("uploaded answers to a peer", "address", conn.RemoteAddr(), "answers", answers, "error", err)
}

// A guardedWriter fails once its condition no longer holds.
type guardedWriter struct {
	io.Writer
	ok func() bool
}

func (g guardedWriter) Write(b []byte) (int, error) {
	if !g.ok() {
		return 0, errDiffers
	}
	return g.Writer.Write(b)
}

// A pacedConn is read and written no faster than its limiter allows, and fails if the
// other end stalls.
type pacedConn struct {
	ctx     context.Context
	conn    net.Conn
	limiter *rate.Limiter
}

func (p *pacedConn) Read(b []byte) (int, error) {
	if err := p.conn.SetReadDeadline(time.Now().Add(stallTimeout)); err != nil {
		return 0, err
	}
	n, err := p.conn.Read(b[:min(len(b), chunk)])
	if err == nil {
		err = p.limiter.WaitN(p.ctx, n)
	}
	return n, err
}

func (p *pacedConn) Write(b []byte) (written int, err error) {
	for len(b) > 0 && err == nil {
		part := b[:min(len(b), chunk)]
		if err = p.limiter.WaitN(p.ctx, len(part)); err != nil {
			break
		}
		if err = p.conn.SetWriteDeadline(time.Now().Add(stallTimeout)); err != nil {
			break
		}
		var n int
		n, err = p.conn.Write(part)
		written, b = written+n, b[n:]
	}
	return written, err
}
