package main

import (
	"cmp"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
	"github.com/spf13/pflag"

	"dotgate/cmd/dotgate/admin"
	"dotgate/configs"
	"dotgate/upstreams"
)

// exitCodes are what main returns, and when.
var exitCodes = []struct {
	code int
	when string
}{
	{0, "all is well"},
	{exitFailure, "it failed: a gateway that can't serve, a check that did not pass, a query without an answer, a drill in which clients lost queries"},
	{exitConfig, "the configuration or the command line can't be used"},
}

// writeReference writes all options, metrics, commands and exit codes as
// Markdown, from the code that has them. REFERENCE.md is what it writes; a test
// holds it to that.
func writeReference(out io.Writer) {
	fmt.Fprint(out, "# dotgate: reference\n\nMade from the code by `dotgate reference`. The [README](../../README.md) tells what it is all for.\n")
	fmt.Fprint(out, "\n## Options\n\nIn the file as `section: {key: value}`, in the environment as the variable.\n\n| key | variable | default | meaning |\n|---|---|---|---|\n")
	for _, o := range configs.Options() {
		variable := "–"
		if o.Variable != "" {
			variable = "`" + o.Variable + "`"
		}
		fmt.Fprintf(out, "| `%s` | %s | `%s` | %s |\n", o.Key, variable, cell(o.Default), cell(o.Meaning))
	}
	fmt.Fprint(out, "\n## Metrics\n\nAt `/metrics`. Those of the Go runtime (`go_…`) and the process (`process_…`) come on top. All are there, at 0, from the start.\n\n| name | type | labels | meaning |\n|---|---|---|---|\n")
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

// cell keeps a text from ending its table's cell.
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
			header := &doc.GenManHeader{Title: "DOTGATE", Section: "8", Source: "dotgate", Manual: "dotgate"}
			if err := doc.GenManTree(c.Root(), header, args[0]); err != nil {
				return fmt.Errorf("write the manual pages: %w", err)
			}
			return nil
		},
	}
}
