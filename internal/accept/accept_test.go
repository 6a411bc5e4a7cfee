package accept

import (
	"context"
	"io"
	"log/slog"
	"net"
	"runtime"
	"strings"
	"testing"

	"turbotunnel/internal/logtest"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func dial(t *testing.T, addr net.Addr) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", addr.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// When there are as many connections as there may be, the next one waits in the
// listener's queue, the log says so once, and it is served when another has gone.
func TestAcceptingStopsBeforeTheReserve(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var log logtest.Buffer
	a := New(ln, 2, slog.New(slog.NewTextHandler(&log, nil)), func(c net.Conn) {
		io.Copy(c, c)
		c.Close()
	})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		a.Serve(ctx, func(int64) {})
	}()
	echo := func(c net.Conn) {
		t.Helper()
		io.WriteString(c, "x")
		if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
			t.Error(err)
		}
	}
	first, second := dial(t, ln.Addr()), dial(t, ln.Addr())
	echo(first)
	echo(second)
	third, fourth := dial(t, ln.Addr()), dial(t, ln.Addr())
	io.WriteString(third, "x")
	for !strings.Contains(log.String(), "limit of open files") {
		runtime.Gosched()
	}
	if n := a.open.Load(); n != 2 {
		t.Errorf("%d connections", n)
	}
	first.Close()
	io.ReadFull(third, make([]byte, 1))
	second.Close()
	echo(fourth)
	third.Close()
	fourth.Close()
	cancel()
	<-done
	if n := strings.Count(log.String(), "limit of open files"); n != 1 {
		t.Errorf("the log says it %d times", n)
	}
}
