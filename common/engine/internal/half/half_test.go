package half

import (
	"sync"
	"testing"
	"time"

	"turbotunnel/common/engine"
)

// TestForget: a deadline that is set while the stream is closed leaves no call with
// another error than that it is closed.
func TestForget(t *testing.T) {
	closed := func([]byte, <-chan struct{}) (int, error) { return 0, engine.ErrClosed }
	for range 20_000 { // when they meet is chance
		b := New(nil, closed, closed)
		var setting sync.WaitGroup
		setting.Go(func() { b.SetDeadline(time.Unix(0, 0)) })
		b.Forget()
		setting.Wait()
		if _, err := b.Read(nil); err != engine.ErrClosed {
			t.Fatalf("Read: %v", err)
		}
		if _, err := b.Write(nil); err != engine.ErrClosed {
			t.Fatalf("Write: %v", err)
		}
	}
}
