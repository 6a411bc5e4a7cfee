package ptproc

import (
	"context"
	"errors"
	"io"
	"os"
	"sync"
	"time"
)

const (
	// DrainTime is how long streams may go on after the program was told to
	// stop. It is the ShutdownWaitLength that tor gives its own connections.
	DrainTime = 30 * time.Second

	// parentInterval is how often the program looks whether its parent lives.
	// Nobody waits for the answer, and a second of it costs nothing. Linux
	// could send a signal (PR_SET_PDEATHSIG), but sends it when the thread
	// that started the program ends, which is not the parent's end.
	parentInterval = time.Second
)

// What ends a program, as the cause of its Stopping context.
var (
	errSignal   = errors.New("told by a signal")
	errStdin    = errors.New("tor closed stdin")
	errOrphaned = errors.New("the parent process has ended")
	errClosed   = errors.New("the program has ended")
)

// A lifetime turns what happens to a process into two contexts: one that ends
// when the program shall stop, one that ends when it has had its time for that.
type lifetime struct {
	stopping, draining context.Context

	stop, expire context.CancelCauseFunc
	watchers     sync.WaitGroup // all goroutines but the one that reads stdin
}

// sources are what a lifetime watches. A nil field is not watched.
type sources struct {
	signals <-chan os.Signal
	stdin   io.Reader
	parent  func() int // the parent's process ID

	// exit ends the process at a second signal.
	exit func(code int)
}

func newLifetime(src sources) *lifetime {
	l := new(lifetime)
	l.stopping, l.stop = context.WithCancelCause(context.Background())
	l.draining, l.expire = context.WithCancelCause(context.Background())
	l.watchers.Go(l.drain)
	if src.signals != nil {
		l.watchers.Go(func() { l.watchSignals(src.signals, src.exit) })
	}
	if src.parent != nil {
		born := src.parent()
		l.watchers.Go(func() { l.watchParent(src.parent, born) })
	}
	if src.stdin != nil {
		// A read from an inherited pipe cannot be interrupted: this goroutine
		// ends with stdin or with the process.
		go func() {
			io.Copy(io.Discard, src.stdin)
			l.stop(errStdin)
		}()
	}
	return l
}

// drain ends the draining context DrainTime after the stopping one.
func (l *lifetime) drain() {
	select {
	case <-l.stopping.Done():
	case <-l.draining.Done():
		return
	}
	timer := time.NewTimer(DrainTime)
	defer timer.Stop()
	select {
	case <-timer.C:
		l.expire(context.Cause(l.stopping))
	case <-l.draining.Done():
	}
}

func (l *lifetime) watchSignals(signals <-chan os.Signal, exit func(int)) {
	for n := 0; ; n++ {
		select {
		case <-signals:
			if n > 0 {
				exit(1)
				return
			}
			l.stop(errSignal)
		case <-l.draining.Done():
			return
		}
	}
}

func (l *lifetime) watchParent(parent func() int, born int) {
	ticker := time.NewTicker(parentInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			if parent() != born {
				l.stop(errOrphaned)
				return
			}
		case <-l.stopping.Done():
			return
		}
	}
}

// close ends both contexts and waits for the watchers.
func (l *lifetime) close() {
	l.stop(errClosed)
	l.expire(errClosed)
	l.watchers.Wait()
}
