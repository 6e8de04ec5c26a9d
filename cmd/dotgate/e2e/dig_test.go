//go:build linux && e2e

package e2e

import (
	"net/netip"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// A client is a program that sends queries.
type client struct{ name, debianPackage string }

var (
	dig  = client{"dig", "bind9-dnsutils"}
	kdig = client{"kdig", "knot-dnsutils"}
)

// A printed is the printed output of a client for a reply.
type printed struct {
	text     string
	status   string   // as in NOERROR
	id       string   // in decimal
	flags    []string // as in qr, rd
	question string   // the name as the reply spells it
	answers  []string // "owner type data" in order, without TTL
}

// ask runs a client against a gateway, without retries.
func (c client) ask(t *testing.T, addr netip.AddrPort, args ...string) printed {
	t.Helper()
	text := c.run(t, addr, args...)
	p := printed{
		text:   text,
		status: found(text, `status: (\w+)`),
		id:     found(text, `id: (\d+)`),
		flags:  strings.Fields(found(text, `(?i)flags:([a-z ]*);`)),
	}
	section := ""
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		fields := strings.Fields(line)
		switch {
		case line == "":
			section = ""
		case strings.HasSuffix(line, " SECTION:"):
			section = line
		case strings.Contains(section, "QUESTION"):
			p.question = strings.TrimPrefix(strings.TrimPrefix(fields[0], ";;"), ";")
			if p.question == "" {
				p.question = fields[1]
			}
		case strings.Contains(section, "ANSWER") && len(fields) >= 5:
			p.answers = append(p.answers, fields[0]+" "+fields[3]+" "+strings.Join(fields[4:], " "))
		}
	}
	return p
}

// run returns the output of the client. Its exit code tells only whether there was a
// reply.
func (c client) run(t *testing.T, addr netip.AddrPort, args ...string) string {
	t.Helper()
	path := program(t, c.name, c.debianPackage)
	from := []string{"@" + addr.Addr().String(), "-p", found(addr.String(), `:(\d+)$`)}
	if c == dig {
		from = append(from, "+tries=1", "+time=3")
	} else {
		from = append(from, "+retry=0", "+timeout=3")
	}
	cmd := exec.Command(path, append(from, args...)...)
	cmd.Env = []string{"HOME=" + t.TempDir(), "LC_ALL=C"} // without a .digrc
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("%s %s: %v\n%s", c.name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

func (p printed) has(flag string) bool { return slices.Contains(p.flags, flag) }

func found(text, pattern string) string {
	if m := regexp.MustCompile(pattern).FindStringSubmatch(text); m != nil {
		return m[1]
	}
	return ""
}
