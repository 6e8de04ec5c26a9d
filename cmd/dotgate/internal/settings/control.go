package settings

import (
	"fmt"
	"path/filepath"

	"dotgate/cmd/dotgate/internal/api"
)

// What Control.Socket may be besides a path.
const (
	SocketAuto = api.SocketAuto
	SocketOff  = api.SocketOff
)

// socketPathMax leaves room for the name that the socket has at first: the system
// takes 107 octets.
const socketPathMax = 103

// Control is how status, cache and drill reach the running gateway.
type Control struct {
	// Socket is the path of a Unix socket, for the user of the gateway and root only; auto
	// for a usual place (/run/dotgate, the runtime directory of the user, or the one for
	// temporary files); or off.
	Socket string `config:"socket"`
}

// Check reports every option that can't be used, by its name.
func (c Control) Check(report func(option, problem string, beside ...string)) {
	switch {
	case c.Socket == SocketAuto || c.Socket == SocketOff:
	case !filepath.IsAbs(c.Socket):
		report("socket", fmt.Sprintf("%q is neither auto, off nor a path that starts with /", c.Socket))
	case len(c.Socket) > socketPathMax:
		report("socket", fmt.Sprintf("has %d octets; a socket's path has %d at most", len(c.Socket), socketPathMax))
	}
}
