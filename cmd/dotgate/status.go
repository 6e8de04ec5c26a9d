package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"dotgate/cmd/dotgate/internal/api"
	"dotgate/cmd/dotgate/internal/peers"
	"dotgate/gateway/access"
)

// statusLimit bounds the time for the status.
const statusLimit = 5 * time.Second

func statusCommand(s *configFlags) *cobra.Command {
	var asJSON, endpoints bool
	c := &cobra.Command{
		Use:   "status",
		Short: "Show the state of the running gateway: upstreams, counters, latencies",
		Args:  noArguments,
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.Flags().BoolVar(&endpoints, "endpoints", false, "print the addresses and transports of each upstream instead")
	c.RunE = s.withClient(statusLimit, func(ctx context.Context, client *api.Client, out io.Writer) error {
		status, err := client.Status(ctx)
		switch {
		case err != nil:
			return err
		case asJSON:
			return writeJSON(out, status)
		case endpoints:
			return writeEndpoints(out, status, time.Now())
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

func writeStatus(out io.Writer, s api.Status, now time.Time) error {
	fmt.Fprintf(out, "dotgate %s, process %d, up for %s, on %s\n",
		s.Version, s.PID, ago(now.Sub(s.Started)), api.JoinAddrs(s.Listening))
	if d := s.Drill; d != nil {
		left := "the fault is over"
		if d.Ends.After(now) {
			left = "the fault ends in " + ago(d.Ends.Sub(now))
		}
		fmt.Fprintf(out, "DRILL of %s: %s, phase %s, %s\n", d.Upstream, d.Fault, d.Phase, left)
	}
	if len(s.OnLink) > 0 {
		fmt.Fprintf(out, "gateway.allow: on_link is %s\n", onLinkText(s.OnLink))
	}
	if s.Outage != "" {
		fmt.Fprintf(out, "NO UPSTREAM IS UP: %s\n", s.Outage)
	}
	if s.Network != "" {
		fmt.Fprintln(out, s.Network)
	}
	fmt.Fprintln(out)
	if err := writeUpstreams(out, s.Upstreams, now); err != nil {
		return err
	}
	if err := writePeers(out, s.Peers, now); err != nil {
		return err
	}
	c, b := s.Clients, s.Balancer
	fmt.Fprintf(out, "\nclients   %d queries over UDP, %d over TCP (%d connections), %d waiting for upstreams\n", c.UDP, c.TCP, c.Open, c.UnderWay)
	fmt.Fprintf(out, "          %d answered (%d with SERVFAIL of upstreams), %d failed by the gateway, %d refused, %d ignored\n",
		c.Outcomes["answered"], c.ServFail, c.Lost, sum(c.Outcomes, "refused_"), sum(c.Outcomes, "ignored_"))
	fmt.Fprintf(out, "cache     %d hits, %d misses, %d stale answers, %d prefetches\n",
		c.Cache["hits"], c.Cache["misses"], c.Cache["stale"], c.Cache["prefetches"])
	if r := s.Redis; r != nil {
		fmt.Fprintf(out, "redis     %s, %d hits, %d misses, %d reads failed, %d answers written\n",
			either(r.Up, "up", "bypassed"), r.Reads["hit"], r.Reads["miss"], r.Reads["failed"], r.Writes["written"])
	}
	fmt.Fprintf(out, "latency   of cache misses: p50 %s, p99 %s, max %s\n", milliseconds(c.P50), milliseconds(c.P99), milliseconds(c.Max))
	if s.LogDropped > 0 {
		fmt.Fprintf(out, "log       %d lines dropped because standard error was blocked\n", s.LogDropped)
	}
	_, err := fmt.Fprintf(out, "balancer  %d queries, %d attempts: %d hedges, %d retries, %d second opinions; %d failures\n",
		b.Queries, b.Attempts, b.Hedges, b.Retries, b.Seconds, b.Failures)
	return err
}

// onLinkText returns the prefixes that on_link stands for, and the excluded ones with
// reasons.
func onLinkText(links []access.Link) string {
	var served, excluded []string
	for _, l := range links {
		if l.Excluded == "" {
			served = append(served, l.Prefix.String())
		} else {
			excluded = append(excluded, fmt.Sprintf("%v of %s (%s)", l.Prefix, l.Interface, l.Excluded))
		}
	}
	text := cmp.Or(strings.Join(slices.Compact(served), ", "), "no network")
	if len(excluded) > 0 {
		text += "; not " + strings.Join(excluded, ", ")
	}
	return text
}

// writeUpstreams writes a table.
func writeUpstreams(out io.Writer, upstreams []api.UpstreamStatus, now time.Time) error {
	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "UPSTREAM\tSTATE\tFOR\tLATENCY\tPATIENCE\tCONNECTIONS\tVIA\tSENT\tANSWERED\tRESENT\tREASON")
	for _, u := range upstreams {
		since := "-"
		if !u.Since.IsZero() {
			since = ago(now.Sub(u.Since))
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%d\t%s\t%d\t%d\t%d\t%s\n", u.Name, u.State, since,
			milliseconds(u.Usual), milliseconds(u.Patience), u.Open, cmp.Or(u.Transport, "-"), u.Counts.Sent, u.Counts.Answered, u.Counts.Resent, u.Reason)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, u := range upstreams {
		if u.Rate != nil {
			fmt.Fprintf(out, "%s: its limit is %d queries a second (%s); %d were sent beyond it\n", u.Name, u.Rate.Limit, either(u.Rate.Learnt, "learnt", "option rate"), u.Counts.OverRate)
		}
		for _, n := range u.Endpoints {
			if !n.Avoided.IsZero() {
				fmt.Fprintf(out, "%s: %v (%s) is avoided because another address or transport works better; next try at %s\n", u.Name, n.Address, n.Transport, n.Avoided.Format(time.TimeOnly))
			}
			if n.Without != "" {
				fmt.Fprintf(out, "%s: %v (%s) is asked without %s\n", u.Name, n.Address, n.Transport, n.Without)
			}
		}
	}
	return nil
}

// writeEndpoints writes a table of all addresses and transports: those in use, and those that
// stand by.
func writeEndpoints(out io.Writer, s api.Status, now time.Time) error {
	if s.Network != "" {
		fmt.Fprintf(out, "%s\n\n", s.Network)
	}
	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "UPSTREAM\tADDRESS\tTRANSPORT\tSTATE\tCONNECTIONS\tLAST DIAL\tRESULT")
	for _, u := range s.Upstreams {
		for _, e := range u.Endpoints {
			last := "-"
			if !e.Dialled.IsZero() {
				last = ago(now.Sub(e.Dialled)) + " ago"
			}
			fmt.Fprintf(t, "%s\t%v\t%s\t%s\t%d\t%s\t%s\n", u.Name, e.Address, e.Transport, e.State, e.Open, last, cmp.Or(e.Result, "-"))
		}
	}
	return t.Flush()
}

// either returns yes if it is so, and no otherwise.
func either(is bool, yes, no string) string {
	if is {
		return yes
	}
	return no
}

// writePeers writes a table of the peers, if there are any.
func writePeers(out io.Writer, all []peers.Peer, now time.Time) error {
	if len(all) == 0 {
		return nil
	}
	fmt.Fprintln(out)
	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "PEER\tSTATE\tFOR\tADDRESS\tVERSION\tREPORTS FAILING\tREASON")
	for _, p := range all {
		since, address := "-", "-"
		if !p.Since.IsZero() {
			since = ago(now.Sub(p.Since))
		}
		if p.Address.IsValid() {
			address = p.Address.String()
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", p.Name, either(p.Up, "up", "down"), since, address,
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

// milliseconds formats a duration with about three digits. 0 stands for unknown.
func milliseconds(m api.Millis) string {
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

// ago formats a duration, the longer the coarser.
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
