package settings

import (
	"bytes"
	"fmt"
	"io"
	"slices"
	"strings"

	"dotgate/configs"
	"dotgate/upstreams"
)

// WriteEffective writes the configuration as YAML, each value with a comment
// that says where it is from: "# default", "# dotgate.yaml:12",
// "# DOTGATE_HEALTH_INTERVAL" or "# --listen". Notes come first, as comments. To load
// the output is to have the same configuration.
func (c *Config) WriteEffective(w io.Writer) error {
	var out bytes.Buffer
	for _, note := range c.notes {
		fmt.Fprintf(&out, "# Note: %s.\n", note)
	}
	c.origins.Write(&out, c, func(key string) {
		if key == "routes" {
			c.writeRoutes(&out)
		} else {
			c.writeUpstreams(&out, "", key, c.Upstreams)
		}
	})
	if _, err := w.Write(out.Bytes()); err != nil {
		return fmt.Errorf("write the effective configuration: %w", err)
	}
	return nil
}

// WriteUpstreams writes upstreams as YAML, each with the options that differ from their
// defaults.
func WriteUpstreams(w io.Writer, all []Upstream) error {
	var out bytes.Buffer
	if len(all) == 0 {
		out.WriteString("upstreams: []\n")
	} else {
		out.WriteString("upstreams:\n")
	}
	usual := configs.SettingsOf("", &Upstream{Options: upstreams.Defaults(), Weight: 1})
	for _, u := range all {
		indent := "  - "
		for i, s := range configs.SettingsOf("", &u) {
			if text := s.Text(); text != usual[i].Text() {
				fmt.Fprintf(&out, "%s%s: %s\n", indent, s.Name(), text)
				indent = "    "
			}
		}
	}
	_, err := w.Write(out.Bytes())
	return err
}

func (c *Config) writeUpstreams(out *bytes.Buffer, indent, list string, all []Upstream) {
	out.WriteString(indent + "upstreams:\n")
	for i := range all {
		name, key := indent+"  - ", entryKey(list, i)+"."
		for _, s := range configs.SettingsOf(key, &all[i]) {
			c.origins.WriteSetting(out, name+s.Name(), s)
			name = indent + "    "
		}
	}
}

func (c *Config) writeRoutes(out *bytes.Buffer) {
	if len(c.Routes) == 0 {
		fmt.Fprintf(out, "routes: {} # %s\n", c.origins["routes"])
		return
	}
	out.WriteString("routes:\n")
	// A mapping is easier to read, and enough if each list has one name.
	listed := slices.ContainsFunc(c.Routes, func(r Route) bool { return r.written != 1 || r.NamesFile != "" })
	for _, r := range c.Routes {
		indent := "    "
		if listed {
			fmt.Fprintf(out, "  - names: [%s] # %s\n", r.writtenNames(), c.origins[r.key])
			if r.NamesFile != "" {
				fmt.Fprintf(out, "%snames_file: %s # %s\n", indent, configs.Quote(r.NamesFile), c.origins[r.key])
			}
		} else {
			fmt.Fprintf(out, "  %s:\n", configs.Quote(r.Name))
		}
		fmt.Fprintf(out, "%spolicy: %s # %s\n", indent, configs.Quote(r.Policy), c.origins[r.key+".policy"])
		c.writeUpstreams(out, indent, r.key+".upstreams", r.Upstreams)
	}
}

// writtenNames returns the names that stand in the configuration itself.
func (r Route) writtenNames() string {
	var texts []string
	for name := range r.Names() {
		if len(texts) == r.written {
			break
		}
		texts = append(texts, configs.Quote(name))
	}
	return strings.Join(texts, ", ")
}
