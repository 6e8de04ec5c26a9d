package main

import (
	"bytes"
	"os"
	"strings"
	"testing"

	cdx "github.com/CycloneDX/cyclonedx-go"
)

func TestAProgramSaysWhatItIsMadeOf(t *testing.T) {
	self, err := os.Executable() // this test is a program, too
	if err != nil {
		t.Fatal(err)
	}
	var first, second bytes.Buffer
	if err := write(&first, self, "1.2.3"); err != nil {
		t.Fatal(err)
	}
	if err := write(&second, self, "1.2.3"); err != nil || !bytes.Equal(first.Bytes(), second.Bytes()) {
		t.Errorf("the second time it is another one (%v)", err)
	}
	var got cdx.BOM
	if err := cdx.NewBOMDecoder(&first, cdx.BOMFileFormatJSON).Decode(&got); err != nil {
		t.Fatal(err)
	}
	if c := got.Metadata.Component; c.Version != "1.2.3" {
		t.Errorf("it is of %+v", c)
	}
	found := make(map[string]string)
	for _, c := range *got.Components {
		if !strings.HasPrefix(c.PackageURL, "pkg:golang/"+c.Name+"@"+c.Version) {
			t.Errorf("%s %s is at %s", c.Name, c.Version, c.PackageURL)
		}
		found[c.Name] = c.Version
	}
	for _, name := range []string{"std", "github.com/CycloneDX/cyclonedx-go"} {
		if found[name] == "" {
			t.Errorf("%s is missing in %v", name, found)
		}
	}
	if deps := *got.Dependencies; len(deps) != 1 || len(*deps[0].Dependencies) != len(found) {
		t.Errorf("dependencies: %+v", deps)
	}
}

func TestWhatIsNoProgramIsRefused(t *testing.T) {
	if err := write(new(bytes.Buffer), "main.go", "1"); err == nil {
		t.Error("it is made of something")
	}
}
