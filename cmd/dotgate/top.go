package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"dotgate/cmd/dotgate/internal/api"
)

// clear is the escape sequence that clears the terminal.
const clear = "\x1b[H\x1b[J"

func topCommand(s *configFlags) *cobra.Command {
	var every time.Duration
	var times int
	c := &cobra.Command{
		Use:   "top",
		Short: "Show the status of the running gateway continuously, with rates",
		Args:  noArguments,
	}
	c.Flags().DurationVar(&every, "every", time.Second, "interval as `DURATION`")
	c.Flags().IntVar(&times, "times", 0, "stop after `COUNT` updates; 0 runs until interrupted")
	c.RunE = func(c *cobra.Command, args []string) error {
		if every < 100*time.Millisecond {
			return usageError{fmt.Errorf("--every: %v is below 100ms", every)}
		}
		return s.withClient(0, func(ctx context.Context, client *api.Client, out io.Writer) error {
			return watchStatus(ctx, client, out, every, times)
		})(c, args)
	}
	return c
}

// watchStatus writes the status until ctx is done. On a terminal each replaces the one
// before.
func watchStatus(ctx context.Context, client *api.Client, out io.Writer, every time.Duration, times int) error {
	before, after := "", "\n"
	if info, err := os.Stdout.Stat(); err == nil && info.Mode()&os.ModeCharDevice != 0 {
		before, after = clear, ""
	}
	tick := time.Tick(every)
	var last api.Status
	var at time.Time
	for n := 1; ; n++ {
		look, cancel := context.WithTimeout(ctx, statusLimit)
		status, err := client.Status(look)
		cancel()
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			return err
		}
		now := time.Now()
		var text bytes.Buffer
		text.WriteString(before)
		if err := writeStatus(&text, status, now); err != nil {
			return err
		}
		if !at.IsZero() {
			writeRates(&text, last, status, now.Sub(at))
		}
		text.WriteString(after)
		if _, err := out.Write(text.Bytes()); err != nil {
			return err
		}
		last, at = status, now
		if n == times {
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick:
		}
	}
}

func writeRates(out io.Writer, last, now api.Status, passed time.Duration) {
	rate := func(before, after uint64) float64 { return float64(after-min(before, after)) / passed.Seconds() }
	fmt.Fprintf(out, "\nnow       %.1f queries/s, %.1f answered from the cache/s, %.1f lost/s, %.1f hedges/s\n",
		rate(last.Clients.UDP+last.Clients.TCP, now.Clients.UDP+now.Clients.TCP), rate(last.Clients.Cache["hits"], now.Clients.Cache["hits"]),
		rate(last.Clients.Lost, now.Clients.Lost), rate(last.Balancer.Hedges, now.Balancer.Hedges))
}
