package configs

import (
	"strings"
	"testing"
)

func TestControlSocket(t *testing.T) {
	t.Parallel()
	for _, socket := range []string{"auto", "off", "/run/dotgate/control.sock"} {
		if c := mustParse(t, "control:\n  socket: "+socket); c.Control.Socket != socket {
			t.Errorf("got %q, want %q", c.Control.Socket, socket)
		}
	}
	f := func(value, want string) {
		t.Helper()
		if got := problemsOf(t, "control:\n  socket: "+value); !strings.Contains(got, "dotgate.yaml:2: control.socket: "+want) {
			t.Errorf("%s: got %s", value, got)
		}
	}
	f("control.sock", `"control.sock" is neither auto, off nor a path that starts with /`)
	f("on", `"on" is neither`)
	f("/"+strings.Repeat("x", 103), "has 104 octets; a socket's path has 103 at most")
	f(`""`, "is empty; remove the key to have the default, auto")
}
