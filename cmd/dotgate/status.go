package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"dotgate/cmd/dotgate/control"
)

// statusLimit is how long a gateway may take to tell its status.
const statusLimit = 5 * time.Second

func statusCommand(s *sources) *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "status",
		Short: "Show what the running gateway knows: upstreams, counts, latencies",
		Args:  noArguments,
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.RunE = s.withClient(statusLimit, func(ctx context.Context, client *control.Client, out io.Writer) error {
		status, err := client.Status(ctx)
		switch {
		case err != nil:
			return err
		case asJSON:
			return writeJSON(out, status)
		}
		return writeStatus(out, status, time.Now())
	})
	return c
}

func writeJSON(out io.Writer, value any) error {
	e := json.NewEncoder(out)
	e.SetIndent("", "  ")
	return e.Encode(value)
}

func writeStatus(out io.Writer, s control.Status, now time.Time) error {
	fmt.Fprintf(out, "dotgate %s, process %d, up for %s, on %s\n",
		s.Version, s.PID, ago(now.Sub(s.Started)), joined(s.Listening, netip.AddrPort.String))
	if d := s.Drill; d != nil {
		left := "the fault is over"
		if d.Ends.After(now) {
			left = "the fault ends in " + ago(d.Ends.Sub(now))
		}
		fmt.Fprintf(out, "DRILL of %s: %s, in the phase %q, %s\n", d.Upstream, d.Fault, d.Phase, left)
	}
	fmt.Fprintln(out)
	if err := writeUpstreams(out, s.Upstreams, now); err != nil {
		return err
	}
	if err := writePeers(out, s.Peers, now); err != nil {
		return err
	}
	c, b := s.Clients, s.Balancer
	fmt.Fprintf(out, "\nclients   %d packets over UDP, %d messages over TCP (%d connections), %d under way\n", c.UDP, c.TCP, c.Open, c.UnderWay)
	fmt.Fprintf(out, "          %d answered (%d of them SERVFAIL), %d lost, %d refused, %d ignored\n",
		c.Outcomes["answered"], c.ServFail, c.Lost, sum(c.Outcomes, "refused_"), sum(c.Outcomes, "ignored_"))
	fmt.Fprintf(out, "cache     %d hits, %d misses, %d stale answers, %d prefetches\n",
		c.Cache["hits"], c.Cache["misses"], c.Cache["stale"], c.Cache["prefetches"])
	if r := s.Redis; r != nil {
		state := "left alone"
		if r.Up {
			state = "up"
		}
		fmt.Fprintf(out, "redis     %s, %d hits, %d misses, %d reads failed, %d answers written\n",
			state, r.Reads["hit"], r.Reads["miss"], r.Reads["failed"], r.Writes["written"])
	}
	fmt.Fprintf(out, "latency   p50 %s, p99 %s, at most %s\n", milliseconds(c.P50), milliseconds(c.P99), milliseconds(c.Max))
	_, err := fmt.Fprintf(out, "balancer  %d queries, %d attempts: %d hedges, %d retries, %d second opinions; %d failures\n",
		b["queries"], b["attempts"], b["hedges"], b["retries"], b["seconds"], b["failures"])
	return err
}

// writeUpstreams writes a table.
func writeUpstreams(out io.Writer, upstreams []control.UpstreamStatus, now time.Time) error {
	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "UPSTREAM\tSTATE\tFOR\tUSUAL\tPATIENCE\tCONNECTIONS\tSENT\tANSWERED\tRESENT\tREASON")
	for _, u := range upstreams {
		since := "-"
		if !u.Since.IsZero() {
			since = ago(now.Sub(u.Since))
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%d\t%d\t%d\t%d\t%s\n", u.Name, u.State, since,
			milliseconds(u.Usual), milliseconds(u.Patience), u.Open, u.Counts["sent"], u.Counts["answered"], u.Counts["resent"], u.Reason)
	}
	return t.Flush()
}

// writePeers writes a table, if there are any.
func writePeers(out io.Writer, peers []control.PeerStatus, now time.Time) error {
	if len(peers) == 0 {
		return nil
	}
	fmt.Fprintln(out)
	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "PEER\tSTATE\tFOR\tADDRESS\tVERSION\tFINDS FAILING\tREASON")
	for _, p := range peers {
		state, since, address := "down", "-", "-"
		if p.Up {
			state = "up"
		}
		if !p.Since.IsZero() {
			since = ago(now.Sub(p.Since))
		}
		if p.Address.IsValid() {
			address = p.Address.String()
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", p.Name, state, since, address,
			cmp.Or(p.Version, "-"), cmp.Or(strings.Join(p.Failing, ", "), "-"), p.Problem)
	}
	return t.Flush()
}

func sum(counts map[string]uint64, prefix string) uint64 {
	var n uint64
	for name, count := range counts {
		if strings.HasPrefix(name, prefix) {
			n += count
		}
	}
	return n
}

// milliseconds writes three digits or so, for more would be noise. Nothing is
// that quick but what is not known.
func milliseconds(m control.Millis) string {
	ms := float64(m) / float64(time.Millisecond)
	switch {
	case ms == 0:
		return "-"
	case ms < 10:
		return fmt.Sprintf("%.2fms", ms)
	case ms < 100:
		return fmt.Sprintf("%.1fms", ms)
	}
	return fmt.Sprintf("%.0fms", ms)
}

// ago leaves out what nobody wants to know about a long time.
func ago(d time.Duration) string {
	switch {
	case d < 10*time.Second:
		return max(d, 0).Round(100 * time.Millisecond).String()
	case d < time.Hour:
		return d.Round(time.Second).String()
	case d < 48*time.Hour:
		return strings.TrimSuffix(d.Round(time.Minute).String(), "0s")
	}
	return fmt.Sprintf("%dd", int(d/(24*time.Hour)))
}
