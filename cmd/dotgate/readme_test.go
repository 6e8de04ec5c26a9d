package main

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// commandLine is a command line of dotgate in a text: to be typed as it stands, perhaps
// after a prompt and variables, or in a table, where a | is written \|.
var commandLine = regexp.MustCompile("(?m)^ {4}(?:\\$ )?(?:[A-Z_]+=\\S+ )*(dotgate [^\n#]*)|`(dotgate [^`]*)`")

// TestCommandLinesOfTheTextsParse has cobra find the command of each command line in the
// texts for users, and parse its flags.
func TestCommandLinesOfTheTextsParse(t *testing.T) {
	t.Parallel()
	seen := 0
	for _, file := range []string{"../../README.md", "../../SECURITY.md", "../../docker/README.md", "../../CHANGELOG.md"} {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, found := range commandLine.FindAllStringSubmatch(string(text), -1) {
			line := strings.TrimSpace(found[1] + found[2])
			seen++
			if err := parses(line); err != nil {
				t.Errorf("%s: %s: %v", file, line, err)
			}
		}
	}
	if seen < 20 {
		t.Errorf("%d command lines were found", seen)
	}
}

// parses has cobra parse a command line without running it. What is in brackets may be
// left out, and is there; of a|b, a is there.
func parses(line string) error {
	line = strings.NewReplacer("[", "", "]", "", "…", "", "SHELL", "bash", `\|`, "|").Replace(line)
	args := strings.Fields(line)[1:]
	for i, arg := range args {
		args[i], _, _ = strings.Cut(arg, "|")
	}
	root := rootCommand()
	root.InitDefaultCompletionCmd(args...) // as to execute it does
	c, rest, err := root.Find(args)
	if err != nil {
		return err
	}
	if err := c.ParseFlags(rest); err != nil {
		return err
	}
	if args := c.Flags().Args(); c.HasSubCommands() && len(args) > 0 {
		return noArguments(c, args)
	}
	return nil
}

func TestCommandLinesThatDoNotParse(t *testing.T) {
	t.Parallel()
	for _, line := range []string{"dotgate status --jsn", "dotgate cache flush --subtrees example.com", "dotgate drill --for soon", "dotgate serv", "dotgate upstreams drian quad9"} {
		if parses(line) == nil {
			t.Errorf("%s parses", line)
		}
	}
	if err := parses(`dotgate upstreams [drain\|down NAME] --json`); err != nil {
		t.Error(err)
	}
}
