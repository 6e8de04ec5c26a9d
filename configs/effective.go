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
		if s.key == "upstreams" {
			c.writeUpstreams(&out)
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

func (c *Config) writeUpstreams(out *bytes.Buffer) {
	out.WriteString("upstreams:\n")
	for i := range c.Upstreams {
		name := "  - "
		for _, s := range settingsOf(entryKey(i)+".", reflect.ValueOf(&c.Upstreams[i]).Elem()) {
			c.writeSetting(out, name+strings.TrimPrefix(s.key, entryKey(i)+"."), s)
			name = "    "
		}
	}
}

func (c *Config) writeSetting(out *bytes.Buffer, name string, s setting) {
	fmt.Fprintf(out, "%s: %s # %s\n", name, textOf(s.field), c.sources[s.key])
}
