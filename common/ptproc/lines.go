package ptproc

import (
	"fmt"
	"io"
	"sync"
	"time"
)

const (
	// pendingLimit bounds, in bytes, the lines that wait for a reader. A Linux
	// pipe holds 64 KB more.
	pendingLimit = 64 << 10

	// lineLimit is the size in bytes at which a line is cut. Nothing that the
	// programs say is longer; what a peer makes them quote may be.
	lineLimit = 4 << 10

	// flushTime is how long an ending program waits for somebody to read its
	// last lines.
	flushTime = time.Second
)

// A lineWriter hands lines to a writer that may block for ever, such as a pipe
// that nobody reads, without ever blocking itself. What finds no room is
// dropped and counted. Safe for concurrent use.
type lineWriter struct {
	dst io.Writer

	// dropped, if not nil, makes the line that tells how many are missing.
	dropped func(n int) string

	mu      sync.Mutex
	wake    sync.Cond // pending or closed has changed
	pending []byte    // lines that wait, whole
	missing int       // lines dropped since the last note of it
	closed  bool

	done chan struct{} // closed when the goroutine has ended
}

func newLineWriter(dst io.Writer, dropped func(n int) string) *lineWriter {
	w := &lineWriter{dst: dst, dropped: dropped, done: make(chan struct{})}
	w.wake.L = &w.mu
	go w.run()
	return w
}

// Write queues p, which is one line or several. It never fails.
func (w *lineWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed || len(w.pending)+len(p) > pendingLimit {
		w.missing++
		return len(p), nil
	}
	w.pending = append(w.pending, p...)
	w.wake.Signal()
	return len(p), nil
}

// run writes what is pending until the lineWriter is closed and empty.
func (w *lineWriter) run() {
	defer close(w.done)
	var batch []byte
	for {
		w.mu.Lock()
		for len(w.pending) == 0 && !w.closed {
			w.wake.Wait()
		}
		if len(w.pending) == 0 {
			w.mu.Unlock()
			return
		}
		batch, w.pending = w.pending, batch[:0]
		missing := w.missing
		w.missing = 0
		w.mu.Unlock()

		// An error means that nobody will read this any more, which must not
		// end the program.
		w.dst.Write(batch)
		if missing > 0 && w.dropped != nil {
			io.WriteString(w.dst, w.dropped(missing))
		}
	}
}

// Close takes no more lines and waits until those that are pending have been
// written, but no longer than flushTime. If the writer still blocks then, its
// goroutine stays behind: it ends when the writer does, or with the process.
func (w *lineWriter) Close() {
	w.mu.Lock()
	w.closed = true
	w.wake.Signal()
	w.mu.Unlock()
	select {
	case <-w.done:
	case <-time.After(flushTime):
	}
}

func droppedNote(n int) string {
	return fmt.Sprintf("%d log lines were dropped because nobody read them in time\n", n)
}
