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

// riddles are words behind which a reader has to guess what is meant. "Who" is for
// people: operators, users, readers.
var (
	riddles = regexp.MustCompile(`(?i)\b(nobody|somebody|anybody|everybody|whoever|whom|who|of no use|be they|what comes of|so many)\b`)
	people  = regexp.MustCompile(`(?i)\b(people|persons?|users?|operators?|readers?|contributors?|maintainers?|attackers?|those) who\b`)
	humps   = regexp.MustCompile(`([a-z0-9])([A-Z])`)
)

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
		words = people.ReplaceAllString(words, "$1")
		words = strings.ReplaceAll(words, "nobody.invalid", "") // the mailbox of RFC 6303 section 3
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
	for {
		at, kind, literal := s.Scan()
		switch kind {
		case token.EOF:
			return found
		case token.COMMENT, token.STRING:
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
	f("a.png", "who")
	f("a.go", "package a\n\nvar soa = \"a. SOA a. nobody.invalid.\"\n")
}
