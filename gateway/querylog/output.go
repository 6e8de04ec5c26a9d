package querylog

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"dotgate/gateway/wire"
)

// An output is where entries are written.
type output interface {
	put(e *entry) error
	flush() error
	close()
}

func (r *rules) open() (output, error) {
	if path, socket := strings.CutPrefix(r.Output, "unix:"); socket {
		return dialTap(path)
	}
	f, err := openFile(r.Options)
	if err != nil {
		return nil, err
	}
	if r.Format == "dnstap" {
		return newTapFile(f)
	}
	return &jsonOutput{f}, nil
}

// A file is one that is renamed when it gets too long.
type file struct {
	o    Options
	f    *os.File
	w    *bufio.Writer
	size int64
}

func openFile(o Options) (*file, error) {
	f, err := os.OpenFile(o.Output, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o640)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, err
	}
	return &file{o: o, f: f, w: bufio.NewWriterSize(f, 64<<10), size: info.Size()}, nil
}

// full reports whether n more octets are too many.
func (f *file) full(n int) bool { return f.size > 0 && f.size+int64(n) > f.o.MaxSize }

// rotate begins another file. The others are .1, the latest, to .Keep.
func (f *file) rotate() error {
	if err := errors.Join(f.w.Flush(), f.f.Close()); err != nil {
		return err
	}
	for i := f.o.Keep; i > 0; i-- {
		older := f.o.Output
		if i > 1 {
			older = fmt.Sprintf("%s.%d", f.o.Output, i-1)
		}
		if err := os.Rename(older, fmt.Sprintf("%s.%d", f.o.Output, i)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	if f.o.Keep == 0 {
		if err := os.Remove(f.o.Output); err != nil {
			return err
		}
	}
	next, err := openFile(f.o)
	if err != nil {
		return err
	}
	*f = *next
	return nil
}

func (f *file) write(data []byte) error {
	f.size += int64(len(data))
	_, err := f.w.Write(data)
	return err
}

func (f *file) flush() error { return f.w.Flush() }

func (f *file) close() {
	f.w.Flush()
	f.f.Close()
}

// jsonOutput writes a line for each entry.
type jsonOutput struct{ *file }

// A line is one entry as JSON.
type line struct {
	Time      string  `json:"time"`
	Client    string  `json:"client,omitempty"`
	Transport string  `json:"transport"`
	Query     string  `json:"query"` // "www.example.com. A"
	RCode     string  `json:"rcode"`
	Answers   int     `json:"answers"`
	Cached    bool    `json:"cached"` // it could be answered at once
	Took      float64 `json:"took_ms"`
	Size      int     `json:"size"`
}

func (j *jsonOutput) put(e *entry) error {
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
		return err
	}
	text = append(text, '\n')
	if j.full(len(text)) {
		if err := j.rotate(); err != nil {
			return err
		}
	}
	return j.write(text)
}

// dialLimit bounds how long a reader's socket may keep us.
const dialLimit = time.Second

func dialTap(path string) (output, error) {
	conn, err := net.DialTimeout("unix", path, dialLimit)
	if err != nil {
		return nil, err
	}
	t, err := newTapConn(conn)
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("shake hands with the reader at %s: %w", path, err)
	}
	return t, nil
}
