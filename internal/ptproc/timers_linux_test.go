//go:build !cgo

package ptproc

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
)

// All threads of the process may be woken late, the runtime's own among them, as far as
// who runs the test may ask for others than the one that asks.
func TestRelaxTimers(t *testing.T) {
	const usual = 50 * time.Microsecond
	defer syscall.AllThreadsSyscall(syscall.SYS_PRCTL, syscall.PR_SET_TIMERSLACK, uintptr(usual), 0)
	runtime.LockOSThread() // whoever runs the test may ask for this one
	defer runtime.UnlockOSThread()
	RelaxTimers()
	threads, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	asked := 0
	for _, thread := range threads {
		slack, err := os.ReadFile(fmt.Sprintf("/proc/%s/timerslack_ns", thread.Name()))
		if errors.Is(err, syscall.EPERM) || errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		asked++
		if got := strings.TrimSpace(string(slack)); got != fmt.Sprint(timerSlack.Nanoseconds()) {
			t.Errorf("thread %s: %s ns", thread.Name(), got)
		}
	}
	if asked == 0 {
		t.Error("no thread tells its slack")
	}
}
