package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"dotgate/cmd/dotgate/internal/api"
	"dotgate/gateway/wire"
)

// cacheLimit bounds the time that a gateway takes to search its cache.
const cacheLimit = 30 * time.Second

func cacheCommand(s *configFlags) *cobra.Command {
	c := &cobra.Command{
		Use:   "cache",
		Short: "Show or flush entries of the running gateway's cache",
		Args: func(c *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usageError{fmt.Errorf("%s has no command %q; see %s --help", c.CommandPath(), args[0], c.CommandPath())}
			}
			return usageError{fmt.Errorf("%s needs show or flush; see %s --help", c.CommandPath(), c.CommandPath())}
		},
		RunE: func(*cobra.Command, []string) error { return nil }, // without it, cobra prints the help for any argument
	}
	c.AddCommand(cacheShowCommand(s), cacheFlushCommand(s))
	return c
}

func cacheShowCommand(s *configFlags) *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "show NAME",
		Short: "Show all cached answers for a name",
		Long: `show prints the cached answers for a name, by type and by the flags DO and CD of the
query: response code, remaining time until it is stale or time since then, age,
number of clients that got it (counted up to 3), and its records as a client gets
them now.

The output is a zone file, with all other information in comments.`,
		Args: cobra.MatchAll(oneArgument("one name"), cleanNames),
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.RunE = func(c *cobra.Command, args []string) error {
		return s.withClient(cacheLimit, func(ctx context.Context, client *api.Client, out io.Writer) error {
			answers, err := client.Cached(ctx, args[0])
			switch {
			case err != nil:
				return fmt.Errorf("show what is cached for %s: %w", args[0], err)
			case asJSON:
				return writeJSON(out, answers)
			}
			return writeCached(out, args[0], answers)
		})(c, args)
	}
	return c
}

func cacheFlushCommand(s *configFlags) *cobra.Command {
	var asJSON, subtree bool
	c := &cobra.Command{
		Use:   "flush [NAME]...",
		Short: "Remove cached answers: for names, for everything below them, or all",
		Long: `flush removes cached answers of the running gateway, stale ones included. The next
query for the name waits for an upstream.

  dotgate cache flush www.example.com           that name, all types
  dotgate cache flush --subtree example.com     example.com and all names below it
  dotgate cache flush                           everything, as --subtree . does`,
		Args: cleanNames,
	}
	c.Flags().BoolVar(&subtree, "subtree", false, "all names below as well")
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.RunE = func(c *cobra.Command, names []string) error {
		if len(names) == 0 {
			names, subtree = []string{"."}, true
		}
		return s.withClient(cacheLimit, func(ctx context.Context, client *api.Client, out io.Writer) error {
			var all api.Flushed
			for _, name := range names {
				n, err := client.Flush(ctx, name, subtree)
				if err != nil {
					return fmt.Errorf("flush what is cached for %s: %w", name, err)
				}
				all.Answers += n
				if !asJSON {
					writeFlushed(out, name, subtree, n)
				}
			}
			if asJSON {
				return writeJSON(out, all)
			}
			return nil
		})(c, names)
	}
	return c
}

// cleanNames normalizes arguments as the configuration's names are. *.example.com is a
// name, too: clients may ask for it.
func cleanNames(c *cobra.Command, names []string) error {
	var problems []error
	for i, name := range names {
		clean, err := wire.CleanPattern(name)
		if err != nil {
			problems = append(problems, err)
		}
		names[i] = clean
	}
	if err := errors.Join(problems...); err != nil {
		return usageError{fmt.Errorf("%s: %w", c.CommandPath(), err)}
	}
	return nil
}

// writeCached writes a zone file, with everything but records in comments.
func writeCached(out io.Writer, name string, answers []api.CachedAnswer) error {
	if len(answers) == 0 {
		_, err := fmt.Fprintf(out, "; nothing is cached for %s\n", name)
		return err
	}
	var b strings.Builder
	for i, a := range answers {
		if i > 0 {
			b.WriteByte('\n')
		}
		fmt.Fprintf(&b, "; %s%s: %s, %s, received %s ago, %s\n", a.Question, flags(a), code(a), freshness(a),
			ago(time.Duration(a.Age)), hits(a))
		for _, e := range a.Errors {
			fmt.Fprintf(&b, "; extended error %s\n", e)
		}
		section(&b, "", a.Answer)
		section(&b, "; authority\n", a.Authority)
		section(&b, "; additional\n", a.Additional)
	}
	_, err := io.WriteString(out, b.String())
	return err
}

func section(b *strings.Builder, heading string, records []string) {
	if len(records) > 0 {
		b.WriteString(heading + strings.Join(records, "\n") + "\n")
	}
}

func flags(a api.CachedAnswer) (text string) {
	if a.DO {
		text += " +DO"
	}
	if a.CD {
		text += " +CD"
	}
	return text
}

func code(a api.CachedAnswer) string {
	if a.Kind == wire.NoData.String() {
		return a.RCode + " without data"
	}
	return a.RCode
}

func freshness(a api.CachedAnswer) string {
	left := time.Duration(a.Left)
	switch a.State {
	case "fresh":
		return "fresh for another " + ago(left)
	case "stale":
		return "stale for " + ago(-left)
	}
	return "expired " + ago(-left) + " ago, not served any more"
}

func hits(a api.CachedAnswer) string {
	switch {
	case a.Hits >= a.HitsMax:
		return fmt.Sprintf("%d hits or more", a.Hits)
	case a.Hits == 1:
		return "1 hit"
	}
	return fmt.Sprintf("%d hits", a.Hits)
}

// writeFlushed reports the number of flushed answers. For a wildcard that matched nothing
// it suggests --subtree.
func writeFlushed(out io.Writer, name string, subtree bool, n int) {
	answers, whose := "answers", "for "+name
	if n == 1 {
		answers = "answer"
	}
	switch {
	case subtree && name == ".":
		whose = "for all names"
	case subtree:
		whose += " and all names below it"
	}
	fmt.Fprintf(out, "flushed %d %s %s\n", n, answers, whose)
	if below, ok := strings.CutPrefix(name, "*."); ok && n == 0 && !subtree {
		fmt.Fprintf(out, "(for all names below %s: dotgate cache flush --subtree %s)\n", below, below)
	}
}
