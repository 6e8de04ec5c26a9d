package api

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// socketDir is a directory with a short name, as a socket needs.
func socketDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "dotgate")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func TestTheSocketIsForItsUserAloneAndGoesWithTheGateway(t *testing.T) {
	t.Parallel()
	dir := socketDir(t)
	path := filepath.Join(dir, "control.sock")
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Lstat(path)
	if err != nil || info.Mode() != fs.ModeSocket|0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	go func() {
		conn, err := net.Dial("unix", path)
		if err == nil {
			conn.Close()
		}
	}()
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	for range 2 {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("there is left %v", left)
	}
}

func TestASocketInUseIsAnErrorThatNamesItsOwner(t *testing.T) {
	t.Parallel()
	path := filepath.Join(socketDir(t), "control.sock")
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for _, listen := range []func() (*Listener, error){
		func() (*Listener, error) { return Listen(path) },
		func() (*Listener, error) { return ListenSomewhere([]string{path, path + ".other"}) },
	} {
		_, err = listen()
		if !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "with process ID ") {
			t.Errorf("got %v", err)
		}
	}
}

func TestWhatADeadGatewayLeftBehindIsReplaced(t *testing.T) {
	t.Parallel()
	path := filepath.Join(socketDir(t), "control.sock")
	for _, left := range []string{path, path + ".new"} {
		dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: left, Net: "unix"})
		if err != nil {
			t.Fatal(err)
		}
		dead.SetUnlinkOnClose(false)
		dead.Close()
	}
	if err := os.WriteFile(path+".lock", []byte("1234567"), 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
}

func TestWhatIsNotOursIsLeftAlone(t *testing.T) {
	t.Parallel()
	path := filepath.Join(socketDir(t), "control.sock")
	f := func(want string) {
		t.Helper()
		if l, err := Listen(path); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, %v, want %s", l, err, want)
		}
		if _, err := os.Lstat(path + ".lock"); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("a lock is left: %v", err)
		}
	}
	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	f("the file there is no socket")
	if text, err := os.ReadFile(path); string(text) != "precious" {
		t.Errorf("it has %q, %v", text, err)
	}
	os.Remove(path)
	other, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	f("another program listens there")
	path = filepath.Join(filepath.Dir(path), "missing", "control.sock")
	f("no such file or directory")
}

func TestAPlaceThatCannotBeUsedIsPassedOver(t *testing.T) {
	t.Parallel()
	dir := socketDir(t)
	l, err := ListenSomewhere([]string{filepath.Join(dir, "missing", "a.sock"), filepath.Join(dir, "b.sock")})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if filepath.Base(l.Path()) != "b.sock" {
		t.Errorf("it is at %s", l.Path())
	}
	if conn, err := connect(t.Context(), nil, []string{filepath.Join(dir, "missing", "a.sock"), l.Path()}); err != nil {
		t.Error(err)
	} else {
		conn.Close()
	}
	_, err = connect(t.Context(), nil, []string{filepath.Join(dir, "c.sock")})
	if err == nil || !strings.Contains(err.Error(), "no running gateway found (control.socket): "+dir+"/c.sock: no such file") {
		t.Errorf("got %v", err)
	}
}

// Many gateways start and stop at once. At no time do two have the socket.
func TestOneGatewayHasTheSocketHoweverManyStartAtOnce(t *testing.T) {
	t.Parallel()
	path := filepath.Join(socketDir(t), "control.sock")
	var having, had atomic.Int32
	var gateways sync.WaitGroup
	for range 8 {
		gateways.Go(func() {
			for range 50 {
				l, err := Listen(path)
				if err != nil {
					if !errors.Is(err, ErrInUse) {
						t.Error(err)
					}
					continue
				}
				if n := having.Add(1); n != 1 {
					t.Errorf("%d gateways have it", n)
				}
				had.Add(1)
				conn, err := connect(context.Background(), nil, []string{path})
				if err != nil {
					t.Error(err)
				} else {
					conn.Close()
				}
				having.Add(-1)
				l.Close()
			}
		})
	}
	gateways.Wait()
	if had.Load() == 0 {
		t.Error("no gateway had it")
	}
}

func TestPlacesAreThisUsersOwn(t *testing.T) {
	t.Setenv("XDG_RUNTIME_DIR", "/run/user/1000")
	t.Setenv("TMPDIR", "/var/tmp")
	places := strings.Join(Places(), " ")
	if !strings.Contains(places, "/run/user/1000/dotgate.sock /var/tmp/dotgate-") ||
		strings.HasPrefix(places, "/run/dotgate/control.sock ") != (os.Geteuid() == 0) {
		t.Errorf("got %s", places)
	}
}

// TestOtherFilesAreLeftAsTheyAre has files of others where a gateway makes its own.
func TestOtherFilesAreLeftAsTheyAre(t *testing.T) {
	for _, suffix := range []string{"", ".new", ".lock"} {
		path := filepath.Join(socketDir(t), "control.sock")
		if err := os.WriteFile(path+suffix, []byte("notes"), 0o600); err != nil {
			t.Fatal(err)
		}
		if l, err := Listen(path); err == nil {
			l.Close()
			t.Errorf("%q: no error", suffix)
		}
		if text, err := os.ReadFile(path + suffix); string(text) != "notes" {
			t.Errorf("%q: %q, %v", suffix, text, err)
		}
	}
	// What has taken the place of the socket stays, too.
	path := filepath.Join(socketDir(t), "control.sock")
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Remove(path), os.WriteFile(path, []byte("notes"), 0o600)); err != nil {
		t.Fatal(err)
	}
	l.Close()
	if text, err := os.ReadFile(path); string(text) != "notes" {
		t.Errorf("%q, %v", text, err)
	}
}
