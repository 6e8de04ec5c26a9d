package main

import (
	"bytes"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// imports lists the packages that each package may import, tests aside. The four siblings
// gateway, balancer, health and upstreams never meet but here, in the command.
var imports = map[string][]string{
	"cmd/dotgate":                 {"cmd/dotgate/internal/admin", "cmd/dotgate/internal/api", "cmd/dotgate/internal/healthcheck", "cmd/dotgate/internal/peers", "cmd/dotgate/internal/server", "cmd/dotgate/internal/settings", "cmd/dotgate/internal/signals", "configs", "configs/files", "gateway/access", "gateway/wire", "health", "upstreams"},
	"cmd/dotgate/internal/server": {"balancer", "cmd/dotgate/internal/admin", "cmd/dotgate/internal/api", "cmd/dotgate/internal/healthcheck", "cmd/dotgate/internal/logging", "cmd/dotgate/internal/peers", "cmd/dotgate/internal/settings", "cmd/dotgate/internal/signals", "cmd/dotgate/internal/tracing", "configs", "configs/bounds", "configs/files", "gateway", "gateway/access", "gateway/cache", "gateway/querylog", "gateway/redis", "gateway/statelog", "gateway/transport", "gateway/wire", "health", "upstreams"},
	"cmd/dotgate/internal/admin":  {"cmd/dotgate/internal/api", "cmd/dotgate/internal/peers", "cmd/dotgate/internal/tracing", "configs/bounds", "configs/files", "configs/secret", "gateway", "gateway/access", "gateway/latency", "gateway/querylog", "gateway/redis", "gateway/wire", "health", "upstreams"},
	"cmd/dotgate/internal/api":    {"balancer", "cmd/dotgate/internal/peers", "configs/files", "gateway", "gateway/access", "gateway/cache", "gateway/latency", "gateway/redis", "gateway/wire", "health", "upstreams"},
	"cmd/dotgate/internal/peers":  {"configs/bounds", "configs/files", "configs/secret", "gateway/cache", "gateway/latency", "gateway/statelog", "gateway/wire", "health"},
	// A trace has the parts of all packages that a query passed; clients appear in it
	// as they do in the query log.
	"cmd/dotgate/internal/tracing":     {"balancer", "configs/bounds", "configs/files", "configs/secret", "gateway", "gateway/cache", "gateway/querylog", "gateway/statelog", "gateway/wire", "upstreams"},
	"cmd/dotgate/internal/healthcheck": {"cmd/dotgate/internal/admin", "cmd/dotgate/internal/api", "cmd/dotgate/internal/settings", "configs", "configs/files", "gateway/transport", "gateway/wire"},
	"cmd/dotgate/internal/logging":     {},
	"cmd/dotgate/internal/signals":     {},
	// Options are filled by their tags: no package that has some is known here.
	"configs": {"configs/files", "configs/secret"},
	// All options together, from one file.
	"cmd/dotgate/internal/settings": {"balancer", "cmd/dotgate/internal/admin", "cmd/dotgate/internal/api", "cmd/dotgate/internal/peers", "cmd/dotgate/internal/tracing", "configs", "configs/bounds", "configs/files", "gateway", "gateway/access", "gateway/cache", "gateway/querylog", "gateway/redis", "gateway/wire", "health", "upstreams"},
	// Each package reads the files that its options name.
	"configs/bounds":    {},
	"configs/files":     {},
	"configs/secret":    {},
	"gateway":           {"configs/bounds", "configs/secret", "gateway/access", "gateway/cache", "gateway/latency", "gateway/records", "gateway/statelog", "gateway/transport", "gateway/wire"},
	"gateway/access":    {"configs/secret", "gateway/wire"},
	"gateway/cache":     {"configs/bounds", "configs/files", "gateway/wire"},
	"gateway/latency":   {},
	"gateway/querylog":  {"configs/bounds", "configs/files", "gateway/statelog", "gateway/wire"},
	"gateway/records":   {"gateway/wire"},
	"gateway/redis":     {"configs/bounds", "configs/files", "gateway/statelog", "gateway/wire"},
	"gateway/statelog":  {},
	"gateway/transport": {"gateway/access", "gateway/statelog", "gateway/wire"},
	"gateway/wire":      {},
	"balancer":          {"gateway/wire"},
	"health":            {"configs/bounds", "gateway/statelog", "gateway/wire"},
	"upstreams":         {"configs/bounds", "configs/files", "configs/secret", "gateway/latency", "gateway/wire"},
	"upstreams/dottest": {"gateway/wire"},
	"docker/sbom":       {},
}

// owners are the only packages that know of a library, so that replacing it is
// a change in one package. golang.org/x/sys is the system itself and has no owner. A
// package that uses protobuf messages need not know their encoding. backoff and time have
// two owners: both retry with growing waits, or limit rates, and none of it is in their
// interfaces.
var owners = map[string]string{
	"github.com/miekg/dns":            "gateway/wire",
	"github.com/sony/gobreaker/v2":    "health",
	"github.com/cenkalti/backoff/v4":  "health cmd/dotgate/internal/tracing",
	"github.com/spf13/viper":          "configs",
	"go.yaml.in/yaml/v3":              "configs",
	"github.com/spf13/cobra":          "cmd/dotgate",
	"github.com/coreos/go-systemd":    "cmd/dotgate/internal/server",
	"github.com/fsnotify/fsnotify":    "cmd/dotgate/internal/server",
	"github.com/prometheus":           "cmd/dotgate/internal/admin",
	"github.com/hashicorp/memberlist": "cmd/dotgate/internal/peers",
	"golang.org/x/time":               "cmd/dotgate/internal/peers cmd/dotgate/internal/tracing",
	"github.com/redis/go-redis/v9":    "gateway/redis",
	"go.opentelemetry.io":             "cmd/dotgate/internal/tracing",

	"google.golang.org/protobuf":                    "gateway/querylog cmd/dotgate/internal/tracing",
	"google.golang.org/protobuf/encoding/protowire": "gateway/querylog",
	"google.golang.org/protobuf/proto":              "cmd/dotgate/internal/tracing",

	"golang.org/x/net":          "cmd/dotgate/internal/tracing gateway gateway/transport gateway/wire health upstreams",
	"go4.org/netipx":            "gateway/access",
	"github.com/dchest/siphash": "gateway/access",
	"github.com/CycloneDX":      "docker/sbom",
}

func TestImportsFollowThePicture(t *testing.T) {
	for pkg, found := range importsOf(t, "../..") {
		allowed, known := imports[pkg]
		if !known {
			t.Errorf("package %s is not in the picture", pkg)
		}
		for _, own := range allowed {
			if !slices.Contains(found, "dotgate/"+own) {
				t.Errorf("%s does not import %s: the picture may forbid it", pkg, own)
			}
		}
		for _, imported := range found {
			if own, inside := strings.CutPrefix(imported, "dotgate/"); inside && !slices.Contains(allowed, own) {
				t.Errorf("%s imports %s", pkg, own)
			}
			for library, owner := range owners {
				if (imported == library || strings.HasPrefix(imported, library+"/")) && !slices.Contains(strings.Fields(owner), pkg) {
					t.Errorf("%s imports %s, which is for %s alone", pkg, library, owner)
				}
			}
		}
	}
}

func TestREADMEDescribesEachPackage(t *testing.T) {
	text, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, text, _ = bytes.Cut(text, []byte("## Architecture"))
	for pkg := range imports {
		if top, _, _ := strings.Cut(pkg, "/"); top != "docker" && !bytes.Contains(text, []byte("`"+pkg+"`")) {
			t.Errorf("the architecture in README.md has no %s", pkg)
		}
	}
}

func TestNoProgramIsExecuted(t *testing.T) {
	for pkg, found := range importsOf(t, "../..") {
		if slices.Contains(found, "os/exec") {
			t.Errorf("%s imports os/exec: what comes from the network must never get near a command line", pkg)
		}
	}
}

func TestTheTopLevelStaysAsItIs(t *testing.T) {
	known := []string{
		"CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "Makefile", "README.md", "SECURITY.md", "balancer", "cmd", "configs",
		"docker", "gateway", "go.mod", "go.sum", "health", "upstreams",
	}
	entries, err := filepath.Glob("../../*")
	if err != nil || len(entries) == 0 {
		t.Fatal(err, len(entries))
	}
	for _, entry := range entries {
		if name := filepath.Base(entry); !slices.Contains(known, name) && !strings.HasPrefix(name, ".") {
			t.Errorf("%s is at the top level", name)
		}
	}
}

// TestThePromisesHaveTests looks for the tests that SECURITY.md names: each line has
// some, and there they are.
func TestThePromisesHaveTests(t *testing.T) {
	text, err := os.ReadFile("../../SECURITY.md")
	if err != nil {
		t.Fatal(err)
	}
	promises := 0
	for line := range strings.Lines(string(text)) {
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		if !strings.HasPrefix(line, "| ") || len(cells) != 2 || strings.TrimSpace(cells[1]) == "test" {
			continue
		}
		promises++
		if strings.TrimSpace(cells[1]) == "`make lab`" {
			continue
		}
		for list := range strings.SplitSeq(cells[1], ";") {
			where, names, _ := strings.Cut(list, ":")
			dir := strings.Trim(where, " `")
			if dir == "*e2e*" {
				dir = "cmd/dotgate/e2e"
			}
			tests := testsOf(t, filepath.Join("../..", dir))
			for name := range strings.SplitSeq(names, ",") {
				if name = strings.Trim(name, " `"); !slices.Contains(tests, name) {
					t.Errorf("%s: there is no %q in %s", strings.TrimSpace(cells[0]), name, dir)
				}
			}
		}
	}
	if promises < 30 {
		t.Errorf("found only %d promises", promises)
	}
}

// testsOf returns the names of the test functions in a directory.
func testsOf(t *testing.T, dir string) (names []string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		for _, decl := range parsed.Decls {
			if f, ok := decl.(*ast.FuncDecl); ok && f.Recv == nil {
				names = append(names, f.Name.Name)
			}
		}
	}
	return names
}

// importsOf returns what each package below root imports, tests aside.
func importsOf(t *testing.T, root string) map[string][]string {
	t.Helper()
	found := make(map[string]map[string]bool)
	err := filepath.WalkDir(root, func(file string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() && (entry.Name() == "testdata" || file == filepath.Join(root, "docker", "test") || strings.HasPrefix(entry.Name(), ".") && entry.Name() != "..") {
			return filepath.SkipDir
		}
		if !strings.HasSuffix(file, ".go") || strings.HasSuffix(file, "_test.go") {
			return nil
		}
		parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		relative, err := filepath.Rel(root, filepath.Dir(file))
		if err != nil {
			return err
		}
		pkg := path.Clean(filepath.ToSlash(relative))
		if found[pkg] == nil {
			found[pkg] = make(map[string]bool)
		}
		for _, spec := range parsed.Imports {
			imported, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				return err
			}
			found[pkg][imported] = true
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	lists := make(map[string][]string)
	for pkg, set := range found {
		lists[pkg] = slices.Sorted(maps.Keys(set))
	}
	return lists
}
