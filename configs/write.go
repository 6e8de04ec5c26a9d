package configs

import (
	"bytes"
	"fmt"
	"strings"
)

// Write writes the settings below a pointer to a struct as YAML, each with a comment that
// says where it is from: "# default", "# dotgate.yaml:12", "# DOTGATE_HEALTH_INTERVAL" or
// "# --listen". Lists of structs are written by special.
func (o Origins) Write(out *bytes.Buffer, options any, special func(key string)) {
	open := ""
	for _, s := range SettingsOf("", options) {
		if s.isSpecial() {
			open = ""
			special(s.Key)
			continue
		}
		section := s.section()
		if section != "" {
			OpenSection(out, open, section)
		}
		open = section
		o.WriteSetting(out, strings.Repeat("  ", strings.Count(s.Key, "."))+s.Name(), s)
	}
}

// OpenSection opens a section, and those around it that the open one is not in.
func OpenSection(out *bytes.Buffer, open, section string) {
	path := strings.Split(section, ".")
	for depth, name := range path {
		if within := strings.Join(path[:depth+1], "."); !strings.HasPrefix(open+".", within+".") {
			fmt.Fprintf(out, "%s%s:\n", strings.Repeat("  ", depth), name)
		}
	}
}

// WriteSetting writes one setting after its name, and where it is from.
func (o Origins) WriteSetting(out *bytes.Buffer, name string, s Setting) {
	fmt.Fprintf(out, "%s: %s # %s\n", name, s.Text(), o[s.Key])
}
