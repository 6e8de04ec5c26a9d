package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"dotgate/cmd/dotgate/internal/logging"
	"dotgate/cmd/dotgate/internal/settings"
	"dotgate/configs/files"
)

// reloadable returns a server that serves nothing yet, whose configuration is the
// text in a file of its own.
func reloadable(t *testing.T, text string) (p *server, file string) {
	t.Helper()
	file = filepath.Join(t.TempDir(), "dotgate.yaml")
	writeConfig(t, file, text)
	s := &source{File: file}
	config, loaded, err := s.loadAndDigest()
	if err != nil {
		t.Fatal(err)
	}
	return serverOf(t, s, config, loaded), file
}

func serverOf(t *testing.T, s *source, config *settings.Config, loaded contents) *server {
	t.Helper()
	stderr := logging.New(t.Output(), func(uint64, error) {})
	handler := newLogHandler(config.Log, stderr)
	log := &logOutput{slog.New(handler), stderr, handler}
	p, err := newServer(Options{}, newConfiguration(s, config, loaded, log.Logger), false, log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.close(); stderr.Close(time.Second) })
	return p
}

func writeConfig(t *testing.T, file, text string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// configText is a configuration with that limit; it opens no port of others.
func configText(seconds int) string {
	return fmt.Sprintf("gateway: {listen: ['127.0.0.1:0'], timeout: %ds}\nadmin: {listen: off}\ncontrol: {socket: off}\nupstreams: [quad9]\n", seconds)
}

// TestAWriteDuringAReloadIsSeen: what is written after a file was read, and before the
// reload is over, differs from what counts as seen.
func TestAWriteDuringAReloadIsSeen(t *testing.T) {
	p, file := reloadable(t, configText(1))
	writeConfig(t, file, configText(2))
	if !p.differs() {
		t.Fatal("a change is not seen")
	}
	p.source.Read = func(path string, limit int) ([]byte, error) {
		data, err := files.Read(path, limit)
		writeConfig(t, file, configText(3))
		return data, err
	}
	if _, err := p.Reload(); err != nil {
		t.Fatal(err)
	}
	p.source.Read = nil
	if got := p.config.Gateway.Timeout.Seconds(); got != 2 {
		t.Errorf("the timeout is %v s, not what was read", got)
	}
	if !p.differs() {
		t.Error("a change that was written while the file was loaded counts as seen")
	}
	if _, err := p.Reload(); err != nil {
		t.Fatal(err)
	}
	if got := p.config.Gateway.Timeout.Seconds(); got != 3 || p.differs() {
		t.Errorf("the timeout is %v s; differs: %t", got, p.differs())
	}
}

// TestAWriteDuringAFailedReloadIsSeen: neither is the correction of a mistake lost.
func TestAWriteDuringAFailedReloadIsSeen(t *testing.T) {
	p, file := reloadable(t, configText(1))
	writeConfig(t, file, "gateway: {timeout: 5}")
	p.source.Read = func(path string, limit int) ([]byte, error) {
		data, err := files.Read(path, limit)
		writeConfig(t, file, configText(3))
		return data, err
	}
	if _, err := p.Reload(); err == nil {
		t.Fatal("a mistake is taken")
	}
	p.source.Read = nil
	if !p.differs() {
		t.Error("the correction counts as seen")
	}
}

// TestAWriteBeforeTheStartIsSeen: the window between the reading of the file and the
// watching of its directory.
func TestAWriteBeforeTheStartIsSeen(t *testing.T) {
	file := filepath.Join(t.TempDir(), "dotgate.yaml")
	writeConfig(t, file, configText(1))
	s := &source{File: file}
	config, loaded, err := s.loadAndDigest()
	if err != nil {
		t.Fatal(err)
	}
	writeConfig(t, file, configText(2))
	if p := serverOf(t, s, config, loaded); !p.differs() {
		t.Error("it counts as seen")
	}
}

// TestAFileThatIsNamedFromNowOnIsWatched: a file that a reload names for the first time
// may change before its directory is watched, so it is looked at once more.
func TestAFileThatIsNamedFromNowOnIsWatched(t *testing.T) {
	p, file := reloadable(t, configText(1))
	token := filepath.Join(t.TempDir(), "token")
	writeConfig(t, token, "0123456789abcdef")
	ctx, cancel := context.WithCancel(t.Context())
	watching := make(chan struct{})
	go func() { defer close(watching); _ = p.watchFiles(ctx, func() { _, _ = p.Reload() }) }()
	defer func() { cancel(); <-watching }()
	writeConfig(t, file, strings.Replace(configText(1), "listen: off", "listen: off, token_file: "+token, 1))
	until(t, "the file is read", func() bool { return p.reloads.Load().Done == 1 })
	writeConfig(t, token, "fedcba9876543210")
	until(t, "the file is read", func() bool { return p.reloads.Load().Done == 2 })
}

// TestFilesOfARefusedConfigurationAreWatched: what is wrong with a configuration may be in
// a file that it names, which is seen when it is written, wherever it is.
func TestFilesOfARefusedConfigurationAreWatched(t *testing.T) {
	for _, test := range []struct{ name, before string }{{"not there yet", "-"}, {"empty", ""}, {"too short", "0123"}} {
		t.Run(test.name, func(t *testing.T) {
			p, file := reloadable(t, configText(1))
			token := filepath.Join(t.TempDir(), "token")
			if test.before != "-" {
				writeConfig(t, token, test.before)
			}
			ctx, cancel := context.WithCancel(t.Context())
			watching := make(chan struct{})
			go func() { defer close(watching); _ = p.watchFiles(ctx, func() { _, _ = p.Reload() }) }()
			defer func() { cancel(); <-watching }()
			writeConfig(t, file, strings.Replace(configText(1), "listen: off", "listen: off, token_file: "+token, 1))
			until(t, "the configuration is refused", func() bool { return p.reloads.Load().Failed == 1 })
			writeConfig(t, token, "0123456789abcdef")
			until(t, "the file is read", func() bool { return p.reloads.Load().Done == 1 })
		})
	}
}

// TestAWriteToAFileOfARefusedConfigurationIsSeen: it may be written right after it was
// read, before it is known that the configuration names it.
func TestAWriteToAFileOfARefusedConfigurationIsSeen(t *testing.T) {
	p, file := reloadable(t, configText(1))
	names := filepath.Join(t.TempDir(), "names")
	writeConfig(t, names, "")
	writeConfig(t, file, configText(1)+"routes: [{names_file: "+names+", upstreams: ['udp://10.0.0.53']}]\n")
	p.source.Read = func(path string, limit int) ([]byte, error) {
		data, err := files.Read(path, limit)
		if path == names {
			writeConfig(t, names, "corp.example\n")
		}
		return data, err
	}
	_, err := p.Reload()
	p.source.Read = nil
	if err != nil && !p.differs() {
		t.Errorf("the correction counts as seen, after %v", err)
	}
}

// TestARefusedConfigurationIsReadOnce: one that names other files than the one in effect,
// and can't be used for a reason beyond them, is not read again and again.
func TestARefusedConfigurationIsReadOnce(t *testing.T) {
	p, file := reloadable(t, configText(1))
	taken, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	token := filepath.Join(t.TempDir(), "token")
	writeConfig(t, token, "0123456789abcdef")
	text := strings.Replace(configText(1), "127.0.0.1:0", taken.LocalAddr().String(), 1)
	writeConfig(t, file, strings.Replace(text, "listen: off", "listen: off, token_file: "+token, 1))
	if _, err := p.Reload(); err == nil {
		t.Fatal("it serves where another program does")
	}
	if p.differs() {
		t.Error("it would be read again")
	}
	writeConfig(t, file, configText(2))
	if _, err := p.Reload(); err != nil || p.differs() {
		t.Errorf("after the correction: %v; differs: %t", err, p.differs())
	}
	writeConfig(t, token, "fedcba9876543210")
	if p.differs() {
		t.Error("a file is watched that no configuration names any more")
	}
}

// TestAFIFOIsReadOnce: the file of -c <(command) is gone once it was read, which is no
// change.
func TestAFIFOIsReadOnce(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	go func() { defer w.Close(); _, _ = w.WriteString(configText(1)) }()
	s := &source{File: fmt.Sprintf("/dev/fd/%d", r.Fd())}
	config, read, err := s.loadAndDigest()
	if err != nil {
		t.Fatal(err)
	}
	p := &configuration{source: s, config: config, seen: merged(s.files(config), read)}
	if p.config.Reload = (settings.Reload{Watch: true}); p.differs() {
		t.Error("it differs once it was read")
	}
}

// TestAFileOfNamesIsDigestedAsItWasLoaded: it is part of the configuration, whichever
// reload names it first.
func TestAFileOfNamesIsDigestedAsItWasLoaded(t *testing.T) {
	p, file := reloadable(t, configText(1))
	names := filepath.Join(t.TempDir(), "names")
	writeConfig(t, names, "corp.example\n")
	writeConfig(t, file, configText(1)+"routes: [{names_file: "+names+", upstreams: [udp://127.0.0.1:9]}]\n")
	p.source.Read = func(path string, limit int) ([]byte, error) {
		data, err := files.Read(path, limit)
		if path == names {
			writeConfig(t, names, "lab.example\n")
		}
		return data, err
	}
	if _, err := p.Reload(); err != nil {
		t.Fatal(err)
	}
	if !p.differs() {
		t.Error("names that were written while the file was loaded count as seen")
	}
}

// until waits for a condition that another goroutine brings about.
func until(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !holds(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("in vain: %s", what)
		}
	}
}

// TestDirectoriesOf: where a file is, and where the symlinks on the way to it are.
func TestDirectoriesOf(t *testing.T) {
	t.Parallel()
	top, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"etc", "releases/1/etc"} {
		if err := os.MkdirAll(filepath.Join(top, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, target := range map[string]string{
		"current": "releases/1", "etc/a.yaml": "..data/a.yaml", "etc/..data": "..1", "up": "../" + filepath.Base(top) + "/etc/b.yaml",
		"absolute": filepath.Join(top, "current/etc"), "loop": "loop",
	} {
		if err := os.Symlink(target, filepath.Join(top, name)); err != nil {
			t.Fatal(err)
		}
	}
	for name, want := range map[string]string{
		"etc/b.yaml":            "etc",
		"etc//b.yaml":           "etc",
		"none/b.yaml":           "none",
		"etc/../etc/b.yaml":     "etc",
		"etc/a.yaml":            "etc etc etc/..1",
		"current/etc/a.yaml":    ". releases/1/etc",
		"current/../../etc/a":   ". etc",
		"absolute/a.yaml":       ". . releases/1/etc",
		"absolute/../../1/a":    ". . releases/1",
		"up":                    ". etc",
		"releases/1/etc/a.yaml": "releases/1/etc",
	} {
		var got []string
		for _, dir := range directoriesOf(top + "/" + name) {
			short, err := filepath.Rel(top, dir)
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, short)
		}
		if text := strings.Join(got, " "); text != want {
			t.Errorf("%s: %s, not %s", name, text, want)
		}
	}
	if got := directoriesOf(top + "/loop"); len(got) != linksMax+1 {
		t.Errorf("a loop has %d directories", len(got))
	}
	if got := directoriesOf("a.yaml"); len(got) != 1 || got[0] != "." {
		t.Errorf("a relative name is in %q", got)
	}
}

// TestOtherWaysToReplaceAFile: not only the file may be another one, but a directory or
// a symlink on the way to it, and other files may change all the time.
func TestOtherWaysToReplaceAFile(t *testing.T) {
	for _, test := range []struct {
		name    string
		replace func(t *testing.T, top string)
	}{
		{"a symlink on the way", func(t *testing.T, top string) {
			if err := errors.Join(os.Mkdir(top+"/2", 0o755), os.Remove(top+"/current")); err != nil {
				t.Fatal(err)
			}
			writeConfig(t, top+"/2/dotgate.yaml", configText(2))
			if err := os.Symlink("2", top+"/current"); err != nil {
				t.Fatal(err)
			}
		}},
		{"a directory that is removed and made again", func(t *testing.T, top string) {
			if err := os.RemoveAll(top + "/1"); err != nil {
				t.Fatal(err)
			}
			time.Sleep(2 * quietPeriod) // its absence is noticed
			if err := os.Mkdir(top+"/1", 0o755); err != nil {
				t.Fatal(err)
			}
			writeConfig(t, top+"/1/dotgate.yaml", configText(2))
		}},
		{"other files change all the time", func(t *testing.T, top string) {
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan struct{})
			t.Cleanup(func() { cancel(); <-done })
			go func() {
				defer close(done)
				for ctx.Err() == nil {
					_ = os.WriteFile(top+"/1/other", nil, 0o600)
					time.Sleep(quietPeriod / 10)
				}
			}()
			time.Sleep(quietPeriod)
			writeConfig(t, top+"/1/dotgate.yaml", configText(2))
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			top := t.TempDir()
			if err := errors.Join(os.Mkdir(top+"/1", 0o755), os.Symlink("1", top+"/current")); err != nil {
				t.Fatal(err)
			}
			writeConfig(t, top+"/1/dotgate.yaml", configText(1))
			s := &source{File: top + "/current/dotgate.yaml"}
			config, loaded, err := s.loadAndDigest()
			if err != nil {
				t.Fatal(err)
			}
			p := serverOf(t, s, config, loaded)
			ctx, cancel := context.WithCancel(t.Context())
			watching := make(chan struct{})
			go func() { defer close(watching); _ = p.watchFiles(ctx, func() { _, _ = p.Reload() }) }()
			defer func() { cancel(); <-watching }()
			time.Sleep(2 * quietPeriod)
			test.replace(t, top)
			until(t, "the change is in effect", func() bool { return p.current().Gateway.Timeout == 2*time.Second })
		})
	}
}
