package main

import (
	"bytes"
	"os"
	"regexp"
	"strings"
	"testing"

	"dotgate/cmd/dotgate/internal/admin"
	"dotgate/cmd/dotgate/internal/settings"
)

// REFERENCE.md is what the code says: `make reference` renews it.
func TestTheReferenceIsOfThisCode(t *testing.T) {
	var want bytes.Buffer
	writeReference(&want)
	got, err := os.ReadFile("REFERENCE.md")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want.Bytes()) {
		t.Error("REFERENCE.md is not what the code says; run: make reference")
	}
	for _, o := range settings.Options() {
		if o.Meaning == "" {
			t.Errorf("%s has no meaning", o.Key)
		}
	}
	for _, m := range admin.Metrics() {
		if !strings.HasSuffix(m.Help, ".") {
			t.Errorf("%s: %q is no sentence", m.Name, m.Help)
		}
	}
	// The paths, commands and metrics that the README names are there.
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range regexp.MustCompile(`dotgate_[a-z_]+`).FindAllString(string(readme), -1) {
		if !strings.Contains(want.String(), name) {
			t.Errorf("the README names %s, which does not exist", name)
		}
	}
	for _, match := range regexp.MustCompile("`dotgate ([a-z]+)").FindAllStringSubmatch(string(readme), -1) {
		if match[1] != "completion" && !strings.Contains(want.String(), "### dotgate "+match[1]+"\n") {
			t.Errorf("the README names the command %s, which does not exist", match[1])
		}
	}
}
