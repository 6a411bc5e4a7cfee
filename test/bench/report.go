package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// results are all that a run has measured.
type results struct {
	Suite    string
	Before   string // the commit that was compared with; empty: none
	Seconds  float64
	Machine  machine
	Figures  []figures
	Idle     []idleFigures
	Sessions []sessionFigures
	Tor      *torFigures // nil: not in this run
}

// machine is what a run ran on.
type machine struct {
	CPU        string
	Cores      int
	Kernel, Go string
	Date       time.Time
	Took       time.Duration
	Load, Then string // the load average at the start and at the end
}

func describe() machine {
	m := machine{CPU: "unknown", Cores: runtime.NumCPU(), Go: runtime.Version(), Date: time.Now(), Load: loadAverage()}
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for _, line := range strings.Split(string(b), "\n") {
			if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
				m.CPU = strings.TrimSpace(value)
				break
			}
		}
	}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		m.Kernel = unix.ByteSliceToString(u.Sysname[:]) + " " + unix.ByteSliceToString(u.Release[:])
	}
	return m
}

func (m *machine) end() {
	m.Then = loadAverage()
	m.Took = time.Since(m.Date)
}

// loadAverage is of the last minute.
func loadAverage() string {
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	first, _, _ := strings.Cut(string(b), " ")
	return first
}

func (r *results) file() string {
	if r.Suite == "engines" {
		return "engines"
	}
	return "benchmarks"
}

func (r *results) save(dir string) error {
	b, err := json.MarshalIndent(r, "", "\t")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, r.file()+".json"), append(b, '\n'), 0o644)
}

func load(name string) (*results, error) {
	b, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	r := new(results)
	if err := json.Unmarshal(b, r); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return r, nil
}

// report puts tables and plots into the report in dir, which keeps its prose:
// what stands between two marks is replaced.
func (r *results) report(dir string) error {
	plots, err := r.plot(dir)
	if err != nil {
		return err
	}
	name := filepath.Join(dir, r.file()+".md")
	b, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	text, err := replace(string(b), r.text()+plots)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return os.WriteFile(name, []byte(text), 0o644)
}

const (
	beginMark = "<!-- measured: begin. Written by test/bench. -->\n"
	endMark   = "<!-- measured: end -->\n"
)

// replace puts what between the two marks.
func replace(text, what string) (string, error) {
	before, rest, ok := strings.Cut(text, beginMark)
	_, after, ok2 := strings.Cut(rest, endMark)
	if !ok || !ok2 {
		return "", fmt.Errorf("it lacks the lines %q and %q, between which the measurement goes", beginMark, endMark)
	}
	return before + beginMark + "\n" + what + "\n" + endMark + after, nil
}

// table is rows of cells, the first one the heading.
type table [][]string

func (t table) String() string {
	width := make([]int, len(t[0]))
	for _, row := range t {
		for i, cell := range row {
			width[i] = max(width[i], len([]rune(cell)))
		}
	}
	var s strings.Builder
	for n, row := range t {
		for i, cell := range row {
			fmt.Fprintf(&s, "| %s%s ", cell, strings.Repeat(" ", width[i]-len([]rune(cell))))
		}
		s.WriteString("|\n")
		if n == 0 {
			for _, w := range width {
				s.WriteString("|" + strings.Repeat("-", w+2))
			}
			s.WriteString("|\n")
		}
	}
	return s.String()
}

// text is the report in Markdown, which can also be read as it is.
func (r *results) text() string {
	var s strings.Builder
	m := r.Machine
	fmt.Fprintf(&s, "Measured on %s, in %s: %s, %d cores, %s, %s. The machine is a virtual one that is shared with others, and noisy; its load average was %s at the start and %s at the end. Client, server, load, path and middlebox all run on it. Repeat it with\n\n    %s\n\n",
		m.Date.UTC().Format("2006-01-02 15:04 UTC"), m.Took.Round(time.Second), m.CPU, m.Cores, m.Kernel, m.Go, m.Load, m.Then, map[string]string{
			"quick": "make bench-quick", "full": "make bench", "engines": "make bench-engines",
		}[r.Suite]+compared(r.Before))
	if r.Suite == "engines" {
		r.engines(&s)
	} else {
		r.paths(&s)
		r.verdicts(&s)
	}
	for _, f := range r.Figures {
		if f.Error != "" {
			fmt.Fprintf(&s, "Failed: %s: `%s`. What it had measured until then is shown.\n\n", f.Name, strings.Join(strings.Fields(f.Error), " "))
		}
	}
	return s.String()
}

// compared is what make is told of the commit to compare with.
func compared(before string) string {
	if before == "" {
		return ""
	}
	return " BEFORE=" + before
}

// cell shows a rate and its share of raw.
func cell(x, raw float64) string {
	if x == 0 {
		return "–"
	}
	return fmt.Sprintf("%.1f (%.2f)", x, share(x, raw))
}

func orDash(x float64, format string) string {
	if x == 0 {
		return "–"
	}
	return fmt.Sprintf(format, x)
}

func (f *figures) losses() string {
	if f.Requests == 0 {
		return "–"
	}
	return fmt.Sprintf("%d of %d requests", f.Lost, f.Requests)
}

func (f *figures) label() string {
	if f.Error != "" {
		return f.Name + " (FAILED)"
	}
	return f.Name
}

func (r *results) paths(s *strings.Builder) {
	s.WriteString("Megabytes a second, and in brackets the share of raw HTTP/2 on the same path in the same run. \"First\" is what a session moves first, 5 s at the rate of the path, from a new stream on; the others follow when it has found the rate:\n\n")
	t := table{{"path", "raw down", "raw up", "first, down", "first, up", "down", "up", "8 down", "8 up", "as meek, down/up"}}
	for _, f := range r.Figures {
		meek := "–"
		if f.Raw.MeekDown > 0 && f.Name == pathOf(f) {
			meek = fmt.Sprintf("%.2f (%.3f) / %.2f (%.3f)", f.Raw.MeekDown, f.Raw.MeekDown/f.Raw.Down, f.Raw.MeekUp, f.Raw.MeekUp/f.Raw.Up)
		}
		t = append(t, []string{
			f.label(), fmt.Sprintf("%.1f", f.Raw.Down), fmt.Sprintf("%.1f", f.Raw.Up),
			cell(f.ColdDown, f.Raw.Down), cell(f.ColdUp, f.Raw.Up), cell(f.Down, f.Raw.Down), cell(f.Up, f.Raw.Up), cell(f.Down8, f.Raw.Down), cell(f.Up8, f.Raw.Up), meek,
		})
	}
	s.WriteString(t.String())
	s.WriteString("\nDelays (pings: median, and in brackets the 95th percentile; raw: a byte there and back on one HTTP/2 stream over the same path in the same run):\n\n")
	t = table{{"path", "first stream of all", "new stream", "ping, idle", "ping, raw", "ping beside a download"}}
	for _, f := range r.Figures {
		if f.First > 0 {
			t = append(t, []string{f.label(), ms(f.First), ms(f.Open), ms(f.Ping) + " (" + ms(f.Ping95) + ")", ms(f.Raw.Ping) + " (" + ms(f.Raw.Ping95) + ")", ms(f.Loaded) + " (" + ms(f.Loaded95) + ")"})
		}
	}
	s.WriteString(t.String())
	s.WriteString("\nCost. CPU is of both programs for a gigabyte that one stream moved; memory the most that each program ever had; the wire is bytes on the path, TLS included, for each byte moved:\n\n")
	t = table{{"path", "CPU s/GB, down", "up", "peak memory, client", "server", "wire, down", "wire, up", "longest pause", "connections reset", "bodies lost"}}
	for _, f := range r.Figures {
		t = append(t, []string{
			f.label(), orDash(f.CPUDown, "%.1f"), orDash(f.CPUUp, "%.1f"), fmt.Sprintf("%d MB", f.Client>>20), fmt.Sprintf("%d MB", f.Server>>20), orDash(f.WireDown, "%.3f"), orDash(f.WireUp, "%.3f"),
			ms(f.Gap), fmt.Sprint(f.Cuts), f.losses(),
		})
	}
	s.WriteString(t.String())
	for _, f := range r.Figures {
		if f.Raw.Wire > 0 {
			fmt.Fprintf(s, "\nRaw HTTP/2 itself takes %.3f bytes on the path for each byte of a download.\n", f.Raw.Wire)
			break
		}
	}
	if t := r.outages(); t != nil {
		s.WriteString("\nAfter an outage of 5 s, counted from its end:\n\n" + t.String())
	}
	if t := r.idleTable(); t != nil {
		fmt.Fprintf(s, "\nOne idle session with one open stream, over %d s, after %d s to settle:\n\n%s", int(idleTime.Seconds()), int(settleTime.Seconds()), t)
	}
	if r.Tor != nil {
		r.Tor.text(s)
	}
	s.WriteString("\n")
}

// pathOf is the name of the scenario with nothing but the path.
func pathOf(f figures) string {
	switch f.RTT {
	case fast.RTT:
		return fastName
	case fat.RTT:
		return fatName
	}
	return "loopback"
}

func (r *results) outages() table {
	var t table
	for _, f := range r.Figures {
		if f.Resumed != 0 {
			t = append(t, []string{f.label(), ms(f.Resumed), ms(f.Full), ms(f.ResumedUp), ms(f.FullUp)})
		}
	}
	if t == nil {
		return nil
	}
	return append(table{{"path", "first byte, down", "80 % of the rate, down", "first byte, up", "80 % of the rate, up"}}, t...)
}

func (r *results) idleTable() table {
	if len(r.Idle) == 0 {
		return nil
	}
	t := table{{"path", "requests a minute", "bytes a minute", "CPU a minute", "ping afterwards"}}
	for _, f := range r.Idle {
		name := f.Name
		if f.Error != "" {
			name += " (FAILED: " + f.Error + ")"
		}
		t = append(t, []string{name, fmt.Sprintf("%.1f", f.Requests), fmt.Sprintf("%.0f", f.Bytes), f.CPU.String(), ms(f.Ping)})
	}
	return t
}

// kb is a number of bytes; a dash if it was not measured.
func kb(bytes float64) string {
	if bytes == 0 {
		return "–"
	}
	return fmt.Sprintf("%.1f KB", bytes/1024)
}

// engines is a table for each path, in the order of the run.
func (r *results) engines(s *strings.Builder) {
	s.WriteString("Megabytes a second, and in brackets the share of raw HTTP/2 on the same path in the same run. The wire is bytes on the path, TLS included, for each byte moved; CPU is of both programs for a gigabyte that one stream moved. With `kcp` each of eight streams is a session. \"Up, warm\" is one stream that has carried something before: its window need not be asked for. \"Before\" are the programs of the commit that is named above, in the same minutes.\n")
	for i := 0; i < len(r.Figures); {
		first := r.Figures[i]
		fmt.Fprintf(s, "\n%s (raw: %.1f down, %.1f up):\n\n", first.Path, first.Raw.Down, first.Raw.Up)
		t := table{{"engine", "down", "up", "up, warm", "8 down", "8 up", "CPU s/GB", "wire, down", "wire, up", "longest pause", "bodies lost"}}
		for ; i < len(r.Figures) && r.Figures[i].Path == first.Path; i++ {
			f := r.Figures[i]
			name := f.Engine
			if f.Error != "" {
				name += " (FAILED)"
			}
			t = append(t, []string{
				name, cell(f.Down, f.Raw.Down), cell(f.Up, f.Raw.Up), cell(f.UpWarm, f.Raw.Up), cell(f.Down8, f.Raw.Down), cell(f.Up8, f.Raw.Up),
				orDash(f.CPU, "%.1f"), orDash(f.WireDown, "%.3f"), orDash(f.WireUp, "%.3f"), ms(f.Gap), f.losses(),
			})
		}
		s.WriteString(t.String())
	}
	if len(r.Sessions) > 0 {
		fmt.Fprintf(s, "\n%d idle sessions with one open stream each, %d s after they were opened, each over a TLS connection with HTTP/2 of its own. The server is the server program, which forwards each stream over a TCP connection; the client is a program with as many dialers of `common/tunnel`. Counted is what each of the two processes had more than before the first session, divided by their number: heap and stacks after garbage collections, with TLS, HTTP/2 and buffers of connections (but in the column without TLS, where sessions come over HTTP/1.1 in the clear, as behind a proxy), and resident memory as the kernel saw it before those collections. What the kernel itself holds for connections is not counted.\n\n", sessions, int(memorySettle.Seconds()))
		t := table{{"engine", "server: heap and stacks", "server without TLS", "client: heap and stacks", "server: resident", "client: resident", "goroutines, server + client"}}
		for _, f := range r.Sessions {
			name := f.Engine
			if f.Error != "" {
				name += " (FAILED: " + f.Error + ")"
			}
			t = append(t, []string{name, kb(f.Server.Memory), kb(f.Plain.Memory), kb(f.Client.Memory), kb(f.Server.Resident), kb(f.Client.Resident), fmt.Sprintf("%.1f + %.1f", f.Server.Routines, f.Client.Routines)})
		}
		s.WriteString(t.String())
	}
	if t := r.idleTable(); t != nil {
		fmt.Fprintf(s, "\nOne idle session with one open stream, over %d s, after %d s to settle:\n\n%s", int(idleTime.Seconds()), int(settleTime.Seconds()), t)
	}
	s.WriteString("\n")
}

// verdicts compares with the targets.
func (r *results) verdicts(s *strings.Builder) {
	byName := make(map[string]figures)
	for _, f := range r.Figures {
		byName[f.Name] = f
	}
	t := table{{"target", "measured", "met"}}
	yes := map[bool]string{true: "yes", false: "**no**"}
	add := func(target, measured string, met bool) { t = append(t, []string{target, measured, yes[met]}) }
	// What a scenario did not measure, because it failed, meets no target.
	ratio := func(name string, least float64) {
		f, ok := byName[name]
		if !ok {
			return
		}
		down, up := share(f.Down, f.Raw.Down), share(f.Up, f.Raw.Up)
		add(fmt.Sprintf("%s: at least %.2f of raw", name, least), fmt.Sprintf("%.2f down, %.2f up", down, up), down >= least && up >= least)
	}
	within := func(what string, got, limit time.Duration) {
		add(fmt.Sprintf("%s: at most %d ms", what, limit.Milliseconds()), ms(got), got > 0 && got <= limit)
	}
	both := func(what string, down, up, limit float64) {
		add(what, fmt.Sprintf("%.1f down, %.1f up", down, up), min(down, up) > 0 && max(down, up) <= limit)
	}
	memory := func(what string, got, limit int64) {
		add(fmt.Sprintf("%s: at most %d MB", what, limit), fmt.Sprintf("%d MB", got>>20), got > 0 && got>>20 <= limit)
	}
	if f, ok := byName["loopback"]; ok {
		both("loopback: at most 6 CPU s/GB", f.CPUDown, f.CPUUp, 6)
		within("loopback: ping beside a download", f.Loaded, 15*time.Millisecond)
	}
	if f, ok := byName[bareName]; ok {
		add(bareName+": at least 443 MB/s down and 329 up", fmt.Sprintf("%.0f down, %.0f up", f.Down, f.Up), f.Down >= 443 && f.Up >= 329)
		within(bareName+": ping beside a download", f.Loaded, 15*time.Millisecond)
	}
	ratio(fastName, 0.97)
	ratio(fatName, 0.97)
	if f, ok := byName[fastName]; ok {
		both(fastName+": at most 10 CPU s/GB", f.CPUDown, f.CPUUp, 10)
		memory(fastName+": the client", f.Client, 45)
	}
	if f, ok := byName[fatName]; ok {
		down, up := share(f.ColdDown, f.Raw.Down), share(f.ColdUp, f.Raw.Up)
		add(fatName+", the first 5 s: at least 0.93 of raw", fmt.Sprintf("%.2f down, %.2f up", down, up), min(down, up) >= 0.93)
		within(fatName+": ping beside a download", f.Loaded, 265*time.Millisecond)
		memory(fatName+": each program", max(f.Client, f.Server), 80)
	}
	ratio(fastName+", CDN buffers", 0.90)
	ratio(fatName+", CDN buffers", 0.90)
	ratio(fastName+", 1 % lost", 0.85)
	ratio(fastName+", 1 % lost, polled", 0.85)
	ratio(fastName+", resets", 0.60)
	if f, ok := byName[fastName+", resets"]; ok {
		within("resets: longest pause", f.Gap, time.Second)
		add("resets: no stream lost, 60 MB each way byte-exact", fmt.Sprintf("%d connections reset; %s", f.Cuts, map[bool]string{true: "all streams whole", false: "a stream was lost"}[f.Error == ""]), f.Error == "" && f.Cuts > 0)
	}
	for _, name := range []string{fastName + ", outage", fastName + ", outage, connections dead"} {
		if f, ok := byName[name]; ok {
			worst := max(f.Resumed, f.ResumedUp)
			if min(f.Resumed, f.ResumedUp) <= 0 {
				worst = min(f.Resumed, f.ResumedUp)
			}
			full := max(f.Full, f.FullUp)
			if min(f.Full, f.FullUp) <= 0 {
				full = min(f.Full, f.FullUp)
			}
			add(name+": moving again after at most 1000 ms", fmt.Sprintf("%s; at 80 %% of the rate: %s", ms(worst), ms(full)), worst > 0 && worst <= time.Second)
		}
	}
	for _, name := range []string{fastName, fatName} {
		if f, ok := byName[name]; ok {
			within(name+": new stream", f.Open, f.RTT+10*time.Millisecond)
			within(name+": first stream of all", f.First, 3*f.RTT+30*time.Millisecond)
			limit := f.RTT + 3*time.Millisecond
			add(fmt.Sprintf("%s: ping, idle: at most %d ms", name, limit.Milliseconds()), ms(f.Ping)+"; raw HTTP/2 "+ms(f.Raw.Ping), f.Ping > 0 && f.Ping <= limit)
		}
	}
	if f, ok := byName[fastName]; ok {
		within(fastName+": ping beside a download", f.Loaded, f.RTT+60*time.Millisecond)
	}
	if f := r.Tor; f != nil && f.Skipped == "" {
		down, up := f.ratios()
		add(fmt.Sprintf("%s: at least 0.90 of tor alone", torName), fmt.Sprintf("%.2f down, %.2f up", down, up), down >= 0.90 && up >= 0.90)
	}
	for _, f := range r.Idle {
		if f.Name == "streamed" {
			add("idle session: at most 2 requests and 2 KB a minute", fmt.Sprintf("%.1f requests, %.0f bytes", f.Requests, f.Bytes), f.Error == "" && f.Requests <= 2 && f.Bytes <= 2048)
		}
	}
	if len(t) > 1 {
		s.WriteString("Targets (ratios: one stream, down and up):\n\n" + t.String() + "\n")
	}
}
