package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"turbotunnel/common/tunnel"
)

// The check of a transfer sees bytes that are changed, lost, doubled or moved.
func TestContent(t *testing.T) {
	right := make([]byte, 3<<20)
	io.ReadFull(newContent(7), right)
	var sent bytes.Buffer
	if err := newContent(7).send(&sent, int64(len(right))); err != nil || !bytes.Equal(sent.Bytes(), right) {
		t.Fatalf("send and Read differ: %v", err)
	}
	check := func(b []byte) error {
		_, err := io.CopyBuffer(onlyWriter{newContent(7)}, struct{ io.Reader }{bytes.NewReader(b)}, make([]byte, 10_000))
		return err
	}
	if err := check(right); err != nil {
		t.Fatal(err)
	}
	cut := func(from, to int) []byte { return append(bytes.Clone(right[:from]), right[to:]...) }
	changed := bytes.Clone(right)
	changed[2<<20] ^= 1
	other := make([]byte, 1000)
	io.ReadFull(newContent(8), other)
	for name, b := range map[string][]byte{
		"changed":          changed,
		"a byte lost":      cut(1000, 1001),
		"16 KB lost":       cut(1<<20, 1<<20+16<<10),
		"1 MB lost":        cut(1<<20, 2<<20),
		"16 KB doubled":    append(bytes.Clone(right[:16<<10]), right...),
		"another transfer": other,
	} {
		if err := check(b); !errors.Is(err, errContent) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestResumed(t *testing.T) {
	m := &meter{start: time.Now(), each: make([]int64, 4000)}
	for i := range m.each {
		if i < 1000 || i >= 2100 {
			m.each[i] = 1000 // a megabyte a second
		}
	}
	m.each[2010] = 1
	first, full := m.resumed(m.start.Add(2*time.Second), 1e6)
	if first != 10*time.Millisecond || full != 99*time.Millisecond {
		t.Errorf("the first byte after %v, the rate after %v", first, full)
	}
	if first, full = m.resumed(m.start.Add(5*time.Second), 1e6); first != -1 || full != -1 {
		t.Errorf("nothing came, but it says %v and %v", first, full)
	}
}

func TestQuantile(t *testing.T) {
	var d []time.Duration
	for i := range 20 {
		d = append(d, time.Duration(i+1))
	}
	if a, b := quantile(d, 0.5), quantile(d, 0.95); a != 10 || b != 19 {
		t.Errorf("median %d, 95th percentile %d", a, b)
	}
	if quantile(nil, 0.5) != 0 {
		t.Error("of nothing")
	}
}

// A report keeps its prose and shows what has failed as failed.
func TestReport(t *testing.T) {
	r := &results{Suite: "full", Figures: []figures{
		{Name: "loopback", Raw: rawFigures{Down: 100, Up: 100}, Down: 70, Up: 50, CPUDown: 5, CPUUp: 7},
		{Name: fastName, RTT: fast.RTT, Raw: rawFigures{Down: 10, Up: 10}, Error: "the\ncause"},
	}}
	text, err := replace("before\n"+beginMark+"old\n"+endMark+"after\n", r.text())
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(text, "before\n") || !strings.HasSuffix(text, "after\n") || strings.Contains(text, "old") {
		t.Error("the prose around the measurement is not kept, or the old one is")
	}
	for _, want := range []string{
		"70.0 (0.70)", "50.0 (0.50)", fastName + " (FAILED)", "`the cause`",
		"5.0 down, 7.0 up", "**no**",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("the report lacks %q:\n%s", want, text)
		}
	}
	if _, err := replace("no marks", "x"); err == nil {
		t.Error("a file without marks was taken")
	}
}

// The process at the client's end opens what it is asked for, tells what it
// holds, and says what it cannot open.
func TestHold(t *testing.T) {
	server := tunnel.NewServer(tunnel.ServerConfig{})
	var wg sync.WaitGroup
	defer wg.Wait()
	defer server.Close()
	var far loadServer
	wg.Go(func() {
		for {
			s, err := server.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer s.Close()
				far.serve(s)
			})
		}
	})
	web := httptest.NewServer(server)
	defer web.Close()

	asks, in := io.Pipe()
	out, answers := io.Pipe()
	ended := make(chan error, 1)
	go func() { ended <- hold(asks, answers) }()
	h := &holder{in: json.NewEncoder(in), out: json.NewDecoder(out)}
	do := func(what string, ask holdAsk) use {
		t.Helper()
		u, err := h.exchange(what, ask)
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		return u
	}
	before := do(holdMeasure, holdAsk{})
	const n = 3
	do(holdOpen, holdAsk{Config: tunnel.Config{URL: web.URL}, Sessions: n})
	each := do(holdMeasure, holdAsk{}).of(n, before)
	if each.Routines < 1 || each.Memory < 1<<10 {
		t.Errorf("a session holds %+v", each)
	}
	do(holdPing, holdAsk{})
	if _, err := h.exchange(holdOpen, holdAsk{Config: tunnel.Config{URL: "nonsense"}, Sessions: 1}); err == nil {
		t.Error("a session without a server was opened")
	}
	in.Close()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestParseMetrics(t *testing.T) {
	const page = `# HELP go_goroutines Number of goroutines.
go_gc_duration_seconds{quantile="1"} 0.5
go_gc_duration_seconds_count 7
go_memstats_heap_alloc_bytes 1.5e+06
go_memstats_stack_inuse_bytes 32768
`
	m, err := parseMetrics(strings.NewReader(page + "go_goroutines 9\n"))
	if err != nil || m["go_memstats_heap_alloc_bytes"] != 1.5e6 || m["go_gc_duration_seconds_count"] != 7 || m["go_goroutines"] != 9 {
		t.Errorf("%v, %v", m, err)
	}
	if _, err := parseMetrics(strings.NewReader(page)); err == nil {
		t.Error("it does not miss go_goroutines")
	}
}

// Servers and clients have columns of their own; what was not measured meets no
// target.
func TestReportOfSessionsAndTor(t *testing.T) {
	r := &results{Suite: "engines", Sessions: []sessionFigures{{Engine: "kcp", Server: use{2048, 7, 4096}, Plain: use{1024, 7, 4096}, Client: use{3072, 6, 5120}}}}
	const row = "| kcp    | 2.0 KB                  | 1.0 KB             | 3.0 KB                  | 4.0 KB           | 5.0 KB           | 7.0 + 6.0"
	if text := r.text(); !strings.Contains(text, row) {
		t.Errorf("the report lacks %q:\n%s", row, text)
	}
	measured := torFigures{
		Alone:  torWay{Down: []float64{20, 1, 10}, Up: []float64{10}, CPUDown: []float64{30}, CPUUp: []float64{24}},
		Tunnel: torWay{Down: []float64{9.5, 100, 1}, Up: []float64{8}, CPUDown: []float64{60}, CPUUp: []float64{32}, ProgramsDown: []float64{20}, ProgramsUp: []float64{7}},
	}
	failed := measured
	failed.Error = "the cause"
	for _, c := range []struct {
		tor  torFigures
		want string
	}{
		{measured, "0.95 down, 0.80 up | **no**"},
		{measured, "| 0.95 / 0.80        | –                  | 60.0 / 32.0 | 20.0 / 7.0      | 0.50 / 0.75 |"},
		{failed, "0.00 down, 0.00 up | **no**"},
		{failed, "`the cause`"},
		{torFigures{Skipped: "it snows"}, "not measured, because it snows"},
	} {
		r := &results{Suite: "full", Tor: &c.tor}
		if text := r.text(); !strings.Contains(text, c.want) {
			t.Errorf("the report lacks %q:\n%s", c.want, text)
		}
	}
}
