// Package api is the interface between the commands and the running gateway: status,
// explain, cache, drill, reload, takeover and the states that operators set by hand.
//
// It is HTTP with JSON over a Unix socket, for the user of the gateway and for root. The
// package admin serves the same calls over TCP. Answering queries does not depend on it.
package api

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"dotgate/configs/files"
)

// ErrInUse means that another gateway uses the socket.
var ErrInUse = errors.New("another gateway has it")

// systemDir is the directory of the socket of root's gateway. Listen creates it.
const systemDir = "/run/dotgate"

// Places returns the default paths of the socket of this user's gateway, best first.
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

// ListenSomewhere listens at the first place that can be used. If another gateway uses one,
// the error is ErrInUse: clients would look for this gateway there.
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

// A Listener accepts connections of the gateway's own user and of root.
type Listener struct {
	*net.UnixListener
	path string
	made fs.FileInfo // the socket at path
	lock *os.File

	mu   sync.Mutex
	link string // the symlink that leads to path, or empty
}

// Listen creates a socket at path, for the gateway's own user and root. It replaces a
// socket that a killed gateway left behind.
//
// A running gateway holds a lock beside its socket. Without it, one of two gateways that
// start at once could take the new socket of the other for an old one.
func Listen(path string) (*Listener, error) {
	if filepath.Dir(path) == systemDir {
		os.Mkdir(systemDir, 0o755) // if this fails, so does listening there
	}
	l, err := listen(path)
	if err != nil {
		return nil, fmt.Errorf("listen unix %s (control.socket): %w", path, err)
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
	made, err := os.Lstat(path)
	if err != nil {
		l.Close()
		dropLock(lock)
		return nil, plain(err)
	}
	return &Listener{UnixListener: l, path: path, made: made, lock: lock}, nil
}

// bind creates the socket under another name and renames it: so it has the right mode from
// the start, and replaces an old one in one step.
func bind(path string) (*net.UnixListener, error) {
	switch info, err := os.Lstat(path); {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, plain(err)
	case info.Mode().Type() != fs.ModeSocket:
		return nil, errors.New("the file there is no socket")
	default:
		if conn, err := net.DialTimeout("unix", path, time.Second); err == nil {
			conn.Close()
			return nil, errors.New("another program listens there")
		}
	}
	fresh := path + ".new"
	switch info, err := os.Lstat(fresh); {
	case err != nil:
	case info.Mode().Type() != fs.ModeSocket:
		return nil, fmt.Errorf("%s is no socket, and is left as it is", fresh)
	default:
		os.Remove(fresh) // of a gateway that was killed right here
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: fresh, Net: "unix"})
	if err != nil {
		return nil, plain(err)
	}
	l.SetUnlinkOnClose(false) // the name is going to change
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

// plain returns the error of the system without the path, which the caller adds.
func plain(err error) error {
	if number, ok := errors.AsType[syscall.Errno](err); ok {
		return number
	}
	return err
}

// lockKind is the kind of file that takeLock writes to: it holds a process ID.
var lockKind = files.Kind{Name: "a lock of dotgate", Own: func(head []byte) bool {
	return len(head) <= 20 && !bytes.ContainsFunc(head, func(r rune) bool { return r < '0' || r > '9' })
}}

// takeLock creates and locks the file at path, and writes the process ID to it. The kernel
// unlocks it when the process ends.
func takeLock(path string) (*os.File, error) {
	for {
		lock, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
		if err != nil {
			return nil, plain(err)
		}
		if err := lockKind.CheckOpen(lock); err != nil {
			lock.Close()
			return nil, err
		}
		if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
			owner, _ := files.Read(path, 64)
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

// Accept returns the next connection of a permitted user.
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

// Path returns the path of the socket.
func (l *Listener) Path() string { return l.path }

// Close closes the socket, and removes it unless another file has replaced it. It may be
// called twice.
func (l *Listener) Close() error {
	err := l.UnixListener.Close()
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	l.unpublish() // while the lock is held: the next gateway may publish the same path
	if there, err := os.Lstat(l.path); err == nil && os.SameFile(there, l.made) {
		os.Remove(l.path)
	}
	dropLock(l.lock)
	return err
}
