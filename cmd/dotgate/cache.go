package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"dotgate/cmd/dotgate/control"
	"dotgate/gateway/wire"
)

// cacheLimit is how long a gateway may take to look through its cache.
const cacheLimit = 30 * time.Second

func cacheCommand(s *sources) *cobra.Command {
	c := &cobra.Command{
		Use:   "cache",
		Short: "Show or flush what the running gateway has cached",
		Args: func(c *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usageError{fmt.Errorf("%s can't %q; see %s --help", c.CommandPath(), args[0], c.CommandPath())}
			}
			return usageError{fmt.Errorf("%s needs show or flush; see %s --help", c.CommandPath(), c.CommandPath())}
		},
		RunE: func(*cobra.Command, []string) error { return nil }, // or else cobra takes any word for a wish for help
	}
	c.AddCommand(cacheShowCommand(s), cacheFlushCommand(s))
	return c
}

func cacheShowCommand(s *sources) *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "show NAME",
		Short: "Show all answers for a name, as clients get them now",
		Long: `show prints what the running gateway has cached for a name: for each type, and for
clients with and without the flags DO and CD, the response code, for how long it
is fresh or has been stale, its age, how many clients got it since it came (which
is counted up to 3), and its records as a client gets them now.

What it prints is a zone file, with the rest in comments.`,
		Args: func(c *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usageError{fmt.Errorf("%s takes one name; see %s --help", c.CommandPath(), c.CommandPath())}
			}
			return checkNames(c, args)
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.RunE = func(c *cobra.Command, args []string) error {
		return s.withClient(cacheLimit, func(ctx context.Context, client *control.Client, out io.Writer) error {
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

func cacheFlushCommand(s *sources) *cobra.Command {
	var asJSON, subtree bool
	c := &cobra.Command{
		Use:   "flush [NAME]...",
		Short: "Forget the answers for names, for all below them too, or all there are",
		Long: `flush makes the running gateway forget what it has cached, stale answers included.
The next client that asks has to wait for an upstream.

  dotgate cache flush www.example.com           that name, all types
  dotgate cache flush --subtree example.com     example.com and all names below it
  dotgate cache flush                           everything, as --subtree . does`,
		Args: checkNames,
	}
	c.Flags().BoolVar(&subtree, "subtree", false, "all names below too")
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.RunE = func(c *cobra.Command, names []string) error {
		if len(names) == 0 {
			names, subtree = []string{"."}, true
		}
		return s.withClient(cacheLimit, func(ctx context.Context, client *control.Client, out io.Writer) error {
			var all control.Flushed
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

// checkNames checks that all arguments are domain names.
func checkNames(c *cobra.Command, names []string) error {
	var problems []error
	for _, name := range names {
		if _, err := wire.PackName(name); err != nil {
			problems = append(problems, err)
		}
	}
	if err := errors.Join(problems...); err != nil {
		return usageError{fmt.Errorf("%s: %w", c.CommandPath(), err)}
	}
	return nil
}

// writeCached writes a zone file. What is no record is a comment.
func writeCached(out io.Writer, name string, answers []control.CachedAnswer) error {
	if len(answers) == 0 {
		_, err := fmt.Fprintf(out, "; nothing is cached for %s\n", name)
		return err
	}
	var b strings.Builder
	for i, a := range answers {
		if i > 0 {
			b.WriteByte('\n')
		}
		fmt.Fprintf(&b, "; %s%s: %s, %s, came %s ago, %s\n", a.Question, flags(a), code(a), freshness(a),
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

func flags(a control.CachedAnswer) (text string) {
	if a.DO {
		text += " +DO"
	}
	if a.CD {
		text += " +CD"
	}
	return text
}

func code(a control.CachedAnswer) string {
	if a.Kind == wire.NoData.String() {
		return a.RCode + " without data"
	}
	return a.RCode
}

func freshness(a control.CachedAnswer) string {
	left := time.Duration(a.Left)
	switch a.State {
	case "fresh":
		return "fresh for another " + ago(left)
	case "stale":
		return "stale for " + ago(-left)
	}
	return "expired " + ago(-left) + " ago, of no use any more"
}

func hits(a control.CachedAnswer) string {
	switch {
	case a.Hits >= a.HitsMax:
		return fmt.Sprintf("%d hits or more", a.Hits)
	case a.Hits == 1:
		return "1 hit"
	}
	return fmt.Sprintf("%d hits", a.Hits)
}

// writeFlushed tells what was flushed. Whoever thinks of a subtree as of a
// wildcard, and so flushed nothing, is told better.
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
