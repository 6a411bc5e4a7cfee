package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"

	"turbotunnel/common/tunnel"
	"turbotunnel/test/cdn"
	"turbotunnel/test/proc"
)

// sessionFigures are what idle sessions hold at each end.
type sessionFigures struct {
	Engine         string
	Sessions       int
	Server, Client use // of one session
	Plain          use // of one session at the server, without TLS: over HTTP/1.1 in the clear
	Error          string
}

// use is what a process holds, or one of its sessions.
type use struct {
	Memory   float64 // bytes of heap and stacks after a collection
	Routines float64 // goroutines
	Resident float64 // bytes of memory before that collection, as the kernel counts them
}

// of is the share of each of n sessions that made a process hold u instead of
// before.
func (u use) of(n int, before use) use {
	f := float64(n)
	return use{(u.Memory - before.Memory) / f, (u.Routines - before.Routines) / f, (u.Resident - before.Resident) / f}
}

const (
	// sessions is how many are idle at the same time, and opening how many of
	// them are opened at the same time.
	sessions = 1000
	opening  = 20

	// memorySettle is how long sessions are left alone before they are looked
	// at. Polls from before a client knew that answers can be streamed are open
	// for 20 s and more.
	memorySettle = time.Minute

	// memoryLimit is how long all the rest may take for an engine. It takes
	// some 15 s.
	memoryLimit = 3 * time.Minute
)

// memory measures each engine over HTTPS on loopback, and the server's end once
// more without TLS: the server program, and the client's end in another process.
func (b *bench) memory(names []string) []sessionFigures {
	var all []sessionFigures
	for _, e := range names {
		for _, before := range []bool{false, true} {
			if before && b.before == "" || b.ctx.Err() != nil {
				continue
			}
			s := scenario{engine: e, before: before}
			fmt.Printf("%s %d idle sessions, %s, about %v\n", time.Now().Format(time.TimeOnly), sessions, s.label(), 2*memorySettle)
			f := sessionFigures{Engine: s.label(), Sessions: sessions}
			if err := errors.Join(b.memoryOne(&f, s, true), b.memoryOne(&f, s, false)); err != nil {
				f.Error = err.Error()
			}
			f.print()
			all = append(all, f)
		}
	}
	return all
}

func (f *sessionFigures) print() {
	one := func(name string, u use) {
		fmt.Printf("    %s: %s of heap and stacks, %s resident, %.1f goroutines a session\n", name, kb(u.Memory), kb(u.Resident), u.Routines)
	}
	one("server", f.Server)
	one("server, without TLS", f.Plain)
	one("client", f.Client)
	if f.Error != "" {
		fmt.Printf("    FAILED: %s\n", f.Error)
	}
}

func (b *bench) memoryOne(f *sessionFigures, s scenario, secure bool) error {
	server, err := b.startMemoryServer(b.folder(s.before), secure)
	if err != nil {
		return err
	}
	defer server.Stop() //nolint:errcheck // it has been measured
	serverBefore, err := server.use(b.ctx)
	if err != nil {
		return err
	}
	client, err := b.startHolder(s.before)
	if err != nil {
		return err
	}
	defer client.Stop() //nolint:errcheck // likewise
	// It is waited for without a limit: its end ends that.
	ctx, cancel := context.WithTimeout(b.ctx, memorySettle+memoryLimit)
	defer cancel()
	defer context.AfterFunc(ctx, func() { client.Kill() })() //nolint:errcheck // likewise
	clientBefore, err := client.do(holdMeasure, holdAsk{})
	if err != nil {
		return err
	}
	cfg := tunnel.Config{URL: "https://" + cdn.Front + "/bench", Key: server.key, Addr: server.addr, Engine: s.engine}
	if !secure {
		cfg.URL = "http://" + cdn.Front + "/bench"
	}
	if _, err := client.do(holdOpen, holdAsk{Config: cfg, Sessions: f.Sessions}); err != nil {
		return err
	}
	select {
	case <-time.After(memorySettle):
	case <-b.ctx.Done():
		return b.ctx.Err()
	}
	serverAfter, err := server.use(ctx)
	if err != nil {
		return err
	}
	clientAfter, err := client.do(holdMeasure, holdAsk{})
	if err != nil {
		return err
	}
	if secure {
		f.Server = serverAfter.of(f.Sessions, serverBefore)
		f.Client = clientAfter.of(f.Sessions, clientBefore)
	} else {
		f.Plain = serverAfter.of(f.Sessions, serverBefore)
	}
	// They were alive all the time.
	_, err = client.do(holdPing, holdAsk{})
	return err
}

// A memoryServer is the server program. It forwards to the load server, and
// tells by its metrics what it holds.
type memoryServer struct {
	*proc.Process
	addr, metrics string
	key           string
}

func (b *bench) startMemoryServer(folder string, secure bool) (*memoryServer, error) {
	addrs, err := proc.FreeAddrs(2)
	if err != nil {
		return nil, err
	}
	dir, err := b.newFolder()
	if err != nil {
		return nil, err
	}
	s := &memoryServer{addr: addrs[0], metrics: addrs[1]}
	flags := []string{"-metrics", s.metrics}
	if secure {
		flags = append(flags, b.tlsFlags()...)
	}
	s.Process, s.key, err = b.startServer(folder, dir, s.addr, flags...)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(b.ctx, startLimit)
	defer cancel()
	if err := s.Wait(ctx, "its metrics", func() error { return proc.Listening(s.metrics) }); err != nil {
		return nil, errors.Join(err, s.Stop())
	}
	return s, nil
}

// collections is after how many garbage collections only what is held is left:
// pools let go in the second one.
const collections = 2

// use measures the program. It collects garbage when it has made enough, which
// answers about its metrics are.
func (s *memoryServer) use(ctx context.Context) (use, error) {
	u := use{Resident: resident(s.ID())}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	m, err := s.scrape(ctx)
	const count = "go_gc_duration_seconds_count"
	for begun := m[count]; err == nil && m[count] < begun+collections; {
		m, err = s.scrape(ctx)
	}
	if err != nil {
		return u, err
	}
	// What was found to be garbage is freed in the background.
	select {
	case <-time.After(time.Second):
	case <-ctx.Done():
	}
	if m, err = s.scrape(ctx); err != nil {
		return u, err
	}
	u.Memory = m["go_memstats_heap_alloc_bytes"] + m["go_memstats_stack_inuse_bytes"]
	u.Routines = m["go_goroutines"]
	return u, nil
}

// scrape gets the metrics without labels.
func (s *memoryServer) scrape(ctx context.Context) (map[string]float64, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+s.metrics+"/metrics", nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	m, err := parseMetrics(resp.Body)
	if err != nil {
		return nil, fmt.Errorf("the server's metrics: %w", err)
	}
	return m, nil
}

// parseMetrics reads the metrics without labels in Prometheus' text format. It
// is an error if one of those is missing that a measurement needs.
func parseMetrics(r io.Reader) (map[string]float64, error) {
	m := make(map[string]float64)
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		name, value, _ := strings.Cut(lines.Text(), " ")
		if x, err := strconv.ParseFloat(value, 64); err == nil {
			m[name] = x
		}
	}
	for _, name := range []string{"go_gc_duration_seconds_count", "go_memstats_heap_alloc_bytes", "go_memstats_stack_inuse_bytes", "go_goroutines"} {
		if _, ok := m[name]; !ok && lines.Err() == nil {
			return nil, fmt.Errorf("%s is missing", name)
		}
	}
	return m, lines.Err()
}

// The client's end of idle sessions is this program, started again with the
// argument holdCommand. It gets asks on stdin and answers each on stdout, and
// ends with its stdin.
const holdCommand = "hold-idle-sessions"

// What it can be asked for.
const (
	holdMeasure = "measure" // what it holds
	holdOpen    = "open"    // sessions with one stream each, through which a byte goes
	holdPing    = "ping"    // a byte there and back on every one
)

type holdAsk struct {
	What     string
	Config   tunnel.Config // to open
	Sessions int           // to open
}

type holdAnswer struct {
	Use   use
	Error string
}

// A holder is that process.
type holder struct {
	*proc.Process
	in  *json.Encoder
	out *json.Decoder
}

func (b *bench) startHolder(before bool) (*holder, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	if before {
		self = filepath.Join(b.before, "bench")
	}
	cmd := exec.Command(self, holdCommand)
	cmd.Env = append(os.Environ(), "SSL_CERT_FILE="+b.ca)
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	name := filepath.Join(b.dir, fmt.Sprintf("holder%d.log", b.tunnels.Add(1)))
	p, err := proc.Start("the client's end", name, cmd)
	if err != nil {
		return nil, err
	}
	return &holder{p, json.NewEncoder(in), json.NewDecoder(out)}, nil
}

// do asks for something and waits until it is done.
func (h *holder) do(what string, ask holdAsk) (use, error) {
	held := resident(h.ID())
	u, err := h.exchange(what, ask)
	if err != nil {
		return u, fmt.Errorf("the client's end: %w\n%s", err, proc.Tail(h.Log()))
	}
	u.Resident = held
	return u, nil
}

func (h *holder) exchange(what string, ask holdAsk) (use, error) {
	ask.What = what
	if err := h.in.Encode(ask); err != nil {
		return use{}, err
	}
	var answer holdAnswer
	if err := h.out.Decode(&answer); err != nil {
		return use{}, err
	}
	if answer.Error != "" {
		return use{}, errors.New(answer.Error)
	}
	return answer.Use, nil
}

// holding are sessions in this process.
type holding struct {
	dialers []*tunnel.Dialer
	streams []tunnel.Stream
}

// hold does what it is asked for until the asks end.
func hold(in io.Reader, out io.Writer) error {
	var h holding
	defer h.each(func(i int) error { return h.dialers[i].Close() }) //nolint:errcheck // they have been measured
	asks, answers := json.NewDecoder(in), json.NewEncoder(out)
	for {
		var ask holdAsk
		if err := asks.Decode(&ask); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		var answer holdAnswer
		var err error
		switch ask.What {
		case holdMeasure:
			answer.Use = used()
		case holdOpen:
			err = h.open(ask.Config, ask.Sessions)
		case holdPing:
			err = h.each(h.ping)
		}
		if err != nil {
			answer.Error = err.Error()
		}
		if err := answers.Encode(answer); err != nil {
			return err
		}
	}
}

func (h *holding) open(cfg tunnel.Config, n int) error {
	for range n {
		d, err := tunnel.NewDialer(cfg, tunnel.Options{})
		if err != nil {
			return err
		}
		h.dialers = append(h.dialers, d)
	}
	h.streams = make([]tunnel.Stream, n)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	return h.each(func(i int) (err error) {
		if h.streams[i], err = h.dialers[i].Dial(ctx); err != nil {
			return err
		}
		// It tells the load server what it wants, and gets it.
		if _, err := h.streams[i].Write(ask(loadEcho, 0, 0)); err != nil {
			return err
		}
		return h.ping(i)
	})
}

func (h *holding) ping(i int) error {
	h.streams[i].SetDeadline(time.Now().Add(time.Minute)) //nolint:errcheck // a stream can
	_, err := echo(h.streams[i])
	return err
}

// each does something to all sessions, some at the same time, and returns the
// first error.
func (h *holding) each(one func(int) error) error {
	errs := make([]error, len(h.dialers))
	turn := make(chan struct{}, opening)
	var all sync.WaitGroup
	for i := range h.dialers {
		turn <- struct{}{}
		all.Go(func() {
			errs[i] = one(i)
			<-turn
		})
	}
	all.Wait()
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// used is what this process holds after collections.
func used() use {
	for range collections {
		runtime.GC()
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return use{Memory: float64(m.HeapAlloc + m.StackInuse), Routines: float64(runtime.NumGoroutine())}
}

// resident is the memory that a process has at the moment, in bytes.
func resident(pid int) float64 { return float64(memoryOf(pid, "VmRSS:")) }
