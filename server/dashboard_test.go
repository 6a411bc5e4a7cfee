package main

import (
	"encoding/json"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

var (
	// selector is a metric and the labels that it shall have, of a query.
	selector = regexp.MustCompile(`([a-z_][a-z0-9_]*)\{([^}]*)\}`)

	// matcher is one label of a selector.
	matcher = regexp.MustCompile(`([a-z_]+)(=~?)"([^"]*)"`)

	// nothingElse is what is left of a query without its selectors: what makes
	// one number of several.
	nothingElse = regexp.MustCompile(`^(rate\(|\[\$__rate_interval\]|\)| / )*$`)

	// word is a name in a legend that a label takes the place of.
	word = regexp.MustCompile(`\{\{(\w+)\}\}`)
)

// TestDashboard: what Grafana's dashboard asks for is there, with these labels,
// and of all that the server counts something is shown.
func TestDashboard(t *testing.T) {
	metrics := "127.0.0.1:" + strconv.Itoa(freePort(t))
	p := start(t, nil, "-metrics", metrics, "127.0.0.1:0", "127.0.0.1:1")
	p.said(`serving on (\S+),`)
	_, page := get(t, "http://"+metrics+"/metrics")

	text, err := os.ReadFile("../deploy/grafana.json")
	if err != nil {
		t.Fatal(err)
	}
	var dashboard struct {
		Templating struct {
			List []struct{ Name, Query string }
		}
		Panels []struct {
			Title   string
			Targets []struct{ Expr, LegendFormat string }
		}
	}
	if err := json.Unmarshal(text, &dashboard); err != nil {
		t.Fatal(err)
	}
	shown := make(map[string]bool)
	for _, panel := range dashboard.Panels {
		for _, target := range panel.Targets {
			for _, wrong := range badQuery(page, target.Expr, target.LegendFormat) {
				t.Errorf("%s: %s: %s", panel.Title, target.Expr, wrong)
			}
			for _, s := range selector.FindAllStringSubmatch(target.Expr, -1) {
				shown[s[1]] = true
			}
		}
	}
	for line := range strings.Lines(page) {
		name, _, _ := strings.Cut(line, " ")
		name, _, _ = strings.Cut(name, "{")
		if strings.HasPrefix(name, "turbotunnel_") && !shown[name] {
			t.Errorf("%s is not shown", name)
			shown[name] = true // said once
		}
	}
	for _, variable := range dashboard.Templating.List {
		if name, ok := strings.CutPrefix(variable.Query, "label_values("); ok {
			if name, _, _ = strings.Cut(name, ","); len(lines(page, name)) == 0 {
				t.Errorf("the variable %s: there is no %s", variable.Name, name)
			}
		}
	}

	for query, legend := range map[string]string{
		`turbotunnel_gone{job=~"$job"}`:                                     "",
		`turbotunnel_sessions{job=~"$job",direction="up"}`:                  "",
		`turbotunnel_stream_bytes_total{direction="sideways"}`:              "",
		`turbotunnel_sessions`:                                              "",
		`sum(turbotunnel_sessions{job=~"$job"})`:                            "",
		`rate(turbotunnel_bodies_cut_total{job=~"$job"}[$__rate_interval])`: "{{by}}",
	} {
		if len(badQuery(page, query, legend)) == 0 {
			t.Errorf("nothing is found to be wrong with %s and the legend %q", query, legend)
		}
	}
}

// lines are those of a page of metrics that are of this name.
func lines(page, name string) (found []string) {
	for line := range strings.Lines(page) {
		if strings.HasPrefix(line, name+" ") || strings.HasPrefix(line, name+"{") {
			found = append(found, line)
		}
	}
	return found
}

// badQuery says what is wrong with a query and its legend.
func badQuery(page, query, legend string) (wrong []string) {
	if rest := selector.ReplaceAllString(query, ""); rest == query || !nothingElse.MatchString(rest) {
		wrong = append(wrong, "of a form that this test does not know")
	}
	for _, s := range selector.FindAllStringSubmatch(query, -1) {
		found := lines(page, s[1])
		if len(found) == 0 {
			wrong = append(wrong, "there is no "+s[1])
			continue
		}
		for _, m := range matcher.FindAllStringSubmatch(s[2], -1) {
			// job is Prometheus' own.
			if m[1] != "job" && !strings.Contains(strings.Join(found, ""), m[1]+`="`+m[3]+`"`) {
				wrong = append(wrong, s[1]+" has no "+m[0])
			}
		}
		for _, w := range word.FindAllStringSubmatch(legend, -1) {
			if !strings.Contains(found[0], w[1]+`="`) {
				wrong = append(wrong, s[1]+" has no label "+w[1])
			}
		}
	}
	return wrong
}
