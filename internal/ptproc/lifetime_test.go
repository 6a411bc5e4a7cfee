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
		l := newLifetime(sources{signals: signals, exit: func(int) { t.Error("exit at the first signal") }}, drainTime)
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
		if took := time.Since(told); took != drainTime {
			t.Errorf("streams had %v, want %v", took, drainTime)
		}
		l.close()
	})
}

// A program under tor is gone within 5 seconds, whatever it waits for.
func TestWhatDoesNotEndIsEnded(t *testing.T) {
	if managedDrainTime+endTime >= 5*time.Second {
		t.Error("too long")
	}
	synctest.Test(t, func(t *testing.T) {
		exited := make(chan int, 1)
		signals := make(chan os.Signal)
		l := newLifetime(sources{signals: signals, exit: func(code int) { exited <- code }}, managedDrainTime)
		signals <- syscall.SIGTERM
		told := time.Now()
		if code := <-exited; code != 0 {
			t.Errorf("exit code %d, want 0", code)
		}
		if took := time.Since(told); took != managedDrainTime+endTime {
			t.Errorf("took %v", took)
		}
		l.close()
	})
}

func TestHangupNeverEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hangups := make(chan os.Signal)
		heard := make(chan struct{}, 3)
		l := newLifetime(sources{hangups: hangups, hangup: func() { heard <- struct{}{} }, exit: func(int) { t.Error("exit") }}, drainTime)
		for range 3 {
			hangups <- syscall.SIGHUP
		}
		time.Sleep(time.Hour)
		if len(heard) != 3 || l.stopping.Err() != nil {
			t.Errorf("heard %d times; stopping: %v", len(heard), l.stopping.Err())
		}
		l.close()
	})
}

// What SIGHUP has the program do may never be over: it ends by signals all the same,
// and at once by a second one.
func TestHangupThatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		signals, hangups := make(chan os.Signal), make(chan os.Signal)
		away := make(chan struct{})
		exited := make(chan int, 1)
		l := newLifetime(sources{
			signals: signals, hangups: hangups,
			hangup: func() { <-away }, exit: func(code int) { exited <- code },
		}, drainTime)
		hangups <- syscall.SIGHUP
		signals <- syscall.SIGTERM
		<-l.stopping.Done()
		signals <- syscall.SIGTERM
		if code := <-exited; code != 1 {
			t.Errorf("exit code %d, want 1", code)
		}
		l.close()
		close(away)
	})
}

func TestSecondSignalExits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		signals := make(chan os.Signal)
		exited := make(chan int, 1)
		l := newLifetime(sources{signals: signals, exit: func(code int) { exited <- code }}, drainTime)
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
		l := newLifetime(sources{stdin: r}, drainTime)
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
		l := newLifetime(sources{parent: func() int { return int(parent.Load()) }}, drainTime)
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
