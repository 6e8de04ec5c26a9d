package settings

import (
	"fmt"
	"slices"
	"strings"

	"dotgate/configs"
)

// Upstream returns the upstream of a name, or what a preset or URL stands for, as
// a list of upstreams would have it.
func (c *Config) Upstream(text string) (Upstream, error) {
	if i := slices.IndexFunc(c.Upstreams, func(u Upstream) bool { return u.Name == text }); i >= 0 {
		return c.Upstreams[i], nil
	}
	l := newLoader(configs.Sources{})
	l.config.Bootstrap = c.Bootstrap
	l.config.Upstreams = l.upstreams("upstreams", texts(configs.Source{Name: "command line"}, text))
	l.shareBootstrap()
	l.checkUpstreams()
	if problems, ok := l.Err().(configs.Problems); ok {
		var reasons []string
		for _, p := range problems {
			reasons = append(reasons, p.Text)
		}
		return Upstream{}, fmt.Errorf("%q is no upstream of the configuration, and %s", text, strings.Join(reasons, "; "))
	}
	return l.config.Upstreams[0], nil
}
