package deploy

import (
	"flag"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	"turbotunnel/test/cdn"
	"turbotunnel/test/guide"
	"turbotunnel/test/netpath"
	"turbotunnel/test/programs"
)

// How long TestCost measures. For the numbers in doc/deploy-cdn.md:
//
//	go -C test test ./deploy -run TestCost -v -timeout 1h -args -idle 10m -bulk 64
var (
	idleTime = flag.Duration("idle", 5*time.Second, "how long TestCost watches an idle session")
	bulkSize = flag.Int64("bulk", 4, "how many MB TestCost moves each way")
)

// What a CDN bills.
type bill struct {
	requests int64
	up, down int64 // bytes of requests and of answers, heads included
}

// minus is at least 0: requests are padded at random, and c may have had more
// of that.
func (b bill) minus(c bill) bill {
	return bill{max(b.requests-c.requests, 0), max(b.up-c.up, 0), max(b.down-c.down, 0)}
}

// billed adds up the log of a CDN.
func billed(t *testing.T, c *guide.CDN) (b bill) {
	t.Helper()
	for _, fields := range c.Requests(t) {
		up, err1 := strconv.ParseInt(fields[4], 10, 64)
		down, err2 := strconv.ParseInt(fields[5], 10, 64)
		if err1 != nil || err2 != nil {
			t.Fatalf("the CDN's log has the line %q", fields)
		}
		b.requests++
		b.up += up
		b.down += down
	}
	return b
}

// messageInterval and messages are how somebody types.
const (
	messageInterval = time.Second
	messages        = 10
)

// TestCost measures what users cost at a CDN: requests and bytes of a session
// that is opened and closed, that is idle, that carries a keystroke a second,
// and that moves much.
func TestCost(t *testing.T) {
	t.Parallel()
	var table strings.Builder
	w := tabwriter.NewWriter(&table, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "mode\twhat\trequests\tKB up\tKB down")
	for _, mode := range []string{"auto", "poll"} {
		measureCost(t, w, mode)
	}
	w.Flush()
	t.Logf("\n%s", &table)
}

func measureCost(t *testing.T, w io.Writer, mode string) {
	t.Helper()
	to := startTarget(t)
	origin, echo, state := programs.Addr(t), programs.Addr(t), programs.Folder(t)
	startServer(t, origin, state, to.Addr())
	startServer(t, echo, state, startEcho(t, "echo"))
	phase := func(origin string, do func(c *programs.Tunnel)) bill {
		t.Helper()
		f := guide.StartCDN(t, guide.Nginx, cdn.Front, origin)
		path, err := netpath.New(netpath.Config{RTT: 50 * time.Millisecond, Rate: 50_000_000}, f.Addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(path.Close)
		c := startClient(t, f.CAFile, "https://"+cdn.Origin+"/updates", "-key", programs.Key(t, state),
			"-front", cdn.Front, "-addr", path.Addr(), "-mode", mode)
		do(c)
		// All requests end with the client, and the CDN logs them at their end.
		if err := c.Stop(); err != nil {
			t.Fatal(err)
		}
		if err := f.Stop(); err != nil {
			t.Fatal(err)
		}
		return billed(t, f)
	}
	talk := func(do func(l *line)) func(*programs.Tunnel) {
		return func(c *programs.Tunnel) {
			l, err := open(c.Addr)
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			do(l)
		}
	}
	opened := phase(echo, talk(func(*line) {}))
	idle := phase(echo, talk(func(l *line) {
		// Nothing is to come: the deadline is the clock.
		_ = l.SetReadDeadline(time.Now().Add(*idleTime))
		if _, err := l.r.ReadByte(); err == nil {
			t.Error("a byte came from nowhere")
		} else if e, ok := err.(net.Error); !ok || !e.Timeout() {
			t.Errorf("the idle stream has ended: %v", err)
		}
	})).minus(opened)
	typed := phase(echo, talk(func(l *line) {
		for range messages {
			io.WriteString(l, "x")
			if b, err := l.r.ReadByte(); err != nil || b != 'x' {
				t.Fatalf("%q, %v", b, err)
			}
			_ = l.SetReadDeadline(time.Now().Add(messageInterval))
			l.r.ReadByte() // the clock again
			_ = l.SetReadDeadline(time.Now().Add(programs.WaitLimit))
		}
	})).minus(opened)
	bulk := *bulkSize << 20
	down := phase(origin, func(c *programs.Tunnel) {
		if err := to.Download(t.Context(), c.HTTP, 1, bulk, io.Discard); err != nil {
			t.Fatal(err)
		}
	}).minus(opened)
	up := phase(origin, func(c *programs.Tunnel) {
		if err := to.Upload(t.Context(), c.HTTP, 1, bulk, io.Discard); err != nil {
			t.Fatal(err)
		}
	}).minus(opened)

	row := func(what string, b bill) {
		fmt.Fprintf(w, "%s\t%s\t%d\t%.1f\t%.1f\n", mode, what, b.requests, float64(b.up)/1000, float64(b.down)/1000)
	}
	row("open and close", opened)
	row(fmt.Sprintf("idle for %v", *idleTime), idle)
	row(fmt.Sprintf("%d keystrokes", messages), typed)
	row(fmt.Sprintf("%d MB down", *bulkSize), down)
	row(fmt.Sprintf("%d MB up", *bulkSize), up)
	// What is carried is not compressed: as many bytes must have passed.
	if down.down < bulk || up.up < bulk {
		t.Errorf("%s: the CDN saw %d bytes down and %d up, less than the %d that were carried", mode, down.down, up.up, bulk)
	}
	if opened.requests == 0 {
		t.Errorf("%s: no requests", mode)
	}
}
