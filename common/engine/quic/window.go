package quic

import (
	"math"
	"reflect"
	"time"
	"unsafe"

	"github.com/quic-go/quic-go"
)

const (
	// congestionWindow is what may be on its way in bytes. The library keeps
	// account of 20000 packets (MaxOutstandingSentPackets in its internal/protocol).
	congestionWindow = 20000 * packetSize

	// firstWindow is the same for a path that has not shown yet whether it loses
	// or reorders. The library ends a connection when what has arrived has 1000
	// gaps (MaxStreamFrameSorterGaps); 3500 packets in random order have 875
	// when half of them have arrived.
	firstWindow = 3500 * packetSize

	// proof is how many packets are sent without a loss before firstWindow becomes
	// congestionWindow: half of them have arrived by then.
	proof = 2 * firstWindow / packetSize

	// reopenAfter is how long the window stays small after a loss. On the carrier
	// losses are rare and long over then; a bare network that loses all the time
	// gets the library's congestion control for most of it.
	reopenAfter = time.Second
)

// A window is a congestion window that openWindow gives, and what was known then.
type window struct {
	size       int64 // bytes
	at         time.Time
	sent, lost uint64 // packets
}

// next is the window that is due after w, which is nil at first, or nil.
func (w *window) next(stats quic.ConnectionStats, now time.Time) *window {
	size := int64(firstWindow)
	switch {
	case w == nil:
	case w.lost != stats.PacketsLost && now.Sub(w.at) >= reopenAfter:
		size = congestionWindow / 2
	case w.lost == stats.PacketsLost && w.size != congestionWindow && stats.PacketsSent-w.sent >= proof:
		size = congestionWindow
	default:
		return nil
	}
	return &window{size, now, stats.PacketsSent, stats.PacketsLost}
}

// write writes to str, and has openWindow called first when it is time.
func (s *session) write(str *quic.Stream, p []byte) (int, error) {
	last := s.window.Load()
	next := last.next(s.conn.ConnectionStats(), time.Now())
	if next == nil {
		return str.Write(p)
	}
	return str.WriteWithLimit(p, func(n int) int {
		if s.window.CompareAndSwap(last, next) {
			openWindow(s.conn, next.size) // it is the goroutine of the connection that asks
		}
		return n
	})
}

// openWindow gives conn's sender a congestion window of size bytes, if it has
// less, and has it double each round trip up to 12.8 MB until a loss.
//
// How much is on its way is the carrier's decision: it knows its path, and its
// WriteTo blocks. The library decides as well, and leaves slow start for good when
// the first 8 acknowledgements of a round are late (ShouldExitSlowStart in its
// internal/congestion). There is no setting for it. So the fields are set: the window,
// and a round that has counted its 8 and never ends.
//
// The sender belongs to the goroutine of conn. openWindow must be called on it. Names
// and types of the fields are those of v0.65.0; where they are different reflect
// panics before anything is set, and TestWindow fails.
func openWindow(conn *quic.Conn, size int64) {
	defer func() { _ = recover() }()
	sender := reflect.ValueOf(conn).Elem().FieldByName("sentPacketHandler").Elem().Elem().FieldByName("congestion").Elem().Elem()
	round := sender.FieldByName("hybridSlowStart")
	window, threshold := pointer[int64](sender, "congestionWindow"), pointer[int64](sender, "slowStartThreshold")
	end, samples := pointer[int64](round, "endPacketNumber"), pointer[uint32](round, "rttSampleCount")
	started, found := pointer[bool](round, "started"), pointer[bool](round, "hystartFound")
	*window = max(*window, size)
	*threshold, *end, *samples, *started, *found = math.MaxInt64, math.MaxInt64, 9, true, false
}

// pointer returns a pointer to a field of v, whose type is T or made from it.
func pointer[T int64 | uint32 | bool](v reflect.Value, name string) *T {
	f := v.FieldByName(name)
	if f.Kind() != reflect.TypeFor[T]().Kind() {
		panic(name)
	}
	return (*T)(unsafe.Pointer(f.UnsafeAddr()))
}
