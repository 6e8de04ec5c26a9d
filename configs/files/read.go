// Package files reads the files that settings name, and writes those that the
// program keeps.
//
// A path in a setting can lead to anything: /dev/zero, a FIFO without a writer, a
// directory, a file of another program. So reading is bounded in octets and in
// time, and writing never replaces, truncates or removes what is not the program's
// own. An error names the file, the reason and, where there is one, the limit.
package files

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"syscall"
	"time"
)

// The largest sizes of files, in octets, by what is in them.
const (
	ConfigMax = 8 << 20  // a configuration: some 50,000 routes
	SecretMax = 64 << 10 // a token, a list of keys, of request headers
	PEMMax    = 4 << 20  // certificates and keys: a bundle of all authorities has 0.3 MB
	NamesMax  = 32 << 20 // names of routes: more than a million
)

const (
	// readLimit is how long a FIFO, a socket or a terminal may take to be read.
	readLimit = 2 * time.Second
	// writerPoll is how often a FIFO without a writer is looked at again.
	writerPoll = 10 * time.Millisecond
)

// Read returns the content of the file at path, which may be a FIFO, as in
// `-c <(command)`. The error is an *fs.PathError. It is an error if the file has more
// than limit octets, is a directory or a block device, or takes longer than two
// seconds. Read blocks for as long as that at most.
func Read(path string, limit int) ([]byte, error) {
	data, err := read(path, limit)
	if _, named := errors.AsType[*fs.PathError](err); err != nil && !named {
		err = &fs.PathError{Op: "read", Path: path, Err: err}
	}
	return data, err
}

func read(path string, limit int) ([]byte, error) {
	// Without O_NONBLOCK, to open a FIFO waits for a writer.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	tooLarge := fmt.Errorf("it is larger than %d octets, which is the limit for this kind of file", limit)
	switch mode := info.Mode(); {
	case mode.IsDir():
		return nil, errors.New("it is a directory")
	case mode.IsRegular() && info.Size() > int64(limit):
		return nil, tooLarge
	case mode&fs.ModeDevice != 0 && mode&fs.ModeCharDevice == 0:
		return nil, errors.New("it is a block device, not a file")
	}
	_ = f.SetReadDeadline(time.Now().Add(readLimit)) // regular files have none, and need none
	data, err := readAll(f, limit, info.Mode()&fs.ModeNamedPipe != 0)
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded) && len(data) == 0 && info.Mode()&fs.ModeNamedPipe != 0:
		return nil, fmt.Errorf("it is a FIFO that nothing was written to for %v", readLimit)
	case errors.Is(err, os.ErrDeadlineExceeded):
		return nil, fmt.Errorf("it is %s whose end did not come within %v", kind(info.Mode()), readLimit)
	case err != nil:
		return nil, err
	case len(data) > limit:
		return nil, tooLarge
	}
	return data, nil
}

// readAll reads f to its end, or one octet more than limit. A FIFO that has no writer yet
// is at its end, and is read again until the deadline.
func readAll(f *os.File, limit int, fifo bool) (data []byte, err error) {
	for {
		data, err = io.ReadAll(io.LimitReader(f, int64(limit)+1))
		if err != nil || len(data) > 0 || !fifo {
			return data, err
		}
		time.Sleep(writerPoll)
	}
}

// kind names the kind of a file that is none of the usual ones.
func kind(mode fs.FileMode) string {
	switch {
	case mode.IsDir():
		return "a directory"
	case mode&fs.ModeNamedPipe != 0:
		return "a FIFO"
	case mode&fs.ModeSocket != 0:
		return "a socket"
	case mode&fs.ModeDevice != 0:
		return "a device"
	case mode.IsRegular():
		return "a file"
	}
	return "no regular file"
}

// Digest returns a digest of the contents of files. A file that can't be read counts
// as empty.
func Digest(paths ...string) [sha256.Size]byte {
	h := sha256.New()
	for _, path := range paths {
		fmt.Fprintf(h, "%q", path)
		if data, err := Read(path, NamesMax); err == nil {
			h.Write(data)
		}
	}
	return [sha256.Size]byte(h.Sum(nil))
}

// KeyPair reads a certificate chain and its key, both PEM.
func KeyPair(certFile, keyFile string) (tls.Certificate, error) {
	cert, err := Read(certFile, PEMMax)
	if err != nil {
		return tls.Certificate{}, err
	}
	key, err := Read(keyFile, PEMMax)
	if err != nil {
		return tls.Certificate{}, err
	}
	return tls.X509KeyPair(cert, key)
}

// Authorities reads the certificates, PEM, of authorities.
func Authorities(path string) (*x509.CertPool, error) {
	pem, err := Read(path, PEMMax)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s holds no PEM certificate", path)
	}
	return pool, nil
}

// Texts returns the values that the lines of the file at path are the texts of. Empty lines
// and those that begin with # count for nothing. limit is that of Read.
func Texts[T any, P interface {
	*T
	encoding.TextUnmarshaler
}](path string, limit int) (all []T, err error) {
	text, err := Read(path, limit)
	if err != nil {
		return nil, err
	}
	n := 0
	for line := range strings.Lines(string(text)) {
		n++
		if line = strings.TrimSpace(line); line == "" || line[0] == '#' {
			continue
		}
		var value T
		if err := P(&value).UnmarshalText([]byte(line)); err != nil {
			return nil, fmt.Errorf("%s: line %d %w", path, n, err)
		}
		all = append(all, value)
	}
	return all, nil
}
