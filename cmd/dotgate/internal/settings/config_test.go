package settings

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"log/slog"
	"math/big"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"dotgate/balancer"
	"dotgate/configs"
	"dotgate/configs/files"
	"dotgate/gateway"
	"dotgate/gateway/cache"
	"dotgate/health"
)

// parse loads a document as if it were the file dotgate.yaml; none if it is empty.
func parse(document string, environ ...string) (*Config, error) {
	return Load(documentSources(document, environ...))
}

func documentSources(document string, environ ...string) configs.Sources {
	from := configs.Sources{Environ: environ, Read: func(path string, limit int) ([]byte, error) {
		if path == "dotgate.yaml" {
			return []byte(document), nil
		}
		return files.Read(path, limit)
	}}
	if document != "" {
		from.File = "dotgate.yaml"
	}
	return from
}

func mustParse(t *testing.T, document string, environ ...string) *Config {
	t.Helper()
	c, err := parse(document, environ...)
	if err != nil {
		t.Fatalf("load:\n%s\n%v", document, err)
	}
	return c
}

func TestNothingGivenIsTheDefaults(t *testing.T) {
	t.Parallel()
	f := func(document string) {
		t.Helper()
		c := mustParse(t, document)
		g, b, h := gateway.Defaults(), balancer.Defaults(), health.Defaults()
		if !reflect.DeepEqual(c.Cache, cache.Defaults()) {
			t.Errorf("%q: got %+v", document, c.Cache)
		}
		g.Log, b.Log, h.Log = nil, nil, nil
		if !reflect.DeepEqual(c.Gateway, g) || !reflect.DeepEqual(c.Balancer, b) || !reflect.DeepEqual(c.Health, h) {
			t.Errorf("%q: got %+v", document, c)
		}
		if c.Log != (Log{slog.LevelInfo, "text"}) || c.Bootstrap != nil {
			t.Errorf("%q: got %+v", document, c)
		}
		if got := upstreamNames(c); !slices.Equal(got, []string{"cloudflare", "quad9", "google"}) {
			t.Errorf("%q: upstreams %v", document, got)
		}
	}
	f("")
	f("{}")
	f("gateway:\n  # timeout: 3s\nlog:\n")

	c, err := Load(configs.Sources{})
	if err != nil || !reflect.DeepEqual(c, mustParse(t, "")) {
		t.Errorf("no sources: %+v, %v", c, err)
	}
}

func upstreamNames(c *Config) (names []string) {
	for _, u := range c.Upstreams {
		names = append(names, u.Name)
	}
	return names
}

// Each layer hides those before it, for every key there is.
func TestPrecedence(t *testing.T) {
	t.Parallel()
	token, cert, key := adminFiles(t)
	var secrets, headers [3]string
	for i, digit := range []string{"1", "2", "3"} {
		secrets[i] = filepath.Join(t.TempDir(), "peers.key")
		writeFile(t, secrets[i], strings.Repeat(digit, 64))
		headers[i] = filepath.Join(t.TempDir(), "headers")
		writeFile(t, headers[i], "Authorization: Bearer "+digit)
	}
	// What an option can't do without.
	needs := map[string][]string{
		"admin.cert_file":      {"DOTGATE_ADMIN_KEY_FILE=" + key[0]},
		"admin.key_file":       {"DOTGATE_ADMIN_CERT_FILE=" + cert[0]},
		"admin.client_ca_file": {"DOTGATE_ADMIN_CERT_FILE=" + cert[0], "DOTGATE_ADMIN_KEY_FILE=" + key[0]},
		"cache.redis.master":   {"DOTGATE_CACHE_REDIS_URL=redis://a"},
		"cache.redis.ca_file":  {"DOTGATE_CACHE_REDIS_URL=rediss://a"},
		"peers.nodes":          {"DOTGATE_PEERS_KEY_FILE=" + secrets[0]},
	}
	values := map[string][3]string{ // in the file, the environment, a flag
		"gateway.listen":                     {`[127.0.0.1:1]`, "127.0.0.1:2", "127.0.0.1:3"},
		"gateway.timeout":                    {"1s", "2s", "3s"},
		"gateway.max_queries":                {"1", "2", "3"},
		"gateway.max_connections":            {"1", "2", "3"},
		"gateway.max_connections_per_client": {"1", "2", "3"},
		"gateway.max_pipelined":              {"1", "2", "3"},
		"gateway.gather_above":               {"1", "2", "3"},
		"gateway.idle_timeout":               {"1s", "2s", "3s"},
		"gateway.allow":                      {"[192.0.2.0/24]", "198.51.100.0/24", "203.0.113.0/24"},
		"gateway.rate_limit":                 {"1", "2", "3"},
		"gateway.rate_burst":                 {"1", "2", "3"},
		"gateway.rate_exempt":                {"[192.0.2.1]", "192.0.2.2", "192.0.2.3"},
		"gateway.trusted":                    {"[192.0.2.1]", "192.0.2.2", "192.0.2.3"},
		"gateway.cookie_secret":              {"[e5e973e5a6b2a43f48e7dc849e37bfcf]", "dd3bdf9344b678b185a6f5cb60fca715", "445536bcd2513298075a5d379663c962"},
		"gateway.nsid":                       {"a", "b", "c"},
		"gateway.version_bind":               {"a", "b", "c"},
		"gateway.id_server":                  {"a", "b", "c"},
		"gateway.hostname_bind":              {"a", "b", "c"},
		"gateway.forward_local":              {"[test]", "local", "home.arpa"},
		"gateway.ecs":                        {"192.0.2.0/24", "strip", "forward"},
		"gateway.block_private":              {"true", "false", "true"},
		"gateway.block_single_label":         {"true", "false", "true"},
		"gateway.allow_private":              {"[a.example]", "b.example", "c.example"},
		"gateway.no_application_dns":         {"true", "false", "true"},
		"cache.size":                         {"1MiB", "2MiB", "off"},
		"cache.min_ttl":                      {"1s", "2s", "3s"},
		"cache.max_ttl":                      {"1m", "2m", "3m"},
		"cache.max_negative_ttl":             {"1m", "2m", "3m"},
		"cache.stale_after":                  {"1s", "2s", "3s"},
		"cache.max_stale":                    {"1h", "2h", "3h"},
		"cache.file":                         {"/var/a.cache", "/var/b.cache", "/var/c.cache"},
		"cache.redis.url":                    {"[redis://me:secret@a:1]", "redis://b:1", "rediss://c:1/2"},
		"cache.redis.master":                 {"a", "b", "c"},
		"cache.redis.ca_file":                cert,
		"cache.redis.limit":                  {"1ms", "2ms", "3ms"},
		"cache.redis.prefix":                 {"a", "b", "c"},
		"upstreams":                          {"[google]", "quad9", "tls://192.0.2.1"},
		"routes":                             {"[corp.example=udp://192.0.2.1]", "corp.example=udp://192.0.2.2", "corp.example=tcp://192.0.2.3"},
		"bootstrap":                          {"[192.0.2.1]", "192.0.2.2", "192.0.2.3"},
		"balancer.policy":                    {"latency", "latency", "latency"},
		"health.interval":                    {"1s", "2s", "3s"},
		"health.probe_name":                  {"a.example.com", "b.example.com", "c.example.com"},
		"health.probe_type":                  {"A", "AAAA", "SOA"},
		"health.probe_timeout":               {"1s", "2s", "3s"},
		"health.failures":                    {"1", "2", "4"},
		"health.recovery_min":                {"1s", "2s", "3s"},
		"health.recovery_max":                {"11s", "12s", "13s"},
		"control.socket":                     {"/run/a.sock", "/run/b.sock", "/run/c.sock"},
		"log.level":                          {"debug", "warn", "error"},
		"log.format":                         {"json", "json", "json"},
		"gateway.lameduck":                   {"1s", "2s", "3s"},
		"admin.listen":                       {"127.0.0.1:1", "127.0.0.1:2", "off"},
		"admin.token":                        {"0123456789abcdef", "123456789abcdef0", "23456789abcdef01"}, // and none of it is shown
		"admin.token_file":                   token,
		"admin.cert_file":                    cert,
		"admin.key_file":                     key,
		"admin.client_ca_file":               cert,
		"admin.shared_addresses":             {"[192.0.2.1]", "192.0.2.2", "2001:db8::3"},
		"admin.objectives.availability":      {"90", "99", "99.5"},
		"admin.objectives.latency":           {"1s", "2s", "3s"},
		"admin.objectives.latency_share":     {"90", "99", "99.5"},
		"peers.nodes":                        {"[a]", "b", "192.0.2.1:1"},
		"peers.listen":                       {"127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"},
		"peers.key":                          {`["` + strings.Repeat("01", 32) + `"]`, strings.Repeat("02", 32), strings.Repeat("03", 32)}, // and none of it is shown
		"peers.key_file":                     secrets,
		"reload.watch":                       {"false", "true", "false"},
		"query_log.output":                   {"/var/a.log", "/var/b.log", "/var/c.log"},
		"query_log.format":                   {"json", "dnstap", "json"},
		"query_log.sample":                   {"2", "3", "4"},
		"query_log.clients":                  {"none", "full", "prefix"},
		"query_log.key_file":                 {"/etc/a.key", "/etc/b.key", "/etc/c.key"},
		"query_log.max_size":                 {"1000000", "2000000", "3000000"},
		"query_log.keep":                     {"1", "2", "0"},
		"tracing.endpoint":                   {"http://192.0.2.1:4318", "https://otel.example/v1/traces", "http://[::1]:4318/"},
		"tracing.sample":                     {"2", "3", "4"},
		"tracing.clients":                    {"none", "full", "prefix"},
		"tracing.key_file":                   {"/etc/a.key", "/etc/b.key", "/etc/c.key"},
		"tracing.service":                    {"a", "b", "c"},
		"tracing.headers":                    {`["Authorization: Bearer one"]`, "Authorization: Bearer two", "Authorization: Bearer three"}, // and no token is shown
		"tracing.headers_file":               headers,
	}
	for _, s := range configs.SettingsOf("", new(Config)) {
		v, ok := values[s.Key]
		if !ok {
			t.Errorf("%s: this test has no values for it", s.Key)
			continue
		}
		file := filepath.Join(t.TempDir(), "dotgate.yaml")
		writeFile(t, file, underSections(s.Key, v[0]))
		sources := configs.Sources{File: file, Environ: needs[s.Key]}
		f := func(want configs.Source, value string) {
			t.Helper()
			c, err := Load(sources)
			if err != nil {
				t.Fatalf("%s: %v", s.Key, err)
			}
			if got := c.origins[s.Key]; got != want {
				t.Errorf("%s: is from %v, want %v", s.Key, got, want)
			}
			if s.Key == "admin.token" {
				if string(c.Admin.Token) != value {
					t.Errorf("the token is %s, want %s", string(c.Admin.Token), value)
				}
				value = "(hidden)"
			}
			if s.Key == "cache.redis.url" {
				if got := string(c.Redis.URL[0]); got != strings.Trim(value, "[]") {
					t.Errorf("the URL is %s, want %s", got, value)
				}
				value = c.Redis.URL[0].String() // without a password
				if strings.Contains(value, "secret") {
					t.Error("the password is shown")
				}
			}
			if s.Key == "peers.key" {
				if got := hex.EncodeToString(c.Peers.Key[0][:]); got != strings.Trim(value, `[]"`) {
					t.Errorf("the key is %s, want %s", got, value)
				}
				value = "(hidden)"
			}
			if s.Key == "gateway.cookie_secret" {
				if got := string(c.Gateway.CookieSecret[0]); got != strings.Trim(value, "[]") {
					t.Errorf("the secret is %s, want %s", got, value)
				}
				value = "(hidden)"
			}
			if s.Key == "tracing.headers" {
				value = "Authorization: (hidden)"
			}
			if got := effectiveLine(t, c, s.Key, want); !strings.Contains(got, strings.Trim(value, "[]")) {
				t.Errorf("%s: %q does not have %s", s.Key, got, value)
			}
		}
		f(configs.Source{Name: file, Line: 1 + strings.Count(s.Key, ".")}, v[0])
		sources.Environ = append([]string{"PATH=/bin", configs.Variable(s.Key) + "=" + v[1]}, needs[s.Key]...)
		f(configs.Source{Name: configs.Variable(s.Key)}, v[1])
		sources.Flags = map[string][]string{s.Key: {v[2]}, "log.unused": nil}
		f(configs.Source{Name: configs.FlagName(s.Key)}, v[2])
		sources.File = ""
		f(configs.Source{Name: configs.FlagName(s.Key)}, v[2])
	}
}

// underSections writes "a.b" and a value as YAML.
func underSections(key, value string) string {
	text, indent := "", ""
	names := strings.Split(key, ".")
	for _, name := range names[:len(names)-1] {
		text += indent + name + ":\n"
		indent += "  "
	}
	return text + indent + names[len(names)-1] + ": " + value + "\n"
}

// adminFiles returns three files each of tokens, certificates and keys.
func adminFiles(t *testing.T) (token, cert, key [3]string) {
	t.Helper()
	dir := t.TempDir()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, new(x509.Certificate{SerialNumber: big.NewInt(1)}), new(x509.Certificate), private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		name := func(suffix string) string { return filepath.Join(dir, strconv.Itoa(i)+suffix) }
		token[i], cert[i], key[i] = name(".token"), name(".crt"), name(".key")
		writeFile(t, token[i], "0123456789abcdef\n")
		writeFile(t, cert[i], string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
		writeFile(t, key[i], string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret})))
	}
	return token, cert, key
}

func writeFile(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestEveryFieldHasATag(t *testing.T) {
	t.Parallel()
	var walk func(options reflect.Type)
	walk = func(options reflect.Type) {
		for field := range options.Fields() {
			if field.Anonymous || field.IsExported() && configs.IsSection(field.Type) {
				walk(field.Type)
			}
			if !field.Anonymous && field.IsExported() && field.Tag.Get("config") == "" {
				t.Errorf("%s.%s has no config tag: it could not be set", options, field.Name)
			}
		}
	}
	walk(reflect.TypeFor[Config]())
	walk(reflect.TypeFor[Upstream]())
}

func TestVariablesAreUnique(t *testing.T) {
	t.Parallel()
	seen := make(map[string]string)
	for _, s := range configs.SettingsOf("", new(Config)) {
		if other, twice := seen[configs.Variable(s.Key)]; twice {
			t.Errorf("%s and %s are both %s", other, s.Key, configs.Variable(s.Key))
		}
		seen[configs.Variable(s.Key)] = s.Key
	}
}

func TestValuesAreRead(t *testing.T) {
	t.Parallel()
	c := mustParse(t, `
gateway:
  listen: [":53", '[2001:db8::1]:5353', 192.0.2.1:53]
  timeout: &t 30500ms
  idle_timeout: *t
health: {failures: 7, probe_name: "example.com"}
log: {level: debug, format: json}
bootstrap: [192.0.2.1]
`)
	listen := []netip.AddrPort{
		netip.MustParseAddrPort("[::]:53"), netip.MustParseAddrPort("[2001:db8::1]:5353"), netip.MustParseAddrPort("192.0.2.1:53"),
	}
	if !slices.Equal(c.Gateway.Listen, listen) {
		t.Errorf("listen %v", c.Gateway.Listen)
	}
	if c.Gateway.Timeout != 30500*time.Millisecond || c.Gateway.IdleTimeout != 30500*time.Millisecond {
		t.Errorf("timeouts %v, %v", c.Gateway.Timeout, c.Gateway.IdleTimeout)
	}
	if c.Health.Failures != 7 || c.Health.ProbeName != "example.com" || c.Log != (Log{slog.LevelDebug, "json"}) {
		t.Errorf("got %+v, %+v", c.Health, c.Log)
	}
}

func TestLoadReadsAFile(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "my.yaml")
	writeFile(t, file, "gateway: {timeout: 3s}\n")
	c, err := Load(configs.Sources{File: file})
	if err != nil || c.Gateway.Timeout != 3*time.Second {
		t.Fatalf("got %v, %v", c, err)
	}

	_, err = Load(configs.Sources{File: file + ".not", Environ: []string{"DOTGATE_LOG_LEVEL=loud"}})
	var problems configs.Problems
	if !errors.As(err, &problems) || len(problems) != 2 {
		t.Fatalf("got %v", err)
	}
	if p := problems[0]; p.Source != file+".not" || !strings.Contains(p.Text, "read the configuration") {
		t.Errorf("got %+v", p)
	}
	if p := problems[1]; p.Source != "DOTGATE_LOG_LEVEL" || p.Key != "log.level" {
		t.Errorf("got %+v", p)
	}
}

// An empty list in place of a default that is none is in effect: [] in trusted and
// rate_exempt is no client, not this host again.
func TestAnEmptyListIsNotTheDefault(t *testing.T) {
	t.Parallel()
	c := mustParse(t, "gateway:\n  trusted: []\n  rate_exempt: []\n")
	if g := c.Gateway; g.Trusted == nil || g.RateExempt == nil || len(g.Trusted)+len(g.RateExempt) > 0 {
		t.Errorf("trusted %#v, rate_exempt %#v", g.Trusted, g.RateExempt)
	}
}
