package ptproc

import (
	"context"
	"errors"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// drainTime is how long streams may go on after the program was told to
	// stop. It is the ShutdownWaitLength that tor gives its own connections.
	drainTime = 30 * time.Second

	// managedDrainTime is the same under tor, which has drained already when it
	// ends its transports, and starts another when its configuration changes,
	// which then waits for the port. Bytes on their way arrive in it.
	managedDrainTime = 2 * time.Second

	// endTime is how long the program may take to end when all has been cut. The
	// process ends then, whatever it waits for: under tor it is gone 5 s after
	// it was told to.
	endTime = 2500 * time.Millisecond

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
	drainTime    atomic.Int64 // a time.Duration
	ended        chan struct{}
	watchers     sync.WaitGroup // all goroutines but those that read stdin and files
}

// sources are what a lifetime watches. A nil field is not watched.
type sources struct {
	signals <-chan os.Signal // each has the program end
	hangups <-chan os.Signal
	stdin   io.Reader
	parent  func() int // the parent's process ID

	// hangup is what one of hangups means. It may block.
	hangup func()

	// exit ends the process at a second signal, or when it does not end.
	exit func(code int)
}

func newLifetime(src sources, drain time.Duration) *lifetime {
	l := &lifetime{ended: make(chan struct{})}
	l.drainTime.Store(int64(drain))
	l.stopping, l.stop = context.WithCancelCause(context.Background())
	l.draining, l.expire = context.WithCancelCause(context.Background())
	l.watchers.Go(func() { l.drain(src.exit) })
	if src.signals != nil {
		l.watchers.Go(func() { l.watchSignals(src) })
	}
	if src.hangups != nil {
		// It opens files, which can take for ever: a named pipe that nobody reads, a
		// server of files that is away. The signals that end the program do not wait
		// for that, nor does its end.
		go l.watchHangups(src)
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

// drain ends the draining context some time after the stopping one, and the
// process when that does not have it end.
func (l *lifetime) drain(exit func(int)) {
	select {
	case <-l.stopping.Done():
	case <-l.ended:
		return
	}
	select {
	case <-time.After(time.Duration(l.drainTime.Load())):
		l.expire(context.Cause(l.stopping))
	case <-l.ended:
		return
	}
	select {
	case <-time.After(endTime):
		exit(0)
	case <-l.ended:
	}
}

func (l *lifetime) watchSignals(src sources) {
	for told := false; ; told = true {
		select {
		case <-src.signals:
			if told {
				src.exit(1)
				return
			}
			l.stop(errSignal)
		case <-l.ended:
			return
		}
	}
}

func (l *lifetime) watchHangups(src sources) {
	for {
		select {
		case <-src.hangups:
			src.hangup()
		case <-l.ended:
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
	close(l.ended)
	l.stop(errClosed)
	l.expire(errClosed)
	l.watchers.Wait()
}
