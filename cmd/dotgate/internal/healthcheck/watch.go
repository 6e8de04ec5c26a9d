package healthcheck

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"dotgate/cmd/dotgate/internal/api"
	"dotgate/configs/files"
	"dotgate/gateway/wire"
)

const (
	// watchFails is how often in a row a question must fail: one packet may be lost.
	watchFails = 2
	// watchSteady is for how long nothing may fail for the gateway to be well again.
	watchSteady = time.Second
	// watchAgain is how soon a question that failed is asked again.
	watchAgain = 20 * time.Millisecond
	// watchLive is how many real queries there are for one that an upstream has to
	// answer: that is one a minute.
	watchLive = 60
	// watchRemind is how often a problem that lasts is told.
	watchRemind = time.Minute
	// watchLines is how many lines may wait for a slow reader of the output.
	watchLines = 16
)

// A verdict is what a watch concludes about the gateway. The higher, the worse: of two
// gateways, clients are better off with the lower.
type verdict int

const (
	well    verdict = iota // it can answer
	cutOff                 // it has what it remembers, and no upstream
	useless                // it does not answer, or is about to stop
)

func (v verdict) String() string {
	switch v {
	case well:
		return "the gateway can answer"
	case cutOff:
		return "the gateway has no upstream"
	case useless:
		return "the gateway can't answer"
	}
	return fmt.Sprintf("verdict(%d)", int(v))
}

// A watch asks the gateway several questions, each at its own pace, and keeps its
// verdict in a file.
type watch struct {
	path      string
	out       io.Writer
	questions []*question

	mu       sync.Mutex // guards the rest, and the state of questions
	verdict  verdict
	told     time.Time // when a problem was told last; zero if none was
	ordinary string    // why the gateway is asked as by an ordinary client
	lines    chan string
}

// A question is one of those, and how it went.
type question struct {
	every, patience time.Duration
	ask             func(ctx context.Context) error
	proves          verdict   // what a failure says of the gateway, unless the error says more
	vital           bool      // while it can't be asked, the verdict stays as it is
	problems        int       // in a row: failures, and that it could not be asked
	fails           int       // failures in a row
	failed          time.Time // when it failed last
	proved          verdict   // what the last failure said
}

// A finder finds the gateway, and remembers where it was.
type finder struct {
	*checker
	note func(ordinary string) // called for each time it was found
	last atomic.Pointer[subject]
}

func (f *finder) find(ctx context.Context) (*subject, error) {
	s, err := f.checker.find(ctx)
	if s != nil {
		f.last.Store(s)
		f.note(s.ordinary)
	}
	return s, err
}

// put puts a question to the gateway where it was last. If that fails because the gateway
// listens elsewhere by now, it puts the question there.
func (f *finder) put(ctx context.Context, question func(*subject) error) (err error) {
	s := f.last.Load()
	if s == nil {
		if s, err = f.find(ctx); err != nil {
			return err
		}
	}
	if err = question(s); err == nil {
		return nil
	}
	moved, e := f.find(ctx)
	if e != nil || slices.Equal(moved.listening, s.listening) {
		return err
	}
	return question(moved)
}

// newWatch returns a watch that takes the gateway for useless until it answers.
func newWatch(c *checker, path string, out io.Writer) *watch {
	w := &watch{path: path, out: out, verdict: useless}
	f := &finder{checker: c, note: w.noteOrdinary}
	rounds := 0
	w.questions = []*question{
		// The gateway answers this one by itself: one that is stuck is found out at
		// once, however slow upstreams are.
		{every: 100 * time.Millisecond, patience: 150 * time.Millisecond, proves: useless, vital: true, ask: func(ctx context.Context) error {
			return f.put(ctx, func(s *subject) error { return s.itself(ctx) })
		}},
		// It is the first to know that it is about to stop, that no upstream answers,
		// and where it listens.
		{every: 150 * time.Millisecond, patience: controlLimit + 300*time.Millisecond, proves: cutOff, ask: func(ctx context.Context) error {
			s, err := f.find(ctx)
			if err != nil {
				return err
			}
			if s.unknown != nil {
				return s.unknown
			}
			return connected(s.readiness)
		}},
		// Those were its words. This is what it does: its cache may answer, as it may
		// answer clients, but once a minute an upstream has to.
		{every: time.Second, patience: time.Second, proves: cutOff, ask: func(ctx context.Context) error {
			rounds++
			live, networks := false, []string{"udp", "tcp"}
			if rounds%watchLive == 0 {
				live, networks = true, networks[:1]
			}
			return f.put(ctx, func(s *subject) error {
				_, err := s.answers(ctx, s.name, live, networks...)
				return err
			})
		}},
	}
	for _, q := range w.questions {
		q.fails, q.proved = watchFails, useless
	}
	return w
}

// run asks until ctx is done, or the file can't be written.
func (w *watch) run(ctx context.Context) error {
	if err := w.write(); err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	printed := w.print()
	var asking sync.WaitGroup
	for _, q := range w.questions {
		asking.Go(func() {
			for ctx.Err() == nil {
				if err := w.put(ctx, q); err != nil {
					cancel(err)
				}
			}
		})
	}
	asking.Wait()
	printed()
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// print begins to print lines. A reader that does not read must not keep the verdict
// from being written: lines that find no room are dropped. The function that it
// returns waits for those that have not been printed, but not for long.
func (w *watch) print() (end func()) {
	lines, done := make(chan string, watchLines), make(chan struct{})
	w.mu.Lock()
	w.lines = lines
	w.mu.Unlock()
	go func() {
		defer close(done)
		for line := range lines {
			fmt.Fprintln(w.out, line)
		}
	}()
	return func() {
		close(lines)
		select {
		case <-done:
		case <-time.After(watchSteady):
		}
	}
}

// say prints a line. The caller holds mu.
func (w *watch) say(format string, args ...any) {
	select {
	case w.lines <- fmt.Sprintf(format, args...):
	default:
	}
}

// put asks q once, takes note of the result, and waits until it is time to ask again:
// soon if it failed.
func (w *watch) put(ctx context.Context, q *question) error {
	next := time.NewTimer(q.every)
	limited, cancel := context.WithTimeout(ctx, q.patience)
	err := q.ask(limited)
	cancel()
	if ctx.Err() != nil {
		return nil
	}
	if err := w.note(q, err); err != nil {
		return err
	}
	if err != nil {
		next.Reset(watchAgain)
	}
	select {
	case <-ctx.Done():
	case <-next.C:
	}
	return nil
}

// note takes note of how q went, and writes the file if that changes the verdict. A
// problem that lasts is told once a minute, the first one at once.
func (w *watch) note(q *question, problem error) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := time.Now()
	switch {
	case problem == nil:
		q.problems, q.fails = 0, 0
	case isNotAsked(problem):
		q.problems++
		// This proves nothing. What was proved before, that the gateway is about to stop
		// for instance, holds for watchSteady: by then the vital question can tell.
		if !q.vital {
			q.fails = 0
		}
	default:
		q.problems++
		q.fails++
		q.failed = now
		q.proved = provedBy(problem, q.proves)
	}
	next := w.judge(now)
	changed, better := next != w.verdict, next < w.verdict
	w.verdict = next
	switch {
	case better:
		w.told = time.Time{}
		w.say("%v", next)
	case problem != nil && (changed || q.problems >= watchFails && (w.told.IsZero() || now.Sub(w.told) >= watchRemind)):
		w.told = now
		w.say("%v: %v", next, problem)
	}
	if !changed {
		return nil
	}
	return w.write()
}

// noteOrdinary tells why the gateway is asked as by an ordinary client, if that has
// changed.
func (w *watch) noteOrdinary(why string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if why == w.ordinary {
		return
	}
	if w.ordinary = why; why == "" {
		w.say("the gateway is asked by its control socket")
		return
	}
	w.say("the gateway is asked as by an ordinary client, for which gateway.allow and gateway.rate_limit hold: %s", why)
}

// judge returns the verdict of now: the worst that is proved, at once, and better than
// before only where nothing has failed for a while, lest it waver. The caller holds mu.
func (w *watch) judge(now time.Time) verdict {
	next := well
	for _, q := range w.questions {
		switch {
		case q.fails >= watchFails:
			next = max(next, q.proved)
		case q.fails > 0 || now.Sub(q.failed) < watchSteady:
			next = max(next, min(q.proved, w.verdict))
		}
	}
	return next
}

// verdicts are the files that a watch writes.
var verdicts = files.Kind{Name: "a verdict of dotgate healthcheck", Own: func(head []byte) bool {
	return len(head) <= 2 && head[0] >= '0' && head[0] <= '2'
}}

// write writes the file. The caller holds mu.
func (w *watch) write() error {
	err := verdicts.Replace(w.path, 0o644, func(f io.Writer) error {
		_, err := fmt.Fprintln(f, int(w.verdict))
		return err
	})
	if err != nil {
		return fmt.Errorf("healthcheck --watch: %w", err)
	}
	return nil
}

// provedBy returns what a problem says of the gateway, or else what the question does.
func provedBy(problem error, otherwise verdict) verdict {
	not, ok := errors.AsType[*notReady](problem)
	switch {
	case ok && not.readiness.Stopping, errors.Is(problem, syscall.ECONNREFUSED):
		return useless
	}
	return otherwise
}

// connected returns an error if the gateway says that it is not ready, or has no
// upstream that answers.
func connected(r *api.Readiness) error {
	switch {
	case r == nil:
		return nil
	case !r.Ready:
		return &notReady{*r}
	case r.Answering == 0:
		return fmt.Errorf("none of its upstreams answers; %v", *r)
	}
	return nil
}

// itself asks the gateway for what it knows by itself (RFC 6761 section 6.3). An error
// is a reply, too: gateway.forward_local may have that name.
func (s *subject) itself(ctx context.Context) error {
	_, err := s.answers(ctx, localhost, false, "udp")
	if _, replied := errors.AsType[errorReply](err); replied {
		return nil
	}
	return err
}

var localhost = func() wire.Query {
	q, err := wire.NewQuery("localhost", "A")
	if err != nil {
		panic("BUG: " + err.Error())
	}
	return q
}()
