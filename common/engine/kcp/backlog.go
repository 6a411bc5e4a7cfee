package kcp

import "time"

const (
	// minBacklog and maxBacklog bound the bytes taken from the stream that the carrier
	// has not taken yet. What waits goes on in lumps of half of it, and behind
	// each stage after KCP, on both sides, stand as many bytes as the one before it
	// makes at a time. With 1 MB a ping beside a download on loopback takes 26 ms, with
	// 512 KB 22, with 256 KB 14, and with 128 KB 10, but then a download loses 7 % of
	// its rate.
	minBacklog = 32 << 10
	maxBacklog = 256 << 10

	// backlogTime is how long what is said next waits behind the backlog where the
	// carrier is the limit.
	backlogTime = 5 * time.Millisecond

	// backlogSpan is the least time over which it is judged how fast the carrier is. It
	// takes bytes in lumps, as its acknowledgements come, some 30 ms apart: judged by
	// one of them, the backlog is as large as may be, and a ping beside a download
	// with 100 ms and 100 Mbit/s waits for that.
	backlogSpan = 50 * time.Millisecond
)

// A backlog says how many bytes may wait for the carrier: what it takes in backlogTime.
// The Conn's mutex guards it.
type backlog struct {
	limit int
	since time.Time // when the span began
	taken int64     // bytes that the carrier has taken in it
}

// left takes note that the carrier has taken n bytes.
func (b *backlog) left(n int, now time.Time) {
	b.taken += int64(n)
	if span := now.Sub(b.since); span >= backlogSpan {
		b.limit = min(max(int(b.taken*int64(backlogTime)/int64(span)), minBacklog), maxBacklog)
		b.since, b.taken = now, 0
	}
}

// most is how many bytes may wait: more if much is on its way, as each flush goes
// through that, and takes its time (flushPause). Without this a first transfer with
// 200 ms and 500 Mbit/s loses a fortieth of the path.
func (b *backlog) most(f *flight) int {
	return min(max(b.limit, int(f.size())*SegmentSize/16), maxBacklog)
}
