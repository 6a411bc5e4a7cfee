package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"turbotunnel/common/handshake"
	"turbotunnel/test/cdn"
	"turbotunnel/test/proc"
)

// counter counts bytes.
type counter struct{ atomic.Int64 }

// binaries are the files of both programs, as users make them.
type binaries struct{ client, server string }

const (
	// startLimit is how long a program may take to start.
	startLimit = 30 * time.Second

	// watchEvery is how often the server's memory is looked at.
	watchEvery = 100 * time.Millisecond

	// pingEvery is how long the healthy client pauses between two questions.
	pingEvery = 20 * time.Millisecond

	// pingLimit is how long an answer may take before the stream counts as lost.
	pingLimit = 15 * time.Second
)

// A rig is one server under attack: the server, what it forwards to, a healthy
// client beside the attacker, and who watches the server's memory.
type rig struct {
	dir     string
	url     string // of the server
	addr    string
	metrics string
	key     handshake.PublicKey
	full    bool // the attack at full size
	target  *target
	server  *proc.Process
	clients []*proc.Process
	bin     binaries
	sent    counter // bytes of the attacker's bodies

	args  []string       // of the server
	site  *http.Server   // shown to strangers; nil: none
	front net.Listener   // of the proxy before the server; nil: none
	group sync.WaitGroup // of both

	watch  *watch
	health *health
}

// size is how many of something the attack takes.
func (r *rig) size(full, small int) int {
	if r.full {
		return full
	}
	return small
}

var bridgeKey = regexp.MustCompile(`key=([A-Za-z0-9_-]{43})`)

// A setup is what is special about the server of an attack.
type setup struct {
	site  bool // it shows another web site to strangers
	proxy bool // it ends TLS itself, behind a proxy that speaks the PROXY protocol
}

// flags are the server's for this setup.
func (r *rig) flags(s setup) ([]string, error) {
	var flags []string
	if s.site {
		l, err := net.Listen("tcp4", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		r.site = &http.Server{Handler: http.HandlerFunc(site)}
		r.group.Go(func() { r.site.Serve(l) }) //nolint:errcheck // it is closed
		flags = append(flags, "-decoy", "http://"+l.Addr().String())
	}
	if s.proxy {
		cert, err := cdn.WriteCA(filepath.Join(r.dir, "ca.pem"), proxiedHost)
		if err != nil {
			return nil, err
		}
		certName, keyName := filepath.Join(r.dir, "cert.pem"), filepath.Join(r.dir, "key.pem")
		if err := cdn.WritePEM(cert, certName, keyName); err != nil {
			return nil, err
		}
		flags = append(flags, "-tls-cert", certName, "-tls-key", keyName, "-proxy-protocol", "-trusted-proxies", "127.0.0.0/8")
	}
	return flags, nil
}

// proxiedHost is the name in the certificate of a server that ends TLS itself.
const proxiedHost = "server.example"

// proxyHeader is what a proxy puts before each connection.
const proxyHeader = "PROXY TCP4 192.0.2.1 192.0.2.2 1000 443\r\n"

// site is the web site that strangers see.
func site(w http.ResponseWriter, r *http.Request) {
	io.Copy(io.Discard, r.Body) //nolint:errcheck // whatever ends it
	if r.URL.Path != "/" {
		http.NotFound(w, r)
		return
	}
	io.WriteString(w, "<h1>the site</h1>") //nolint:errcheck // likewise
}

// proxied passes connections on to the server with proxyHeader before them.
func (r *rig) proxied() (addr string, err error) {
	if r.front, err = net.Listen("tcp4", "127.0.0.1:0"); err != nil {
		return "", err
	}
	r.group.Go(func() {
		for {
			c, err := r.front.Accept()
			if err != nil {
				return
			}
			r.group.Go(func() {
				defer c.Close()
				to, err := net.Dial("tcp4", r.addr)
				if err != nil {
					return
				}
				defer to.Close()
				io.WriteString(to, proxyHeader) //nolint:errcheck // the copies say it
				r.group.Go(func() {
					io.Copy(c, to) //nolint:errcheck // whatever ends it
					c.Close()
				})
				io.Copy(to, c) //nolint:errcheck // likewise
			})
		}
	})
	return r.front.Addr().String(), nil
}

// newRig starts a server, and who is to suffer with it.
func newRig(ctx context.Context, bin binaries, full bool, how setup) (*rig, error) {
	dir, err := os.MkdirTemp("", "turbotunnel-hostile")
	if err != nil {
		return nil, err
	}
	r := &rig{dir: dir, full: full, bin: bin}
	if err := r.start(ctx, how); err != nil {
		return nil, errors.Join(err, r.close())
	}
	return r, nil
}

func (r *rig) start(ctx context.Context, how setup) error {
	addrs, err := proc.FreeAddrs(2)
	if err != nil {
		return err
	}
	r.addr, r.metrics = addrs[0], addrs[1]
	r.url = "http://" + r.addr
	if r.target, err = newTarget(); err != nil {
		return err
	}
	flags, err := r.flags(how)
	if err != nil {
		return err
	}
	r.args = slices.Concat([]string{"-state-dir", filepath.Join(r.dir, "state"), "-metrics", r.metrics}, flags, []string{r.addr, r.target.addr()})
	if err := r.startServer(ctx); err != nil {
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
	if r.key, err = handshake.ParsePublicKey(string(m[1])); err != nil {
		return err
	}
	local, err := r.startHealthy(ctx, how)
	if err != nil {
		return err
	}
	r.health = &health{addr: local}
	if err := r.health.start(); err != nil {
		return fmt.Errorf("the healthy client: %w\n%s", err, r.server.Tail())
	}
	r.watch = &watch{rig: r}
	r.watch.start()
	return nil
}

func (r *rig) startServer(ctx context.Context) (err error) {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	r.server, err = proc.StartServing(ctx, "turbotunnel-server", filepath.Join(r.dir, "server"), exec.Command(r.bin.server, r.args...), r.addr)
	return err
}

// restart kills the server and starts it again, with what it has kept. The healthy
// client's streams end with it, so that one asks nothing meanwhile.
func (r *rig) restart(ctx context.Context) error {
	r.health.stop()
	r.watch.stop()
	if err := r.server.Kill(); err != nil {
		return err
	}
	if err := r.startServer(ctx); err != nil {
		return err
	}
	r.watch.start()
	for until := time.Now().Add(startLimit); ; time.Sleep(watchEvery) {
		err := r.health.start()
		if err == nil || ctx.Err() != nil || time.Now().After(until) {
			return err
		}
	}
}

// startHealthy starts the healthy client.
func (r *rig) startHealthy(ctx context.Context, how setup) (addr string, err error) {
	if !how.proxy {
		return r.startClient(ctx, r.url)
	}
	front, err := r.proxied()
	if err != nil {
		return "", err
	}
	return r.startClient(ctx, "https://"+proxiedHost, "-addr", front)
}

// startClient starts a client of the server that it reaches at url, and returns
// where it listens.
func (r *rig) startClient(ctx context.Context, url string, flags ...string) (addr string, err error) {
	addrs, err := proc.FreeAddrs(1)
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	log := filepath.Join(r.dir, fmt.Sprint("client", len(r.clients)))
	cmd := exec.Command(r.bin.client, slices.Concat([]string{"-key", r.key.String()}, flags, []string{addrs[0], url})...)
	cmd.Env = append(os.Environ(), "SSL_CERT_FILE="+filepath.Join(r.dir, "ca.pem"))
	p, err := proc.StartServing(ctx, "turbotunnel-client", log, cmd, addrs[0])
	if err != nil {
		return "", err
	}
	r.clients = append(r.clients, p)
	return addrs[0], nil
}

// close ends everything.
func (r *rig) close() error {
	var errs []error
	if r.health != nil {
		r.health.stop()
	}
	if r.watch != nil {
		r.watch.stop()
	}
	for _, p := range r.clients {
		errs = append(errs, p.Stop())
	}
	if r.server != nil {
		errs = append(errs, r.server.Kill()) // it would wait for its streams
	}
	if r.target != nil {
		r.target.close()
	}
	if r.site != nil {
		r.site.Close()
	}
	if r.front != nil {
		r.front.Close()
	}
	r.group.Wait()
	return errors.Join(append(errs, os.RemoveAll(r.dir))...)
}

// cpu is how long the server has computed.
func (r *rig) cpu() time.Duration {
	u, _ := r.server.Usage() // who has ended has not computed
	return u.CPU
}

// descriptors is how many the server has open.
func (r *rig) descriptors() int {
	u, err := r.server.Usage()
	if err != nil {
		return -1
	}
	return u.Descriptors
}

// metric is the value of one of the server's metrics.
func (r *rig) metric(name string) (float64, error) {
	client := http.Client{Timeout: pingLimit}
	resp, err := client.Get("http://" + r.metrics + "/metrics")
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
		if rest, ok := strings.CutPrefix(lines.Text(), name+" "); ok {
			return strconv.ParseFloat(rest, 64)
		}
	}
	return 0, fmt.Errorf("no metric %s", name)
}

// A watch looks at the server's memory: what the machine says (RSS), and what the
// server says.
type watch struct {
	rig   *rig
	quit  chan struct{} // nil: it does not look
	group sync.WaitGroup
	base  memory     // at the start
	mu    sync.Mutex // guards what follows
	most  memory     // of each
}

// memory is in bytes.
type memory struct{ rss, said int64 }

func (w *watch) start() {
	quit := make(chan struct{})
	w.quit = quit
	if w.base == (memory{}) {
		w.base = w.look()
		w.most = w.base
	}
	w.group.Go(func() {
		for {
			select {
			case <-quit:
				return
			case <-time.After(watchEvery):
			}
			m := w.look()
			w.mu.Lock()
			w.most = memory{max(w.most.rss, m.rss), max(w.most.said, m.said)}
			w.mu.Unlock()
		}
	})
}

func (w *watch) look() memory {
	var m memory
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", w.rig.server.ID()))
	if fields := strings.Fields(string(text)); err == nil && len(fields) > 1 {
		pages, _ := strconv.ParseInt(fields[1], 10, 64)
		m.rss = pages * int64(os.Getpagesize())
	}
	if v, err := w.rig.metric("turbotunnel_memory_bytes"); err == nil {
		m.said = int64(v)
	}
	return m
}

// grown is by how much each has grown at most.
func (w *watch) grown() memory {
	w.mu.Lock()
	defer w.mu.Unlock()
	return memory{w.most.rss - w.base.rss, w.most.said - w.base.said}
}

// stop may be called twice.
func (w *watch) stop() {
	if w.quit != nil {
		close(w.quit)
		w.quit = nil
	}
	w.group.Wait()
}

// A health is a healthy client's user: it asks, waits for the answer, and opens
// new streams, and notes how long that takes.
type health struct {
	addr  string
	quit  chan struct{} // nil: it does not ask
	group sync.WaitGroup
	mu    sync.Mutex // guards what follows
	took  []time.Duration
	lost  []error
}

func (h *health) start() error {
	c, err := h.dial()
	if err != nil {
		return err
	}
	if _, err := ask(c); err != nil {
		c.Close()
		return err
	}
	quit := make(chan struct{})
	h.quit = quit
	h.group.Go(func() { h.run(c, quit) })
	return nil
}

func (h *health) dial() (net.Conn, error) {
	c, err := net.Dial("tcp4", h.addr)
	if err != nil {
		return nil, err
	}
	_, err = c.Write([]byte{askEcho})
	return c, err
}

// ask asks on an open stream.
func ask(c net.Conn) (time.Duration, error) {
	start := time.Now()
	c.SetDeadline(start.Add(pingLimit)) //nolint:errcheck // the next call says it
	question := random(100)
	if _, err := c.Write(question); err != nil {
		return 0, err
	}
	answer := make([]byte, len(question))
	if _, err := io.ReadFull(c, answer); err != nil {
		return 0, err
	}
	if string(answer) != string(question) {
		return 0, errors.New("another answer")
	}
	return time.Since(start), nil
}

// run asks on one stream that lives all the time, and now and then on a new one.
func (h *health) run(old net.Conn, quit <-chan struct{}) {
	defer func() { old.Close() }()
	for n := 1; ; n++ {
		select {
		case <-quit:
			return
		case <-time.After(pingEvery):
		}
		c := old
		if n%10 == 0 {
			var err error
			if c, err = h.dial(); err != nil {
				h.note(0, err)
				continue
			}
		}
		took, err := ask(c)
		h.note(took, err)
		if c != old {
			c.Close()
		} else if err != nil {
			old.Close()
			if old, err = h.dial(); err != nil {
				h.note(0, err)
				return
			}
		}
	}
}

func (h *health) note(took time.Duration, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err != nil {
		h.lost = append(h.lost, err)
	} else {
		h.took = append(h.took, took)
	}
}

// again waits until one more question has had its answer, or has been lost.
func (h *health) again(ctx context.Context) {
	was := h.asked()
	for until := time.Now().Add(2 * pingLimit); h.asked() == was && ctx.Err() == nil && time.Now().Before(until); {
		time.Sleep(pingEvery)
	}
}

// asked is how many questions have had their answer, or have been lost.
func (h *health) asked() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.took) + len(h.lost)
}

// stop may be called twice.
func (h *health) stop() {
	if h.quit != nil {
		close(h.quit)
		h.quit = nil
	}
	h.group.Wait()
}
