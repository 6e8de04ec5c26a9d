package configs

import (
	"fmt"
	"path/filepath"
)

// What Control.Socket may be besides a path.
const (
	SocketAuto = "auto"
	SocketOff  = "off"
)

// socketPathMax leaves room for the name that the socket has at first: the system
// takes 107 octets.
const socketPathMax = 103

// Control is how status, cache and drill reach the running gateway.
type Control struct {
	// Socket is the path of its Unix socket; auto, a place where it can be made
	// and found; or off. Default: auto.
	Socket string `config:"socket"`
}

// Check reports every option that can't be used, by its name.
func (c Control) Check(report func(option, problem string)) {
	switch {
	case c.Socket == SocketAuto || c.Socket == SocketOff:
	case !filepath.IsAbs(c.Socket):
		report("socket", fmt.Sprintf("%q is neither auto, off nor a path that starts with /", c.Socket))
	case len(c.Socket) > socketPathMax:
		report("socket", fmt.Sprintf("has %d octets; a socket's path has %d at most", len(c.Socket), socketPathMax))
	}
}
