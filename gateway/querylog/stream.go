package querylog

import (
	"errors"
	"io"
	"os"
	"syscall"
	"time"
)

const (
	// maxBuffer is the most octets in the buffer of a stream.
	maxBuffer = 64 << 10
	// writeTimeout is the longest time that one write waits for a reader.
	writeTimeout = 100 * time.Millisecond
)

// errStalled means that the buffer is full because the reader does not read.
var errStalled = errors.New("its reader takes nothing")

// A stream writes entries and control frames (its parts) to a file or a socket. Octets
// that could not be written stay in its buffer, so that each part is written whole even
// if the reader stalls or the disk is full for some time.
type stream struct {
	w interface {
		io.Writer
		SetWriteDeadline(time.Time) error // regular files have none
	}
	counts *counts
	buf    []byte
	parts  []part // of buf; the beginning of the first one may be written already
}

// A part is one entry (entries is 1) or a control frame (0). left is the number of its
// octets in the buffer.
type part struct{ left, entries int }

// add adds data to the buffer. If it is full, add writes first, and returns an error of
// that, or errStalled if data still does not fit.
func (s *stream) add(data []byte, entries int) error {
	if len(s.buf)+len(data) > maxBuffer {
		if err := s.flush(); err != nil {
			return err
		}
		if len(s.buf)+len(data) > maxBuffer {
			return errStalled
		}
	}
	s.buf = append(s.buf, data...)
	s.parts = append(s.parts, part{len(data), entries})
	return nil
}

// flush writes the buffer, as far as possible within writeTimeout, and counts the
// written entries.
func (s *stream) flush() error {
	if len(s.buf) == 0 {
		return nil
	}
	_ = s.w.SetWriteDeadline(time.Now().Add(writeTimeout))
	n, err := s.w.Write(s.buf)
	s.buf = append(s.buf[:0], s.buf[n:]...)
	for len(s.parts) > 0 && n >= s.parts[0].left {
		n -= s.parts[0].left
		s.counts.written.Add(uint64(s.parts[0].entries))
		s.parts = s.parts[1:]
	}
	if len(s.parts) > 0 {
		s.parts[0].left -= n
	}
	if errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, syscall.EAGAIN) {
		return nil
	}
	return err
}

// discard empties the buffer and counts its entries as failed.
func (s *stream) discard() {
	for _, p := range s.parts {
		s.counts.failed.Add(uint64(p.entries))
	}
	s.buf, s.parts = nil, nil
}
