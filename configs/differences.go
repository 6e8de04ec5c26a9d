package configs

import (
	"reflect"
	"slices"
	"strings"
)

// Differences returns the keys whose values differ in other. Upstreams are one.
func (c *Config) Differences(other *Config) []string {
	var keys []string
	theirs := settingsOf("", reflect.ValueOf(other).Elem())
	for i, s := range settingsOf("", reflect.ValueOf(c).Elem()) {
		same := reflect.DeepEqual(s.field.Interface(), theirs[i].field.Interface())
		if s.key == "upstreams" {
			same = sameUpstreams(c.Upstreams, other.Upstreams)
		}
		if !same {
			keys = append(keys, s.key)
		}
	}
	return keys
}

// Rerouted returns the names whose routes are not the same in other, or are there
// in one only.
func (c *Config) Rerouted(other *Config) (names []string) {
	for _, pair := range [][2]*Config{{c, other}, {other, c}} {
		for _, r := range pair[0].Routes {
			same := func(o Route) bool { return o.Name == r.Name && sameUpstreams(o.Upstreams, r.Upstreams) }
			if !slices.ContainsFunc(pair[1].Routes, same) && !slices.Contains(names, r.Name) {
				names = append(names, r.Name)
			}
		}
	}
	return names
}

// sameUpstreams disregards what is no configuration.
func sameUpstreams(a, b []Upstream) bool {
	return slices.EqualFunc(a, b, func(a, b Upstream) bool {
		theirs := settingsOf("", reflect.ValueOf(&b).Elem())
		for i, s := range settingsOf("", reflect.ValueOf(&a).Elem()) {
			if !reflect.DeepEqual(s.field.Interface(), theirs[i].field.Interface()) {
				return false
			}
		}
		return true
	})
}

// Keep takes the values of some keys from other.
func (c *Config) Keep(other *Config, keys []string) {
	theirs := settingsOf("", reflect.ValueOf(other).Elem())
	for i, s := range settingsOf("", reflect.ValueOf(c).Elem()) {
		if slices.Contains(keys, s.key) && !strings.HasPrefix(s.key, "upstreams") {
			s.field.Set(theirs[i].field)
		}
	}
}
