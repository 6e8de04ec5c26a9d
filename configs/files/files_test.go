package files

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// own is a kind of file that begins with "own".
var own = Kind{Name: "a file of the test", Own: func(head []byte) bool { return strings.HasPrefix(string(head), "own") }}

func fifo(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "fifo")
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func file(t *testing.T, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestRead(t *testing.T) {
	for path, want := range map[string]string{
		file(t, "12345678"):  "",
		file(t, "123456789"): "larger than 8 octets",
		"/dev/zero":          "larger than 8 octets",
		t.TempDir():          "it is a directory",
		fifo(t):              "it is a FIFO that nothing was written to for 2s",
		"/nonexistent/file":  "no such file",
	} {
		t.Run(want, func(t *testing.T) {
			t.Parallel()
			_, err := Read(path, 8)
			if want == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), path) {
				t.Errorf("error %v, want %q and the path", err, want)
			}
		})
	}
}

func TestReadTakesAFIFOWithAWriter(t *testing.T) {
	path := fifo(t)
	go func() { _ = os.WriteFile(path, []byte("text"), 0) }()
	if got, err := Read(path, 8); string(got) != "text" {
		t.Errorf("%q, %v", got, err)
	}
}

func TestReadDoesNotWaitForAnOpenWriter(t *testing.T) {
	path := fifo(t)
	w, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	_, _ = w.WriteString("text")
	if _, err := Read(path, 8); err == nil || !strings.Contains(err.Error(), "whose end did not come within 2s") {
		t.Error(err)
	}
}

func write(text string) func(io.Writer) error {
	return func(w io.Writer) error { _, err := io.WriteString(w, text); return err }
}

func TestReplaceTakesOnlyWhatIsItsOwn(t *testing.T) {
	for name, test := range map[string]struct {
		path, want string
	}{
		"empty":   {file(t, ""), ""},
		"own":     {file(t, "own, but of yesterday"), ""},
		"foreign": {file(t, "#!/bin/sh"), "is not a file of the test, and is left as it is"},
		"FIFO":    {fifo(t), "is a FIFO"},
		"device":  {"/dev/null", "is a device"},
		"dir":     {t.TempDir(), "is a directory"},
		"new":     {filepath.Join(t.TempDir(), "new"), ""},
	} {
		t.Run(name, func(t *testing.T) {
			before, _ := os.Lstat(test.path)
			err := own.Replace(test.path, 0o600, write("own"))
			if test.want == "" {
				if got, _ := os.ReadFile(test.path); err != nil || string(got) != "own" {
					t.Errorf("%v; there is %q", err, got)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %v, want %q", err, test.want)
			}
			after, err := os.Lstat(test.path)
			if err != nil || !os.SameFile(before, after) || before.Mode() != after.Mode() {
				t.Errorf("it is %v, was %v", after, before)
			}
		})
	}
}

func TestReplaceKeepsASymlink(t *testing.T) {
	target := file(t, "own 1")
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(target, link); err != nil {
		t.Fatal(err)
	}
	if err := own.Replace(link, 0o600, write("own 2")); err != nil {
		t.Fatal(err)
	}
	if got, _ := os.ReadFile(target); string(got) != "own 2" {
		t.Errorf("the target has %q", got)
	}
	if info, err := os.Lstat(link); err != nil || info.Mode().Type() != os.ModeSymlink {
		t.Error("there is no link any more", err)
	}
}

func TestReplaceLeavesAForeignNewFile(t *testing.T) {
	path := file(t, "own 1")
	if err := os.WriteFile(path+".new", []byte("of another program"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := own.Replace(path, 0o600, write("own 2")); err == nil || !strings.Contains(err.Error(), ".new is not") {
		t.Error(err)
	}
	if got, _ := os.ReadFile(path); string(got) != "own 1" {
		t.Errorf("%q", got)
	}
}

func TestReplaceKeepsWhatIsThereIfItFails(t *testing.T) {
	path := file(t, "own 1")
	broken := errors.New("broken")
	if err := own.Replace(path, 0o600, func(io.Writer) error { return broken }); !errors.Is(err, broken) {
		t.Error(err)
	}
	if got, _ := os.ReadFile(path); string(got) != "own 1" {
		t.Errorf("%q", got)
	}
	if _, err := os.Stat(path + ".new"); !errors.Is(err, os.ErrNotExist) {
		t.Error("a part is left", err)
	}
}

// TestReplaceWritesAMountedFileInPlace mounts a file on itself, as containers do with
// single files: it can't be renamed over.
func TestReplaceWritesAMountedFileInPlace(t *testing.T) {
	path := mounted(t, "own, and longer")
	if err := own.Replace(path, 0o600, write("own")); err != nil {
		t.Fatal(err)
	}
	if got, _ := os.ReadFile(path); string(got) != "own" {
		t.Errorf("%q", got)
	}
}

func TestTarget(t *testing.T) {
	t.Parallel()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	at := func(name string) string { return filepath.Join(dir, name) }
	if err := errors.Join(os.Mkdir(at("far"), 0o700), os.WriteFile(at("far/there"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	f := func(link, text, want string) {
		t.Helper()
		if text != "" {
			if err := os.Symlink(text, at(link)); err != nil {
				t.Fatal(err)
			}
		}
		if got := Target(at(link)); got != at(want) {
			t.Errorf("%s leads to %s, want %s", link, got, at(want))
		}
	}
	f("far/there", "", "far/there")
	f("none", "", "none")
	f("there", "far/there", "far/there")
	f("absolute", at("far/new"), "far/new") // not yet
	f("new", "far/new", "far/new")
	f("newer", "new", "far/new")
	f("dir", "far", "far")
	f("dir/back", "../far/new", "far/new")
	f("dir/up", "../new", "far/new")
	f("loop", "loop", "loop")
	f("nowhere", "missing/file", "missing/file")
}
