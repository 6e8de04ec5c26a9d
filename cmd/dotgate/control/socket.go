// Package control lets an operator talk to the running gateway: what it knows
// about itself (status), what its cache has and is to forget (cache), and
// rehearsals of failures (drill).
//
// It speaks HTTP with JSON over a Unix socket, to the gateway's own user and to
// root. Nothing in it is needed to answer queries, and nothing that is asked
// here changes how they are answered, but for what the cache forgets and for a
// drill while it lasts.
package control

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// ErrInUse means that another gateway has the socket.
var ErrInUse = errors.New("another gateway has it")

// systemDir is where root's gateway has its socket. Listen makes it.
const systemDir = "/run/dotgate"

// Places returns where this user's gateway may have its socket if it was not
// told where, best first.
func Places() []string {
	uid := os.Geteuid()
	var places []string
	if uid == 0 {
		places = append(places, filepath.Join(systemDir, "control.sock"))
	}
	if dir := os.Getenv("XDG_RUNTIME_DIR"); filepath.IsAbs(dir) {
		places = append(places, filepath.Join(dir, "dotgate.sock"))
	}
	return append(places, filepath.Join(os.TempDir(), fmt.Sprintf("dotgate-%d.sock", uid)))
}

// ListenSomewhere listens at the first place that allows it. If another gateway
// has it, that is the error, ErrInUse: nobody would find us at the next one.
func ListenSomewhere(places []string) (*Listener, error) {
	var problems []error
	for _, path := range places {
		l, err := Listen(path)
		if err == nil || errors.Is(err, ErrInUse) {
			return l, err
		}
		problems = append(problems, err)
	}
	return nil, errors.Join(problems...)
}

// A Listener accepts connections of our own user and of root.
type Listener struct {
	*net.UnixListener
	path string
	lock *os.File
}

// Listen makes a socket at path, for our own user and root only. A socket that a
// dead gateway left behind is replaced.
//
// As long as it lives, a gateway holds a lock beside its socket. Without, of two
// that start at once, one could take the other's fresh socket for a dead one.
func Listen(path string) (*Listener, error) {
	if filepath.Dir(path) == systemDir {
		os.Mkdir(systemDir, 0o755) // if it fails, so does what comes next
	}
	l, err := listen(path)
	if err != nil {
		return nil, fmt.Errorf("make the control socket %s (setting control.socket): %w", path, err)
	}
	return l, nil
}

func listen(path string) (*Listener, error) {
	lock, err := takeLock(path + ".lock")
	if err != nil {
		return nil, err
	}
	l, err := bind(path)
	if err != nil {
		dropLock(lock)
		return nil, err
	}
	return &Listener{UnixListener: l, path: path, lock: lock}, nil
}

// bind makes the socket under another name first, so that at path it has the
// right mode from the start, and what was there is replaced in one step.
func bind(path string) (*net.UnixListener, error) {
	switch info, err := os.Lstat(path); {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, plain(err)
	case info.Mode().Type() != fs.ModeSocket:
		return nil, errors.New("there is something that is no socket")
	default:
		if conn, err := net.DialTimeout("unix", path, time.Second); err == nil {
			conn.Close()
			return nil, errors.New("another program serves there")
		}
	}
	fresh := path + ".new"
	os.Remove(fresh) // of a gateway that died right here
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: fresh, Net: "unix"})
	if err != nil {
		return nil, plain(err)
	}
	l.SetUnlinkOnClose(false) // the name is not what it will have
	err = os.Chmod(fresh, 0o600)
	if err == nil {
		err = os.Rename(fresh, path)
	}
	if err != nil {
		l.Close()
		os.Remove(fresh)
		return nil, plain(err)
	}
	return l, nil
}

// plain returns the system's own words, without the path that is told already.
func plain(err error) error {
	if number, ok := errors.AsType[syscall.Errno](err); ok {
		return number
	}
	return err
}

// takeLock makes and locks the file at path, and writes into it who we are. The
// system unlocks it when the process ends, however it does.
func takeLock(path string) (*os.File, error) {
	for {
		lock, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
		if err != nil {
			return nil, plain(err)
		}
		if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
			owner, _ := os.ReadFile(path)
			lock.Close()
			if !errors.Is(err, syscall.EWOULDBLOCK) {
				return nil, err
			}
			return nil, fmt.Errorf("%w, with process ID %s", ErrInUse, strings.TrimSpace(string(owner)))
		}
		// Its last owner may have removed the file after we opened it.
		if ours, err := lock.Stat(); err == nil {
			if there, err := os.Stat(path); err == nil && os.SameFile(ours, there) {
				lock.Truncate(0)
				lock.WriteAt(strconv.AppendInt(nil, int64(os.Getpid()), 10), 0)
				return lock, nil
			}
		}
		lock.Close()
	}
}

func dropLock(lock *os.File) {
	os.Remove(lock.Name())
	lock.Close()
}

// Accept returns the next connection of somebody who may.
func (l *Listener) Accept() (net.Conn, error) {
	for {
		conn, err := l.AcceptUnix()
		if err != nil {
			return nil, err
		}
		if uid, err := peer(conn); err == nil && (uid == 0 || uid == os.Geteuid()) {
			return conn, nil
		}
		conn.Close()
	}
}

// Path returns where the socket is.
func (l *Listener) Path() string { return l.path }

// Close closes and removes the socket. It may be called twice.
func (l *Listener) Close() error {
	err := l.UnixListener.Close()
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	os.Remove(l.path)
	dropLock(l.lock)
	return err
}
