package main

import (
	"encoding/json"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"dotgate/cmd/dotgate/internal/admin"
)

// What Prometheus and Grafana are to ask for is there: a name that is not would
// leave a panel empty, and an alert silent.
func TestRulesAndDashboardNameMetricsThatExist(t *testing.T) {
	labels := make(map[string][]string)
	for _, m := range admin.Metrics() {
		labels[m.Name] = m.Labels
		if m.Type == "histogram" {
			labels[m.Name+"_bucket"] = append([]string{"le"}, m.Labels...)
		}
	}
	all := make(map[string]bool)
	for _, file := range []string{"prometheus/alerts.yml", "prometheus/alerts_test.yml", "grafana/dashboards/dotgate.json"} {
		text, err := os.ReadFile("../../docker/" + file)
		if err != nil {
			t.Fatal(err)
		}
		used := regexp.MustCompile(`\b(dotgate_[a-z0-9_]+)(\{[^}]*\})?`).FindAllStringSubmatch(strings.ReplaceAll(string(text), `\"`, `"`), -1)
		if len(used) < 10 {
			t.Errorf("%s names only %d metrics", file, len(used))
		}
		for _, match := range used {
			known, exists := labels[match[1]]
			if !exists {
				t.Errorf("%s names %s, which does not exist", file, match[1])
			}
			for _, label := range regexp.MustCompile(`([a-z]+)=~?"`).FindAllStringSubmatch(match[2], -1) {
				if label[1] != "instance" && label[1] != "job" && !slices.Contains(known, label[1]) {
					t.Errorf("%s asks for %s by %s, which it does not have", file, match[1], label[1])
				}
			}
		}
		for _, match := range regexp.MustCompile(`dotgate:[a-z0-9_:]+`).FindAllString(string(text), -1) {
			all[match] = true
		}
	}
	rules, err := os.ReadFile("../../docker/prometheus/alerts.yml")
	if err != nil {
		t.Fatal(err)
	}
	for name := range all {
		if !strings.Contains(string(rules), "- record: "+name+"\n") {
			t.Errorf("nothing records %s", name)
		}
	}
}

// Each alert has a test in which it fires and one in which it does not; promtool
// runs them (make e2e).
func TestEachAlertIsTested(t *testing.T) {
	rules, err := os.ReadFile("../../docker/prometheus/alerts.yml")
	if err != nil {
		t.Fatal(err)
	}
	tests, err := os.ReadFile("../../docker/prometheus/alerts_test.yml")
	if err != nil {
		t.Fatal(err)
	}
	alerts := regexp.MustCompile(`- alert: (\w+)`).FindAllStringSubmatch(string(rules), -1)
	if len(alerts) < 6 {
		t.Fatalf("there are %d alerts", len(alerts))
	}
	for _, alert := range alerts {
		if !regexp.MustCompile(`alertname: ` + alert[1] + `\n +exp_alerts:\n`).Match(tests) {
			t.Errorf("%s never fires in a test", alert[1])
		}
		if !strings.Contains(string(tests), "alertname: "+alert[1]+"}") {
			t.Errorf("%s is never silent in a test", alert[1])
		}
	}
}

func TestTheDashboardCanBeRead(t *testing.T) {
	text, err := os.ReadFile("../../docker/grafana/dashboards/dotgate.json")
	if err != nil {
		t.Fatal(err)
	}
	var dashboard struct {
		UID    string
		Panels []struct {
			ID      int
			Title   string
			Type    string
			GridPos struct{ X, Y, W, H int }
			Targets []struct{ Expr string }
		}
	}
	if err := json.Unmarshal(text, &dashboard); err != nil {
		t.Fatal(err)
	}
	seen := make(map[int]bool)
	for _, p := range dashboard.Panels {
		if seen[p.ID] {
			t.Errorf("there are two panels %d", p.ID)
		}
		seen[p.ID] = true
		if p.GridPos.X+p.GridPos.W > 24 {
			t.Errorf("%q goes over the edge", p.Title)
		}
		if p.Type != "row" && len(p.Targets) == 0 {
			t.Errorf("%q shows nothing", p.Title)
		}
	}
	if dashboard.UID != "dotgate" || len(seen) < 10 {
		t.Errorf("%q has %d panels", dashboard.UID, len(seen))
	}
}
