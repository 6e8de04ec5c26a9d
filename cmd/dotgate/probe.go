package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"dotgate/cmd/dotgate/internal/settings"
	"dotgate/gateway/wire"
	"dotgate/upstreams"
)

func probeCommand(s *configFlags) *cobra.Command {
	var asJSON, asYAML, discover bool
	var idle time.Duration
	c := &cobra.Command{
		Use:   "probe [UPSTREAM]...",
		Short: "Test upstreams from this machine, without a gateway: TLS, certificate, features, latency",
		Long: `probe connects to each address of the configured upstreams, or of those given by
name, preset or URL. It shows the duration of TCP and TLS handshakes, TLS version,
ALPN, the certificate's end, session resumption, the number of concurrent queries
answered on one connection, whether answers come out of order, padding, the idle
timeout, and latencies. With --discover, it also asks each upstream which transports it
designates (RFC 9462), and tests those, which have to prove the same name. With --yaml,
it prints the upstreams with all addresses and transports that worked.`,
		Args: func(*cobra.Command, []string) error { return nil },
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.Flags().BoolVar(&asYAML, "yaml", false, "print the upstreams with what worked, for a configuration file")
	c.Flags().BoolVar(&discover, "discover", false, "also test the transports that the upstreams designate (DDR)")
	c.MarkFlagsMutuallyExclusive("json", "yaml")
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
			found := examineAll(ctx, config, all, examination{idle, discover})
			var err error
			switch {
			case asJSON:
				err = writeJSON(out, found)
			case asYAML:
				err = settings.WriteUpstreams(out, laddersOf(all, found))
			default:
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
	// Designated is set for a transport that the upstream has designated, and that is not
	// among its options.
	Designated bool   `json:"designated,omitempty"`
	path       string // over HTTPS
	Error      string `json:"error,omitempty"` // the first failure; later fields are unknown then
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

// An examination is what to test.
type examination struct {
	idle     time.Duration // see upstreams.Probe
	discover bool
}

func examineAll(ctx context.Context, config *settings.Config, all []settings.Upstream, x examination) []found {
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
			results[i] = x.examine(ctx, u.Options, query)
			if x.discover {
				results[i] = append(results[i], x.discovered(ctx, u.Options, query, results[i])...)
			}
		})
	}
	examining.Wait()
	return slices.Concat(results...)
}

func (x examination) examine(ctx context.Context, o upstreams.Options, q wire.Query) (all []found) {
	addresses, err := upstreams.Probe(ctx, o, q, x.idle)
	if err != nil {
		return []found{{Upstream: o.Name, Error: err.Error()}}
	}
	for _, report := range addresses {
		f := foundAt(o.Name, report)
		f.path = o.DoHPath
		all = append(all, f)
	}
	return all
}

// discoverLimit is how long an upstream may take to say which transports it designates.
const discoverLimit = 5 * time.Second

// discovered examines the transports that an upstream designates, apart from those that are
// known.
func (x examination) discovered(ctx context.Context, o upstreams.Options, q wire.Query, known []found) (all []found) {
	asking, cancel := context.WithTimeout(ctx, discoverLimit)
	defer cancel()
	designated, err := upstreams.Discover(asking, o)
	if err != nil {
		all = []found{{Upstream: o.Name, Error: fmt.Sprintf("ask which transports it designates (%s SVCB): %v", wire.DDRName, err)}}
	}
	isKnown := func(f found) bool {
		same := func(g found) bool { return f.Address == g.Address && f.Transport == g.Transport }
		return slices.ContainsFunc(known, same) || slices.ContainsFunc(all, same)
	}
	results := make([][]found, len(designated))
	var examining sync.WaitGroup
	for i, d := range designated {
		examining.Go(func() { results[i] = x.examine(ctx, d, q) })
	}
	examining.Wait()
	for _, f := range slices.Concat(results...) {
		if f.Designated = true; !isKnown(f) {
			all = append(all, f)
		}
	}
	return all
}

// laddersOf returns upstreams with the addresses and transports that worked. Those where
// nothing did are left out.
func laddersOf(all []settings.Upstream, found []found) (ladders []settings.Upstream) {
	for _, u := range all {
		u.Transports, u.Addresses, u.DoHAddresses, u.Host, u.Bootstrap, u.Port, u.DoQPort, u.DoHPort = nil, nil, nil, "", nil, 853, 0, 443
		for _, f := range found {
			if f.Upstream == u.Name && f.Error == "" && f.Address.IsValid() {
				addRung(&u, f)
			}
		}
		if len(u.Transports) > 0 {
			ladders = append(ladders, u)
		}
	}
	return ladders
}

// addRung adds an endpoint to an upstream, unless its options can't have it beside the others.
func addRung(u *settings.Upstream, f found) {
	place := &u.Addresses
	switch has := slices.Contains(u.Transports, f.Transport); f.Transport {
	case upstreams.DoH, upstreams.DoH3:
		if len(u.DoHAddresses) > 0 && u.DoHPath != f.path {
			return
		}
		place, u.DoHPath = &u.DoHAddresses, f.path
	case upstreams.DoQ:
		if has && u.DoQPort != f.Address.Port() {
			return
		}
		u.DoQPort = f.Address.Port()
		if slices.ContainsFunc(u.Addresses, func(a netip.AddrPort) bool { return a.Addr() == f.Address.Addr() }) {
			place = nil
		}
	}
	if !slices.Contains(u.Transports, f.Transport) {
		u.Transports = append(u.Transports, f.Transport)
	}
	if place != nil && !slices.Contains(*place, f.Address) {
		*place = append(*place, f.Address)
	}
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
	fmt.Fprintln(t, "UPSTREAM\tADDRESS\tTRANSPORT\tTCP\tTLS\tVERSION\tALPN\tCERTIFICATE ENDS\tRESUMES\tCONCURRENT\tOUT OF ORDER\tPADDED\tIDLE\tP50\tP90\tP99\tRESULT")
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
		if f.Designated {
			result += " (designated by the upstream)"
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%d\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", f.Upstream, f.where(), cmp.Or(f.Transport, "-"),
			milliseconds(f.TCP), milliseconds(f.TLS), cmp.Or(f.Version, "-"), cmp.Or(f.ALPN, "-"), ends, either(f.Resumes, "yes", "no"), f.Pipelined,
			either(f.OutOfOrder, "yes", "not seen"), either(f.Padded, "yes", "no"), idle, milliseconds(f.P50), milliseconds(f.P90), milliseconds(f.P99), result)
	}
	return t.Flush()
}
