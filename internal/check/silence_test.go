package check

import (
	"context"
	"net"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"turbotunnel/common/tunnel"
)

// A memory is a network without sockets: a listener, and how to reach it.
type memory struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func (m *memory) Accept() (net.Conn, error) {
	select {
	case c := <-m.conns:
		return c, nil
	case <-m.done:
		return nil, net.ErrClosed
	}
}

func (m *memory) Close() error {
	m.once.Do(func() { close(m.done) })
	return nil
}

func (m *memory) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 80} }

// An impatient connection does not outlive a silence of some length: it is reset, or,
// where it is lost, nothing comes through it any more.
type impatient struct {
	net.Conn
	limit time.Duration
	lost  bool

	mu    sync.Mutex
	spoke time.Time // guarded by mu
	over  bool      // guarded by mu
	timer *time.Timer
}

func newImpatient(c net.Conn, limit time.Duration, lost bool) *impatient {
	i := &impatient{Conn: c, limit: limit, lost: lost, spoke: time.Now()}
	i.timer = time.AfterFunc(limit, func() {
		i.mu.Lock()
		defer i.mu.Unlock()
		if i.over = true; !lost {
			c.Close()
		}
	})
	return i
}

// said notes that something was said, and tells whether it comes through.
func (i *impatient) said() bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.over && i.lost {
		return false
	}
	i.timer.Reset(i.limit)
	return true
}

func (i *impatient) Read(p []byte) (int, error) {
	n, err := i.Conn.Read(p)
	if n > 0 && !i.said() {
		return i.Read(p)
	}
	return n, err
}

func (i *impatient) Write(p []byte) (int, error) {
	if !i.said() {
		return len(p), nil
	}
	return i.Conn.Write(p)
}

func (i *impatient) Close() error {
	i.timer.Stop()
	return i.Conn.Close()
}

// TestSilence: how long answers may be silent is found out, whatever the path does to
// those that are so for too long, and however short that is.
func TestSilence(t *testing.T) {
	const less = ": it works by asking more often"
	for _, c := range []struct {
		name        string
		limit       int // of the path, in seconds; 0: none
		lost        bool
		mode        string
		state       State
		want        string // N is the seconds that pass
		least, most int    // of N
	}{
		{"any", 0, false, "", OK, "answers may be silent for N s and more", 90, 120},
		{"any, polled", 0, false, "poll", OK, "answers may be silent for N s and more", 90, 120},
		{"a minute", 60, false, "", OK, "answers that are silent for 60 s are cut; N s pass", 36, 48},
		{"a minute, polled", 60, false, "poll", OK, "answers that are silent for 60 s are cut; N s pass", 36, 48},
		{"a minute, then nothing", 61, true, "", OK, "answers that are silent for 120 s are cut; N s pass", 45, 60},
		{"little", 20, false, "", Odd, "answers that are silent for 20 s are cut; N s pass" + less, 12, 16},
		{"none", 2, false, "", Odd, "answers that are silent are cut, however short that is" + less, 0, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				step := lastStep(t, time.Duration(c.limit)*time.Second, c.lost, c.mode)
				pattern := strings.Replace(regexp.QuoteMeta(c.want), "N", `(\d+)`, 1)
				found := regexp.MustCompile("^" + pattern + "$").FindStringSubmatch(step.Text)
				if step.Name != "silence" || step.State != c.state || found == nil {
					t.Fatalf("%+v, want %q", step, c.want)
				}
				if len(found) > 1 {
					if n, _ := strconv.Atoi(found[1]); n < c.least || n > c.most {
						t.Errorf("%q, want %d to %d", step.Text, c.least, c.most)
					}
				}
			})
		})
	}
}

// lastStep is the last one of a check with -long on a path that does not let answers be
// silent for longer than limit; 0: it does.
func lastStep(t *testing.T, limit time.Duration, lost bool, mode string) Step {
	t.Helper()
	key := tunnel.NewKey()
	server := tunnel.NewServer(tunnel.ServerConfig{Key: key})
	ln := &memory{conns: make(chan net.Conn), done: make(chan struct{})}
	web := &http.Server{Handler: server}
	served := make(chan struct{})
	go func() {
		defer close(served)
		web.Serve(ln)
	}()
	defer func() {
		server.Close()
		web.Close()
		<-served
	}()
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		here, there := net.Pipe()
		if limit > 0 {
			here = newImpatient(here, limit, lost)
		}
		select {
		case ln.conns <- there:
			return here, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	cfg := tunnel.Config{URL: "http://192.0.2.1/secret", Key: key.Public(), Mode: mode}
	report, err := Bridge(t.Context(), cfg, Options{Long: true, Dial: dial}, Silent{})
	if err != nil {
		t.Fatal(err)
	}
	steps := report.Fronts[0].Steps
	return steps[len(steps)-1]
}

// A step that takes long says so while it does, and its line is whole when it ends.
func TestWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out strings.Builder
		r := Recorder{Observer: &Printer{Out: &out}}
		r.Take("silence", func() Finding {
			time.Sleep(3*waitsEvery + time.Second)
			return Finding{Text: "long"}
		})
		r.Take("TCP", func() Finding { return Finding{Text: "short"} })
		want := "  silence      ...✓     31 s  long\n  TCP          ✓     0 ms  short\n"
		if out.String() != want {
			t.Errorf("%q, want %q", out.String(), want)
		}
	})
}
