package settings

import (
	"fmt"
	"strings"

	"dotgate/configs"
)

// defaultUpstreamsText asks for the default upstreams explicitly.
var defaultUpstreamsText = "upstreams: [" + strings.Join(defaultUpstreams, ", ") + "]"

// Lost returns Problems if next has lost what c had: upstreams or routes that
// were removed, as in a file that was cut short while it was copied. Names of routes would
// then be asked of public resolvers. To remove them on purpose, a configuration has
// "upstreams: [cloudflare, quad9, google]" or "routes: {}".
func (c *Config) Lost(next *Config) error {
	var problems configs.Problems
	lost := func(key, write string) {
		problems = append(problems, configs.Problem{Source: c.origins[key].Name, Key: key, Text: fmt.Sprintf(
			"was removed since the last load (%v); to remove it on purpose, write %s", c.origins[key], write)})
	}
	if !c.origins["upstreams"].IsDefault() && next.origins["upstreams"].IsDefault() {
		lost("upstreams", defaultUpstreamsText)
	}
	if len(c.Routes) > 0 && next.origins["routes"].IsDefault() {
		lost("routes", "routes: {}")
	}
	if problems == nil {
		return nil
	}
	return problems
}
