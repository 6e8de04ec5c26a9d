package configs

import (
	"reflect"
	"strings"
	"testing"

	"dotgate/balancer"
	"dotgate/upstreams"
)

// The document shows every key with its default, and a line that explains it.
func TestDocumentShowsTheDefaults(t *testing.T) {
	t.Parallel()
	want, got := mustParse(t, ""), mustParse(t, Document())
	settings := settingsOf("", reflect.ValueOf(got).Elem())
	for i, s := range settingsOf("", reflect.ValueOf(want).Elem()) {
		at := got.sources[s.key]
		if at.isDefault() {
			t.Errorf("%s is not in the document", s.key)
			continue
		}
		if !reflect.DeepEqual(s.field.Interface(), settings[i].field.Interface()) {
			t.Errorf("%s: the document has %v, the default is %v", s.key, settings[i].field, s.field)
		}
		explained(t, strings.Split(Document(), "\n"), at.line, s.key)
	}
	for _, policy := range balancer.Policies() {
		if !strings.Contains(Document(), policy) {
			t.Errorf("the document does not tell of the policy %s", policy)
		}
	}
	for _, name := range Presets() {
		if !strings.Contains(Document(), name) {
			t.Errorf("the document does not tell of the preset %s", name)
		}
	}
}

// explained checks that a comment is above a line, numbered from 1.
func explained(t *testing.T, lines []string, line int, key string) {
	t.Helper()
	if above := strings.TrimSpace(lines[line-2]); !strings.HasPrefix(above, "# ") {
		t.Errorf("%s: there is no comment above, but %q", key, above)
	}
}

// The upstream that is commented out can be had by taking out the marks, and
// shows every key there is.
func TestDocumentShowsAnUpstream(t *testing.T) {
	t.Parallel()
	_, rest, ok := strings.Cut(Document(), "  # - name: ")
	if !ok {
		t.Fatal("there is none")
	}
	example := "upstreams:\n"
	for line := range strings.Lines("  # - name: " + rest) {
		text, commented := strings.CutPrefix(line, "  # ")
		if !commented {
			break
		}
		example += "  " + text
	}
	c := mustParse(t, example)
	_, defaults := newLoader("").upstreamOn(entryKey("upstreams", 0), upstreams.Options{}, source{})
	itsOwn := map[string]bool{"name": true, "addresses": true, "server_name": true}
	for i, s := range settingsOf(entryKey("upstreams", 0)+".", reflect.ValueOf(&c.Upstreams[0]).Elem()) {
		at, name := c.sources[s.key], strings.TrimPrefix(s.key, entryKey("upstreams", 0)+".")
		if at.isDefault() {
			t.Errorf("%s is not in the example:\n%s", name, example)
			continue
		}
		if name != "name" {
			explained(t, strings.Split(example, "\n"), at.line, name)
		}
		want := defaults[i].field
		if !itsOwn[name] && !reflect.DeepEqual(s.field.Interface(), want.Interface()) {
			t.Errorf("%s: the example has %v, the default is %v", name, s.field, want)
		}
	}
}
