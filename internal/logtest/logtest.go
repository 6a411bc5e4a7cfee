// Package logtest is where tests let programs say what they have to say.
package logtest

import (
	"strings"
	"sync"
)

// A Buffer holds what was written to it. The zero value is empty. Safe for concurrent
// use: a log is read while it is written.
type Buffer struct {
	mu   sync.Mutex
	text strings.Builder // guarded by mu
}

func (b *Buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

// String returns all that was written so far.
func (b *Buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}
