package quic

import (
	"reflect"
	"time"

	"github.com/quic-go/quic-go"
)

// The library ends a connection when what has arrived has 1000 gaps
// (MaxStreamFrameSorterGaps in its internal/protocol). So until a path has proved that
// it neither loses nor reorders, 3500 packets are on their way: in random order they
// have 875 gaps when half of them have arrived.
const (
	firstWindow      = 3500 * packetSize
	proof            = 2 * firstWindow / packetSize // packets sent without a loss, of which half have arrived
	congestionWindow = 20000 * packetSize           // the library keeps account of so many (MaxOutstandingSentPackets)

	// reopenAfter is how long the window stays small after a loss. On the carrier
	// losses are rare and long over then; a bare network that loses all the time
	// gets the library's congestion control for most of it.
	reopenAfter = time.Second
)

// A window is what was known when openWindow was called last.
type window struct {
	at         time.Time
	sent, lost uint64 // packets
}

// write writes to str, and has openWindow called first when it is time.
func (s *session) write(str *quic.Stream, p []byte) (int, error) {
	last, stats, now := s.window.Load(), s.conn.ConnectionStats(), time.Now()
	var size int64
	switch {
	case last == nil:
		size = firstWindow
	case last.lost != stats.PacketsLost && now.Sub(last.at) >= reopenAfter:
		size = congestionWindow / 2
	case last.lost == stats.PacketsLost && stats.PacketsSent-last.sent >= proof && stats.CongestionWindow < congestionWindow:
		size = congestionWindow
	default:
		return str.Write(p)
	}
	return str.WriteWithLimit(p, func(n int) int {
		if s.window.CompareAndSwap(last, &window{now, stats.PacketsSent, stats.PacketsLost}) {
			openWindow(s.conn, size) // it is the goroutine of the connection that asks
		}
		return n
	})
}

// openWindow gives conn's sender a congestion window of size bytes, if it has less.
//
// How much is on its way is the carrier's decision: it knows its path, and its
// WriteTo blocks. The library takes a late acknowledgement for a full path, and has
// no setting for it (doc/engines.md, quic-go). So the field is set, which belongs to
// the goroutine of conn: openWindow must be called on it. Names are those of v0.65.0;
// where they are different reflect panics before anything is set, and TestWindow fails.
func openWindow(conn *quic.Conn, size int64) {
	defer func() { _ = recover() }()
	sender := reflect.ValueOf(conn).Elem().FieldByName("sentPacketHandler").Elem().Elem().FieldByName("congestion").Elem().Elem()
	window := sender.FieldByName("congestionWindow")
	settable := reflect.NewAt(window.Type(), window.Addr().UnsafePointer()).Elem()
	settable.SetInt(max(window.Int(), size))
}
