package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"dotgate/cmd/dotgate/control"
	"dotgate/configs"
	"dotgate/gateway/wire"
	"dotgate/upstreams"
)

func probeCommand(s *sources) *cobra.Command {
	var asJSON bool
	var idle time.Duration
	c := &cobra.Command{
		Use:   "probe [UPSTREAM]...",
		Short: "Test upstreams from this machine, without a gateway: TLS, certificate, what they can, how quick they are",
		Long: `probe connects to each address of the configured upstreams, or of those given by
name, preset or URL, and tells: TCP and TLS handshakes, TLS version and ALPN,
certificate and its end, whether sessions resume, whether several queries at once
are answered and may overtake each other, whether answers are padded, how long an
idle connection is kept, and latencies.`,
		Args: func(*cobra.Command, []string) error { return nil },
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.Flags().DurationVar(&idle, "idle", 5*time.Second, "how `long` to wait for idle connections to be closed; 0s: not at all")
	c.RunE = func(c *cobra.Command, args []string) error {
		return s.with(func(ctx context.Context, config *configs.Config, out io.Writer) error {
			all := config.Upstreams
			if len(args) > 0 {
				all = nil
			}
			for _, name := range args {
				u, err := config.Upstream(name)
				if err != nil {
					return usageError{err}
				}
				all = append(all, u)
			}
			found, err := examineAll(ctx, config, all, idle)
			if err != nil {
				return err
			}
			if asJSON {
				err = writeJSON(out, found)
			} else {
				err = writeExaminations(out, found, time.Now())
			}
			for _, f := range found {
				if err == nil && f.Error != "" {
					err = fmt.Errorf("probe: %s at %s: %s", f.Upstream, f.Address, f.Error)
				}
			}
			return err
		})(c, args)
	}
	return c
}

// A Found is what probe tells of one address.
type found struct {
	Upstream    string         `json:"upstream"`
	Address     string         `json:"address,omitempty"`
	Error       string         `json:"error,omitempty"` // what went wrong first; what comes after is then unknown
	TCP         control.Millis `json:"tcp_ms"`
	TLS         control.Millis `json:"tls_ms"`
	Version     string         `json:"tls_version,omitempty"`
	Cipher      string         `json:"cipher,omitempty"`
	ALPN        string         `json:"alpn,omitempty"`
	Certificate []certificate  `json:"certificates,omitempty"` // the server's first
	Resumes     bool           `json:"resumes"`
	Asked       int            `json:"asked"`
	Answered    int            `json:"answered"`
	P50         control.Millis `json:"p50_ms"`
	P90         control.Millis `json:"p90_ms"`
	P99         control.Millis `json:"p99_ms"`
	Pipelined   int            `json:"pipelined"`
	OutOfOrder  bool           `json:"out_of_order"` // one answer overtook another; that none did proves nothing
	Padded      bool           `json:"padded"`
	Idle        control.Millis `json:"idle_ms,omitempty"`
	IdleAtLeast bool           `json:"idle_at_least,omitempty"` // it had not closed by then
}

type certificate struct {
	Subject   string    `json:"subject"`
	Issuer    string    `json:"issuer"`
	Names     []string  `json:"names,omitempty"`
	NotBefore time.Time `json:"not_before"`
	NotAfter  time.Time `json:"not_after"`
}

func examineAll(ctx context.Context, config *configs.Config, all []configs.Upstream, idle time.Duration) ([]found, error) {
	query, err := wire.NewQuery(config.Health.ProbeName, config.Health.ProbeType)
	if err != nil {
		return nil, err
	}
	results := make([][]found, len(all))
	var examining sync.WaitGroup
	for i, u := range all {
		u.Log = slog.New(slog.DiscardHandler)
		if u.Protocol != upstreams.TLS {
			results[i] = []found{{Upstream: u.Name, Error: "it speaks plain DNS; dotgate query asks it"}}
			continue
		}
		examining.Go(func() {
			addresses, err := upstreams.Examine(ctx, u.Options, query, idle)
			if err != nil {
				results[i] = []found{{Upstream: u.Name, Error: err.Error()}}
			}
			for _, x := range addresses {
				results[i] = append(results[i], foundAt(u.Name, x))
			}
		})
	}
	examining.Wait()
	var flat []found
	for _, r := range results {
		flat = append(flat, r...)
	}
	return flat, nil
}

func foundAt(name string, x upstreams.Examination) found {
	f := found{
		Upstream: name, Address: x.Address.String(), TCP: control.Millis(x.TCP), TLS: control.Millis(x.TLS),
		Version: x.Version, Cipher: x.Cipher, ALPN: x.ALPN, Resumes: x.Resumes, Asked: x.Asked, Answered: x.Answered,
		P50: control.Millis(x.P50), P90: control.Millis(x.P90), P99: control.Millis(x.P99),
		Pipelined: x.Pipelined, OutOfOrder: x.OutOfOrder, Padded: x.Padded, Idle: control.Millis(x.Idle), IdleAtLeast: x.IdleLimitReached,
	}
	if x.Err != nil {
		f.Error = x.Err.Error()
	}
	for _, c := range x.Chain {
		f.Certificate = append(f.Certificate, certificate{c.Subject.String(), c.Issuer.String(), c.DNSNames, c.NotBefore, c.NotAfter})
	}
	return f
}

func writeExaminations(out io.Writer, all []found, now time.Time) error {
	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "UPSTREAM\tADDRESS\tTCP\tTLS\tVERSION\tALPN\tCERTIFICATE ENDS\tRESUMES\tAT ONCE\tOVERTAKING\tPADDED\tIDLE\tP50\tP90\tP99\tRESULT")
	for _, f := range all {
		result := "well"
		if f.Error != "" {
			result = f.Error
		}
		ends := "-"
		if len(f.Certificate) > 0 {
			ends = fmt.Sprintf("in %dd", int(f.Certificate[0].NotAfter.Sub(now).Hours()/24))
		}
		idle := milliseconds(f.Idle)
		if f.Idle > 0 {
			idle = ago(time.Duration(f.Idle))
		}
		if f.IdleAtLeast {
			idle = "> " + idle
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%d\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", f.Upstream, orDash(f.Address),
			milliseconds(f.TCP), milliseconds(f.TLS), orDash(f.Version), orDash(f.ALPN), ends, yes(f.Resumes), f.Pipelined,
			seen(f.OutOfOrder), yes(f.Padded), idle, milliseconds(f.P50), milliseconds(f.P90), milliseconds(f.P99), result)
	}
	return t.Flush()
}

func orDash(text string) string {
	if text == "" {
		return "-"
	}
	return text
}

func yes(is bool) string {
	if is {
		return "yes"
	}
	return "no"
}

func seen(is bool) string {
	if is {
		return "seen"
	}
	return "not seen"
}
