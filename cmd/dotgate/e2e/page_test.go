//go:build linux && e2e

package e2e

import (
	"context"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"

	"dotgate/upstreams/dottest"
)

// screenshots is the directory for the screenshots of the page: -args -screenshots DIR.
var screenshots = flag.String("screenshots", "", "a directory for screenshots of the page")

const pageToken = "0123456789abcdef"

// TestThePageShowsAnUpstreamThatFails opens the page in Chromium while an upstream
// fails, and clicks its buttons.
func TestThePageShowsAnUpstreamThatFails(t *testing.T) {
	t.Parallel()
	var servers []*dottest.Server
	var urls []string
	for _, rtt := range []time.Duration{8, 12, 15} {
		s := startUpstream(t, dottest.Options{RTT: rtt * time.Millisecond, Certificate: ca.Issue(dottest.CertOptions{
			Names: []string{dottest.ServerName}, NotAfter: time.Now().Add(time.Duration(rtt) * 5 * 24 * time.Hour),
		})})
		servers, urls = append(servers, s), append(urls, url(s.Addr()))
	}
	https := dottest.NewHTTPSServer(t, dottest.HTTPSOptions{Certificate: ca.Issue(dottest.CertOptions{Names: []string{dottest.ServerName}})})
	urls[2] += fmt.Sprintf("|https://%s/dns-query#%s", https.Addr(), dottest.ServerName)
	operators := netip.AddrPortFrom(dottest.Loopback(), 8053)
	names := []string{"cloudflare", "quad9", "google"}
	var yaml strings.Builder
	yaml.WriteString("upstreams:\n")
	for i, u := range urls {
		fmt.Fprintf(&yaml, "  - {name: %s, url: %q}\n", names[i], u)
	}
	file := filepath.Join(t.TempDir(), "dotgate.yaml")
	if err := os.WriteFile(file, []byte(yaml.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	addr := ownAddr()
	var environ []string
	for _, v := range environment(addr, nil, "DOTGATE_CONFIG="+file, "DOTGATE_ADMIN_TOKEN="+pageToken) {
		if !strings.HasPrefix(v, "DOTGATE_UPSTREAMS=") && !strings.HasPrefix(v, "DOTGATE_ADMIN_LISTEN=") {
			environ = append(environ, v)
		}
	}
	g := &gateway{addr: addr, process: start(t, append(environ, "DOTGATE_ADMIN_LISTEN="+operators.String()), dotgate, "serve")}
	g.await(t, "dotgate is serving")
	defer g.stop(t)

	stop := make(chan struct{})
	loaded := make(chan outcome)
	go func() {
		l := dottestLoad(g.addr, "page", 6000, 150)
		names := l.name
		l.name = func(i int) string { // a third of the names are cached
			if i%3 == 0 && i > 600 {
				return names(i - 599)
			}
			return names(i)
		}
		loaded <- l.run(t)
		<-stop
	}()
	defer close(stop)

	page, closePage := chromium(t)
	defer closePage()
	text := func(selector string) string {
		var s string
		// In one step, as cards are replaced every second.
		if err := chromedp.Run(page, chromedp.Evaluate(fmt.Sprintf(`document.querySelector(%q)?.innerText ?? ""`, selector), &s)); err != nil {
			t.Fatalf("%s: %v", selector, err)
		}
		return s
	}
	shows := func(selector, want string) {
		t.Helper()
		within(t, 15*time.Second, fmt.Sprintf("%s shows %q", selector, want), func() bool { return strings.Contains(text(selector), want) })
	}
	do := func(actions ...chromedp.Action) {
		t.Helper()
		if err := chromedp.Run(page, actions...); err != nil {
			t.Fatal(err)
		}
	}
	shoot := func(name string) {
		t.Helper()
		if *screenshots == "" {
			return
		}
		var png []byte
		do(chromedp.FullScreenshot(&png, 100))
		if err := os.WriteFile(filepath.Join(*screenshots, name+".png"), png, 0o644); err != nil {
			t.Fatal(err)
		}
	}

	do(chromedp.EmulateViewport(1100, 900), chromedp.Navigate("http://"+operators.String()+"/"))
	shows("#numbers", "3 / 3")
	shows("#numbers", "p99")
	time.Sleep(8 * time.Second) // so that the charts have values
	shoot("page")

	// An upstream fails: the page shows that, and that no client is affected.
	servers[1].Set(dottest.Fault{Never: true})
	shows(`[data-name="quad9"] .badge`, "down")
	shows("#verdict", "Clients get answers; 1 of 3 upstreams is not up")
	shows("#timeline", "quad9")
	shoot("page-one-down")
	do(emulation.SetEmulatedMedia().WithFeatures([]*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: "dark"}}),
		chromedp.EmulateViewport(390, 844, chromedp.EmulateMobile))
	time.Sleep(1500 * time.Millisecond)
	var wide bool
	do(chromedp.Evaluate(`document.documentElement.scrollWidth > document.documentElement.clientWidth`, &wide))
	if wide {
		t.Error("a phone has to scroll to the side")
	}
	shoot("page-phone-dark")
	do(emulation.SetEmulatedMedia().WithFeatures([]*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: "light"}}))
	shoot("page-phone")
	do(chromedp.EmulateViewport(1100, 900))
	servers[1].Set()
	shows(`[data-name="quad9"] .badge`, "up")

	// A transport fails: the page shows which one is used instead.
	servers[2].Stop()
	servers[2].CloseConnections(dottest.FIN)
	shows(`[data-name="google"] dl`, "over doh, as dot fails")
	shows("#verdict", "google is asked over doh: no connection over dot can be made")
	shows(`[data-name="google"] .badge`, "up")
	shoot("page-over-https")

	// The buttons do nothing without the token.
	press := func(name, button string) {
		t.Helper()
		do(chromedp.Evaluate(fmt.Sprintf(
			`[...document.querySelectorAll('[data-name="%s"] button')].find(b => b.textContent === %q).click()`, name, button), nil))
	}
	press("google", "Drain")
	shows("#message", "Enter the token first")
	do(chromedp.SetValue("#token", "not the token at all", chromedp.ByQuery), chromedp.Click("#login button", chromedp.ByQuery))
	press("google", "Drain")
	shows("#message", "admin.token")
	do(chromedp.SetValue("#token", pageToken, chromedp.ByQuery), chromedp.Click("#login button", chromedp.ByQuery))
	press("google", "Drain")
	shows(`[data-name="google"] .badge`, "down, by hand")
	shows(`[data-name="google"] .why`, "set to drain by hand")
	press("google", "Back to automatic")
	shows(`[data-name="google"] .badge`, "up")
	press("cloudflare", "Drill")
	shows("#drill", "Drill: cloudflare has the fault blackhole")
	shows(`[data-name="cloudflare"] .badge`, "down")
	shows("#message", "Drill of cloudflare: clients lost 0 of")
	shows(`[data-name="cloudflare"] .badge`, "up")
	(<-loaded).mustBeWhole(t)

	metricsAreClean(t, operators.String())
	g.stop(t)
	shows("#lost", "The connection to the gateway is lost")
}

// metricsAreClean checks the metrics of a running gateway with promtool.
func metricsAreClean(t *testing.T, at string) {
	t.Helper()
	r, err := http.Get("http://" + at + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	text, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	check := exec.Command("promtool", "check", "metrics")
	check.Stdin = strings.NewReader(string(text))
	if out, err := check.CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("promtool check metrics: %v\n%s", err, out)
	}
	if strings.Contains(string(text), "example.com") {
		t.Error("a name is in the metrics")
	}
}

// chromium starts a browser with one page.
func chromium(t *testing.T) (page context.Context, closePage func()) {
	t.Helper()
	options := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.NoSandbox, chromedp.DisableGPU)
	allocator, end := chromedp.NewExecAllocator(context.Background(), options...)
	page, closeTab := chromedp.NewContext(allocator)
	page, cancel := context.WithTimeout(page, 3*time.Minute)
	if err := chromedp.Run(page); err != nil {
		t.Fatalf("start Chromium (package chromium): %v", err)
	}
	return page, func() { cancel(); closeTab(); end() }
}
