package files

import (
	"syscall"
	"testing"
)

func mounted(t *testing.T, content string) string {
	t.Helper()
	path := file(t, content)
	if err := syscall.Mount(path, path, "", syscall.MS_BIND, ""); err != nil {
		t.Skip("NOT TESTED: files that are mounted by themselves, because nothing can be mounted here (root is needed): ", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(path, 0); err != nil {
			t.Error(err)
		}
	})
	return path
}
