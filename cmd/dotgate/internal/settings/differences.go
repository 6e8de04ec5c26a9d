package settings

import (
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
