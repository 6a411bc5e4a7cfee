package ptproc

import (
	"context"
	"errors"
	"io"
	"os"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

func TestSignalStopsThenDrains(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		signals := make(chan os.Signal)
		l := newLifetime(sources{signals: signals, exit: func(int) { t.Error("exit at the first signal") }})
		signals <- syscall.SIGTERM
		<-l.stopping.Done()
		told := time.Now()
		if cause := context.Cause(l.stopping); !errors.Is(cause, errSignal) {
			t.Errorf("cause %v", cause)
		}
		if l.draining.Err() != nil {
			t.Error("streams had no time")
		}
		<-l.draining.Done()
		if took := time.Since(told); took != DrainTime {
			t.Errorf("streams had %v, want %v", took, DrainTime)
		}
		l.close()
	})
}

func TestSecondSignalExits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		signals := make(chan os.Signal)
		exited := make(chan int, 1)
		l := newLifetime(sources{signals: signals, exit: func(code int) { exited <- code }})
		signals <- os.Interrupt
		signals <- os.Interrupt
		if code := <-exited; code != 1 {
			t.Errorf("exit code %d, want 1", code)
		}
		l.close()
	})
}

func TestEndOfStdinStops(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, w := io.Pipe()
		l := newLifetime(sources{stdin: r})
		io.WriteString(w, "tor writes nothing, but might")
		synctest.Wait()
		if l.stopping.Err() != nil {
			t.Fatal("stopped before the end")
		}
		w.Close()
		<-l.stopping.Done()
		if cause := context.Cause(l.stopping); !errors.Is(cause, errStdin) {
			t.Errorf("cause %v", cause)
		}
		l.close()
	})
}

func TestParentsEndStops(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var parent atomic.Int64
		parent.Store(4711)
		l := newLifetime(sources{parent: func() int { return int(parent.Load()) }})
		time.Sleep(time.Hour)
		if l.stopping.Err() != nil {
			t.Fatal("stopped while the parent lived")
		}
		parent.Store(1)
		<-l.stopping.Done()
		if cause := context.Cause(l.stopping); !errors.Is(cause, errOrphaned) {
			t.Errorf("cause %v", cause)
		}
		l.close()
	})
}
