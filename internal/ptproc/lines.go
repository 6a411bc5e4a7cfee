package ptproc

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"sync"
	"syscall"
	"time"
)

const (
	// pendingLimit bounds, in bytes, the lines that wait for a reader. A Linux
	// pipe holds 64 KB more.
	pendingLimit = 64 << 10

	// lineLimit is the size in bytes at which a text is shortened, with a mark at
	// its end. Nothing that the programs say is longer; what a peer makes them
	// quote may be.
	lineLimit = 4 << 10

	// atomicLimit is how many bytes a pipe takes whole or not at all (PIPE_BUF of
	// Linux, the smallest of all systems being 512). What tor is told fits.
	atomicLimit = 4 << 10

	// busyPause is how long a writer rests that would have to wait and was told
	// not to, because somebody shares its descriptor and has set O_NONBLOCK.
	busyPause = 20 * time.Millisecond

	// flushTime is how long an ending program waits for somebody to read its
	// last lines.
	flushTime = time.Second
)

// A lineWriter hands lines to a writer that may block for ever, such as a pipe
// that nobody reads, without ever blocking itself. What finds no room is
// dropped, each line whole, and counted. Safe for concurrent use.
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

		// Line by line: a pipe takes each whole or not at all, so that no half of
		// one stays there when the program ends without a reader.
		for line := range bytes.Lines(batch) {
			w.writeLine(line)
		}
		if missing > 0 && w.dropped != nil {
			w.writeLine([]byte(w.dropped(missing)))
		}
	}
}

// writeLine writes all of line. An error means that nobody will read it any more,
// which must not end the program; but one that only means that there is no room
// now leaves the rest of the line for later.
func (w *lineWriter) writeLine(line []byte) {
	for {
		n, err := w.dst.Write(line)
		line = line[n:]
		if !errors.Is(err, syscall.EAGAIN) {
			return
		}
		time.Sleep(busyPause)
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
