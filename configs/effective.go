package configs

import (
	"bytes"
	"fmt"
	"io"
	"reflect"
	"strings"
)

// WriteEffective writes the configuration as YAML, each value with a comment
// that says where it is from: "# default", "# dotgate.yaml:12",
// "# DOTGATE_HEALTH_INTERVAL" or "# --listen". To load what it writes is to have
// the same configuration.
func (c *Config) WriteEffective(w io.Writer) error {
	var out bytes.Buffer
	section := ""
	for _, s := range settingsOf("", reflect.ValueOf(c).Elem()) {
		switch s.key {
		case "upstreams":
			c.writeUpstreams(&out, "", "upstreams", c.Upstreams)
			continue
		case "routes":
			c.writeRoutes(&out)
			continue
		}
		path := strings.Split(s.key, ".")
		parent := strings.Join(path[:len(path)-1], ".")
		if parent != section && parent != "" {
			writeSection(&out, section, path[:len(path)-1])
		}
		section = parent
		c.writeSetting(&out, strings.Repeat("  ", len(path)-1)+path[len(path)-1], s)
	}
	if _, err := w.Write(out.Bytes()); err != nil {
		return fmt.Errorf("write the effective configuration: %w", err)
	}
	return nil
}

// writeSection opens the section at path, and those around it that are not open
// yet.
func writeSection(out *bytes.Buffer, open string, path []string) {
	for depth, name := range path {
		if within := strings.Join(path[:depth+1], "."); !strings.HasPrefix(open+".", within+".") {
			fmt.Fprintf(out, "%s%s:\n", strings.Repeat("  ", depth), name)
		}
	}
}

func (c *Config) writeUpstreams(out *bytes.Buffer, indent, list string, all []Upstream) {
	out.WriteString(indent + "upstreams:\n")
	for i := range all {
		name, key := indent+"  - ", entryKey(list, i)+"."
		for _, s := range settingsOf(key, reflect.ValueOf(&all[i]).Elem()) {
			c.writeSetting(out, name+strings.TrimPrefix(s.key, key), s)
			name = indent + "    "
		}
	}
}

func (c *Config) writeRoutes(out *bytes.Buffer) {
	if len(c.Routes) == 0 {
		fmt.Fprintf(out, "routes: {} # %s\n", c.sources["routes"])
		return
	}
	out.WriteString("routes:\n")
	for _, r := range c.Routes {
		fmt.Fprintf(out, "  %s:\n    policy: %s # %s\n", quote(r.Name), quote(r.Policy), c.sources[r.key()+".policy"])
		c.writeUpstreams(out, "    ", r.key()+".upstreams", r.Upstreams)
	}
}

func (c *Config) writeSetting(out *bytes.Buffer, name string, s setting) {
	fmt.Fprintf(out, "%s: %s # %s\n", name, textOf(s.field), c.sources[s.key])
}
