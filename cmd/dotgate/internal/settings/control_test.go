package settings

import (
	"path/filepath"
	"strings"
	"testing"

	"dotgate/configs"
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

// Commands that ask the running gateway find it although the file is broken by now.
func TestLoadPartlyFindsTheControlSocket(t *testing.T) {
	t.Parallel()
	f := func(text, want, wantProblem string) {
		t.Helper()
		file := filepath.Join(t.TempDir(), "dotgate.yaml")
		writeFile(t, file, text)
		if c, err := Load(configs.Sources{File: file}); c != nil || err == nil {
			t.Errorf("%q was loaded", text)
		}
		c, err := LoadPartly(configs.Sources{File: file})
		if c.Control.Socket != want {
			t.Errorf("%q: the socket is %s, want %s", text, c.Control.Socket, want)
		}
		if err == nil || !strings.Contains(err.Error(), wantProblem) {
			t.Errorf("%q: got %v", text, err)
		}
	}
	const socket = "control:\n  socket: /run/x.sock\n"
	f(socket+"contorl: {}\n", "/run/x.sock", "did you mean control")
	f(socket+"gateway:\n  listen: [\n", "/run/x.sock", ":4: is not YAML")
	f(socket+"{{{{\n", "/run/x.sock", ":3: is not YAML")
	f("{{{{\n"+socket, "/run/x.sock", ":1: is not YAML")
	f("gateway:\n  listen: [\n"+socket, "/run/x.sock", ":2: is not YAML")
	f("gateway:\n  listen: [\n"+socket+"admin:\n\ttoken: x\n", "/run/x.sock", ":2: is not YAML")
	f("control:\n  socket: [\n", "auto", ":2: is not YAML")
	f("# nothing\n", "auto", "is empty")
}
