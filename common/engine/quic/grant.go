package quic

import (
	"time"

	"github.com/quic-go/quic-go"
)

const (
	// congestionWindow is what may be on its way in bytes. The library keeps
	// account of 20000 packets (MaxOutstandingSentPackets in its
	// internal/protocol).
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

// A grant is a congestion window that openWindow gives, and what was known then.
type grant struct {
	size       int64 // bytes
	at         time.Time
	sent, lost uint64 // packets
}

// next is the grant that is due after g, which is nil at first, or nil.
func (g *grant) next(stats quic.ConnectionStats, now time.Time) *grant {
	size := int64(firstWindow)
	switch {
	case g == nil:
	case g.lost != stats.PacketsLost && now.Sub(g.at) >= reopenAfter:
		size = congestionWindow / 2
	case g.lost == stats.PacketsLost && g.size != congestionWindow && stats.PacketsSent-g.sent >= proof:
		size = congestionWindow
	default:
		return nil
	}
	return &grant{size, now, stats.PacketsSent, stats.PacketsLost}
}
