package carrier

import (
	"math"
	"runtime/debug"
	"sync/atomic"
)

const (
	// promisePart of what a client's sessions may hold, one in so many, may be
	// promised to what comes, and sendPart kept of what goes: carriers keep it until
	// it is acknowledged, and engines once or twice more (sctp). What is left is for
	// the rest, and for what buffers and Go's heap lose.
	promisePart = 2
	sendPart    = 4

	// leastSending is how many bytes a session may keep in any case: what goes in
	// the smallest window, and waits.
	leastSending = minFlight + queueLimit
)

// A Memory is how much the sessions of a client may hold together, of which no
// session is ended: one that has as much as it may says no more until some of it is
// acknowledged, and lets the other side send no more than it has room for. The server
// has a budget in its place, because its peers need not keep to anything. Safe for
// concurrent use.
type Memory struct {
	limit    int64        // bytes; constant
	held     account      // of all sessions
	promised account      // of them, like sending
	sending  atomic.Int64 // bytes that wait to be sent or acknowledged
}

// NewMemory returns a Memory of limit bytes; 0: half of Go's memory limit, 1 GiB at
// most.
func NewMemory(limit int64) *Memory {
	if limit == 0 {
		limit = min(debug.SetMemoryLimit(-1)/2, defaultMemory) // -1 asks
	}
	return &Memory{limit: limit}
}

// Held is how many bytes the sessions hold now.
func (m *Memory) Held() int64 { return m.held.bytes() }

// left is how many bytes more may be promised.
func (m *Memory) left() int {
	return int(min(max(m.limit/promisePart-m.promised.bytes(), 0), math.MaxInt))
}

// mayKeep tells whether a session that keeps so many bytes to be sent may take
// more: if it is less than half of what the others leave, so that those who want more
// than there is have equal parts.
func (m *Memory) mayKeep(bytes int) bool {
	others := m.sending.Load() - int64(bytes)
	return int64(bytes) < max(leastSending, (m.limit/sendPart-others)/2)
}
