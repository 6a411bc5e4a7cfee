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
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"turbotunnel/common/tunnel"
	"turbotunnel/test/cdn"
	"turbotunnel/test/netpath"
	"turbotunnel/test/proc"
)

const (
	// startLimit is how long a program may take to start.
	startLimit = 30 * time.Second

	// collections is after how many garbage collections only what is held is left:
	// pools let go in the second one. collectLimit is how long they may take: Go
	// collects by itself every two minutes.
	collections  = 2
	collectLimit = 5 * time.Minute

	// scrapeEvery is the pause between two looks at the server's metrics, whose
	// answers are garbage, too, while it is to collect.
	scrapeEvery = 5 * time.Millisecond
)

// A setup says what stands between the clients and the server.
type setup struct {
	fronts  int            // which end TLS and share connections; 0: clients come to the server itself
	path    netpath.Config // towards the server, if there are no fronts; the zero Config: none
	clients int            // processes
}

// A rig is a server, what it forwards to, and who loads it.
type rig struct {
	dir, ca string
	self    string // this program
	engine  string
	target  *target
	server  *proc.Process
	metrics string
	key     string
	path    *netpath.Path   // nil: none
	entries []string        // where clients connect: the fronts, the path, or the server
	helpers []*proc.Process // fronts and clients
	clients []*helper
}

// binaries are the server's program, and this one.
type binaries struct{ server, self string }

var bridgeKey = regexp.MustCompile(`key=([A-Za-z0-9_-]{43})`)

func newRig(ctx context.Context, bin binaries, engine string, how setup) (*rig, error) {
	dir, err := os.MkdirTemp("", "turbotunnel-load")
	if err != nil {
		return nil, err
	}
	r := &rig{dir: dir, self: bin.self, engine: engine, ca: filepath.Join(dir, "ca.pem")}
	if err := r.start(ctx, bin, how); err != nil {
		return nil, errors.Join(err, r.close())
	}
	return r, nil
}

func (r *rig) start(ctx context.Context, bin binaries, how setup) error {
	cert, err := cdn.WriteCA(r.ca)
	if err != nil {
		return err
	}
	certName, keyName := filepath.Join(r.dir, "cert.pem"), filepath.Join(r.dir, "key.pem")
	if err := cdn.WritePEM(cert, certName, keyName); err != nil {
		return err
	}
	if r.target, err = newTarget(); err != nil {
		return err
	}
	addrs, err := proc.FreeAddrs(2 + how.fronts)
	if err != nil {
		return err
	}
	r.metrics, r.entries = addrs[1], addrs[2:]
	flags := []string{"-state-dir", filepath.Join(r.dir, "state"), "-metrics", r.metrics, "-trusted-proxies", "127.0.0.0/8"}
	if how.fronts == 0 {
		flags = append(flags, "-tls-cert", certName, "-tls-key", keyName)
		r.entries = []string{addrs[0]}
	}
	if err := r.startServer(ctx, bin.server, append(flags, addrs[0], r.target.addr()), addrs[0]); err != nil {
		return err
	}
	for i, addr := range r.entries[:how.fronts] {
		// A front has fewer clients than there are addresses up to the next one's.
		first := fmt.Sprintf("10.%d.0.0", 64*i)
		cmd := exec.Command(bin.self, frontCommand, addr, addrs[0], certName, keyName, first)
		if _, err := r.startHelper(ctx, fmt.Sprint("front", i), cmd, addr); err != nil {
			return err
		}
	}
	if how.path != (netpath.Config{}) {
		if r.path, err = netpath.New(how.path, addrs[0]); err != nil {
			return err
		}
		r.entries = []string{r.path.Addr()}
	}
	for i := range how.clients {
		h, err := r.startHelper(ctx, fmt.Sprint("clients", i), exec.Command(bin.self, clientsCommand), "")
		if err != nil {
			return err
		}
		r.clients = append(r.clients, h)
	}
	return nil
}

func (r *rig) startServer(ctx context.Context, program string, args []string, addr string) error {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	var err error
	r.server, err = proc.StartServing(ctx, "turbotunnel-server", filepath.Join(r.dir, "server"), exec.Command(program, args...), addr)
	if err != nil {
		return err
	}
	if err := r.server.Wait(ctx, "its metrics", func() error { return proc.Listening(r.metrics) }); err != nil {
		return err
	}
	var line []byte
	if err := r.server.Wait(ctx, "its bridge line", func() (err error) { // it listens before it writes that
		line, err = os.ReadFile(filepath.Join(r.dir, "state", "turbo_bridgeline.txt"))
		return err
	}); err != nil {
		return err
	}
	m := bridgeKey.FindSubmatch(line)
	if m == nil {
		return fmt.Errorf("no key in %q", line)
	}
	r.key = string(m[1])
	return nil
}

// A helper is this program, started again.
type helper struct {
	*proc.Process
	stdin io.Closer
	in    *json.Encoder
	out   *json.Decoder
}

// startHelper starts one, which listens at addr unless that is empty.
func (r *rig) startHelper(ctx context.Context, name string, cmd *exec.Cmd, addr string) (*helper, error) {
	// They share the processors with the server, and there is memory enough.
	cmd.Env = append(os.Environ(), "SSL_CERT_FILE="+r.ca, "GOGC=400")
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	h := &helper{stdin: in, in: json.NewEncoder(in)}
	if addr == "" {
		out, err := cmd.StdoutPipe()
		if err != nil {
			return nil, err
		}
		h.out = json.NewDecoder(out)
	}
	if h.Process, err = proc.Start(name, filepath.Join(r.dir, name), cmd); err != nil {
		return nil, err
	}
	r.helpers = append(r.helpers, h.Process)
	if addr == "" {
		return h, nil
	}
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	return h, h.Wait(ctx, "a listener on "+addr, func() error { return proc.Listening(addr) })
}

// tails are the ends of all logs.
func (r *rig) tails() string {
	text := r.server.Tail()
	for _, h := range r.helpers {
		text += "\n" + h.Tail()
	}
	return text
}

// close ends everything. The server would wait for its streams.
func (r *rig) close() error {
	var errs []error
	for _, p := range r.helpers {
		errs = append(errs, p.Kill())
	}
	if r.server != nil {
		errs = append(errs, r.server.Kill())
	}
	if r.path != nil {
		r.path.Close()
	}
	if r.target != nil {
		r.target.close()
	}
	return errors.Join(append(errs, os.RemoveAll(r.dir))...)
}

// config is for a client that comes in at an entry.
func (r *rig) config(entry int) tunnel.Config {
	return tunnel.Config{
		URL:    "https://" + cdn.Front + "/load",
		Key:    r.key,
		Addr:   r.entries[entry%len(r.entries)],
		Engine: r.engine,
		UTLS:   "none", // cheapest; the server sees no difference that matters here
	}
}

// order has all clients' processes do the same, with their parts of n sessions, at
// the same time, and returns all their reports as one. An error says that one of
// them could not do it at all; ctx ends all of them.
func (r *rig) order(ctx context.Context, o order, n int) (all report, err error) {
	defer context.AfterFunc(ctx, func() {
		for _, h := range r.clients {
			h.Kill() //nolint:errcheck // close says it
		}
	})()
	reports, errs := make([]report, len(r.clients)), make([]error, len(r.clients))
	var group sync.WaitGroup
	first := 0
	for i, h := range r.clients {
		one := o
		one.Config, one.First = r.config(i), first
		one.Sessions = (n - first) / (len(r.clients) - i)
		first += one.Sessions
		one.Every *= time.Duration(len(r.clients))
		group.Go(func() {
			if errs[i] = h.in.Encode(one); errs[i] == nil {
				errs[i] = h.out.Decode(&reports[i])
			}
			if errs[i] == nil && reports[i].Error != "" {
				errs[i] = errors.New(reports[i].Error)
			}
			if errs[i] != nil {
				errs[i] = fmt.Errorf("%w\n%s", errs[i], h.Tail())
			}
		})
	}
	group.Wait()
	for _, one := range reports {
		all.Counts = append(all.Counts, one.Counts...)
		all.Took = append(all.Took, one.Took...)
		all.Failed = append(all.Failed, one.Failed...)
	}
	slices.Sort(all.Took)
	return all, errors.Join(errs...)
}

// held is what the server's heap and stacks hold after garbage collections, in
// bytes. It collects when it has made enough garbage, which answers about its
// metrics are.
func (r *rig) held(ctx context.Context) (float64, error) {
	ctx, cancel := context.WithTimeout(ctx, collectLimit)
	defer cancel()
	m, err := r.scrape(ctx)
	const count = "go_gc_duration_seconds_count"
	for begun := m[count]; err == nil && m[count] < begun+collections; {
		if err = sleep(ctx, scrapeEvery); err == nil {
			m, err = r.scrape(ctx)
		}
	}
	// What was found to be garbage is freed in the background.
	if err == nil {
		err = sleep(ctx, time.Second)
	}
	if err == nil {
		m, err = r.scrape(ctx)
	}
	return m["go_memstats_heap_alloc_bytes"] + m["go_memstats_stack_inuse_bytes"], err
}

// scrape gets the server's metrics without labels.
func (r *rig) scrape(ctx context.Context) (map[string]float64, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+r.metrics+"/metrics", nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	m := make(map[string]float64)
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
		name, value, _ := strings.Cut(lines.Text(), " ")
		if x, err := strconv.ParseFloat(value, 64); err == nil {
			m[name] = x
		}
	}
	return m, lines.Err()
}

// sleep sleeps, unless ctx ends before.
func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
