package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"dotgate/configs"
	"dotgate/gateway/wire"
)

const (
	// watchFails is how often in a row a question must fail: one packet may be lost.
	watchFails = 2
	// watchSteady is for how long nothing may fail for the gateway to be well again.
	watchSteady = time.Second
	// watchAgain is how soon a question that failed is asked again.
	watchAgain = 20 * time.Millisecond
)

// A verdict is what a watch thinks of the gateway. The higher, the worse: of two
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

// healthcheckCommand is healthcheck, once or again and again.
func healthcheckCommand(s *sources) *cobra.Command {
	var file string
	c := &cobra.Command{
		Use:   "healthcheck",
		Short: "Ask the running gateway a real question over UDP and TCP, and whether it is ready",
		Args:  noArguments,
		RunE: s.with(func(ctx context.Context, config *configs.Config, out io.Writer) error {
			if file != "" {
				return newWatch(config, file, out).run(ctx)
			}
			return healthcheck(ctx, config, out)
		}),
	}
	c.Flags().StringVar(&file, "watch", "", "ask until stopped, and keep in this `file` whether the gateway can answer: 0 if it can, 1 if it has no upstream, and 2 if it can't or is about to stop, as keepalived's track_file reads it")
	return c
}

// A watch asks the gateway several questions, each at its own pace, and keeps in a
// file what it thinks.
type watch struct {
	path      string
	out       io.Writer
	questions []*question

	mu      sync.Mutex // guards what follows, and what questions found
	verdict verdict
}

// A question is one of those, and how it went.
type question struct {
	every, patience time.Duration
	ask             func(ctx context.Context) error
	proves          verdict   // what it says of the gateway that ask fails, unless that says more
	proved          verdict   // what it said last
	fails           int       // in a row
	failed          time.Time // when it failed last
}

// newWatch returns a watch that thinks ill of the gateway until it knows better.
func newWatch(config *configs.Config, path string, out io.Writer) *watch {
	w := &watch{path: path, out: out, verdict: useless, questions: []*question{
		// The gateway answers this one by itself: one that is stuck is found out at
		// once, however slow upstreams are.
		{every: 100 * time.Millisecond, patience: 150 * time.Millisecond, proves: useless, ask: func(ctx context.Context) error {
			return askItself(ctx, config)
		}},
		// It knows first that it is about to stop, and that no upstream answers.
		{every: 150 * time.Millisecond, patience: 300 * time.Millisecond, proves: cutOff, ask: func(ctx context.Context) error {
			return askConnected(ctx, config)
		}},
		// So much for what it says; this is what it does.
		{every: time.Second, patience: time.Second, proves: cutOff, ask: func(ctx context.Context) error {
			return healthcheck(ctx, config, io.Discard)
		}},
	}}
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
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// put asks q once, takes note of what came of it, and waits until it is time to ask
// again: soon if it failed.
func (w *watch) put(ctx context.Context, q *question) error {
	next := time.NewTimer(q.every)
	defer next.Stop()
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

// note takes note of how q went, and writes the file if that changes what w thinks.
func (w *watch) note(q *question, problem error) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := time.Now()
	q.fails++
	if problem == nil {
		q.fails = 0
	} else {
		q.failed = now
		q.proved = q.proves
		if isStopping(problem) {
			q.proved = useless
		}
	}
	next := w.judge(now)
	if next == w.verdict {
		return nil
	}
	w.verdict = next
	if problem != nil {
		fmt.Fprintf(w.out, "%v: %v\n", next, problem)
	} else {
		fmt.Fprintln(w.out, next)
	}
	return w.write()
}

// judge returns what to think now: the worst that is proved, at once, and better
// than before only of what has not failed for a while, lest it waver. Nobody else
// may change w meanwhile.
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

// write writes the file. Nobody else may change w meanwhile.
func (w *watch) write() error {
	if err := os.WriteFile(w.path, fmt.Appendf(nil, "%d\n", w.verdict), 0o644); err != nil {
		return fmt.Errorf("healthcheck --watch: %w", err)
	}
	return nil
}

// isStopping reports whether err is that the gateway is about to stop.
func isStopping(err error) bool {
	var not *notReady
	return errors.As(err, &not) && not.readiness.Stopping
}

// askConnected returns an error if the gateway knows of no upstream that answers.
func askConnected(ctx context.Context, config *configs.Config) error {
	r, err := askReady(ctx, config)
	if err == nil && r.Ready && r.Answering == 0 {
		return fmt.Errorf("none of its upstreams answers; %v", r)
	}
	return err
}

// askItself asks the gateway what it knows by itself (RFC 6761 section 6.3).
func askItself(ctx context.Context, config *configs.Config) error {
	query, err := wire.NewQuery("localhost", "A")
	if err != nil {
		return err
	}
	for _, addr := range config.Gateway.Listen {
		if err := askAny(ctx, reachable(addr), query); err != nil {
			return err
		}
	}
	return nil
}

// askAny returns nil if one of addrs answers over UDP.
func askAny(ctx context.Context, addrs []netip.AddrPort, query wire.Query) error {
	var problems []string
	for _, addr := range addrs {
		err := ask(ctx, "udp", addr, query)
		if err == nil {
			return nil
		}
		problems = append(problems, fmt.Sprintf("ask %s over udp for %v: %v", addr, query, err))
	}
	return errors.New(strings.Join(problems, "; "))
}
