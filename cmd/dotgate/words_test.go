package main

import (
	"go/scanner"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// riddles are words behind which a reader has to guess what is meant. plain are uses of
// them that name the thing: "who" is for people, "such as" for examples, and errors of the
// system are quoted as they are.
var (
	riddles = phrase("nobody|somebody|anybody|everybody|whoever|whom|who|of no use|be they|what comes of|so many|such|but for")
	plain   = []*regexp.Regexp{
		phrase("(people|persons?|users?|operators?|readers?|contributors?|maintainers?|attackers?|those) who"),
		phrase(`nobody\.invalid`), // the mailbox of RFC 6303 section 3
		phrase("such as"),
		phrase("no such (file|host)"), // errors of open and of a look-up
	}
	humps = regexp.MustCompile(`([a-z0-9])([A-Z])`)
)

// phrase compiles words, between which a line may end, also in a comment.
func phrase(words string) *regexp.Regexp {
	return regexp.MustCompile(`(?i)\b(` + strings.ReplaceAll(words, " ", `[\s/#]+`) + `)\b`)
}

// plainPlaces are the parts of the tree that are held to plain words. Those that are
// not listed are still to be rewritten.
var plainPlaces = []string{
	"CHANGELOG.md", "CONTRIBUTING.md", "README.md", "SECURITY.md", ".ci", "Makefile", "docker",
	"balancer", "cmd/dotgate",
	"configs", "gateway", "health", "upstreams",
}

// TestWordsNameTheThing finds riddles in comments, texts and documents.
func TestWordsNameTheThing(t *testing.T) {
	root := os.DirFS("../..")
	for _, place := range plainPlaces {
		err := fs.WalkDir(root, place, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || path == "cmd/dotgate/words_test.go" {
				return err
			}
			text, err := fs.ReadFile(root, path)
			if err != nil {
				return err
			}
			for _, found := range riddlesIn(path, text) {
				t.Error(found)
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	}
}

// riddlesIn returns FILE:LINE: WORD for each riddle in a file. In Go it looks at
// comments, strings and the words of names.
func riddlesIn(path string, text []byte) (found []string) {
	file := token.NewFileSet().AddFile(path, -1, len(text))
	add := func(at token.Pos, words string) {
		for _, p := range plain {
			words = p.ReplaceAllStringFunc(words, func(s string) string { return "…" + strings.Repeat("\n", strings.Count(s, "\n")) })
		}
		for _, m := range riddles.FindAllStringIndex(words, -1) {
			line := file.Line(at) + strings.Count(words[:m[0]], "\n")
			found = append(found, path+":"+strconv.Itoa(line)+": "+words[m[0]:m[1]])
		}
	}
	if !slices.Contains([]string{".go", ".md", ".yaml", ".yml", ".sh", ".html", ".txtar", ""}, filepath.Ext(path)) {
		return nil
	}
	if filepath.Ext(path) != ".go" {
		file.SetLinesForContent(text)
		add(file.Pos(0), string(text))
		return found
	}
	var s scanner.Scanner
	s.Init(file, text, nil, scanner.ScanComments)
	var begin, end token.Pos // of a comment of one or more lines
	for {
		at, kind, literal := s.Scan()
		if kind != token.COMMENT && begin.IsValid() {
			add(begin, string(text[file.Offset(begin):file.Offset(end)]))
			begin = token.NoPos
		}
		switch kind {
		case token.EOF:
			return found
		case token.COMMENT:
			if !begin.IsValid() {
				begin = at
			}
			end = at + token.Pos(len(literal))
		case token.STRING:
			add(at, literal)
		case token.IDENT:
			add(at, humps.ReplaceAllString(literal, "$1 $2"))
		}
	}
}

func TestRiddlesAreFound(t *testing.T) {
	f := func(path, text string, want ...string) {
		t.Helper()
		if got := riddlesIn(path, []byte(text)); !slices.Equal(got, want) {
			t.Errorf("%q: got %q, want %q", text, got, want)
		}
	}
	f("a.md", "Operators who read this.\nNobody does.", "a.md:2: Nobody")
	f("a.go", "package a\n\nvar whole = \"x\" // whoever\n", "a.go:3: whoever")
	f("a_test.go", "package a\n\nfunc TestNobodyWaitsForUsersWho(who int) {}\n", "a_test.go:3: Nobody", "a_test.go:3: who")
	f("a.go", "package a // SOA ns. nobody.invalid. 1")
	f("a.go", "package a\n/*\nof no use */ var a = \"whom\"", "a.go:3: of no use", "a.go:3: whom")
	f("a.go", "package a\n\n// Names, such\n// as a, of no\n// use, for such\n// names.\nvar a = 1", "a.go:4: of no\n// use", "a.go:5: such")
	f("a.go", "package a\n\n// All, but\n//\tfor one.\n\n// Such.\nvar a = 1", "a.go:3: but\n//\tfor", "a.go:6: Such")
	f("a.yaml", "# As such, but\n# for: such as", "a.yaml:1: such", "a.yaml:1: but\n# for")
	f("a.sh", "echo 'no such file or directory, no such name'", "a.sh:1: such")
	f("a.go", "package a\n\nvar noSuchFile, suchAsThis = 1, 2\n")
	f("a.png", "who")
	f("a.go", "package a\n\nvar soa = \"a. SOA a. nobody.invalid.\"\n")
}
