package files

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// A Kind tells by its first octets whether a file is the program's own.
type Kind struct {
	Name string // as in "a cache file of dotgate"
	// Own reports whether a file that begins with head is one. Head has 64 octets,
	// or all of a shorter file; it is never empty.
	Own func(head []byte) bool
}

// headMax is how much of a file a Kind sees.
const headMax = 64

// Check returns nil if the program may replace, truncate or remove the file at path:
// there is none, or it is a regular file that is empty or of this kind. A symlink is
// followed. Otherwise the error tells what is there.
func (k Kind) Check(path string) error {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	return k.CheckOpen(f)
}

// CheckOpen is Check for an open file.
func (k Kind) CheckOpen(f *os.File) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%s is %s, which is not replaced by %s", f.Name(), kind(info.Mode()), k.Name)
	}
	var head [headMax]byte
	n, err := f.ReadAt(head[:], 0)
	if err != nil && err != io.EOF {
		return err
	}
	if n > 0 && !k.Own(head[:n]) {
		return fmt.Errorf("%s is not %s, and is left as it is", f.Name(), k.Name)
	}
	return nil
}

// Remove removes a file of this kind. That there is none is no error.
func (k Kind) Remove(path string) error {
	if err := k.Check(path); err != nil {
		return err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// Replace has the file at path hold what write writes: all of it, or what it held
// before. It writes to PATH.new, syncs that, and renames it. A file that can't be
// renamed over, such as one that is mounted by itself into a container, or one in a
// directory that is read-only, is written in place. A symlink stays, its target is
// replaced. Files that are not of this kind are left alone, with an error.
func (k Kind) Replace(path string, perm fs.FileMode, write func(io.Writer) error) error {
	path = Target(path)
	if err := k.Check(path); err != nil {
		return err
	}
	fresh := path + ".new" // always the same name, so that crashes leave one file at most
	if err := k.Remove(fresh); err != nil {
		if readOnly(err) {
			return k.overwrite(path, perm, write)
		}
		return err
	}
	f, err := os.OpenFile(fresh, os.O_WRONLY|os.O_CREATE|os.O_EXCL, perm)
	if readOnly(err) && exists(path) {
		return k.overwrite(path, perm, write)
	}
	if err != nil {
		return err
	}
	// Without Sync, a crash may leave the new name on an empty file.
	if err = errors.Join(write(f), f.Sync()); err == nil {
		err = f.Close()
	}
	if err == nil {
		err = os.Rename(fresh, path)
	}
	if err == nil {
		return nil
	}
	f.Close()
	os.Remove(fresh)
	if Immovable(err) {
		return k.overwrite(path, perm, write)
	}
	return err
}

// overwrite is Replace in place.
func (k Kind) overwrite(path string, perm fs.FileMode, write func(io.Writer) error) (err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|syscall.O_NONBLOCK, perm)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := k.CheckOpen(f); err != nil {
		return err
	}
	if err := f.Truncate(0); err != nil {
		return err
	}
	return errors.Join(write(f), f.Sync())
}

// Target returns where path leads to if it is a symlink, even to a file that does not
// exist yet, and path otherwise.
func Target(path string) string {
	target := path
	for range linksMax {
		if existing, err := filepath.EvalSymlinks(target); err == nil {
			return existing
		}
		next, err := os.Readlink(target)
		if err != nil { // no symlink
			return target
		}
		if !filepath.IsAbs(next) {
			dir, err := filepath.EvalSymlinks(filepath.Dir(target))
			if err != nil {
				return path
			}
			next = filepath.Join(dir, next)
		}
		target = next
	}
	return path // a loop
}

// linksMax is how many symlinks may lead on to another, as in the Linux kernel.
const linksMax = 40

// Immovable reports whether a rename failed because of where the file is: mounted by
// itself (EBUSY), or from another file system (EXDEV).
func Immovable(err error) bool { return errors.Is(err, syscall.EBUSY) || errors.Is(err, syscall.EXDEV) }

// readOnly reports whether a directory takes no new file.
func readOnly(err error) bool {
	return errors.Is(err, fs.ErrPermission) || errors.Is(err, syscall.EROFS)
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
