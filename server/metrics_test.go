package main

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metric returns the value of a line of Prometheus' text format.
func metric(t *testing.T, page, name string) float64 {
	t.Helper()
	for line := range strings.Lines(page) {
		if rest, ok := strings.CutPrefix(line, name+" "); ok {
			value, err := strconv.ParseFloat(strings.TrimSpace(rest), 64)
			if err != nil {
				t.Fatal(err)
			}
			return value
		}
	}
	t.Fatalf("no metric %s in\n%s", name, page)
	return 0
}

func TestMetrics(t *testing.T) {
	address := destination(t, func(c *net.TCPConn) { io.Copy(c, io.LimitReader(c, 1000)) })
	metrics := "127.0.0.1:" + strconv.Itoa(freePort(t))
	p := start(t, nil, "-state-dir", t.TempDir(), "-metrics", metrics, "127.0.0.1:0", address)
	key := p.said(`clients need -key (\S+)`)
	addr := p.said(`serving on (127\.0\.0\.1:\d+)`)

	s := dial(t, dialer(t, addr, key))
	io.WriteString(s, strings.Repeat("x", 1000))
	if _, err := io.ReadFull(s, make([]byte, 1000)); err != nil {
		t.Fatal(err)
	}
	// What was sent is counted a moment after it may have arrived.
	const down = `turbotunnel_stream_bytes_total{direction="down"}`
	var page string
	for end := time.Now().Add(20 * time.Second); page == "" || metric(t, page, down) < 1000 && time.Now().Before(end); {
		var status int
		if status, page = get(t, "http://"+metrics+"/metrics"); status != 200 {
			t.Fatalf("status %d", status)
		}
	}
	for name, want := range map[string]float64{
		"turbotunnel_sessions":                           1,
		"turbotunnel_streams":                            1,
		"turbotunnel_sessions_opened_total":              1,
		"turbotunnel_sessions_refused_total":             0,
		"turbotunnel_sessions_expired_total":             0,
		"turbotunnel_sessions_untimely_total":            0,
		"turbotunnel_first_messages_forgotten_total":     0,
		"turbotunnel_first_messages_refused_total":       0,
		"turbotunnel_streams_accepted_total":             1,
		"turbotunnel_streams_refused_total":              0,
		`turbotunnel_stream_bytes_total{direction="up"}`: 1000,
		down:                                            1000,
		"turbotunnel_decoy_exchanges":                   0,
		"turbotunnel_decoy_bytes":                       0,
		"turbotunnel_decoy_refused_total":               0,
		"turbotunnel_decoy_crowded_total":               0,
		`turbotunnel_bodies_cut_total{of="clients"}`:    0,
		`turbotunnel_bodies_cut_total{of="strangers"}`:  0,
		`turbotunnel_answers_cut_total{of="clients"}`:   0,
		`turbotunnel_answers_cut_total{of="strangers"}`: 0,
	} {
		if got := metric(t, page, name); got != want {
			t.Errorf("%s is %v, want %v", name, got, want)
		}
	}
	if n := metric(t, page, "turbotunnel_http_requests_total"); n < 2 {
		t.Errorf("%v HTTP requests", n)
	}
	metric(t, page, "turbotunnel_memory_bytes")
	if metric(t, page, "go_goroutines") < 1 || metric(t, page, "process_resident_memory_bytes") < 1 {
		t.Error("nothing of the process")
	}
	if !strings.Contains(page, `turbotunnel_build_info{goversion="go1.`) {
		t.Error("no build information")
	}
	if strings.Contains(page, "127.0.0.1") || strings.Contains(page, key) {
		t.Error("the metrics hold an address or the key")
	}

	if status, text := get(t, "http://"+metrics+"/healthz"); status != 200 || text != "serving\n" {
		t.Errorf("/healthz: %d, %q", status, text)
	}

	// They are on their listener only, and nothing else is there.
	if _, page := get(t, "http://"+addr+"/metrics"); strings.Contains(page, "turbotunnel") {
		t.Error("strangers see the metrics")
	}
	if status, _ := get(t, "http://"+metrics+"/"); status != 404 {
		t.Errorf("/: status %d", status)
	}
}

// Who asks whether the server is well hears when it is about to end.
func TestHealth(t *testing.T) {
	ctx, stop := context.WithCancel(t.Context())
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	m, err := newMetricsServer(ctx, "", func(string) (net.Listener, error) { return ln, nil }, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer m.close()
	ask := func() int {
		w := httptest.NewRecorder()
		m.web.Handler.ServeHTTP(w, httptest.NewRequest("GET", "/healthz", nil))
		return w.Code
	}
	if status := ask(); status != 200 {
		t.Errorf("while it serves: %d", status)
	}
	stop()
	if status := ask(); status != 503 {
		t.Errorf("while it ends: %d", status)
	}
}

// A stream whose destination refuses is counted.
func TestMetricsOfRefusedStreams(t *testing.T) {
	metrics := "127.0.0.1:" + strconv.Itoa(freePort(t))
	p := start(t, nil, "-state-dir", t.TempDir(), "-metrics", metrics, "127.0.0.1:0", "127.0.0.1:"+strconv.Itoa(freePort(t)))
	key := p.said(`clients need -key (\S+)`)
	s := dial(t, dialer(t, p.said(`serving on (127\.0\.0\.1:\d+)`), key))
	if n, err := s.Read(make([]byte, 1)); err == nil {
		t.Errorf("%d bytes came from nowhere", n)
	}
	if _, page := get(t, "http://"+metrics+"/metrics"); metric(t, page, "turbotunnel_streams_refused_total") != 1 {
		t.Errorf("metrics:\n%s", page)
	}
}
