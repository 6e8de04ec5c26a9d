package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"dotgate/cmd/dotgate/internal/server"
	"dotgate/cmd/dotgate/internal/settings"
	"dotgate/gateway/access"
)

// check prints the effective configuration, the networks that on_link stands for now, and
// what is not in effect on this machine. Loading the configuration is the check.
func check(_ context.Context, config *settings.Config, out io.Writer) error {
	if err := config.WriteEffective(out); err != nil {
		return err
	}
	var text strings.Builder
	if slices.Contains(config.Gateway.Allow, access.Range{OnLink: true}) {
		fmt.Fprintf(&text, "# gateway.allow: on_link is %s\n", onLinkNow())
	}
	for _, note := range server.MachineNotes(config, os.DirFS("/")) {
		fmt.Fprintf(&text, "# %s\n", note)
	}
	if text.Len() == 0 {
		return nil
	}
	_, err := fmt.Fprintf(out, "\n%s", text.String())
	return err
}

// onLinkNow returns the networks that on_link stands for, for people.
func onLinkNow() string {
	interfaces, err := access.Interfaces()
	if err != nil {
		return "unknown: " + err.Error()
	}
	return onLinkText(access.OnLink(interfaces))
}
