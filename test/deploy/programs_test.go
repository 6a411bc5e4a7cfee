package deploy

import (
	"context"
	"os"
	"testing"

	"turbotunnel/test/proc"
	"turbotunnel/test/programs"
	"turbotunnel/test/target"
)

func TestMain(m *testing.M) { os.Exit(programs.Main(m)) }

// startServer starts turbotunnel-server on listen, with its key in state.
func startServer(t *testing.T, listen, state, forward string, flags ...string) *proc.Process {
	t.Helper()
	return programs.StartServer(t, listen, forward, append([]string{"-state-dir", state}, flags...)...)
}

// startClient starts turbotunnel-client, which trusts the authorities in
// caFile.
func startClient(t *testing.T, caFile, url string, flags ...string) *programs.Tunnel {
	t.Helper()
	return programs.StartClient(t, url, []string{"SSL_CERT_FILE=" + caFile}, flags...)
}

// startTarget starts where streams go.
func startTarget(t *testing.T) *target.Server {
	t.Helper()
	s, err := target.Start()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// A watch calls what it is told to when so many bytes have passed.
type watch struct {
	seen int64
	at   map[int64]func()
}

func (w *watch) Write(p []byte) (int, error) {
	w.seen += int64(len(p))
	for n, do := range w.at {
		if w.seen >= n {
			delete(w.at, n)
			do()
		}
	}
	return len(p), nil
}

// move moves size bytes each way, one after the other, checks all of them, and
// calls each of events in each direction when its share of them has passed.
func move(t *testing.T, to *target.Server, c *programs.Tunnel, size int64, events map[float64]func()) {
	t.Helper()
	watching := func() *watch {
		w := &watch{at: make(map[int64]func())}
		for share, do := range events {
			w.at[int64(share*float64(size))] = do
		}
		return w
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*programs.WaitLimit)
	defer cancel()
	if err := to.Download(ctx, c.HTTP, 1, size, watching()); err != nil {
		t.Fatalf("%v\n%s", err, c.Tail())
	}
	if err := to.Upload(ctx, c.HTTP, 2, size, watching()); err != nil {
		t.Fatalf("%v\n%s", err, c.Tail())
	}
}
