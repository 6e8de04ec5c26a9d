package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"dotgate/cmd/dotgate/internal/settings"
	"dotgate/gateway/wire"
	"dotgate/upstreams"
)

func probeCommand(s *configFlags) *cobra.Command {
	var asJSON bool
	var idle time.Duration
	c := &cobra.Command{
		Use:   "probe [UPSTREAM]...",
		Short: "Test upstreams from this machine, without a gateway: TLS, certificate, features, latency",
		Long: `probe connects to each address of the configured upstreams, or of those given by
name, preset or URL. It shows the duration of TCP and TLS handshakes, TLS version,
ALPN, the certificate's end, session resumption, the number of concurrent queries
answered on one connection, whether answers come out of order, padding, the idle
timeout, and latencies.`,
		Args: func(*cobra.Command, []string) error { return nil },
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.Flags().DurationVar(&idle, "idle", 5*time.Second, "wait up to this `DURATION` for the server to close an idle connection; 0s does not test it")
	c.RunE = func(c *cobra.Command, args []string) error {
		return s.with(func(ctx context.Context, config *settings.Config, out io.Writer) error {
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
			found := examineAll(ctx, config, all, idle)
			var err error
			if asJSON {
				err = writeJSON(out, found)
			} else {
				err = writeExaminations(out, found, time.Now())
			}
			for _, f := range found {
				if err == nil && f.Error != "" {
					err = fmt.Errorf("probe: %s at %s: %s", f.Upstream, f.where(), f.Error)
				}
			}
			return err
		})(c, args)
	}
	return c
}

// A found is the result of probe for one address.
type found struct {
	Upstream string `json:"upstream"`
	Error    string `json:"error,omitempty"` // the first failure; later fields are unknown then
	upstreams.ProbeReport
	Certificate []certificate `json:"certificates,omitempty"` // the server's certificate first
}

type certificate struct {
	Subject   string    `json:"subject"`
	Issuer    string    `json:"issuer"`
	Names     []string  `json:"names,omitempty"`
	NotBefore time.Time `json:"not_before"`
	NotAfter  time.Time `json:"not_after"`
}

func examineAll(ctx context.Context, config *settings.Config, all []settings.Upstream, idle time.Duration) []found {
	results := make([][]found, len(all))
	var examining sync.WaitGroup
	for i, u := range all {
		u.Log, u.Built = slog.New(slog.DiscardHandler), builtAt()
		if u.Protocol != upstreams.TLS {
			results[i] = []found{{Upstream: u.Name, Error: "plain DNS has no TLS to test; use dotgate query"}}
			continue
		}
		query, err := wire.NewQuery(cmp.Or(u.ProbeName, config.Health.ProbeName), cmp.Or(u.ProbeType, config.Health.ProbeType))
		if err != nil {
			results[i] = []found{{Upstream: u.Name, Error: err.Error()}}
			continue
		}
		examining.Go(func() {
			addresses, err := upstreams.Probe(ctx, u.Options, query, idle)
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
	return flat
}

func foundAt(name string, x upstreams.ProbeReport) found {
	f := found{Upstream: name, ProbeReport: x}
	if x.Err != nil {
		f.Error = x.Err.Error()
	}
	for _, c := range x.Chain {
		f.Certificate = append(f.Certificate, certificate{c.Subject.String(), c.Issuer.String(), c.DNSNames, c.NotBefore, c.NotAfter})
	}
	return f
}

// where returns the address, or a dash.
func (f found) where() string {
	if !f.Address.IsValid() {
		return "-"
	}
	return f.Address.String()
}

func writeExaminations(out io.Writer, all []found, now time.Time) error {
	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "UPSTREAM\tADDRESS\tTCP\tTLS\tVERSION\tALPN\tCERTIFICATE ENDS\tRESUMES\tCONCURRENT\tOUT OF ORDER\tPADDED\tIDLE\tP50\tP90\tP99\tRESULT")
	for _, f := range all {
		result := "ok"
		switch {
		case f.Error != "":
			result = f.Error
		case f.Without != "":
			result = "ok, without " + f.Without
		}
		ends := "-"
		if len(f.Certificate) > 0 {
			ends = fmt.Sprintf("in %dd", int(f.Certificate[0].NotAfter.Sub(now).Hours()/24))
		}
		idle := milliseconds(f.Idle)
		if f.Idle > 0 {
			idle = ago(time.Duration(f.Idle))
		}
		if f.IdleLimitReached {
			idle = "> " + idle
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%d\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", f.Upstream, f.where(),
			milliseconds(f.TCP), milliseconds(f.TLS), cmp.Or(f.Version, "-"), cmp.Or(f.ALPN, "-"), ends, either(f.Resumes, "yes", "no"), f.Pipelined,
			either(f.OutOfOrder, "yes", "not seen"), either(f.Padded, "yes", "no"), idle, milliseconds(f.P50), milliseconds(f.P90), milliseconds(f.P99), result)
	}
	return t.Flush()
}
