package api

import (
	"log/slog"
	"os"
	"path/filepath"
	"testing"
)

// The symlink leads to the socket until the listener is closed, unless a later gateway
// has published its own.
func TestASocketIsFoundByTheNameOfTheConfiguration(t *testing.T) {
	dir := socketDir(t)
	links := []string{filepath.Join(dir, "missing", "link"), filepath.Join(dir, "link")}
	listen := func(name string) *Listener {
		t.Helper()
		l, err := Listen(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		l.Publish(links, slog.New(slog.DiscardHandler))
		return l
	}
	f := func(want string) {
		t.Helper()
		target, _ := os.Readlink(links[1])
		if target != "" {
			target = filepath.Base(target)
		}
		if target != want {
			t.Errorf("the symlink leads to %q, want %q", target, want)
		}
		conn, err := connect(t.Context(), links, []string{filepath.Join(dir, "none")})
		if (err == nil) != (want != "") {
			t.Errorf("connected: %v", err)
		}
		if err == nil {
			conn.Close()
		}
	}
	a := listen("a")
	f("a")
	b := listen("b")
	f("b")
	a.Close()
	f("b")
	b.Close()
	f("")
	// What is there and no symlink is replaced only by a symlink.
	if err := os.Mkdir(links[1], 0o700); err != nil {
		t.Fatal(err)
	}
	listen("c").Close()
	if info, err := os.Lstat(links[1]); err != nil || !info.IsDir() {
		t.Errorf("the directory is gone: %v", err)
	}
}

func TestTheDefaultSocketNeedsNoSymlink(t *testing.T) {
	t.Setenv("XDG_RUNTIME_DIR", socketDir(t))
	places := Places()
	path := places[len(places)-2]
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	links := Published("dotgate.yaml")
	if len(links) != len(places) || filepath.Dir(links[len(links)-2]) != filepath.Dir(path) {
		t.Errorf("the symlinks are at %q, the sockets at %q", links, places)
	}
	l.Publish(links[len(links)-2:], slog.New(slog.DiscardHandler))
	if all, err := filepath.Glob(filepath.Join(filepath.Dir(path), "*.link")); err != nil || len(all) > 0 {
		t.Errorf("there is %q, %v", all, err)
	}
	if Published("") != nil {
		t.Error("a configuration without a file has a symlink")
	}
}
