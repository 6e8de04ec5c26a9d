package querylog

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strings"
	"syscall"
	"time"

	"dotgate/configs/files"
	"dotgate/gateway/wire"
)

// An output writes entries. After an error of put or flush it must be closed and opened
// again, unless the error is errStalled or isTemporary.
type output interface {
	put(e *entry) error
	flush() error
	close()
}

func (r *config) open(c *counts) (output, error) {
	if path, socket := strings.CutPrefix(r.Output, "unix:"); socket {
		return dialDnstap(path, c)
	}
	f, err := openFile(r.Options, c)
	if err != nil {
		return nil, err
	}
	return f, f.write(f.start, 0)
}

// isTemporary reports whether err may end without opening the file again: the disk is
// full, or a limit is reached.
func isTemporary(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) || errors.Is(err, syscall.EFBIG)
}

// kind describes the files that may be renamed, truncated and appended to.
var kind = files.Kind{Name: "a query log of dotgate", Own: func(head []byte) bool { return isJSON(head) || isDnstap(head) }}

// jsonHead is the beginning of each line of JSON.
const jsonHead = `{"time":"`

func isJSON(head []byte) bool   { return hasPrefix(head, []byte(jsonHead)) }
func isDnstap(head []byte) bool { return hasPrefix(head, controlFrame(controlStart)) }

// hasPrefix reports whether head, which may be shorter than magic, agrees with it.
func hasPrefix(head, magic []byte) bool {
	n := min(len(head), len(magic))
	return bytes.Equal(head[:n], magic[:n])
}

// A file is an output to a path. A regular file is renamed when it gets too long. A
// FIFO, a terminal, /dev/null or /dev/stdout is never renamed, truncated or removed.
type file struct {
	stream
	o       Options
	path    string // without symlinks
	f       *os.File
	regular bool
	size    int64
	pinned  bool // it was logged that the file can't be renamed

	encode      func(e *entry) []byte
	start, stop []byte // the frames around those of entries, or nil
}

// openFile opens o.Output. It does not wait for the reader of a FIFO.
func openFile(o Options, c *counts) (*file, error) {
	l := &file{o: o, path: files.Target(o.Output), encode: jsonLine}
	if o.Format == "dnstap" {
		l.encode, l.start, l.stop = dnstapFrame, controlFrame(controlStart), controlFrame(controlStop)
	}
	if err := l.open(); err != nil {
		return nil, err
	}
	l.stream = stream{w: l.f, counts: c}
	return l, nil
}

func (l *file) open() error {
	f, err := openOutput(l.o.Output, l.path)
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err == nil {
		l.f, l.size, l.regular = f, info.Size(), info.Mode().IsRegular() && !isSystemPath(l.o.Output)
		err = l.check(info.Mode())
	}
	if err != nil {
		f.Close()
	}
	return err
}

// isSystemPath reports whether a path leads to a device, or to a file that another
// program has opened: /dev/stdout may be a regular file of the shell.
func isSystemPath(path string) bool {
	return strings.HasPrefix(path, "/dev/") || strings.HasPrefix(path, "/proc/")
}

func openOutput(name, path string) (*os.File, error) {
	const flags = os.O_WRONLY | os.O_APPEND | syscall.O_NONBLOCK // a FIFO without a reader would block
	if isSystemPath(name) {
		path = name // its target may have no path
	}
	f, err := os.OpenFile(path, flags, 0)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return os.OpenFile(path, flags|os.O_CREATE, 0o640)
	case errors.Is(err, syscall.ENXIO) && !isSystemPath(name):
		return nil, fmt.Errorf("open %s: no program reads from it", path)
	case err != nil && (name == "/dev/stdout" || name == "/dev/stderr"):
		// A socket, as journald's, or a pipe of another user can't be opened again.
		fd := os.Stdout
		if name == "/dev/stderr" {
			fd = os.Stderr
		}
		number, err := syscall.Dup(int(fd.Fd()))
		if err != nil {
			return nil, err
		}
		syscall.CloseOnExec(number)
		return os.NewFile(uintptr(number), name), nil
	}
	return f, err
}

// check verifies that the file may be appended to, and ends an incomplete last line.
func (l *file) check(mode fs.FileMode) error {
	if mode&fs.ModeDevice != 0 && mode&fs.ModeCharDevice == 0 {
		return fmt.Errorf("%s is a block device", l.path)
	}
	if !l.regular {
		return nil
	}
	if err := kind.Check(l.path); err != nil {
		return err
	}
	f, err := os.Open(l.path)
	if err != nil {
		return err
	}
	defer f.Close()
	var head [len(jsonHead)]byte
	n, _ := f.ReadAt(head[:], 0)
	if n == 0 {
		return nil
	}
	if l.o.Format != "json" || !isJSON(head[:n]) { // frames can't be appended to
		return l.rotate()
	}
	var last [1]byte
	if _, err := f.ReadAt(last[:], l.size-1); err != nil || last[0] == '\n' {
		return err
	}
	_, err = l.f.WriteString("\n") // a crash or a full disk left it incomplete
	return err
}

// full reports whether n more octets would exceed MaxSize.
func (l *file) full(n int) bool { return l.regular && l.size > 0 && l.size+int64(n) > l.o.MaxSize }

// rotate begins a new file. Former files are .1, the latest, to .Keep. A file that can't
// be renamed (it is mounted into a container, or its directory is read-only) is
// truncated.
func (l *file) rotate() error {
	if err := l.flush(); err != nil {
		return err
	}
	if there, err := os.Stat(l.path); err == nil {
		if ours, err := l.f.Stat(); err != nil || !os.SameFile(ours, there) {
			return l.reopen() // another program has renamed it already
		}
	}
	switch err := l.rename(); {
	case err == nil && l.o.Keep > 0:
		l.pinned = false
		return l.reopen()
	case err != nil && !files.Immovable(err) && !errors.Is(err, fs.ErrPermission) && !errors.Is(err, syscall.EROFS):
		return err
	case err != nil && !l.pinned:
		l.pinned = true
		l.o.logger().Warn("the query log can't be renamed, so its older entries are removed whenever it is full (query_log.output)", "output", l.path, "error", err)
	}
	l.size = 0
	return l.f.Truncate(0)
}

// rename renames the file to .1, and the former files to the next number.
func (l *file) rename() error {
	for i := l.o.Keep; i > 0; i-- {
		from, to := l.path, fmt.Sprintf("%s.%d", l.path, i)
		if i > 1 {
			from = fmt.Sprintf("%s.%d", l.path, i-1)
		}
		for _, path := range []string{from, to} {
			if err := kind.Check(path); err != nil {
				return err
			}
		}
		if err := os.Rename(from, to); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

func (l *file) reopen() error {
	l.f.Close()
	if err := l.open(); err != nil {
		return err
	}
	l.w = l.f
	return nil
}

// write adds data to the buffer: one entry (entries is 1), or a control frame (0).
func (l *file) write(data []byte, entries int) error {
	err := l.add(data, entries)
	if err == nil {
		l.size += int64(len(data))
	}
	return err
}

func (l *file) put(e *entry) error {
	data := l.encode(e)
	if l.full(len(data)) {
		if err := l.write(l.stop, 0); err != nil {
			return err
		}
		if err := l.rotate(); err != nil {
			return err
		}
		if err := l.write(l.start, 0); err != nil {
			return err
		}
	}
	return l.write(data, 1)
}

func (l *file) close() {
	_ = l.write(l.stop, 0)
	_ = l.flush()
	l.discard()
	l.f.Close()
}

// A line is one entry as JSON.
type line struct {
	Time      string  `json:"time"` // first, as jsonHead must match
	Client    string  `json:"client,omitempty"`
	Transport string  `json:"transport"`
	Query     string  `json:"query"` // "www.example.com. A"
	RCode     string  `json:"rcode"`
	Answers   int     `json:"answers"`
	Cached    bool    `json:"cached"` // no upstream was asked
	Took      float64 `json:"took_ms"`
	Size      int     `json:"size"`
}

// jsonLine returns e as a line of JSON.
func jsonLine(e *entry) []byte {
	l := line{
		Time: e.at.UTC().Format(time.RFC3339Nano), Transport: strings.ToLower(e.via.String()), Query: "?",
		RCode: wire.HeaderRCode(e.reply).String(), Answers: int(e.reply[6])<<8 | int(e.reply[7]),
		Cached: e.cached, Took: float64(e.took.Microseconds()) / 1000, Size: len(e.reply),
	}
	if e.client.Addr().IsValid() {
		l.Client = e.client.Addr().String()
	}
	if q, err := wire.ParseQuery(e.packet, e.via); err == nil {
		l.Query = q.String()
	}
	text, err := json.Marshal(l)
	if err != nil {
		panic("BUG: an entry is not written as JSON: " + err.Error())
	}
	return append(text, '\n')
}

// dialTimeout bounds the time to connect to a reader, and for each step of the handshake.
const dialTimeout = time.Second

func dialDnstap(path string, c *counts) (output, error) {
	conn, err := net.DialTimeout("unix", path, dialTimeout)
	if err != nil {
		return nil, err
	}
	t, err := newDnstapConn(conn, c)
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("shake hands with the reader at %s: %w", path, err)
	}
	return t, nil
}
