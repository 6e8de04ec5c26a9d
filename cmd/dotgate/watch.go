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
)

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
	c.Flags().StringVar(&file, "watch", "", "ask until stopped, and keep in this `file` whether the gateway can answer: 0 if it can and 1 if not, as keepalived's vrrp_track_file reads it")
	return c
}

// A watch asks the gateway several questions, each at its own pace, and keeps in a
// file what it thinks.
type watch struct {
	path      string
	out       io.Writer
	questions []*question

	mu      sync.Mutex // guards what follows, and the questions' fails
	well    bool
	trouble time.Time // when a question failed last
}

// A question is one of those, and how it went.
type question struct {
	what            string
	every, patience time.Duration
	ask             func(ctx context.Context) error
	fails           int // in a row
}

// newWatch returns a watch that thinks ill of the gateway until it knows better.
func newWatch(config *configs.Config, path string, out io.Writer) *watch {
	w := &watch{path: path, out: out, questions: []*question{
		// The gateway answers this one by itself: one that is stuck is found out at
		// once, however slow upstreams are.
		{what: "answer", every: 100 * time.Millisecond, patience: 200 * time.Millisecond, ask: func(ctx context.Context) error {
			return askItself(ctx, config)
		}},
		// Who is about to stop says so here first.
		{what: "be ready", every: 300 * time.Millisecond, patience: 300 * time.Millisecond, ask: func(ctx context.Context) error {
			_, err := askReady(ctx, config)
			return err
		}},
		{what: "answer through upstreams", every: time.Second, patience: time.Second, ask: func(ctx context.Context) error {
			return healthcheck(ctx, config, io.Discard)
		}},
	}}
	for _, q := range w.questions {
		q.fails = watchFails
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
		next.Reset(50 * time.Millisecond)
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
		w.trouble = now
	}
	well := w.well
	switch {
	case q.fails >= watchFails:
		well = false
	case !well:
		well = now.Sub(w.trouble) >= watchSteady
		for _, other := range w.questions {
			well = well && other.fails == 0
		}
	}
	if well == w.well {
		return nil
	}
	w.well = well
	if well {
		fmt.Fprintln(w.out, "the gateway can answer")
	} else {
		fmt.Fprintf(w.out, "the gateway can't %s: %v\n", q.what, problem)
	}
	return w.write()
}

// write writes the file. Nobody else may change w meanwhile.
func (w *watch) write() error {
	verdict := "1\n"
	if w.well {
		verdict = "0\n"
	}
	if err := os.WriteFile(w.path, []byte(verdict), 0o644); err != nil {
		return fmt.Errorf("healthcheck --watch: %w", err)
	}
	return nil
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
