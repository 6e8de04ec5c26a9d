package settings

import (
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"dotgate/balancer"
	"dotgate/configs"
	"dotgate/upstreams"
)

var update = flag.Bool("update", false, "write configs/dotgate.yaml (make reference)")

const (
	root         = "../../../.."
	documentPath = root + "/configs/dotgate.yaml"
)

// TestTheDocumentIsMadeFromTheCode holds dotgate.yaml to the comments of the fields of
// options and to their defaults. Only its first paragraph is written by hand.
func TestTheDocumentIsMadeFromTheCode(t *testing.T) {
	text, err := os.ReadFile(documentPath)
	if err != nil {
		t.Fatal(err)
	}
	header, _, _ := strings.Cut(string(text), "\n\n")
	want := makeDocument(t, header)
	if *update {
		if err := os.WriteFile(documentPath, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if string(text) != want {
		t.Error("configs/dotgate.yaml is not what the code says; run: make reference")
	}
}

// A maker makes dotgate.yaml.
type maker struct {
	t        *testing.T
	out      strings.Builder
	comments map[reflect.Type]map[string]string // of the fields of each struct
}

// makeDocument returns the document with every option, its meaning and its default.
func makeDocument(t *testing.T, header string) string {
	m := &maker{t: t, comments: make(map[reflect.Type]map[string]string)}
	m.out.WriteString(header + "\n")
	config := reflect.ValueOf(defaults()).Elem()
	for i := range config.NumField() {
		field, value := config.Type().Field(i), config.Field(i)
		key := field.Tag.Get("config")
		if key == "" {
			continue
		}
		indent := strings.Repeat("  ", strings.Count(key, "."))
		if indent == "" {
			m.out.WriteString("\n")
		}
		m.comment(indent, m.commentsOf(config.Type())[field.Name])
		name := key[strings.LastIndexByte(key, '.')+1:]
		switch {
		case key == "upstreams":
			m.out.WriteString("upstreams:\n")
			for _, u := range defaultUpstreams {
				m.out.WriteString("  - " + u + "\n")
			}
			m.upstream()
		case key == "routes":
			m.out.WriteString("routes: {}\n")
		case configs.IsSection(field.Type):
			m.out.WriteString(indent + name + ":\n")
			m.options(indent+"  ", value)
		default:
			m.setting(indent, configs.Setting{Key: name, Field: value})
		}
	}
	return m.out.String()
}

// options writes the options of a section.
func (m *maker) options(indent string, options reflect.Value) {
	for i := range options.NumField() {
		field, value := options.Type().Field(i), options.Field(i)
		name := field.Tag.Get("config")
		if field.Anonymous {
			m.options(indent, value)
			continue
		}
		if name == "" || name == "-" {
			continue
		}
		comment := m.commentsOf(options.Type())[field.Name]
		if configs.IsSection(field.Type) {
			m.comment(indent, comment)
			m.out.WriteString(indent + name + ":\n")
			m.options(indent+"  ", value)
			continue
		}
		meaning, _, _ := strings.Cut(comment, "\n\n") // the rest is for users of the package
		m.comment(indent, meaning)
		m.setting(indent, configs.Setting{Key: name, Field: value})
	}
}

// upstream writes an upstream with all of its options, commented out.
func (m *maker) upstream() {
	m.comment("  ", inFull+" preset and url stand for name, protocol, addresses, host, port and server_name.")
	u := Upstream{Options: upstreams.Defaults(), Weight: 1}
	u.Name, u.ServerName = "example", "dns.example"
	u.Addresses = servers("192.0.2.53", "2001:db8::53")
	whole := &maker{t: m.t, comments: m.comments}
	whole.options("  ", reflect.ValueOf(u))
	m.out.WriteString("  #\n")
	comment, rest, _ := strings.Cut(whole.out.String(), "  name: example\n")
	for line := range strings.Lines(comment) {
		m.out.WriteString("  # " + strings.TrimPrefix(line, "  "))
	}
	m.out.WriteString("  # - name: example\n")
	for line := range strings.Lines(rest) {
		m.out.WriteString("  # " + line)
	}
}

func (m *maker) setting(indent string, s configs.Setting) {
	fmt.Fprintf(&m.out, "%s%s: %s\n", indent, s.Key, s.Text())
}

// comment writes a comment, wrapped; lines that start with a tab stay as they are.
func (m *maker) comment(indent, text string) {
	if strings.TrimSpace(text) == "" {
		m.t.Errorf("after %q: an option has no comment", lastLine(m.out.String()))
	}
	const width = 100
	for i, paragraph := range strings.Split(strings.TrimSpace(text), "\n\n") {
		if i > 0 {
			m.out.WriteString(indent + "#\n")
		}
		if strings.HasPrefix(paragraph, "\t") {
			for line := range strings.SplitSeq(paragraph, "\n") {
				m.out.WriteString(indent + "#   " + strings.TrimPrefix(line, "\t") + "\n")
			}
			continue
		}
		line := indent + "#"
		for word := range strings.FieldsSeq(paragraph) {
			if len(line)+1+len(word) > width {
				m.out.WriteString(line + "\n")
				line = indent + "#"
			}
			line += " " + word
		}
		m.out.WriteString(line + "\n")
	}
}

func lastLine(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return lines[len(lines)-1]
}

// commentsOf returns the comments of a struct's fields, without "Field is " before them.
func (m *maker) commentsOf(of reflect.Type) map[string]string {
	if found, ok := m.comments[of]; ok {
		return found
	}
	found := make(map[string]string)
	m.comments[of] = found
	dir := filepath.Join(root, strings.TrimPrefix(of.PkgPath(), "dotgate"))
	files, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil || len(files) == 0 {
		m.t.Fatal(dir, err)
	}
	for _, file := range files {
		parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ParseComments)
		if err != nil {
			m.t.Fatal(err)
		}
		ast.Inspect(parsed, func(n ast.Node) bool {
			spec, ok := n.(*ast.TypeSpec)
			if !ok || spec.Name.Name != of.Name() {
				return true
			}
			if s, ok := spec.Type.(*ast.StructType); ok {
				for _, field := range s.Fields.List {
					for _, name := range field.Names {
						found[name.Name] = withoutName(name.Name, field.Doc.Text())
					}
				}
			}
			return false
		})
	}
	return found
}

var isOrAre = regexp.MustCompile(`^\w+ (is|are) `)

// withoutName returns "The longest …" for "Timeout is the longest …".
func withoutName(name, comment string) string {
	if !strings.HasPrefix(comment, name+" ") {
		return comment
	}
	comment = isOrAre.ReplaceAllString(comment, "")
	if before, _, _ := strings.Cut(comment, " "); strings.ToLower(before) == before {
		comment = strings.ToUpper(comment[:1]) + comment[1:]
	}
	return comment
}

// The document shows every key with its default, and a comment that explains it.
func TestDocumentShowsTheDefaults(t *testing.T) {
	t.Parallel()
	want, got := mustParse(t, ""), mustParse(t, configs.Document())
	settings := configs.SettingsOf("", got)
	for i, s := range configs.SettingsOf("", want) {
		at := got.origins[s.Key]
		if at.IsDefault() {
			t.Errorf("%s is not in the document", s.Key)
			continue
		}
		if !reflect.DeepEqual(s.Field.Interface(), settings[i].Field.Interface()) {
			t.Errorf("%s: the document has %v, the default is %v", s.Key, settings[i].Field, s.Field)
		}
	}
	for _, policy := range balancer.Policies() {
		if !strings.Contains(configs.Document(), policy) {
			t.Errorf("the document does not tell of the policy %s", policy)
		}
	}
	for _, name := range Presets() {
		if !strings.Contains(configs.Document(), name) {
			t.Errorf("the document does not tell of the preset %s", name)
		}
	}
	for _, o := range Options() {
		if !strings.HasSuffix(o.Meaning, ".") {
			t.Errorf("%s: the meaning is no sentence: %q", o.Key, o.Meaning)
		}
	}
}

// The upstream that is commented out can be had by taking out the marks, and
// shows every key there is.
func TestDocumentShowsAnUpstream(t *testing.T) {
	t.Parallel()
	example := upstreamInFull()
	c := mustParse(t, example)
	_, defaults := newLoader(configs.Sources{}).upstreamOn(entryKey("upstreams", 0), upstreams.Options{}, configs.Source{})
	itsOwn := map[string]bool{"name": true, "addresses": true, "server_name": true}
	for i, s := range configs.SettingsOf(entryKey("upstreams", 0)+".", &c.Upstreams[0]) {
		at, name := c.origins[s.Key], s.Name()
		if at.IsDefault() {
			t.Errorf("%s is not in the example:\n%s", name, example)
			continue
		}
		want := defaults[i].Field
		if !itsOwn[name] && !reflect.DeepEqual(s.Field.Interface(), want.Interface()) {
			t.Errorf("%s: the example has %v, the default is %v", name, s.Field, want)
		}
	}
}
