package querylog

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// TestAMountedFileIsTruncated mounts a file on itself, as containers do with single files:
// it can't be renamed.
func TestAMountedFileIsTruncated(t *testing.T) {
	t.Parallel()
	var log lines
	o := Defaults()
	o.Output, o.MaxSize = filepath.Join(t.TempDir(), "queries.log"), 3000
	o.Log = slog.New(slog.NewTextHandler(&log, nil))
	if err := os.WriteFile(o.Output, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount(o.Output, o.Output, "", syscall.MS_BIND, ""); err != nil {
		t.Skip("NOT TESTED: files that are mounted by themselves, because nothing can be mounted here (root is needed): ", err)
	}
	defer syscall.Unmount(o.Output, 0)
	long(t, o)
	text, err := os.ReadFile(o.Output)
	if err != nil || !bytes.HasPrefix(text, []byte(jsonHead)) || int64(len(text)) > o.MaxSize {
		t.Errorf("%d octets, %v: %.200q", len(text), err, text)
	}
	if names, _ := filepath.Glob(o.Output + ".*"); len(names) > 0 || strings.Count(log.String(), "can't be renamed") != 1 { // not at each rotation
		t.Error(names, log.String())
	}
}
