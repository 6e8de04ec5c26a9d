package main

import (
	"os"
	"path/filepath"
	"testing"
)

// TestTheConfigurationDirectoryNeedNotHaveAFile: systemd names it with
// ConfigurationDirectory=. Whether there is a file is found out once.
func TestTheConfigurationDirectoryNeedNotHaveAFile(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("CONFIGURATION_DIRECTORY", dir)
	t.Setenv("DOTGATE_CONFIG", "")
	without := new(configFlags)
	if got := without.path(); got != "" {
		t.Errorf("got %s", got)
	}
	file := filepath.Join(dir, "dotgate.yaml")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if got := new(configFlags).path(); got != file {
		t.Errorf("got %q, want %s", got, file)
	}
	if got := (&configFlags{file: "other"}).path(); got != "other" {
		t.Errorf("got %s in place of what a flag says", got)
	}
	if got := without.path(); got != "" {
		t.Errorf("later it is %s", got)
	}
}
