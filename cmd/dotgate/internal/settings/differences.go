package settings

import (
	"fmt"
	"reflect"
	"slices"
	"strings"

	"dotgate/configs"
)

// Differences returns the keys whose values differ in other. Upstreams are one.
func (c *Config) Differences(other *Config) []string {
	sameUpstreams := slices.EqualFunc(c.Upstreams, other.Upstreams, func(a, b Upstream) bool { return differing(&a, &b) == nil })
	return slices.DeleteFunc(differing(c, other), func(key string) bool { return key == "upstreams" && sameUpstreams })
}

// differing returns the keys of the settings whose values differ in a and b, which are
// pointers to structs of one type.
func differing(a, b any) (keys []string) {
	theirs := configs.SettingsOf("", b)
	for i, s := range configs.SettingsOf("", a) {
		if !reflect.DeepEqual(s.Field.Interface(), theirs[i].Field.Interface()) {
			keys = append(keys, s.Key)
		}
	}
	return keys
}

// Keep takes the values of some keys from other.
func (c *Config) Keep(other *Config, keys []string) {
	theirs := configs.SettingsOf("", other)
	for i, s := range configs.SettingsOf("", c) {
		if slices.Contains(keys, s.Key) && !strings.HasPrefix(s.Key, "upstreams") {
			s.Field.Set(theirs[i].Field)
		}
	}
}

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
