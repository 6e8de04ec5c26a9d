package main

import (
	"bytes"
	"cmp"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
	"github.com/spf13/pflag"

	"dotgate/cmd/dotgate/internal/admin"
	"dotgate/cmd/dotgate/internal/settings"
	"dotgate/configs/files"
	"dotgate/upstreams"
)

// exitCodes are the exit codes of all commands.
var exitCodes = []struct {
	code int
	when string
}{
	{0, "success"},
	{exitFailure, "failure: the gateway can't serve, a check did not pass, a query got no answer, or clients lost queries in a drill"},
	{exitConfig, "a mistake in the configuration or the command line"},
}

// writeReference writes all options, metrics, commands and exit codes as Markdown. A test
// compares REFERENCE.md with it.
func writeReference(out io.Writer) {
	fmt.Fprint(out, "# dotgate: reference\n\nMade from the code by `make reference`. See the [README](../../README.md) for an introduction.\n")
	fmt.Fprint(out, "\n## Options\n\nIn the file as `section: {key: value}`, in the environment as the variable.\n\n| key | variable | default | meaning |\n|---|---|---|---|\n")
	for _, o := range settings.Options() {
		variable := "–"
		if o.Variable != "" {
			variable = "`" + o.Variable + "`"
		}
		fmt.Fprintf(out, "| `%s` | %s | `%s` | %s |\n", o.Key, variable, cell(o.Default), cell(o.Meaning))
	}
	fmt.Fprint(out, "\n## Metrics\n\nAt `/metrics`. Those of the Go runtime (`go_…`) and the process (`process_…`) are there, too. All metrics exist from the start, with the value 0.\n\n| name | type | labels | meaning |\n|---|---|---|---|\n")
	for _, m := range admin.Metrics() {
		fmt.Fprintf(out, "| `%s` | %s | %s | %s |\n", m.Name, m.Type, cell(strings.Join(m.Labels, ", ")), cell(m.Help))
	}
	var outcomes []string
	for _, o := range upstreams.Outcomes() {
		outcomes = append(outcomes, "`"+o.String()+"`")
	}
	fmt.Fprintf(out, "\nOutcomes of attempts: %s.\n", strings.Join(outcomes, ", "))
	fmt.Fprint(out, "\n## Commands\n\nAll take `--config FILE` and `--listen ADDRESS:PORT`.\n")
	writeCommand(out, rootCommand())
	fmt.Fprint(out, "\n## Exit codes\n\n| code | when |\n|---|---|\n")
	for _, e := range exitCodes {
		fmt.Fprintf(out, "| %d | %s |\n", e.code, e.when)
	}
}

// cell escapes a text for a cell of a table.
func cell(text string) string { return strings.ReplaceAll(text, "|", "\\|") }

func writeCommand(out io.Writer, c *cobra.Command) {
	if c.Hidden || c.Name() == "help" {
		return
	}
	fmt.Fprintf(out, "\n### %s\n\n```\n%s\n```\n\n%s\n", c.CommandPath(), c.UseLine(), cmp.Or(c.Long, c.Short+"."))
	var flags []string
	c.LocalNonPersistentFlags().VisitAll(func(f *pflag.Flag) {
		if f.Name != "help" {
			name, usage := pflag.UnquoteUsage(f)
			flags = append(flags, strings.TrimRight(fmt.Sprintf("* `--%s %s", f.Name, name), " ")+"`: "+usage)
		}
	})
	if len(flags) > 0 {
		fmt.Fprintf(out, "\n%s\n", strings.Join(flags, "\n"))
	}
	for _, sub := range c.Commands() {
		if sub.Name() != "completion" {
			writeCommand(out, sub)
		}
	}
}

func referenceCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "reference",
		Short: "Print every option, metric, command and exit code, as Markdown",
		Args:  noArguments,
		Run:   func(c *cobra.Command, _ []string) { writeReference(c.OutOrStdout()) },
	}
}

func manCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "man DIRECTORY",
		Short: "Write the manual pages of all commands into a directory",
		Args:  oneArgument("a directory"),
		RunE: func(c *cobra.Command, args []string) error {
			if err := os.MkdirAll(args[0], 0o755); err != nil {
				return err
			}
			if err := writeManual(c.Root(), args[0]); err != nil {
				return fmt.Errorf("write the manual pages: %w", err)
			}
			return nil
		},
	}
}

// manualKind is the kind of file that man replaces.
var manualKind = files.Kind{Name: "a manual page of dotgate", Own: func(head []byte) bool {
	return bytes.HasPrefix(head, []byte(".nh\n.TH \"DOTGATE"))
}}

// writeManual writes the manual pages of c and of the commands below it.
func writeManual(c *cobra.Command, dir string) error {
	for _, sub := range c.Commands() {
		if sub.IsAvailableCommand() && !sub.IsAdditionalHelpTopicCommand() {
			if err := writeManual(sub, dir); err != nil {
				return err
			}
		}
	}
	header := &doc.GenManHeader{Title: "DOTGATE", Section: "8", Source: "dotgate", Manual: "dotgate"}
	name := strings.ReplaceAll(c.CommandPath(), " ", "-") + ".8"
	return manualKind.Replace(filepath.Join(dir, name), 0o644, func(w io.Writer) error { return doc.GenMan(c, header, w) })
}
